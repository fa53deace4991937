"""Alerts that the notify worker writes, about budgets, bills and the pipeline, on the real stores."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from infra import faults
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.errors import AdclickError
from infra.kafka import topics
from infra.kafka.consumers import read_to_end
from infra.redis.client import Redis
from ingest.published_status import publish_stop
from query.notify.facts import read_usual_events
from query.notify.trends import TrendKeeper
from query.notify.worker import NotifyWorker
from tests import borders
from tests.installation import Installation, show_no_minutes, worker
from tests.integration.test_statements import DAYS, MONTH, RESTATED, Bills
from tests.product import wait_until


class Killed(Exception):
    """The worker has ended at a fault point."""


def end_at(installation: Installation, fault: str) -> None:
    """Run a worker that ends at a fault point, as by SIGKILL, but that its lease is free at once."""

    def point(name: str, _prepare: object = None) -> None:
        if name == fault:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faults, "point", point)
        NotifyWorker(installation.settings, "notify-0").run()


def test_a_budget_that_is_spent_is_told_once_and_its_campaign_paused(installation: Installation) -> None:
    installation, advertiser = installation.with_settings(budget_pause="on"), installation.advertiser
    http, admin, client = installation.http, installation.admin, installation.client
    first = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date() - dt.timedelta(days=9)
    http.put(f"/v1/advertisers/{advertiser}", json={"name": "Acme"}, headers=admin)
    for campaign, amount in ((7, 1_000), (8, 1_050), (9, 50_000)):
        entry = {
            "name": f"c{campaign}", "advertiser_id": advertiser, "start": first.isoformat(), "budget": "total", "budget_micros": amount,
        }  # fmt: skip
        assert http.put(f"/v1/campaigns/{campaign}", json=entry, headers=admin).status_code == 200
    # Each has spent 1,000 micros, three days ago, and not at this hour: another test is about what is usual at it.
    hour_ms = (now_ms() - 3 * DAY_MS) // HOUR_MS * HOUR_MS - 5 * HOUR_MS
    for campaign in (7, 8, 9):
        client.command(
            f"INSERT INTO {client.database}.stream_days (time, campaign_id, advertiser_id, ad_id, publisher_id, country, device,"
            f" shard, impressions, spend_micros, version) VALUES ({hour_ms // DAY_MS * DAY_MS // 1000}, {campaign}, {advertiser}, 1, 5, 'DE', 'mobile', 0, 10, 1000, 1)"
        )
        client.command(
            f"INSERT INTO {client.database}.stream_hours (time, campaign_id, advertiser_id, ad_id, publisher_id, country, device,"
            f" shard, impressions, spend_micros, version) VALUES ({hour_ms // 1000}, {campaign}, {advertiser}, 1, 5, 'DE', 'mobile', 0, 10, 1000, 1)"
        )
    show_no_minutes(installation.settings)
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(installation.settings.block_partitions), now_ms() // DAY_MS * DAY_MS)
    expected = [("budget", advertiser, 7, 1, "critical", "open"), ("budget", advertiser, 8, 1, "warning", "open")]
    end_at(installation, "notify.paused")
    assert installation.alerts("budget") == []
    end_at(installation, "notify.written")
    assert installation.alerts("budget") == expected
    with worker(installation) as running:

        def statuses() -> list[str]:
            return [http.get(f"/v1/campaigns/{c}", headers=admin).json()["status"] for c in (7, 8, 9)]

        # A router does not read the directory for each answer.
        wait_until(lambda: statuses() == ["paused", "active", "active"], 10, lambda: f"{statuses()}")
        entry = {
            "name": "c7",
            "advertiser_id": advertiser,
            "budget": "total",
            "budget_micros": 1_000,
            "start": first.isoformat(),
        }
        http.put("/v1/campaigns/7", json=entry, headers=admin)
        wait_until(lambda: running.rounds > 2, 60, "it has looked at budgets again")
        assert installation.alerts("budget") == expected
        assert http.get("/v1/campaigns/7", headers=admin).json()["status"] == "active"
        http.put("/v1/campaigns/7", json=entry | {"budget_micros": 100_000}, headers=admin)
        closed = ("budget", advertiser, 7, 2, "critical", "closed")
        wait_until(lambda: closed in installation.alerts("budget"), 20, "a raised budget closes its alert")
    topic = installation.settings.topic(topics.CAMPAIGN_STATUS)
    announced = [
        (m.key(), json.loads(m.value())) for m in read_to_end(installation.settings.kafka_connection, topic, 0)
    ]
    assert [(key, text["campaign_id"], text["advertiser_id"], text["status"]) for key, text in announced] == [
        (b"7", 7, advertiser, "paused")
    ]
    audit = [e for e in http.get("/v1/audit", headers=admin).json()["data"] if e["subject"] == "campaign/7"]
    assert sum(entry["actor"] == "notify-0" and "paused" in entry["detail"] for entry in audit) == 1


def test_what_nightly_runs_find_is_told_to_the_operator(installation: Installation) -> None:
    client = installation.client
    # Long before the month of the statements.
    day = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date() - dt.timedelta(days=100)

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
        kinds = ("run-alert", "unbilled-events")
        opened = [("run-alert", 0, 0, 1, "critical", "open"), ("unbilled-events", 0, 0, 1, "warning", "open")]
        wait_until(lambda: installation.alerts(*kinds) == opened, 20, "both are told")
        publish("r2", 2, 0, {"causes": {}})
        states = ["open", "closed"] * 2
        wait_until(lambda: [a[5] for a in installation.alerts(*kinds)] == states, 20, "the next run closes both")


def test_a_worker_that_stopped_is_told_and_what_is_usual_is_the_median_of_this_hour(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, settings = installation.client, installation.settings
    # Whatever goes wrong with trends, alerts go on.
    monkeypatch.setattr(TrendKeeper, "refresh", lambda *_: 1 / 0)
    publish_stop(Redis(settings.redis), settings.key_prefix, "ingest-9", AdclickError("ad-events/0 has a hole"))
    with worker(installation):
        stopped = ("worker-stopped", 0, 0, 1, "critical", "open")
        wait_until(lambda: stopped in installation.alerts("worker-stopped"), 20, "it is told")
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
        wait_until(lambda: installation.alerts("statement-ready") == ready, 30, "both advertisers are told")
    assert client.rows(f"SELECT count() FROM {client.database}.statements FINAL") == [(2,)]
    month = {"advertiser_id": "3", "month": f"{MONTH:%Y-%m}"}
    statement = installation.http.get("/v1/statements", params=month, headers=installation.admin).json()
    assert (statement["status"], statement["issue"]) == ("final", 1)
    bills.publish([RESTATED], "again-{}", 2_000)
    with worker(installation):
        restated = ("statement-restated", 3, 0, 1, "warning", "open")
        wait_until(lambda: installation.alerts("statement-restated") == [restated], 30, "that it was restated is told")
    assert installation.alerts("statement-ready") == ready  # nothing has changed for the other advertiser
