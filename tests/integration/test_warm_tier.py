"""The warm tier's sink on the real ClickHouse."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from stream.published import Publication
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink, lowest_border
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

START = 1_795_132_800_000


class Owner:
    """An owner of a shard of hours, with the state and the sink that it believes to be current."""

    def __init__(
        self, settings: Settings, partitions: int = 1, shard: int = 0, tables: WarmTables | None = None
    ) -> None:
        self.client = ClickHouse.of(settings)
        self.stage = Stage(HOUR_MS, partitions)
        self.sink = WarmSink(tables or WarmTables(self.client, look_every_s=0.0), "hours", HOUR_MS, shard)

    def flush(self, impressions: int, watermark_ms: int, **more: Any) -> Publication:
        at = self.stage.next_message
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        rows = [partial(window_ms=START, impressions=impressions, **more)]
        self.stage.apply_block(at, frame(rows), header, "here")
        self.stage.begin_flush()
        return self.stage.commit()

    def show(self, published: Publication) -> None:
        """As a stage partition does."""
        if not self.sink.write(published):
            self.sink.attach(self.stage.state.snapshot())

    def shown(self) -> int:
        database = self.client.database
        return int(self.client.rows(f"SELECT sum(impressions) FROM {database}.stream_hours FINAL")[0][0])


@pytest.fixture
def owners(settings: Settings) -> tuple[Owner, Owner]:
    """An owner that is halted before its write, and its successor, which has the same log."""
    return Owner(settings), Owner(settings)


def test_an_ousted_owners_late_write_changes_nothing(owners: tuple[Owner, Owner]) -> None:
    ousted, successor = owners
    closed = START + HOUR_MS
    ousted.show(ousted.flush(1, START))
    stuck = ousted.flush(1, closed)
    for watermark_ms in (START, closed):
        successor.flush(1, watermark_ms)
    successor.sink.attach(successor.stage.state.snapshot())
    assert successor.shown() == 2
    successor.show(successor.flush(10, closed))
    assert successor.shown() == 12
    assert ousted.sink.write(stuck)
    assert successor.shown() == 12
    successor.sink.attach(successor.stage.state.snapshot())
    assert successor.shown() == 12


def test_the_border_moves_only_with_what_is_written(owners: tuple[Owner, Owner]) -> None:
    owner, _ = owners
    published = owner.flush(1, START + 2 * HOUR_MS + 60_000)
    assert lowest_border(owner.client, "hours", 1) is None
    for _ in range(2):
        owner.show(published)
        assert owner.shown() == 1
    # An hour behind the close: until then late events may be in the minutes first.
    assert lowest_border(owner.client, "hours", 1) == START + HOUR_MS


def test_the_border_waits_for_what_a_silent_partition_may_still_bring(settings: Settings) -> None:
    owner = Owner(settings, partitions=2)
    ahead = SourceRange(0, 0, 1, START + 4 * HOUR_MS, False)
    header = BlockHeader(1, (ahead, SourceRange(1, 0, 1, START + HOUR_MS, True)), 0)
    owner.stage.apply_block(0, frame([partial(window_ms=START)]), header, "here")
    owner.stage.begin_flush()
    closed = owner.stage.commit()
    assert [w.start for w in closed.newly_closed] == [START]
    owner.show(closed)
    # By its own watermark an event of the silent partition is not late at all.
    assert lowest_border(owner.client, "hours", 1) == START - HOUR_MS
    woken = BlockHeader(1, (SourceRange(1, 1, 2, START + 3 * HOUR_MS, False),), 0)
    owner.stage.apply_block(1, frame([partial(window_ms=START)]), woken, "here")
    owner.stage.begin_flush()
    owner.show(owner.stage.commit())
    assert owner.shown() == 2
    assert lowest_border(owner.client, "hours", 1) == START + HOUR_MS


def test_shards_that_write_at_the_same_time_share_inserts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    client, shards = ClickHouse.of(settings), range(6)
    tables = WarmTables(client)
    owners = [Owner(settings, shard=shard, tables=tables) for shard in shards]
    # Of a shard with large numbers their columns are wider.
    flushes = [owner.flush(1 + 10**shard, START + 2 * HOUR_MS + 60_000) for shard, owner in enumerate(owners)]
    insert, inserts, all_are_here = client.insert, list[tuple[str, int]](), threading.Barrier(len(shards))

    def insert_slowly(table: str, data: pa.Table) -> None:
        inserts.append((table, len(data)))
        time.sleep(0.3)
        insert(table, data)

    monkeypatch.setattr(client, "insert", insert_slowly)

    def show(shard: int) -> None:
        all_are_here.wait(10)
        owners[shard].show(flushes[shard])

    with ThreadPoolExecutor(len(shards)) as pool:
        list(pool.map(show, shards))
    assert owners[0].shown() == sum(1 + 10**shard for shard in shards)
    assert lowest_border(client, "hours", len(shards)) == START + HOUR_MS
    assert [table for table, _ in inserts].count("stream_hours") <= len(shards) // 2
    assert sum(rows for table, rows in inserts if table == "stream_hours") == len(shards)
    for owner, published in zip(owners, flushes, strict=True):
        owner.sink.attach(owner.stage.state.snapshot())
        assert owner.sink.write(published)
    assert owners[0].shown() == sum(1 + 10**shard for shard in shards)
