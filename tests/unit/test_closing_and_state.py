"""The closing watermark, and a stage's state under any order of blocks, flushes, aborts and recoveries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as counter
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import CorruptLog
from ingest import partials
from ingest.blocks import BlockHeader, SourceRange
from ingest.partials import Partials
from stream import chunks
from stream.chunks import ChunkHeader
from stream.closing import Closing
from stream.published import Publication
from tests.stages import Stage
from tests.unit.test_partials_and_cells import as_frame, frame, partial

MINUTE = 60_000


def closing_after(*news: tuple[int | None, bool]) -> Closing:
    ranges = [SourceRange(p, 0, 1, mark, silent) for p, (mark, silent) in enumerate(news)]
    return Closing().see(ranges, len(news))


def test_no_window_closes_before_every_partition_has_reported() -> None:
    assert Closing().see([SourceRange(0, 0, 1, 100, False)], 2).closed_ms is None
    assert closing_after((100, False), (None, False)).closed_ms is None


@pytest.mark.parametrize(
    ("news", "closed"),
    [
        (((100, False), (50, False)), 50),
        (((100, False), (50, True)), 100),
        (((100, False), (None, True)), 100),
        (((None, True), (None, True)), None),
    ],
)
def test_the_closing_watermark_is_the_minimum_over_active_partitions(
    news: tuple[tuple[int | None, bool], ...], closed: int | None
) -> None:
    assert closing_after(*news).closed_ms == closed
    assert closing_after(*news).tick(2, 0).closed_ms == closed


def test_while_all_partitions_are_silent_the_closing_watermark_moves_with_the_clock() -> None:
    silent = [SourceRange(0, 1, 1, 100, True), SourceRange(1, 1, 1, 90, True)]
    closing = closing_after((100, False), (90, False)).see(silent, 2).tick(2, 20_000)
    assert closing.closed_ms == 90
    assert closing.tick(2, 20_700).closed_ms == 790
    # A clock that is set back moves nothing back; a partition that comes back does not either.
    later = closing.tick(2, 20_700).tick(2, 5_000)
    assert later.closed_ms == 790
    assert later.see([SourceRange(0, 1, 2, 200, False)], 2).tick(2, 21_000).closed_ms == 790


def test_a_watermark_counts_when_its_partition_falls_silent_in_the_same_flush() -> None:
    news = [SourceRange(0, 1, 2, 5_000, False), SourceRange(1, 1, 2, 4_000, False)]
    silent = [SourceRange(0, 2, 2, 5_000, True), SourceRange(1, 2, 2, 4_000, True)]
    assert closing_after((100, False), (90, False)).see(news, 2).see(silent, 2).tick(2, 0).closed_ms == 4_000


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.booleans(), st.integers(0, 10**6)), max_size=40))
def test_the_closing_watermark_never_goes_back(steps: list[tuple[int, int, bool, int]]) -> None:
    closing, marks = Closing(), [0, 0, 0]
    last: int | None = None
    for partition, mark, silent, now in steps:
        marks[partition] = max(marks[partition], mark)
        closing = closing.see([SourceRange(partition, 0, 0, marks[partition], silent)], 3).tick(3, now)
        if last is not None:
            assert closing.closed_ms is not None
            assert closing.closed_ms >= last
        last = closing.closed_ms


def test_windows_are_kept_while_any_partition_may_still_send_rows_of_them() -> None:
    assert closing_after((10_000_000, True), (None, True)).droppable_ms(2) == 0
    assert closing_after((10_000_000, False), (9_000_000, True)).droppable_ms(2) == 9_000_000 - 3_600_000 - 1
    # All silent: what has not closed yet must still be shown as closed, from whole windows.
    held_back = closing_after((0, False), (0, False)).see([SourceRange(p, 1, 1, 10_000_000, True) for p in (0, 1)], 2)
    assert held_back.droppable_ms(2) == 0


def test_a_partition_without_events_keeps_windows_for_a_day_of_clock_time() -> None:
    closing, hour = closing_after((10_000_000, False), (None, True)), 3_600_000
    dropped = []
    for clock in range(50):
        news = [SourceRange(0, clock, clock + 1, 10_000_000 + clock * hour, False)]
        closing = closing.see(news, 2).tick(2, clock * hour)
        dropped.append(closing.droppable_ms(2))
    assert dropped[23] == 0
    assert dropped[24:48] == [10_000_000] * 24
    assert dropped[48] == 10_000_000 + 24 * hour


class Log:
    """A compacted state log: keys to values, with what a transaction writes."""

    def __init__(self) -> None:
        self.live: dict[bytes, bytes] = {}
        self.downstream: list[tuple[Partials, Any]] = []
        self.closed: list[tuple[Partials, int, ChunkHeader]] = []
        """What insights was sent: rows, from which input offset on, and the header."""

    def commit(self, stage: Stage) -> Publication:
        flush = stage.flush
        assert flush is not None
        for key in flush.tombstones:
            self.live.pop(key, None)
        for key, value in chunks.encode(flush.state, flush.state_header):
            assert key not in self.live
            self.live[key] = value
        self.downstream.append((flush.delta, flush.header))
        if flush.closed_rows is not None:
            self.closed.append((flush.closed_rows, flush.closed_from, flush.header))
        return stage.commit()


_blocks = st.lists(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9)).map(
            lambda r: partial(window_ms=r[0] * MINUTE, campaign_id=r[1], impressions=r[2])
        ),
        max_size=4,
    ),
    max_size=12,
)
_fates = st.lists(st.sampled_from(["apply", "apply", "flush", "abort", "crash"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(_blocks, _fates)
def test_every_block_counts_once_after_any_flushes_aborts_and_recoveries(
    inputs: list[list[dict[str, Any]]], fates: list[str]
) -> None:
    log, stage, at = Log(), Stage(MINUTE, 1), 0
    for fate in [*fates, *["apply"] * len(inputs), "flush", "crash"]:
        at = stage.next_message
        if fate == "apply" and at < len(inputs):
            mark = at * MINUTE // 2
            header = BlockHeader(1, (SourceRange(0, at, at + 1, mark, False),), 0)
            stage.apply_block(at, frame(inputs[at]), header, "here")
        elif fate in ("flush", "abort") and stage.flush_due(0):
            stage.begin_flush()
            if fate == "flush":
                log.commit(stage)
            else:
                stage.abort()
        elif fate == "crash":
            stage = Stage(MINUTE, 1)
            stage.restore(list(log.live.items()))
    expected = _sums(Partials.joined([frame(b) for b in inputs[: stage.next_message]]))
    assert _sums(partials.merge_partials([w.whole() for w in stage.windows.values()])) == expected
    assert _sums(Partials.joined([d for d, _ in log.downstream])) == expected
    # What goes to the next stage tiles the input.
    ranges = [(h.from_offset, h.to_offset) for _, h in log.downstream]
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


class Shown:
    """What readers see: open rows added up, closed windows written whole, corrected campaigns written anew."""

    def __init__(self) -> None:
        self.open: dict[tuple[int, int], int] = {}
        self.closed: dict[tuple[int, int], int] = {}
        self.closed_ms = 0

    def write(self, published: Publication) -> None:
        for window in published.newly_closed:
            assert len(window.pieces) == 1
            self.closed |= _sums(window.whole())
        in_pieces, merged = (published.corrections(whole=whole) for whole in (False, True))
        for pieces, rows in zip(in_pieces, merged, strict=True):
            assert _sums(pieces) == _sums(rows)
            assert len(partials.merge_partials([rows])) == len(rows)
            self.closed |= _sums(pieces)
        still_open = [w.start for w in published.open]
        for cell, count in _sums(published.delta.take(np.isin(published.delta["window_ms"], still_open))).items():
            self.open[cell] = self.open.get(cell, 0) + count
        self.closed_ms = published.closed_ms or 0

    def read(self) -> dict[tuple[int, int], int]:
        open_cells = {c: n for c, n in self.open.items() if c[0] + MINUTE > self.closed_ms}
        return open_cells | {c: n for c, n in self.closed.items() if c[0] + MINUTE <= self.closed_ms}


def _sums(rows: Partials) -> dict[tuple[int, int], int]:
    sums = as_frame(rows).group_by("window_ms", "campaign_id").agg(pl.sum("impressions"))
    return {(window, campaign): count for window, campaign, count in sums.rows()}


# (partition, minutes that its watermark moves on, how late in minutes, whether it falls silent then)
_arrivals = st.tuples(st.integers(0, 1), st.sampled_from([0, 1, 30, 90]), st.integers(0, 59), st.booleans())
_moves = st.lists(st.one_of(_arrivals, st.sampled_from(["flush", "tick", "recover"])), max_size=40)


@settings(max_examples=300, deadline=None)
@given(_moves)
def test_readers_see_every_accepted_event_whenever_windows_close_and_are_dropped(moves: list[Any]) -> None:
    log, stage, shown = Log(), Stage(MINUTE, 2), Shown()
    truth: dict[tuple[int, int], int] = {}
    marks, offsets, now = [0, 0], [0, 0], 0
    sent: list[tuple[Partials, BlockHeader]] = []
    for move in [*moves, "flush"]:
        if isinstance(move, tuple):
            p, ahead, late, silent = move
            window = max(0, marks[p] // MINUTE - late - 1) * MINUTE
            marks[p] += ahead * MINUTE
            for count, falls_silent in ((1, False), (0, silent)):
                ranges = (SourceRange(p, offsets[p], offsets[p] + count, marks[p], falls_silent),)
                sent.append((frame([partial(window_ms=window)] if count else []), BlockHeader(1, ranges, 0)))
                offsets[p] += count
            truth[window, 1] = truth.get((window, 1), 0) + 1
        elif move == "recover":
            stage = Stage(MINUTE, 2)
            stage.restore(list(log.live.items()))
        elif move == "tick":
            now += 20 * MINUTE
        for number in range(stage.next_message, len(sent)):
            stage.apply_block(number, *sent[number], "here")
        if move in ("flush", "tick") and stage.flush_due(now):
            stage.begin_flush()
            shown.write(log.commit(stage))
            assert shown.read() == truth


@settings(max_examples=300, deadline=None)
@given(_moves, st.sampled_from([1, 1_000]))
def test_insights_are_sent_each_row_of_a_closed_window_once(moves: list[Any], compact_above_rows: int) -> None:
    def empty() -> Stage:
        return Stage(MINUTE, 1, compact_above_rows, sends_closed=True)

    log, stage, offset, mark, now = Log(), empty(), 0, 0, 0
    for move in [*moves, (0, 200, 0, False), "flush"]:
        if isinstance(move, tuple):
            _, ahead, late, silent = move
            window = max(0, mark // MINUTE - late - 1) * MINUTE
            mark += ahead * MINUTE
            ranges = (SourceRange(0, offset, offset + 1, mark, silent),)
            stage.apply_block(offset, frame([partial(window_ms=window)]), BlockHeader(1, ranges, 0), "here")
            offset += 1
        elif move == "recover":
            stage = empty()
            stage.restore(list(log.live.items()))
            # What was not durable is read again, as nothing.
            for number in range(stage.next_message, offset):
                known = stage.intake.closing.sources.get(0)
                start = known.next_offset if known else 0
                ranges = (SourceRange(0, start, number + 1, mark, False),)
                stage.apply_block(number, frame([]), BlockHeader(1, ranges, 0), "here")
        elif move == "tick":
            now += 20 * MINUTE
        if move in ("flush", "tick") and stage.flush_due(now):
            if move == "tick":
                stage.begin_flush()
                stage.abort()
            stage.begin_flush()
            sent_before = len(log.closed)
            log.commit(stage)
            closed_ms = log.downstream[-1][1].closing.closed_ms or 0
            if len(log.closed) > sent_before:
                durable = _sums(Partials.joined([rows for rows, _ in log.downstream]))
                due = {cell: count for cell, count in durable.items() if cell[0] + MINUTE <= closed_ms}
                assert _sums(Partials.joined([rows for rows, _, _ in log.closed])) == due
    assert log.closed
    assert log.closed[-1][2].closing.closed_ms == log.downstream[-1][1].closing.closed_ms
    ranges_sent = [(start, header.to_offset) for _, start, header in log.closed]
    assert ranges_sent[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(ranges_sent))


def test_what_came_late_is_sent_to_insights_with_the_next_minute_also_after_a_crash() -> None:
    log, stage = Log(), Stage(MINUTE, 1, sends_closed=True)
    # The first minute closes; then two flushes of late rows; then the second one closes.
    for offset, (minute, mark) in enumerate([(0, MINUTE), (0, MINUTE), (0, MINUTE + 1), (1, 2 * MINUTE)]):
        stage.apply_block(offset, block_of(minute, 5), header_at(offset, mark), "here")
        stage.begin_flush()
        log.commit(stage)
        stage = Stage(MINUTE, 1, sends_closed=True)
        stage.restore(list(log.live.items()))
    assert [_sums(rows) for rows, _, _ in log.closed] == [{(0, 1): 5}, {(0, 1): 10, (MINUTE, 1): 5}]
    assert [(start, header.to_offset) for _, start, header in log.closed] == [(0, 1), (1, 4)]


def test_what_came_late_is_sent_to_insights_before_its_chunk_is_deleted() -> None:
    log, stage = Log(), Stage(MINUTE, 1, sends_closed=True)
    # The second row is just not too late, and its minute is dropped before the next one closes.
    for offset, (minute, mark) in enumerate([(0, 61 * MINUTE), (0, 61 * MINUTE + 1), (60, 61 * MINUTE + 1)]):
        stage.apply_block(offset, block_of(minute, 5), header_at(offset, mark), "here")
        stage.begin_flush()
        log.commit(stage)
    stage = Stage(MINUTE, 1, sends_closed=True)
    stage.restore(list(log.live.items()))
    assert len(log.live) == 1
    stage.apply_block(3, block_of(61, 5), header_at(3, 62 * MINUTE), "here")
    stage.begin_flush()
    log.commit(stage)
    assert _sums(Partials.joined([rows for rows, _, _ in log.closed])) == {
        (0, 1): 10,
        (60 * MINUTE, 1): 5,
        (61 * MINUTE, 1): 5,
    }


def test_a_state_log_is_compacted_when_it_outweighs_the_state() -> None:
    log, stage = Log(), Stage(MINUTE, 1, compact_above_rows=10)
    for offset in range(30):
        header = BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0)
        stage.apply_block(offset, frame([partial(), partial(campaign_id=2)]), header, "here")
        stage.begin_flush()
        log.commit(stage)
    assert len(log.live) < 15
    recovered = Stage(MINUTE, 1)
    recovered.restore(list(log.live.items()))
    assert recovered.next_message == 30
    assert recovered.windows[MINUTE].whole()["impressions"].tolist() == [30, 30]


def test_a_chunk_that_a_base_contains_is_not_counted_again_when_its_tombstone_is_gone() -> None:
    log, stage, all_messages = Log(), Stage(MINUTE, 1, compact_above_rows=10), dict[bytes, bytes]()
    for offset in range(30):
        header = BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0)
        stage.apply_block(offset, frame([partial()]), header, "here")
        stage.begin_flush()
        log.commit(stage)
        all_messages |= log.live
    recovered = Stage(MINUTE, 1)
    recovered.restore(list(all_messages.items()))
    assert len(all_messages) > len(log.live)
    assert recovered.windows[MINUTE].whole()["impressions"].tolist() == [30]


def test_windows_are_dropped_an_hour_after_their_end_and_late_rows_for_them_are_counted() -> None:
    log, stage = Log(), Stage(MINUTE, 1)
    marks = [0, 2 * MINUTE, 70 * MINUTE, 71 * MINUTE, 72 * MINUTE]
    for offset, mark in enumerate(marks):
        rows = [partial(window_ms=0 if offset < 1 else (offset + 64) * MINUTE)]
        stage.apply_block(
            offset, frame(rows), BlockHeader(1, (SourceRange(0, offset, offset + 1, mark, False),), 0), "h"
        )
        assert stage.flush_due(0)
        stage.begin_flush()
        log.commit(stage)
    assert 0 not in stage.windows
    stage.apply_block(5, frame([partial(window_ms=0)]), BlockHeader(1, (SourceRange(0, 5, 6, 0, False),), 0), "h")
    stage.begin_flush()
    log.commit(stage)
    assert stage.state.too_old == 1
    assert 0 not in stage.windows


def test_rows_after_the_close_of_their_window_are_marked_as_changes() -> None:
    log, stage = Log(), Stage(MINUTE, 1)
    for offset, mark in enumerate([0, 5 * MINUTE, 5 * MINUTE]):
        stage.apply_block(
            offset,
            frame([partial(window_ms=0)]),
            BlockHeader(1, (SourceRange(0, offset, offset + 1, mark, False),), 0),
            "h",
        )
        stage.flush_due(0)
        stage.begin_flush()
        log.commit(stage)
    assert [d[chunks.CHANGED].sum() for d, _ in log.downstream] == [0, 0, 1]
    assert stage.windows[0].whole()["impressions"].tolist() == [3]


def test_a_hole_or_overlap_between_blocks_stops_the_reader() -> None:
    stage = Stage(MINUTE, 1)
    stage.apply_block(0, frame([]), BlockHeader(1, (SourceRange(0, 0, 10, None, False),), 0), "ad-blocks/0/0")
    for start in (9, 11):
        with pytest.raises(CorruptLog, match="ad-blocks/0/1"):
            stage.apply_block(
                1, frame([]), BlockHeader(1, (SourceRange(0, start, 20, None, False),), 0), "ad-blocks/0/1"
            )
    with pytest.raises(CorruptLog, match="part 1"):
        stage.apply_block(
            1, frame([]), BlockHeader(1, (SourceRange(0, 10, 20, None, False),), 0, 1, 2), "ad-blocks/0/1"
        )


def test_a_hole_between_chunks_stops_the_reader() -> None:
    log, minute = Log(), Stage(MINUTE, 1)
    for offset in range(3):
        minute.apply_block(
            offset, frame([partial()]), BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0), "h"
        )
        minute.begin_flush()
        log.commit(minute)
    hour = Stage(60 * MINUTE, 1)
    hour.apply_chunk(0, *log.downstream[0], "ad-minutes/0/0")
    with pytest.raises(CorruptLog, match="begins at 2, expected 1"):
        hour.apply_chunk(1, *log.downstream[2], "ad-minutes/0/1")


def chunks_of(shard: int, minutes: int) -> Iterator[tuple[Partials, ChunkHeader]]:
    """A shard's chunks, in two parts each: an impression of two campaigns in a minute, which it then closes."""
    for number in range(minutes):
        closing = Closing(closed_ms=(number + 1) * MINUTE)
        for part in range(2):
            yield (
                frame([partial(window_ms=number * MINUTE, campaign_id=part)]),
                ChunkHeader(
                    chunks.SCHEMA_VERSION,
                    number + 1,
                    number,
                    number + 1,
                    closing,
                    None,
                    0,
                    shard=shard,
                    part=part,
                    parts=2,
                ),
            )


