"""Alerts that the notify worker writes and delivers, on the real stores, to targets that answer in every way."""

from __future__ import annotations

import datetime as dt
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from starlette.testclient import TestClient

from infra.clickhouse.alerts import Alert, alert_id, insert_alerts
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.errors import AdclickError
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.published_status import publish_stop
from query.api.app import create_app
from query.keys import Keys
from query.notify.facts import read_usual_events
from query.notify.worker import NotifyWorker
from query.webhooks.deliveries import DeliveryStore
from query.webhooks.queues import RetryPolicy
from stream.hot.layout import ShardKeys, SpanField
from tests import borders
from tests.flow import worker_environment
from tests.integration.test_statements import DAYS, MONTH, RESTATED, Bills
from tests.product import PATIENCE, assert_stays, wait_until

Handle = Callable[[BaseHTTPRequestHandler, int], None]
# Quick enough for a test, and several attempts.
SOON = RetryPolicy(first_s=0.2, longest_s=1.0)


@dataclass
class Target:
    """An HTTP server on this machine, and what it was sent."""

    url: str
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """The ids of the messages, in the order in which they came."""
        return [headers["webhook-id"] for headers, _ in self.messages]


@contextmanager
def target(handle: Handle | None = None) -> Iterator[Target]:
    """A target. `handle(request, number)` answers the number-th request; without it, each is answered 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.messages.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if handle is None:
                answer(self, 204)
            else:
                handle(self, len(received.messages))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    received = Target(f"http://127.0.0.1:{server.server_address[1]}/hook")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """A whole response."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@dataclass
class Installation:
    """An installation of the test's own, with a router and an advertiser's key."""

    settings: Settings
    http: httpx.Client
    admin: dict[str, str]
    tenant: dict[str, str]

    @property
    def client(self) -> ClickHouse:
        """Of its database."""
        return ClickHouse(self.settings.clickhouse, self.settings.database)

    def webhook(self, url: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        """Make one of advertiser 3, or another one."""
        response = self.http.post(
            "/v1/webhooks", json={"url": url, "advertiser_id": 3} | more, headers=headers or self.tenant
        )
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    def deliveries(self, webhook: dict[str, Any]) -> list[dict[str, Any]]:
        """The attempts, the newest first."""
        response = self.http.get(f"/v1/webhooks/{webhook['id']}/deliveries", headers=self.tenant)
        assert response.status_code == 200, response.text
        return list(response.json()["data"])

    def raise_alert(self, occasion: str, version: int = 1, state: str = "open", advertiser: int = 3) -> str:
        """Write a version of an alert, as the stream does; returns its message's id."""
        id_ = alert_id("ctr-drop", advertiser, 7, occasion)
        at = now_ms()
        ended_ms = 0 if state == "open" else at
        alert = Alert(id_, version, "ctr-drop", "warning", state, advertiser, 7, at, ended_ms, occasion, {"ctr": 0.01})
        insert_alerts(self.client, [alert])
        return f"{id_}_{version}"


@pytest.fixture
def installation(settings: Settings) -> Iterator[Installation]:
    changes = {
        "webhook_allowed_networks": "127.0.0.0/8", "webhook_ports": "", "notify_every_s": 1, "query_timeout_s": 60
    }  # fmt: skip
    settings = settings.model_copy(update=changes)
    client = ClickHouse(settings.clickhouse, settings.database)
    _, key = Keys(client).create(
        "tenant", frozenset({3}), admin=False, rate=1000, burst=1000, lasts_ms=None, actor="test"
    )
    with TestClient(create_app(settings)) as http:
        admin = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
        yield Installation(settings, http, admin, {"Authorization": f"Bearer {key}"})


@contextmanager
def worker(installation: Installation, name: str = "notify-0", policy: RetryPolicy = SOON) -> Iterator[NotifyWorker]:
    """A worker in a thread of this process."""
    errors = list[BaseException]()
    running = NotifyWorker(installation.settings, name, policy=policy, lease_s=3, poll_s=0.2)

    def run() -> None:
        try:
            running.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(30 * PATIENCE)
    assert not errors and not thread.is_alive()


def process(installation: Installation, log: Path, name: str, fault: str = "") -> subprocess.Popen[bytes]:
    """A worker as a process."""
    variables = worker_environment(installation.settings, name, ADCLICK_FAULT=fault)
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "infra", "notify"], env=variables, stderr=file)


