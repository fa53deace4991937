"""Alerts of the stream on the real ClickHouse: the same ones, whenever a worker ends and whatever it had written by then."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from infra import faults
from infra.clickhouse.alerts import Alert
from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, MINUTE_MS, now_ms
from infra.kafka.consumers import read_to_end
from infra.kafka.topics import CAMPAIGN_TOTALS
from infra.redis.client import Redis
from infra.settings import Settings
from query.status import read_status
from stream import chunks
from stream.insights.alerting import ALL_SILENT, Alerting, AlertPolicy
from stream.insights.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from stream.insights.published_status import publish_stop, read_stop
from stream.insights.sink import InsightSink
from stream.insights.watch import Watch
from tests.flow import flow
from tests.insight_owner import ADVERTISER, START, InsightOwner
from tests.product import assert_stays, wait_until
from tests.unit.test_alerting import minutes_of
from tests.unit.test_partials_and_cells import partial

MINUTES, CAMPAIGNS = 300, 30


def planted() -> np.ndarray:
    """Steady campaigns, of which one spends too much, one is silent, and one loses its clicks."""
    numbers = minutes_of(CAMPAIGNS, MINUTES)
    numbers[200:204, 2, 4] *= 9
    numbers[210:214, :, 5] = 0
    numbers[220:230, 1, 6] = 0
    return numbers


def expected_alerts(numbers: np.ndarray) -> set[tuple[str, int, str, str]]:
    """(id, version, kind, state) of all alerts, by the pure parts alone."""
    watch, alerting, alerts = Watch(120), Alerting(AlertPolicy(), all_campaigns=True), list[Alert]()
    watch.rows_of(np.arange(numbers.shape[2]), np.full(numbers.shape[2], ADVERTISER))
    for minute, values in enumerate(numbers):
        at_ms = START + minute * MINUTE_MS
        alerts += alerting.take(at_ms, watch.take(at_ms, *values), watch.expecting)
    return {(a.id, a.version, a.kind, a.state) for a in alerts}


@pytest.fixture
def owner(settings: Settings) -> InsightOwner:
    return InsightOwner(ClickHouse(settings.clickhouse, settings.database))


def written(client: ClickHouse) -> set[tuple[str, int, str, str]]:
    rows = client.rows(f"SELECT id, version, kind, state FROM {client.database}.alerts FINAL")
    return {(id_, int(version), kind, state) for id_, version, kind, state in rows}


@pytest.mark.parametrize("before_write", [True, False])
def test_alerts_are_the_same_whenever_a_worker_ends(owner: InsightOwner, before_write: bool) -> None:
    numbers, ends = (
        planted(),
        set(np.random.default_rng(2).choice(MINUTES, 12, replace=False).tolist()) | {201, 211, 223},
    )
    for minute, values in enumerate(numbers):
        published = owner.flush(minute, values)
        if not (before_write and minute in ends):
            assert owner.sink.write(published)
        if minute in ends:
            owner.succeed()
    expected = expected_alerts(numbers)
    assert {kind for _, _, kind, _ in expected} == {"spend-spike", "zero-impressions", "ctr-drop"}
    assert written(owner.client) == expected


def test_alerts_are_the_same_where_every_worker_ends_before_it_shows_anything(owner: InsightOwner) -> None:
    numbers = planted()
    for minute, values in enumerate(numbers):
        owner.flush(minute, values)
        if minute % 4 == 3:
            owner.succeed()
    owner.succeed()
    assert written(owner.client) == expected_alerts(numbers)


def test_minutes_that_no_one_has_kept_are_no_minutes_without_events(owner: InsightOwner) -> None:
    numbers = minutes_of(CAMPAIGNS, MINUTES)
    for minute, values in enumerate(numbers[:150]):
        assert owner.sink.write(owner.flush(minute, values))
    old, slot = read_checkpoint(owner.client)
    assert old is not None
    for minute in range(150, 290):
        assert owner.sink.write(owner.flush(minute, numbers[minute]))
    # A backup of the checkpoints, from before the minutes that the log still has.
    owner.client.command(f"TRUNCATE TABLE {owner.client.database}.detector_checkpoints")
    write_checkpoint(owner.client, slot, old)
    owner.succeed()
    for minute in range(290, MINUTES):
        assert owner.sink.write(owner.flush(minute, numbers[minute]))
    assert written(owner.client) == set()


def late_rows_of_minute_200() -> dict[str, Any]:
    """What campaign 5 usually has in a minute."""
    return partial(
        window_ms=START + 200 * MINUTE_MS,
        campaign_id=5,
        advertiser_id=ADVERTISER,
        impressions=400,
        clicks=20,
        spend_micros=400_000,
    )


def test_late_events_withdraw_an_alert_also_one_that_a_successor_does_not_know(owner: InsightOwner) -> None:
    numbers = minutes_of(CAMPAIGNS, MINUTES)
    numbers[200, :, 5] = 0
    for minute, values in enumerate(numbers[:203]):
        assert owner.sink.write(owner.flush(minute, values))
    late = late_rows_of_minute_200()
    published = owner.flush(203, numbers[203], late)
    ((opened, *_),) = written(owner.client)
    # A checkpoint from before the alert: the successor judges the minute anew, with the late events.
    former = InsightSink(owner.client, AlertPolicy())
    former.attach(owner.stage.state.snapshot())
    assert owner.sink.write(published)
    assert {(id_, version, state) for id_, version, _, state in written(owner.client)} == {
        (opened, 1, "open"),
        (opened, 2, "withdrawn"),
    }


def test_late_events_open_an_alert_also_where_the_worker_ends_right_then(
    owner: InsightOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = minutes_of(CAMPAIGNS, MINUTES)
    late = late_rows_of_minute_200() | {"spend_micros": 9_000_000}
    for minute, values in enumerate(numbers[:210]):
        assert owner.sink.write(owner.flush(minute, values))
    monkeypatch.setattr(faults, "point", lambda name: 1 / 0 if name == "insights.written" else None)
    assert owner.sink.write(owner.flush(210, numbers[210], late))
    monkeypatch.undo()
    owner.succeed()
    for minute in range(211, 220):
        assert owner.sink.write(owner.flush(minute, numbers[minute]))
    assert sorted((version, kind, state) for _, version, kind, state in written(owner.client)) == [
        (1, "spend-spike", "open"),
        (2, "spend-spike", "closed"),
    ]


def test_an_alert_that_only_the_outbox_knows_is_withdrawn(owner: InsightOwner, settings: Settings) -> None:
    numbers = minutes_of(CAMPAIGNS, MINUTES)
    numbers[200, :, 5] = 0
    late = late_rows_of_minute_200()
    for minute, values in enumerate(numbers[:200]):
        assert owner.sink.write(owner.flush(minute, values))
    before, _ = read_checkpoint(owner.client)
    assert before is not None
    for minute in (200, 201):
        assert owner.sink.write(owner.flush(minute, numbers[minute]))
    owner.flush(202, numbers[202], late)
    # As if the worker had ended between the alert and its checkpoint.
    owner.client.command(f"TRUNCATE TABLE {owner.client.database}.detector_checkpoints")
    write_checkpoint(owner.client, 0, before)
    owner.succeed()
    assert sorted((version, state) for _, version, _, state in written(owner.client)) == [(1, "open"), (2, "withdrawn")]


def test_what_breaks_the_detector_is_shown_and_does_not_stop_the_stage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, prefix = Redis(settings.redis), settings.key_prefix
    client = ClickHouse(settings.clickhouse, settings.database)
    owner = InsightOwner(client, lambda why: publish_stop(redis, prefix, why))
    numbers = minutes_of(CAMPAIGNS, 130)
    write_checkpoint(owner.client, 0, Checkpoint(START, b"damaged", b"{}"))
    owner.succeed()
    for minute, values in enumerate(numbers[:125]):
        assert owner.sink.write(owner.flush(minute, values))
    with monkeypatch.context() as broken:
        broken.setattr(Watch, "take", lambda *_: 1 / 0)
        assert owner.sink.write(owner.flush(125, numbers[125]))
    shown = "the detector has stopped, and raises no alerts: division by zero"
    assert shown in read_status(settings)["warnings"]
    assert owner.sink.write(owner.flush(126, numbers[126]))
    # Once it starts again, it has missed nothing.
    owner.succeed()
    assert read_stop(redis, prefix) == ""
    numbers[129, 2, 4] *= 9
    for minute in (127, 128, 129):
        assert owner.sink.write(owner.flush(minute, numbers[minute]))
    assert [kind for _, _, kind, _ in written(owner.client)] == ["spend-spike"]


def test_a_standstill_of_all_is_one_alert_for_the_operator(owner: InsightOwner) -> None:
    numbers = minutes_of(CAMPAIGNS, 180)
    numbers[150:160] = 0
    for minute, values in enumerate(numbers):
        # Without events there is no row, and the watermark moves on all the same.
        assert owner.sink.write(owner.flush(minute, values))
    assert sorted((kind, version, state) for _, version, kind, state in written(owner.client)) == [
        (ALL_SILENT, 1, "open"),
        (ALL_SILENT, 2, "closed"),
    ]


def test_a_checkpoint_that_was_written_in_part_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    first, second = (Checkpoint(START + n * HOUR_MS, b"w" * 4_000, b"a%d" % n) for n in range(2))
    monkeypatch.setattr("stream.insights.checkpoints._PART_BYTES", 1_000)
    write_checkpoint(client, 0, first)
    write_checkpoint(client, 1, second)
    assert read_checkpoint(client) == (second, 0)
    client.command(
        f"ALTER TABLE {client.database}.detector_checkpoints DELETE WHERE slot = 1 AND part = 2 SETTINGS mutations_sync = 2"
    )
    assert read_checkpoint(client) == (first, 1)


def spent(per_minute: int, minutes: int, spike: int) -> tuple[pl.Series, pl.Series]:
    """Keys and messages of a campaign with a steady spend, and nine times as much in one minute; the clock is a real one. It has so many
    publishers that it is spread over shards."""
    start = (now_ms() - (minutes + 5) * MINUTE_MS) // MINUTE_MS * MINUTE_MS
    events = [
        {
            "event_id": f"e{minute}-{number}", "event_type": "click", "event_time": start + minute * MINUTE_MS + number * 60_000 // per_minute,
            "campaign_id": 7, "ad_id": 1, "advertiser_id": ADVERTISER, "publisher_id": (minute * per_minute + number) % 997, "country": "DE", "device": "mobile",
            "cost_micros": 1_000 * (9 if minute == spike else 1) + (minute * number) % 7,
        }
        for minute in range(minutes)
        for number in range(per_minute)
    ]  # fmt: skip
    return pl.Series([e["event_id"] for e in events]), pl.Series([json.dumps(e).encode() for e in events])


@pytest.mark.parametrize("fault", ["insights.found", "insights.written", "insights.checkpointed"])
def test_an_alert_is_written_once_though_the_worker_dies_beside_it(
    settings: Settings, tmp_path: Path, fault: str
) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    with flow(settings, tmp_path) as running:
        keys, lines = spent(20, 160, spike=140)
        running.events = dataclasses.replace(running.events, keys=keys, lines=lines)
        running.start("ingest-0")
        running.start("stream-0", f"kill@{fault}")
        running.send()
        running.wait_until_killed("stream-0")
        running.start("stream-0")

        def told() -> list[tuple[str, int, str]]:
            return sorted((kind, version, state) for _, version, kind, state in written(client))

        expected = [("spend-spike", 1, "open"), ("spend-spike", 2, "closed")]
        wait_until(lambda: told() == expected, 60, lambda: f"{told()}")
        assert_stays(lambda: told() == expected, 2.0, lambda: f"{told()}")
    # What the campaign spent over all shards.
    assert len(shards_of_totals(settings)) > 1
    values = client.rows(f"SELECT DISTINCT JSONExtractUInt(detail, 'value') FROM {client.database}.alerts")
    assert values == [(sum(9_000 + 140 * number % 7 for number in range(20)),)]


def shards_of_totals(settings: Settings) -> set[int]:
    """The shards that have sent sums of campaigns."""
    messages = read_to_end(settings.kafka_connection, settings.topic(CAMPAIGN_TOTALS), 0)
    decoded = (chunks.decode(message.value(), "here") for message in messages)
    return {header.shard for rows, header in decoded if len(rows)}