@given(st.permutations([0, 1, 2] * 8), _fates)
def test_a_minute_over_several_shards_closes_once_all_have_closed_it(order: list[int], fates: list[str]) -> None:
    of_shard = [chunks_of(shard, 4) for shard in range(3)]
    inputs = [next(of_shard[shard]) for shard in order]
    log, stage, closed = Log(), Stage(MINUTE, 1, shards=3), dict[int, int]()
    for fate in [*fates, *["apply"] * len(inputs), "flush"]:
        if fate == "apply" and stage.next_message < len(inputs):
            stage.apply_chunk(stage.next_message, *inputs[stage.next_message], "here")
        elif fate == "flush" and stage.flush_due(0):
            stage.begin_flush()
            published = log.commit(stage)
            closed |= {w.start // MINUTE: int(w.whole()["impressions"].sum()) for w in published.newly_closed}
            assert not published.corrected
        elif fate == "crash":
            stage = Stage(MINUTE, 1, shards=3)
            stage.restore(list(log.live.items()))
    # Two campaigns of each shard.
    assert closed == dict.fromkeys(range(4), 6)


def test_a_hole_between_the_chunks_of_a_shard_stops_the_reader() -> None:
    stage, (first, second) = Stage(MINUTE, 1, shards=2), list(chunks_of(1, 1))
    stage.apply_chunk(0, *first, "here")
    stage.apply_chunk(1, *next(chunks_of(0, 1)), "here")
    stage.apply_chunk(2, *second, "here")
    with pytest.raises(CorruptLog, match="chunk of shard 1 begins at 0, expected 1"):
        stage.apply_chunk(3, *first, "here")


def block_of(minute: int, impressions: int) -> Partials:
    return frame([partial(window_ms=minute * MINUTE, impressions=impressions, late=0)])


def header_at(offset: int, watermark_ms: int) -> BlockHeader:
    return BlockHeader(1, (SourceRange(0, offset, offset + 1, watermark_ms, False),), 0)


@pytest.mark.parametrize("order", [("apply", "abort"), ("abort", "apply")])
def test_rows_of_an_aborted_flush_are_counted_as_waiting(order: tuple[str, str]) -> None:
    stage = Stage(MINUTE, 1)
    stage.apply_block(0, block_of(1, 5), header_at(0, 0), "here")
    assert len(stage.begin_flush().delta) == 1
    for move in order:
        if move == "apply":
            stage.apply_block(1, block_of(2, 7), header_at(1, 0), "here")
        else:
            stage.abort()
    assert stage.intake.waiting_rows == 2
    assert stage.intake.waiting().corrects
    flush = stage.begin_flush()
    assert stage.intake.waiting_rows == 0
    assert int(flush.delta["impressions"].sum()) == 12


def test_rows_applied_during_the_flush_that_closes_their_window_are_a_correction() -> None:
    stage = Stage(MINUTE, 1)
    stage.apply_block(0, block_of(1, 5), header_at(0, 5 * MINUTE), "here")
    stage.begin_flush()
    stage.apply_block(1, block_of(1, 7), header_at(1, 5 * MINUTE), "here")
    stage.commit()
    assert stage.intake.waiting().corrects


def test_a_publication_does_not_change_with_later_flushes() -> None:
    stage = Stage(MINUTE, 1)
    stage.apply_block(0, block_of(1, 5), header_at(0, 5 * MINUTE), "here")
    stage.begin_flush()
    closed = stage.commit()
    before = stage.state.snapshot()
    stage.apply_block(1, block_of(1, 7), header_at(1, 5 * MINUTE), "here")
    stage.begin_flush()
    corrected = stage.commit()
    for published in (closed, before):
        assert _sums(published.newly_closed[0].whole()) == {(MINUTE, 1): 5}
    assert _sums(corrected.corrected[0].whole()) == {(MINUTE, 1): 12}
    # The rows are shared, not copied.
    assert corrected.corrected[0].pieces[0] is closed.newly_closed[0].pieces[0]


def test_a_late_row_in_the_flush_that_drops_its_aged_window_is_too_old() -> None:
    # A partition was silent for more than a day, and sends what it had: accepted by its own watermark.
    stage, hour = Stage(MINUTE, 2), 60 * MINUTE
    blocks, messages = counter(), (counter(), counter())

    def flush(minute: int, impressions: int, clock_ms: int, *marks: tuple[int, int, bool]) -> Publication:
        offsets = [next(messages[partition]) for partition, _, _ in marks]
        ranges = tuple(
            SourceRange(p, n, n + 1, mark, silent) for n, (p, mark, silent) in zip(offsets, marks, strict=True)
        )
        stage.apply_block(next(blocks), block_of(minute, impressions), BlockHeader(1, ranges, 0), "here")
        stage.intake.tick(clock_ms)
        stage.begin_flush()
        return stage.commit()

    flush(1, 10, 0, (0, 2 * MINUTE, False), (1, 2 * MINUTE, False))
    flush(4, 1, 0, (0, 5 * MINUTE, False), (1, 2 * MINUTE, True))
    for hours in range(1, 25):
        flush(60 * hours, 1, hours * hour, (0, hours * hour, False))
    assert 1 * MINUTE in stage.windows
    published = flush(1, 1, 24 * hour + 500, (1, 2 * MINUTE + 1, False))
    assert published.dropped_ms >= 2 * MINUTE
    assert 1 * MINUTE not in stage.windows
    assert published.corrected == ()
    assert stage.state.too_old == 1


def test_a_late_row_of_a_window_that_the_flush_under_way_drops_is_too_old() -> None:
    stage, hour = Stage(MINUTE, 1), 60 * MINUTE
    stage.apply_block(0, block_of(1, 5), header_at(0, 2 * MINUTE), "here")
    stage.begin_flush()
    stage.commit()
    # Far past the hour for which late events are accepted: the next flush may drop the minute, the one after it does.
    stage.apply_block(1, block_of(200, 1), header_at(1, 4 * hour), "here")
    stage.begin_flush()
    stage.commit()
    stage.apply_block(2, block_of(201, 1), header_at(2, 4 * hour), "here")
    stage.begin_flush()
    stage.apply_block(3, block_of(1, 3), header_at(3, 4 * hour), "here")
    stage.commit()
    assert 1 * MINUTE not in stage.windows
    stage.begin_flush()
    published = stage.commit()
    assert 1 * MINUTE not in stage.windows
    assert published.corrected == ()
    assert stage.state.too_old == 1