def test_each_version_of_an_alert_is_delivered_signed_in_the_format_asked_for(installation: Installation) -> None:
    with target() as standard, target() as other, target() as foreign:
        webhook = installation.webhook(standard.url)
        installation.webhook(other.url, format="alertmanager", kinds=["ctr-drop"])
        installation.webhook(foreign.url, installation.admin, advertiser_id=4)
        installation.webhook(foreign.url, kinds=["spend-spike"])
        with worker(installation):
            ids = [installation.raise_alert("a"), installation.raise_alert("a", 2, "closed")]
            installation.raise_alert("a", 2, "closed")  # at least once: it counts once
            wait_until(lambda: len(standard.messages) == 2 == len(other.messages), 20, "both are delivered")
            assert_stays(lambda: len(standard.messages) == 2 == len(other.messages), 1, "once each")
    assert sorted(standard.ids) == sorted(ids) == sorted(other.ids)
    assert foreign.messages == []
    bodies = [Verifier(webhook["secret"]).verify(body, headers) for headers, body in standard.messages]
    assert {body["type"] for body in bodies} == {"alert.opened", "alert.closed"}
    assert {body["data"]["advertiser_id"] for body in bodies} == {3}
    assert {json.loads(body)["status"] for _, body in other.messages} == {"firing", "resolved"}
    assert [attempt["outcome"] for attempt in installation.deliveries(webhook)] == ["delivered"] * 2


def test_a_target_that_fails_is_tried_again_with_the_same_id_and_body(installation: Installation) -> None:
    with target(lambda request, number: answer(request, 500 if number < 3 else 200, b"x" * 2_000)) as failing:
        webhook = installation.webhook(failing.url)
        with worker(installation):
            id_ = installation.raise_alert("a")
            wait_until(lambda: len(installation.deliveries(webhook)) == 3, 20, "it is taken")
    assert failing.ids == [id_] * 3
    assert len({body for _, body in failing.messages}) == 1
    attempts = installation.deliveries(webhook)
    assert [(a["attempt"], a["outcome"], a["status"]) for a in attempts] == [
        (3, "delivered", 200), (2, "failed", 500), (1, "failed", 500),
    ]  # fmt: skip
    assert {a["reply"] for a in attempts} == {"x" * 500}
    assert (attempts[2]["problem"], attempts[0]["problem"]) == ("answered 500", None)
    assert attempts[2]["next_at"] is not None


