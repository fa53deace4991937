"""Alerts that the notify worker delivers, to targets that answer in every way."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from standardwebhooks.webhooks import Webhook as Verifier

from infra.clock import HOUR_MS, iso, now_ms
from query.webhooks.deliveries import DeliveryStore
from tests.installation import Installation, process, worker
from tests.product import PATIENCE, assert_stays, wait_until
from tests.webhook_targets import answer, target


def test_each_version_of_an_alert_is_delivered_signed_in_the_format_asked_for(installation: Installation) -> None:
    with target() as standard, target() as other, target() as foreign:
        webhook = installation.webhook(standard.url)
        installation.webhook(other.url, format="alertmanager", kinds=["ctr-drop"])
        installation.webhook(foreign.url, installation.admin, advertiser_id=installation.advertiser + 1_000_000)
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
    assert {body["data"]["advertiser_id"] for body in bodies} == {installation.advertiser}
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
        with worker(installation, limit_s=2.0):
            began = time.monotonic()
            for number in range(6):
                installation.raise_alert(f"a{number}")
            wait_until(lambda: len(good.messages) == 6, 20, "the good one has all")
            wait_until(lambda: len(installation.deliveries(hooks["flood"])) == 6, 20, "a flood counts by its status")
            wait_until(lambda: installation.deliveries(hooks["hang"]), 25, "the hanging one is given up")
            assert time.monotonic() - began >= 1.9
            wait_until(lambda: installation.deliveries(hooks["head"]), 20, "an endless head is given up")
            wait_until(lambda: len(installation.deliveries(hooks["redirect"])) >= 6, 20, "the redirect is refused")
            released.set()
    hung = installation.deliveries(hooks["hang"])[-1]
    assert (hung["status"], hung["problem"], hung["outcome"]) == (None, "no response within 2 s", "failed")
    assert 1_900 <= hung["elapsed_ms"] < 4_000 * PATIENCE
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
            assert_ends_at_once(again, installation)
        finally:
            again.kill()
            again.wait()


def assert_ends_at_once(running: subprocess.Popen[bytes], installation: Installation) -> None:
    """A worker ends in order while a target keeps it waiting, and leaves what it was sending to the next one."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        webhook = installation.webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        installation.raise_alert("b")
        silent.settimeout(60 * PATIENCE)
        connection, _ = silent.accept()
        with connection:
            began = time.monotonic()
            running.terminate()
            assert running.wait(30 * PATIENCE) == 0
            assert time.monotonic() - began < 8 * PATIENCE
    assert DeliveryStore(installation.client).of_webhook(webhook["id"], 10) == []


def test_of_two_workers_one_delivers_and_the_other_takes_over(installation: Installation, tmp_path: Path) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        first = process(installation, tmp_path / "log", "notify-0")
        try:
            ids = [installation.raise_alert(f"a{n}") for n in range(10)]
            wait_until(lambda: len(installation.deliveries(webhook)) == 10, 40, "all are delivered")
            with worker(installation, "notify-1") as second:
                wait_until(lambda: second.stands_by, 20, "the other one stands by")
                first.kill()
                ids += [installation.raise_alert(f"b{n}") for n in range(10)]
                wait_until(lambda: len(installation.deliveries(webhook)) == 20, 60, "the other one delivers")
            assert sorted(receiving.ids) == sorted(ids)
        finally:
            first.kill()
            first.wait()


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


def test_a_muted_alert_is_not_sent_but_listed_as_muted(installation: Installation) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        subject = {
            "advertiser_id": installation.advertiser,
            "campaign_id": 7,
            "kind": "ctr-drop",
            "until": iso(now_ms() + HOUR_MS),
        }
        muted = installation.http.put("/v1/mutes", json=subject, headers=installation.tenant)
        assert muted.status_code == 200, muted.text
        with worker(installation):
            skipped, sent = installation.raise_alert("a"), installation.raise_alert("a", campaign=8)
            wait_until(lambda: len(installation.deliveries(webhook)) == 2, 20, "both are recorded")
    attempts = {attempt["message_id"]: attempt for attempt in installation.deliveries(webhook)}
    assert receiving.ids == [sent]
    assert (attempts[sent]["outcome"], attempts[skipped]["outcome"]) == ("delivered", "muted")
    assert attempts[skipped]["problem"] == f"muted until {muted.json()['until']}"
    assert (attempts[skipped]["elapsed_ms"], attempts[skipped]["next_at"]) == (None, None)


def test_a_replay_of_a_muted_alert_that_failed_once_is_sent_by_the_next_worker(installation: Installation) -> None:
    is_up = threading.Event()
    with target(lambda request, _: answer(request, 204 if is_up.is_set() else 503)) as receiving:
        webhook = installation.webhook(receiving.url)
        subject = {"advertiser_id": installation.advertiser, "until": iso(now_ms() + HOUR_MS)}
        assert installation.http.put("/v1/mutes", json=subject, headers=installation.tenant).status_code == 200
        with worker(installation):
            installation.raise_alert("a")
            wait_until(lambda: installation.deliveries(webhook), 20, "it is recorded as muted")
            replay = f"/v1/webhooks/deliveries/{installation.deliveries(webhook)[0]['id']}/replay"
            assert installation.http.post(replay, headers=installation.tenant).status_code == 202
            wait_until(lambda: installation.deliveries(webhook)[0]["outcome"] == "failed", 20, "it fails")
        is_up.set()
        with worker(installation):
            wait_until(lambda: installation.deliveries(webhook)[0]["outcome"] != "failed", 20, "it is tried again")
    assert installation.deliveries(webhook)[0]["outcome"] == "delivered"


def test_a_private_address_is_refused_when_it_is_sent_to(installation: Installation) -> None:
    with target() as receiving:
        webhook = installation.webhook(receiving.url)
        with worker(installation.with_settings(webhook_allowed_networks="")):
            installation.raise_alert("a")
            wait_until(lambda: installation.deliveries(webhook), 20, "it is tried")
    assert receiving.messages == []
    assert "127.0.0.1 is a loopback address" in installation.deliveries(webhook)[-1]["problem"]
