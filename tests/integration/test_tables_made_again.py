"""A table that was dropped and recreated: its rows are gone, and answers name what is missing."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from batch import archived_rows, coverage, publish, spark_job
from batch.recount import UnbilledEvents
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import DAY_MS, HOUR_MS, iso
from infra.errors import Unavailable
from infra.settings import Settings
from query import tier_cache
from query.plan import HOT, WARM
from query.question import parse_question
from query.router import Answer, Router
from query.status import read_status
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink, lowest_border
from tests.integration.test_hot_tier import START
from tests.integration.test_moving_borders import Tiers, at, impressions, tiers
from tests.redis_loss import lose_keys

AT = START - START % DAY_MS


@pytest.fixture
def two(settings: Settings) -> Tiers:
    return Tiers(settings)


def ask(settings: Settings, start_ms: int, end_ms: int, grain: str = "hour") -> Answer:
    """The answer of a router that was started now."""
    router = Router(settings)
    parameters = {"campaign_id": "1", "start": iso(start_ms), "end": iso(end_ms), "granularity": grain}
    return router.answer(parse_question(list(parameters.items()), START + 3 * HOUR_MS, router.retention))


def recreate(settings: Settings, table: str) -> ClickHouse:
    client = ClickHouse(settings.clickhouse, settings.database)
    client.command(f"DROP TABLE {settings.database}.{table} SYNC")
    assert apply_migrations(client) == [table]
    return client


def forget_cached(settings: Settings, two: Tiers) -> None:
    lose_keys(two.hot.redis, tier_cache.all_keys(settings.key_prefix))


def test_hours_of_a_recreated_table_are_not_answered_as_zero(two: Tiers) -> None:
    settings = two.settings
    two.store_first_hour(5, START + 3 * HOUR_MS)
    assert (impressions(ask(settings, START, START + HOUR_MS)), tiers(ask(settings, START, START + HOUR_MS))) == ([5], [WARM])  # fmt: skip
    client = recreate(settings, "stream_hours")
    forget_cached(settings, two)
    answer = ask(settings, START, START + HOUR_MS)
    assert WARM not in tiers(answer)
    assert any(w.startswith("tier warm is not available: its table was made again") for w in answer.warnings)
    assert lowest_border(client, "hours", 1) is None
    assert publish.read_watermark(client, 1) is None
    (warning,) = [w for w in read_status(settings)["warnings"] if "stream_hours was made again" in w]
    assert "not served" in warning


def test_a_stream_worker_refills_a_recreated_table_from_its_state(two: Tiers) -> None:
    settings, owner = two.settings, two.warm
    two.store_first_hour(5, START + HOUR_MS)
    recreate(settings, "stream_hours")
    assert owner.shown() == 0
    assert not owner.sink.refresh(0)
    owner.sink.attach(owner.stage.state.snapshot())
    assert owner.shown() == 5
    forget_cached(settings, two)
    assert lowest_border(owner.client, "hours", 1) == START - HOUR_MS
    assert not any("table was made again" in w for w in ask(settings, START, START + HOUR_MS).warnings)


def test_a_shard_that_is_taken_over_attaches_to_the_table_that_is_there(two: Tiers) -> None:
    settings, owner = two.settings, two.warm
    two.store_first_hour(5, START + HOUR_MS)
    tables = WarmTables(owner.client, look_every_s=3600.0)
    WarmSink(tables, "hours", HOUR_MS, 0).attach(owner.stage.state.snapshot())
    recreate(settings, "stream_hours")
    successor = WarmSink(tables, "hours", HOUR_MS, 0)
    successor.attach(owner.stage.state.snapshot())
    assert owner.shown() == 5
    assert lowest_border(owner.client, "hours", 1) == START - HOUR_MS


@pytest.mark.parametrize("noticed_by", ["a look", "a flush"])
def test_a_recreated_table_is_served_only_once_all_that_the_state_holds_is_in_it(
    two: Tiers, monkeypatch: pytest.MonkeyPatch, noticed_by: str
) -> None:
    settings, owner = two.settings, two.warm
    two.store_first_hour(5, START + HOUR_MS)
    recreate(settings, "stream_hours")
    insert = owner.client.insert

    def fail(table: str, rows: Any) -> None:
        if table == "stream_hours":
            raise Unavailable("ClickHouse is away")
        insert(table, rows)

    monkeypatch.setattr(owner.client, "insert", fail)
    if noticed_by == "a look":
        assert not owner.sink.refresh(0)
    else:
        assert not owner.sink.write(owner.flush(1, START + 2 * HOUR_MS))
    with pytest.raises(Unavailable):
        owner.sink.attach(owner.stage.state.snapshot())
    monkeypatch.setattr(owner.client, "insert", insert)
    later = owner.flush(1, START + 3 * HOUR_MS)
    assert not owner.sink.refresh(0), "not all has been sent yet"
    assert not owner.sink.write(later), "its rows alone would be taken for all there are"
    assert lowest_border(owner.client, "hours", 1) is None
    owner.show(later)
    assert owner.shown() == (6 if noticed_by == "a look" else 7)
    assert lowest_border(owner.client, "hours", 1) == START + HOUR_MS


def test_hours_that_no_state_contains_any_more_are_named_as_missing(two: Tiers) -> None:
    settings, owner = two.settings, two.warm
    two.store_first_hour(5, START + 3 * HOUR_MS)
    owner.stage.windows.clear()
    nothing = replace(owner.stage.state.snapshot(), dropped_ms=START + HOUR_MS)
    recreate(settings, "stream_hours")
    successor = WarmSink(WarmTables(owner.client), "hours", HOUR_MS, 0)
    successor.attach(nothing)
    # The gap outlives the worker that found it.
    later_successor = WarmSink(WarmTables(owner.client), "hours", HOUR_MS, 0)
    later_successor.attach(nothing)
    forget_cached(settings, two)
    # Without minutes it is missing, and said to be.
    lose_keys(two.hot.redis, two.hot.sink.keys.all())
    answer = ask(settings, START, START + HOUR_MS)
    assert tiers(answer) == [WARM]
    (warning,) = [w for w in answer.warnings if w.startswith("tier warm: ")]
    assert f"{iso(START)} to {iso(START + HOUR_MS)} may be missing" in warning
    assert "adclick reconcile" in warning
    (missing,) = [w for w in read_status(settings)["warnings"] if "stream_hours was made again" in w]
    assert f"hours before {iso(START + HOUR_MS)} are missing" in missing
    # With them, they answer.
    two.hot.show([at(0, 5)], START + 3 * HOUR_MS)
    answer = ask(settings, START, START + HOUR_MS)
    assert (impressions(answer), tiers(answer), answer.warnings) == ([5], [HOT], [])


def test_a_day_whose_exact_rows_are_lost_is_reported_and_reconciled_again(two: Tiers) -> None:
    settings = two.settings.model_copy(update={"block_partitions": 1})
    client, db = ClickHouse(settings.clickhouse, settings.database), settings.database
    date = dt.datetime.fromtimestamp(AT / 1000, dt.UTC).date()
    client.command(
        f"INSERT INTO {db}.exact_hours SELECT toDateTime({START // 1000}, 'UTC'), 1, 3, 2, 4, 'DE', 'mobile', 'run', 9, 0, 0, 0, 0, 0, 0"
    )
    two.store_first_hour(5, START + 3 * HOUR_MS)
    tables = publish.exact_tables(client)
    proof = coverage.Proof([], [], [], archived_rows.NO_REJECTED_IDS, [])
    publish.publish(
        client, date, "run", 1, spark_job.RunInput(1, 0, "digest", UnbilledEvents(), 1, {}), publish.Comparison(1, 0, 0), proof, 0.0, False, tables=tables
    )  # fmt: skip
    assert impressions(ask(settings, START, START + HOUR_MS)) == [9]
    assert publish.is_stored(client, "run", tables)
    recreate(settings, "exact_hours")
    forget_cached(settings, two)
    answer = ask(settings, START, START + HOUR_MS)
    assert (impressions(answer), answer.finality) == ([5], "closed")
    assert any(w.startswith(f"the reconciled rows of {date} are lost") for w in answer.warnings)
    assert not publish.is_stored(client, "run", publish.exact_tables(client))
    assert any("exact tables were made again" in w for w in read_status(settings)["warnings"])


def test_borders_without_a_table_id_apply_to_the_present_table(two: Tiers) -> None:
    settings = two.settings
    client, db = ClickHouse(settings.clickhouse, settings.database), settings.database
    two.store_first_hour(5, START + 3 * HOUR_MS)
    client.command(f"ALTER TABLE {db}.tier_borders DROP COLUMN table_id, DROP COLUMN from_ms")
    client.command(f"ALTER TABLE {db}.migrations DELETE WHERE name = '011_table_ids.sql' SETTINGS mutations_sync = 2")
    assert apply_migrations(client) == ["011_table_ids.sql"]
    assert lowest_border(client, "hours", 1) == START + HOUR_MS
    assert impressions(ask(settings, START, START + HOUR_MS)) == [5]