def test_targets_that_hang_redirect_or_flood_are_bounded_and_hold_up_no_other(installation: Installation) -> None:
    flooded, released = list[int](), threading.Event()

    def hang(request: BaseHTTPRequestHandler, _number: int) -> None:
        released.wait(60 * PATIENCE)

    def flood(request: BaseHTTPRequestHandler, _number: int) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        send(request)

    def flood_head(request: BaseHTTPRequestHandler, _number: int) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        send(request)

    def send(request: BaseHTTPRequestHandler) -> None:
        sent = 0
        try:
            while sent < 10_000_000_000 and not released.is_set():
                sent += request.connection.send(b"x" * 65_536)
        except OSError:
            flooded.append(sent)

    with (
        target() as inner, target() as good, target(hang) as hanging, target(flood) as flooding,
        target(flood_head) as flooding_head,
        target(lambda request, _: answer(request, 302, Location=inner.url)) as redirecting,
    ):  # fmt: skip
        hooks = {name: installation.webhook(t.url) for name, t in {
            "hang": hanging, "redirect": redirecting, "flood": flooding, "head": flooding_head, "good": good}.items()
        }  # fmt: skip
        with worker(installation):
            began = time.monotonic()
            for number in range(6):
                installation.raise_alert(f"a{number}")
            wait_until(lambda: len(good.messages) == 6, 20, "the good one has all")
            wait_until(lambda: len(installation.deliveries(hooks["flood"])) == 6, 20, "a flood counts by its status")
            wait_until(lambda: installation.deliveries(hooks["hang"]), 25, "the hanging one is given up")
            assert time.monotonic() - began >= 9
            wait_until(lambda: installation.deliveries(hooks["head"]), 20, "an endless head is given up")
            wait_until(lambda: len(installation.deliveries(hooks["redirect"])) >= 6, 20, "the redirect is refused")
            released.set()
    hung = installation.deliveries(hooks["hang"])[-1]
    assert (hung["status"], hung["problem"], hung["outcome"]) == (None, "no response within 10 s", "failed")
    assert 9_900 <= hung["elapsed_ms"] < 12_000 * PATIENCE
    redirected = installation.deliveries(hooks["redirect"])[-1]
    assert (redirected["status"], redirected["outcome"]) == (302, "failed")
    assert inner.messages == []
    of_flood = installation.deliveries(hooks["flood"])
    assert {(a["status"], a["outcome"], len(a["reply"])) for a in of_flood} == {(200, "delivered", 500)}
    assert installation.deliveries(hooks["head"])[-1]["problem"] == "no status within 65,536 bytes"
    # What the sockets on both sides hold, at most.
    assert len(flooded) >= 6 and max(flooded) < 20_000_000


def test_a_message_whose_attempt_was_not_recorded_is_sent_again_with_the_same_id(
    installation: Installation, tmp_path: Path
) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        id_ = installation.raise_alert("a")
        log = tmp_path / "log"
        killed = process(installation, log, "notify-0", "kill@webhooks.sent")
        assert killed.wait(60 * PATIENCE) == -signal.SIGKILL, log.read_text()
        assert receiving.ids == [id_]
        assert installation.deliveries(webhook) == []
        again = process(installation, log, "notify-0")
        try:
            wait_until(lambda: installation.deliveries(webhook), 40, "it is sent again")
            assert receiving.ids == [id_, id_]
            assert len({body for _, body in receiving.messages}) == 1
        finally:
            again.terminate()
            assert again.wait(30 * PATIENCE) == 0


def test_of_two_workers_one_delivers_and_the_other_takes_over(installation: Installation, tmp_path: Path) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        log = tmp_path / "log"
        workers = [process(installation, log, f"notify-{n}") for n in range(2)]
        try:
            ids = [installation.raise_alert(f"a{n}") for n in range(10)]
            wait_until(lambda: len(installation.deliveries(webhook)) == 10, 40, "all are delivered")
            wait_until(lambda: "standing by" in log.read_text(), 20, "the other one stands by")
            active = [json.loads(line)["worker"] for line in log.read_text().splitlines() if '"active"' in line]
            assert len(active) == 1
            workers[int(active[0][-1])].kill()
            ids += [installation.raise_alert(f"b{n}") for n in range(10)]
            wait_until(lambda: len(installation.deliveries(webhook)) == 20, 60, "the other one delivers")
            assert sorted(receiving.ids) == sorted(ids)
        finally:
            for running in workers:
                running.terminate()
                running.wait(30 * PATIENCE)


