"""A client that adds the differences of the feed of changes to the numbers that it has stored ends at those that are stored, exactly."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

import pytest

from infra.clickhouse.borders import table_id
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from query.changed_cells import ChangesReader
from query.changes import parse_changes_question
from query.row_scope import ALL_ROWS
from query.signing import Signer
from stream.published import Publication
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

SIGNER = Signer("secret")
DAY = (now_ms() - 2 * DAY_MS) // DAY_MS * DAY_MS
MEASURES = ("impressions", "clicks", "conversions", "spend_micros")
Numbers = dict[tuple[str, int], dict[str, int]]


class Writer:
    """The owner of a shard, which may be killed between a flush and its write."""

    def __init__(self, client: ClickHouse, shard: int, tier: str, grain_ms: int) -> None:
        self.client, self.shard, self.tier, self.grain_ms = client, shard, tier, grain_ms
        self.stage = Stage(grain_ms, 1)
        self.sink = self._new_sink()

    def _new_sink(self) -> WarmSink:
        return WarmSink(WarmTables(self.client, look_every_s=0.0), self.tier, self.grain_ms, self.shard)

    def flush(self, rows: list[dict[str, Any]], watermark_ms: int) -> Publication:
        at = self.stage.next_message
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        self.stage.apply_block(at, frame([partial(**row) for row in rows]), header, "here")
        self.stage.begin_flush()
        return self.stage.commit()

    def show(self, published: Publication) -> None:
        if not self.sink.write(published):
            self.sink.attach(self.stage.state.snapshot())

    def recover(self) -> None:
        """As the next owner does, which does not know what arrived."""
        self.sink = self._new_sink()
        self.sink.attach(self.stage.state.snapshot())


class Feed:
    """A client: numbers that it read once, and the differences that it has added since."""

    def __init__(self, reader: ChangesReader, grain: str) -> None:
        self._reader, self._grain, self.since = reader, grain, iso(now_ms())
        self.numbers: Numbers = {}
        self.cells: list[dict[str, Any]] = []

    def follow(self, limit: str = "1") -> list[dict[str, Any]]:
        cells, cursor = list[dict[str, Any]](), None
        while True:
            parameters = [("since", self.since), ("granularity", self._grain), ("limit", limit)]
            parameters += [("cursor", cursor)] if cursor else []
            answer = self._reader.answer(parse_changes_question(parameters, now_ms(), ALL_ROWS, SIGNER), SIGNER)
            cells += answer["data"]
            if (cursor := answer["next_cursor"]) is None:
                break
        self.since = answer["as_of"]
        for cell in cells:
            stored = self.numbers.setdefault((cell["time"], cell["campaign_id"]), dict.fromkeys(MEASURES, 0))
            for m in MEASURES:
                stored[m] += cell["to"][m] - cell["from"][m]
        return cells


@pytest.fixture
def client(settings: Settings) -> Iterator[ClickHouse]:
    yield ClickHouse.of(settings)


def stored(client: ClickHouse, table: str, where: str = "1") -> Numbers:
    sums = ", ".join(f"sum({m})" for m in MEASURES)
    rows = client.rows(f"SELECT toUInt64(toUnixTimestamp(time)), campaign_id, {sums} FROM {client.database}.{table} FINAL WHERE {where} GROUP BY time, campaign_id")  # fmt: skip
    return {(iso(t * 1000), c): dict(zip(MEASURES, map(int, values), strict=True)) for t, c, *values in rows}


def test_what_a_flush_has_closed_is_not_sent_as_a_correction_by_the_next_owner(client: ClickHouse) -> None:
    writer = Writer(client, 0, "hours", HOUR_MS)

    def cells() -> list[tuple[Any, ...]]:
        return client.rows(
            f"SELECT version, closing, impressions, changed FROM {client.database}.closed_cells FINAL WHERE tier = 'hours' ORDER BY 1"
        )

    writer.show(writer.flush([{"window_ms": DAY, "impressions": 3}], DAY + HOUR_MS))
    written = cells()
    assert [(closing, impressions) for _, closing, impressions, _ in written] == [(1, 3)]
    writer.recover()
    assert cells() == written
    # What did not arrive does then.
    writer.flush([{"window_ms": DAY, "impressions": 4}], DAY + HOUR_MS)
    writer.recover()
    assert [(closing, impressions) for _, closing, impressions, _ in cells()] == [(1, 3), (0, 7)]


@pytest.mark.parametrize(("grain", "tier", "size"), [("hour", "hours", HOUR_MS), ("day", "days", DAY_MS)])
def test_differences_add_up_however_often_the_writer_is_killed(
    client: ClickHouse, grain: str, tier: str, size: int
) -> None:
    random_steps = random.Random(f"steps of {tier}")
    reader = ChangesReader(client, 2)
    writers = [Writer(client, shard, tier, size) for shard in (0, 1)]
    starts = [DAY, DAY + size]

    def rows(count: int) -> list[dict[str, Any]]:
        return [
            {
                "window_ms": random_steps.choice(starts), "campaign_id": random_steps.randrange(4), "advertiser_id": 1 + n % 2,
                "ad_id": random_steps.randrange(2), "impressions": random_steps.randrange(5), "spend_micros": random_steps.randrange(2**40),
            }
            for n in range(count)
        ]  # fmt: skip

    closed_ms = DAY + 2 * size
    for writer in writers:
        writer.show(writer.flush(rows(6), closed_ms - 1))
        writer.show(writer.flush(rows(2), closed_ms))
    feed = Feed(reader, grain)
    feed.follow()
    feed.numbers = stored(client, f"stream_{tier}")
    for step in range(12):
        writer = random_steps.choice(writers)
        published = writer.flush(rows(2), closed_ms)
        match random_steps.choice(["shown", "shown", "twice", "killed", "killed half-way", "late"]):
            case "shown":
                writer.show(published)
            case "twice":
                writer.show(published)
                writer.show(published)
            case "killed":
                writer.recover()
            case "killed half-way":
                writer.show(published)
                writer.recover()
            case "late":
                ousted = writer.sink
                writer.recover()
                ousted.write(published)
        if step % 3 == 2:
            feed.follow(str(random_steps.choice([1, 2, 1000])))
            assert feed.numbers == stored(client, f"stream_{tier}"), step
            assert feed.follow() == []


def test_a_window_that_closed_since_begins_with_what_it_had_then(client: ClickHouse) -> None:
    writer, feed = Writer(client, 0, "hours", HOUR_MS), Feed(ChangesReader(client, 1), "hour")
    early = Feed(ChangesReader(client, 1), "hour")
    for each in (feed, early):
        each.follow()
    row = {"window_ms": DAY, "campaign_id": 7, "impressions": 3}
    writer.show(writer.flush([row], DAY + HOUR_MS))
    assert feed.follow() == [], "it closed, and nothing was corrected"
    writer.show(writer.flush([row | {"impressions": 2}], DAY + HOUR_MS))
    writer.show(writer.flush([row | {"campaign_id": 8}], DAY + HOUR_MS))
    cells = feed.follow()
    assert [(c["campaign_id"], c["from"]["impressions"], c["to"]["impressions"], c["cause"], c["finality"]) for c in cells] == [
        (7, 3, 5, "late", "corrected"), (8, 0, 3, "late", "corrected"),
    ]  # fmt: skip
    assert early.follow() == cells, "also for a client that last asked before the close"


def test_a_nightly_run_replaces_cells_and_says_why(client: ClickHouse) -> None:
    """Twice, and with a correction by the stream that neither the client nor the first run had seen."""
    db, date = client.database, dt.datetime.fromtimestamp(DAY / 1000, dt.UTC).date()
    hours, days = Writer(client, 0, "hours", HOUR_MS), Writer(client, 0, "days", DAY_MS)
    row = {"window_ms": DAY, "campaign_id": 7, "advertiser_id": 1, "impressions": 10}
    for writer in (hours, days):
        writer.show(writer.flush([row], DAY + 2 * DAY_MS))
    feeds = [Feed(ChangesReader(client, 1), grain) for grain in ("hour", "day")]
    for feed, tier in zip(feeds, ("hours", "days"), strict=True):
        feed.follow()
        feed.numbers = stored(client, f"stream_{tier}")
    for writer in (hours, days):
        writer.show(writer.flush([row | {"impressions": 1}], DAY + 2 * DAY_MS))

    def publish(run: str, fence: int, exact: int, causes: dict[str, int]) -> None:
        for table in ("exact_hours", "exact_days"):
            client.command(
                f"INSERT INTO {db}.{table} VALUES ({DAY // 1000}, 7, 1, 1, 1, 'DE', 'mobile', '{run}', {exact}, 0, 0, 0, 0, 0, 0)"
            )
        for cause, share in causes.items():
            client.command(
                f"INSERT INTO {db}.ledger VALUES ({DAY // 1000}, 7, 1, 1, 1, 'DE', 'mobile', '{run}', '{cause}', {share}, 0, 0, 0)"
            )
        client.command(
            f"INSERT INTO {db}.runs SELECT '{date}', '{run}', now64(3), '', 2, 0, 2, 0, 0, '{{}}', {fence}, 0,"
            f" toUUID('{table_id(client, 'exact_hours')}'), toUUID('{table_id(client, 'exact_days')}')"
        )

    publish("first", 1, 16, {"late": 7, "shed": -2})
    for feed in feeds:
        (cell,) = feed.follow()
        assert (cell["from"]["impressions"], cell["to"]["impressions"], cell["cause"]) == (10, 16, "reconciled")
        assert {cause: amounts["impressions"] for cause, amounts in cell["causes"].items()} == {
            "late": 7,
            "shed": -2,
            "corrected": 1,
        }
        assert feed.follow() == []
    # What the stream counts now is not shown any more.
    hours.show(hours.flush([row | {"impressions": 100}], DAY + 2 * DAY_MS))
    assert feeds[0].follow() == []
    publish("second", 2, 18, {"late": 7})
    for feed, table in zip(feeds, ("exact_hours", "exact_days"), strict=True):
        (cell,) = feed.follow()
        assert (cell["from"]["impressions"], cell["to"]["impressions"]) == (16, 18)
        assert {cause: amounts["impressions"] for cause, amounts in cell["causes"].items()} == {"shed": 2}
        assert feed.numbers == stored(client, table, "run_id = 'second'")
    # Without what the stream had: from what the run found there.
    client.command(f"TRUNCATE TABLE {db}.closed_cells")
    feed = Feed(ChangesReader(client, 1), "hour")
    feed.since = iso(now_ms() - 3600_000)
    (cell,) = feed.follow()
    assert (cell["from"]["impressions"], cell["to"]["impressions"]) == (11, 18)
    assert sum(amounts["impressions"] for amounts in cell["causes"].values()) == 7
