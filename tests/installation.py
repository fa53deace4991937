"""An installation with a router in this process and an advertiser's key, and notify workers as threads and as processes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from infra.clickhouse.alerts import Alert, alert_id, insert_alerts
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, now_ms
from infra.redis.client import Redis
from infra.settings import Settings
from query.api.app import create_app
from query.keys import Keys
from query.notify.worker import NotifyWorker
from query.webhooks.queues import RetryPolicy
from stream.hot.layout import ShardKeys, SpanField
from tests.flow import worker_environment
from tests.product import PATIENCE

# Quick enough for a test, and several attempts.
SOON = RetryPolicy(first_s=0.1, longest_s=0.3)
_CHANGES = {
    "webhook_allowed_networks": "127.0.0.0/8", "webhook_ports": "", "notify_every_s": 1, "notify_lease_s": 2,
    "query_timeout_s": 60,
}  # fmt: skip
_ADVERTISERS = itertools.count(3)


@dataclass
class Installation:
    """A router, and the key of one advertiser. Tests that share the router have an advertiser each."""

    settings: Settings
    http: httpx.Client
    admin: dict[str, str]
    tenant: dict[str, str]
    advertiser: int = 0

    @property
    def client(self) -> ClickHouse:
        """Of its database."""
        return ClickHouse(self.settings.clickhouse, self.settings.database)

    def with_advertiser(self) -> Installation:
        """The same installation with an advertiser that has no webhooks yet, and its key."""
        advertiser = next(_ADVERTISERS)
        _, key = Keys(self.client).create(
            "tenant", frozenset({advertiser}), admin=False, rate=1000, burst=1000, lasts_ms=None, actor="test"
        )
        return replace(self, tenant={"Authorization": f"Bearer {key}"}, advertiser=advertiser)

    def with_settings(self, **changes: Any) -> Installation:
        """The same installation, whose workers have other settings than its router."""
        return replace(self, settings=self.settings.model_copy(update=changes))

    def webhook(self, url: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        """Make one of the advertiser, or another one."""
        response = self.http.post(
            "/v1/webhooks",
            json={"url": url, "advertiser_id": self.advertiser} | more,
            headers=headers or self.tenant,
        )
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    def delete_webhooks(self) -> None:
        """Delete all, so that workers of later tests have nothing to send to them."""
        for webhook in self.http.get("/v1/webhooks", headers=self.admin).json()["data"]:
            assert self.http.delete(f"/v1/webhooks/{webhook['id']}", headers=self.admin).status_code == 200

    def deliveries(self, webhook: dict[str, Any]) -> list[dict[str, Any]]:
        """The attempts, the newest first."""
        response = self.http.get(f"/v1/webhooks/{webhook['id']}/deliveries", headers=self.tenant)
        assert response.status_code == 200, response.text
        return list(response.json()["data"])

    def raise_alert(self, occasion: str, version: int = 1, state: str = "open", campaign: int = 7) -> str:
        """Write a version of an alert, as the stream does; returns its message's id."""
        id_ = alert_id("ctr-drop", self.advertiser, campaign, occasion)
        at = now_ms()
        ended_ms = 0 if state == "open" else at
        alert = Alert(
            id_, version, "ctr-drop", "warning", state, self.advertiser, campaign, at, ended_ms, occasion, {"ctr": 0.01}
        )
        insert_alerts(self.client, [alert])
        return f"{id_}_{version}"

    def alerts(self, *kinds: str) -> list[tuple[Any, ...]]:
        """(kind, advertiser, campaign, version, severity, state) of these kinds, as they were written."""
        return self.client.rows(
            "SELECT kind, advertiser_id, campaign_id, version, severity, state"
            f" FROM {self.client.database}.alerts FINAL WHERE kind IN {{kinds:Array(String)}}"
            " ORDER BY kind, advertiser_id, campaign_id, version",
            {"kinds": list(kinds)},
        )


@contextmanager
def open_installation(settings: Settings) -> Iterator[Installation]:
    """An installation of these settings, with those that make workers quick."""
    settings = settings.model_copy(update=_CHANGES)
    with TestClient(create_app(settings)) as http:
        admin = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
        yield Installation(settings, http, admin, {})


@contextmanager
def worker(
    installation: Installation, name: str = "notify-0", policy: RetryPolicy = SOON, limit_s: float = 10.0
) -> Iterator[NotifyWorker]:
    """A worker in a thread of this process. `limit_s`: of a request to a target."""
    errors = list[BaseException]()
    running = NotifyWorker(installation.settings, name, policy=policy, limit_s=limit_s, poll_s=0.1, rest=0.5)

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


def show_no_minutes(settings: Settings) -> None:
    """Redis says of each shard that it has all minutes, and that they have no rows."""
    redis, now = Redis(settings.redis), now_ms()
    for shard in range(settings.block_partitions):
        fields = {
            SpanField.SEQUENCE: 1, SpanField.CLOSED: now, SpanField.PACKED: now, SpanField.FROM: now - 2 * DAY_MS,
            SpanField.NEWEST: now - DAY_MS, SpanField.SENT: now, SpanField.MOVES: 0,
        }  # fmt: skip
        redis.call("HSET", ShardKeys.of(settings.key_prefix, shard).span, *(part for f in fields.items() for part in f))