def test_tests_and_replays_are_sent_by_the_worker(installation: Installation) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        path = f"/v1/webhooks/{webhook['id']}"
        asked = installation.http.post(f"{path}/test", headers=installation.tenant)
        assert (asked.status_code, asked.json()["outcome"]) == (202, "requested")
        again = installation.http.post(f"{path}/test", headers=installation.tenant)
        assert (again.status_code, again.json()["type"]) == (409, "/problems/test-pending")
        with worker(installation):
            wait_until(lambda: installation.deliveries(webhook)[0]["outcome"] == "delivered", 20, "the test comes")
            assert len(receiving.messages) == 1
            asked = installation.http.post(f"{path}/test", headers=installation.tenant)
            assert asked.status_code == 202
            wait_until(lambda: len(receiving.messages) == 2, 20, "another one comes")
            receiving.messages.pop()
            id_ = installation.raise_alert("a")
            wait_until(lambda: len(receiving.messages) == 2, 20, "the alert comes")
            wait_until(lambda: installation.deliveries(webhook)[0]["message_id"] == id_, 20, "it is recorded")
            delivery = installation.deliveries(webhook)[0]["id"]
            replay = f"/v1/webhooks/deliveries/{delivery}/replay"
            assert installation.http.post(replay, headers=installation.tenant).status_code == 202
            wait_until(lambda: len(receiving.messages) == 3, 20, "it comes again")
            wait_until(lambda: installation.deliveries(webhook)[0]["outcome"] == "delivered", 20, "it is recorded")
            assert_stays(lambda: len(receiving.messages) == 3, 1, "once")
    assert receiving.ids[1:] == [id_, id_] and receiving.ids[0].startswith("test_")
    test = Verifier(webhook["secret"]).verify(receiving.messages[0][1], receiving.messages[0][0])
    assert test["type"] == "webhook.test"
    of_test = installation.deliveries(webhook)[-1]["id"]
    refused = installation.http.post(f"/v1/webhooks/deliveries/{of_test}/replay", headers=installation.tenant)
    assert refused.status_code == 409


def test_a_webhook_that_takes_nothing_for_long_is_disabled_with_an_alert_to_the_operator(
    installation: Installation,
) -> None:
    with target(lambda request, _: answer(request, 500)) as failing, target() as operator:
        webhook = installation.webhook(failing.url)
        installation.webhook(operator.url, installation.admin, advertiser_id=None, kinds=["webhook-disabled"])
        impatient = RetryPolicy(first_s=0.2, longest_s=0.5, for_ms=60_000, disable_ms=500)
        path = f"/v1/webhooks/{webhook['id']}"

        def is_enabled() -> bool:
            return bool(installation.http.get(path, headers=installation.tenant).json()["enabled"])

        with worker(installation, policy=impatient):
            installation.raise_alert("a")
            wait_until(lambda: not is_enabled(), 20, "it is disabled")
            wait_until(lambda: len(operator.messages) == 1, 20, "the operator is told")
            assert installation.http.post(f"{path}/test", headers=installation.tenant).status_code == 409
            enabled = installation.http.patch(path, json={"enabled": True}, headers=installation.tenant)
            assert (enabled.status_code, enabled.json()["disabled_why"]) == (200, None)
            wait_until(lambda: len(operator.messages) == 2, 20, "the alert is closed")
    types = [json.loads(body)["type"] for _, body in operator.messages]
    assert types == ["alert.opened", "alert.closed"]
    assert json.loads(operator.messages[0][1])["data"]["detail"]["problem"] == "answered 500"
    audit = installation.http.get("/v1/audit", headers=installation.admin).json()["data"]
    actions = {entry["action"] for entry in audit if entry["subject"] == f"webhook/{webhook['id']}"}
    assert actions == {"create", "disable", "change"}
    assert "/hook" not in json.dumps(audit) and "whsec" not in json.dumps(audit)


def test_keys_change_webhooks_of_their_own_advertisers_alone(installation: Installation) -> None:
    http, keys = installation.http, Keys(installation.client)

    def key(advertisers: frozenset[int] | None, **more: Any) -> dict[str, str]:
        _, secret = keys.create(
            "k", advertisers, **{"admin": False} | more, rate=1000, burst=1000, lasts_ms=None, actor="test"
        )
        return {"Authorization": f"Bearer {secret}"}

    body: dict[str, Any] = {"url": "https://hooks.example.com/a", "advertiser_id": 3}
    token = http.post("/v1/tokens", json={}, headers=installation.tenant).json()["token"]
    refused = {
        "a token": {"Authorization": f"Bearer {token}"},
        "another advertiser's": key(frozenset({4})),
        "the key of a link": key(frozenset({3}), share=True),
        "of some campaigns": key(frozenset({3}), campaigns=frozenset({7})),
        "of all, but no admin": key(None),
        "an admin key of others": key(frozenset({4}), admin=True),
    }
    own = installation.webhook(body["url"])
    path = f"/v1/webhooks/{own['id']}"
    for who, headers in refused.items():
        assert http.post("/v1/webhooks", json=body, headers=headers).status_code == 403, who
        assert http.get(path, headers=headers).status_code in (403, 404), who
        assert http.patch(path, json={"enabled": False}, headers=headers).status_code in (403, 404), who
        assert http.delete(path, headers=headers).status_code in (403, 404), who
        assert http.post(f"{path}/rotate", headers=headers).status_code in (403, 404), who
        assert http.get("/v1/webhooks", headers=headers).json().get("data", []) == [], who
    operator = {"url": body["url"]}
    assert http.post("/v1/webhooks", json=operator, headers=installation.tenant).status_code == 403
    assert http.post("/v1/webhooks", json=operator, headers=key(frozenset({3}), admin=True)).status_code == 403
    assert http.post("/v1/webhooks", json=operator, headers=installation.admin).status_code == 201
    listed = http.get("/v1/webhooks", headers=installation.tenant).json()
    assert [w["id"] for w in listed["data"]] == [own["id"]] and "secret" not in listed["data"][0]
    assert len(http.get("/v1/webhooks", headers=installation.admin).json()["data"]) == 2
    rotated = http.post(f"{path}/rotate", json={"grace_s": 3600}, headers=installation.tenant).json()
    assert rotated["secret"].startswith("whsec_") and rotated["secret"] != own["secret"]
    assert rotated["former_secret_until"] is not None
    changed = http.patch(path, json={"description": " ours ", "kinds": ["budget"]}, headers=installation.tenant).json()
    assert (changed["description"], changed["kinds"], changed["url"]) == ("ours", ["budget"], body["url"])
    for wrong in ({"url": "http://10.0.0.1/"}, {"url": "ftp://a/"}, {"kinds": ["No"]}, {"format": "xml"}, {"nope": 1}):
        assert http.patch(path, json=wrong, headers=installation.tenant).status_code == 400, wrong
    assert http.delete(path, headers=installation.tenant).status_code == 200
    assert http.get(path, headers=installation.tenant).status_code == 404
    for _ in range(20):
        installation.webhook(body["url"])
    assert http.post("/v1/webhooks", json=body, headers=installation.tenant).status_code == 409


def test_a_private_address_is_refused_when_it_is_sent_to(installation: Installation) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        strict = installation.settings.model_copy(update={"webhook_allowed_networks": ""})
        with worker(Installation(strict, installation.http, installation.admin, installation.tenant)):
            installation.raise_alert("a")
            wait_until(lambda: installation.deliveries(webhook), 20, "it is tried")
    assert receiving.messages == []
    assert "127.0.0.1 is a loopback address" in installation.deliveries(webhook)[-1]["problem"]


# -- rules -------------------------------------------------------------------------------------------------------------


def alerts_of(client: ClickHouse) -> list[tuple[Any, ...]]:
    """(kind, advertiser, campaign, version, severity, state), as they were written."""
    return client.rows(
        "SELECT kind, advertiser_id, campaign_id, version, severity, state"
        f" FROM {client.database}.alerts FINAL ORDER BY kind, advertiser_id, campaign_id, version"
    )


def show_no_minutes(settings: Settings) -> None:
    """Redis says of each shard that it has all minutes, and that they have no rows."""
    redis, now = Redis(settings.redis), now_ms()
    for shard in range(settings.block_partitions):
        fields = {
            SpanField.SEQUENCE: 1, SpanField.CLOSED: now, SpanField.PACKED: now, SpanField.FROM: now - 2 * DAY_MS,
            SpanField.NEWEST: now - DAY_MS, SpanField.SENT: now, SpanField.MOVES: 0,
        }  # fmt: skip
        redis.call("HSET", ShardKeys.of(settings.key_prefix, shard).span, *(part for f in fields.items() for part in f))


def test_a_budget_that_is_spent_is_told_once_and_its_campaign_paused(
    installation: Installation, tmp_path: Path
) -> None:
    settings = installation.settings.model_copy(update={"budget_pause": "on"})
    installation = Installation(settings, installation.http, installation.admin, installation.tenant)
    http, admin, client = installation.http, installation.admin, installation.client
    first = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date() - dt.timedelta(days=9)
    http.put("/v1/advertisers/3", json={"name": "Acme"}, headers=admin)
    for campaign, amount in ((7, 1_000), (8, 1_050), (9, 50_000)):
        entry = {
            "name": f"c{campaign}", "advertiser_id": 3, "start": first.isoformat(), "budget": "total", "budget_micros": amount,
        }  # fmt: skip
        assert http.put(f"/v1/campaigns/{campaign}", json=entry, headers=admin).status_code == 200
    # Each has spent 1,000 micros, three days ago.
    hour_ms = (now_ms() - 3 * DAY_MS) // HOUR_MS * HOUR_MS
    for campaign in (7, 8, 9):
        client.command(
            f"INSERT INTO {client.database}.stream_days (time, campaign_id, advertiser_id, ad_id, publisher_id, country, device,"
            f" shard, impressions, spend_micros, version) VALUES ({hour_ms // DAY_MS * DAY_MS // 1000}, {campaign}, 3, 1, 5, 'DE', 'mobile', 0, 10, 1000, 1)"
        )
        client.command(
            f"INSERT INTO {client.database}.stream_hours (time, campaign_id, advertiser_id, ad_id, publisher_id, country, device,"
            f" shard, impressions, spend_micros, version) VALUES ({hour_ms // 1000}, {campaign}, 3, 1, 5, 'DE', 'mobile', 0, 10, 1000, 1)"
        )
    show_no_minutes(settings)
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(settings.block_partitions), now_ms() // DAY_MS * DAY_MS)
    expected = [("budget", 3, 7, 1, "critical", "open"), ("budget", 3, 8, 1, "warning", "open")]
    log = tmp_path / "log"
    killed = process(installation, log, "notify-0", "kill@notify.paused")
    assert killed.wait(60 * PATIENCE) == -signal.SIGKILL, log.read_text()
    assert alerts_of(client) == []
    killed = process(installation, log, "notify-0", "kill@notify.written")
    assert killed.wait(60 * PATIENCE) == -signal.SIGKILL, log.read_text()
    assert alerts_of(client) == expected
    with worker(installation) as running:
        status = {c: http.get(f"/v1/campaigns/{c}", headers=admin).json()["status"] for c in (7, 8, 9)}
        assert status == {7: "paused", 8: "active", 9: "active"}
        entry = {
            "name": "c7",
            "advertiser_id": 3,
            "budget": "total",
            "budget_micros": 1_000,
            "start": first.isoformat(),
        }
        http.put("/v1/campaigns/7", json=entry, headers=admin)
        wait_until(lambda: running.rounds > 2, 60, "it has looked at budgets again")
        assert alerts_of(client) == expected
        assert http.get("/v1/campaigns/7", headers=admin).json()["status"] == "active"
        http.put("/v1/campaigns/7", json=entry | {"budget_micros": 100_000}, headers=admin)
        closed = ("budget", 3, 7, 2, "critical", "closed")
        wait_until(lambda: closed in alerts_of(client), 20, "a raised budget closes its alert")
    audit = [e for e in http.get("/v1/audit", headers=admin).json()["data"] if e["subject"] == "campaign/7"]
    assert sum(entry["actor"] == "notify-0" and "paused" in entry["detail"] for entry in audit) == 1


def test_what_nightly_runs_find_is_told_to_the_operator(installation: Installation) -> None:
    client = installation.client
    day = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date() - dt.timedelta(days=2)

    def publish(run: str, fence: int, alert: int, summary: dict[str, Any]) -> None:
        client.command(
            f"INSERT INTO {client.database}.runs (date, run_id, published_at, input_digest, rows, copies, dimensions, drifted,"
            " alert, summary, fence) SELECT {date:Date}, {run:String}, now64(3), '', 2, 0, 9, 3, {alert:UInt8}, {summary:String},"
            " {fence:UInt64}",
            {"date": day, "run": run, "alert": alert, "summary": json.dumps(summary), "fence": fence},
        )

    publish("r1", 1, 1, {"causes": {"unexplained": {"rows": 3}}})
    client.command(
        f"INSERT INTO {client.database}.unbilled (date, run_id, events, found_at) SELECT {{date:Date}}, 'r1', 17, now64(3)",
        {"date": day},
    )
    with worker(installation):
        opened = [("run-alert", 0, 0, 1, "critical", "open"), ("unbilled-events", 0, 0, 1, "warning", "open")]
        wait_until(lambda: alerts_of(client) == opened, 20, "both are told")
        publish("r2", 2, 0, {"causes": {}})
        wait_until(lambda: [a[5] for a in alerts_of(client)] == ["open", "closed"] * 2, 20, "the next run closes both")


def test_a_worker_that_stopped_is_told_and_what_is_usual_is_the_median_of_this_hour(installation: Installation) -> None:
    client, settings = installation.client, installation.settings
    publish_stop(Redis(settings.redis), settings.key_prefix, "ingest-9", AdclickError("ad-events/0 has a hole"))
    with worker(installation):
        stopped = ("worker-stopped", 0, 0, 1, "critical", "open")
        wait_until(lambda: stopped in alerts_of(client), 20, "it is told")
    now = now_ms()
    assert read_usual_events(client, now) == 0
    for day, events in ((1, 90), (2, 50), (3, 70), (9, 1_000)):
        time_s = (now // HOUR_MS * HOUR_MS - day * DAY_MS) // 1000
        client.command(
            f"INSERT INTO {client.database}.stream_hours (time, campaign_id, shard, impressions, clicks, version)"
            f" VALUES ({time_s}, 7, 0, {events - 1}, 1, 1)"
        )
    assert read_usual_events(client, now) == 70


def test_statements_are_issued_and_told_once_their_month_is_reconciled(installation: Installation) -> None:
    client = installation.client
    bills = Bills(client)
    bills.publish(DAYS, "run-{}", 1_000)
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(installation.settings.block_partitions), now_ms() // DAY_MS * DAY_MS)
    with worker(installation):
        ready = [("statement-ready", advertiser, 0, 1, "warning", "open") for advertiser in (3, 4)]
        wait_until(lambda: alerts_of(client) == ready, 30, "both advertisers are told")
    assert client.rows(f"SELECT count() FROM {client.database}.statements FINAL") == [(2,)]
    month = {"advertiser_id": "3", "month": f"{MONTH:%Y-%m}"}
    statement = installation.http.get("/v1/statements", params=month, headers=installation.tenant).json()
    assert (statement["status"], statement["issue"]) == ("final", 1)
    bills.publish([RESTATED], "again-{}", 2_000)
    with worker(installation):
        restated = ("statement-restated", 3, 0, 1, "warning", "open")
        wait_until(lambda: restated in alerts_of(client), 30, "that it was restated is told")
    assert len(alerts_of(client)) == 3  # nothing has changed for the other advertiser


def test_the_worker_ends_at_once_when_told_to(installation: Installation, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        webhook = installation.webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        running = process(installation, tmp_path / "log", "notify-0")
        installation.raise_alert("a")
        silent.settimeout(60 * PATIENCE)
        connection, _ = silent.accept()
        with connection:
            began = time.monotonic()
            running.terminate()
            assert running.wait(30 * PATIENCE) == 0
            assert time.monotonic() - began < 8 * PATIENCE
    assert DeliveryStore(installation.client).of_webhook(webhook["id"], 10) == []
