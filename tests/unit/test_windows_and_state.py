"""The closing watermark, and a stage's state under any order of blocks, flushes, aborts and recoveries."""

from __future__ import annotations

import builtins
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
from stream import state as state_module
from stream.state import Changes, StageState
from stream.windows import Closing
from tests.unit.test_partials_and_rows import as_frame, frame, partial

MINUTE = 60_000


def seen(*news: tuple[int | None, bool]) -> Closing:
    ranges = [SourceRange(p, 0, 1, mark, silent) for p, (mark, silent) in enumerate(news)]
    return Closing().see(ranges, len(news))


def test_nothing_closes_before_every_partition_is_known() -> None:
    assert Closing().see([SourceRange(0, 0, 1, 100, False)], 2).closed_ms is None
    assert seen((100, False), (None, False)).closed_ms is None


@pytest.mark.parametrize(
    ("news", "closed"),
    [
        (((100, False), (50, False)), 50),
        (((100, False), (50, True)), 100),
        (((100, False), (None, True)), 100),
        (((None, True), (None, True)), None),
    ],
)
def test_it_is_the_minimum_over_the_active(news: tuple[tuple[int | None, bool], ...], closed: int | None) -> None:
    assert seen(*news).closed_ms == closed
    assert seen(*news).tick(2, 0).closed_ms == closed


def test_when_all_are_silent_it_moves_at_the_pace_of_the_clock_from_where_it_stood() -> None:
    silent = [SourceRange(0, 1, 1, 100, True), SourceRange(1, 1, 1, 90, True)]
    closing = seen((100, False), (90, False)).see(silent, 2).tick(2, 20_000)
    assert closing.closed_ms == 90
    assert closing.tick(2, 20_700).closed_ms == 790
    # A clock that is set back moves nothing back; a partition that comes back does not either.
    later = closing.tick(2, 20_700).tick(2, 5_000)
    assert later.closed_ms == 790
    assert later.see([SourceRange(0, 1, 2, 200, False)], 2).tick(2, 21_000).closed_ms == 790


def test_news_and_then_silence_in_one_flush_close_what_the_news_close() -> None:
    news = [SourceRange(0, 1, 2, 5_000, False), SourceRange(1, 1, 2, 4_000, False)]
    silent = [SourceRange(0, 2, 2, 5_000, True), SourceRange(1, 2, 2, 4_000, True)]
    assert seen((100, False), (90, False)).see(news, 2).see(silent, 2).tick(2, 0).closed_ms == 4_000


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.booleans(), st.integers(0, 10**6)), max_size=40))
def test_it_never_goes_back(steps: list[tuple[int, int, bool, int]]) -> None:
    closing, marks = Closing(), [0, 0, 0]
    last: int | None = None
    for partition, mark, silent, now in steps:
        marks[partition] = max(marks[partition], mark)
        closing = closing.see([SourceRange(partition, 0, 0, marks[partition], silent)], 3).tick(3, now)
        if last is not None:
            assert closing.closed_ms is not None
            assert closing.closed_ms >= last
        last = closing.closed_ms


def test_state_is_kept_while_any_partition_may_still_send_for_it() -> None:
    assert seen((10_000_000, True), (None, True)).droppable_ms(2) == 0
    assert seen((10_000_000, False), (9_000_000, True)).droppable_ms(2) == 9_000_000 - 3_600_000 - 1
    # All silent: what has not closed yet must still be shown as closed, from whole windows.
    held_back = seen((0, False), (0, False)).see([SourceRange(p, 1, 1, 10_000_000, True) for p in (0, 1)], 2)
    assert held_back.droppable_ms(2) == 0


def test_a_partition_that_never_speaks_keeps_state_for_a_day_of_clock_time() -> None:
    closing, hour = seen((10_000_000, False), (None, True)), 3_600_000
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

    def commit(self, state: StageState) -> Changes:
        flush = state.flushing
        for key in flush.tombstones:
            self.live.pop(key, None)
        for key, value in chunks.encode(flush.state, flush.state_header):
            assert key not in self.live
            self.live[key] = value
        self.downstream.append((flush.delta, flush.header))
        return state.commit()


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
def test_every_block_counts_once_whatever_is_flushed_aborted_or_recovered(
    made: list[list[dict[str, Any]]], fates: list[str]
) -> None:
    log, state, at = Log(), StageState(MINUTE, 1), 0
    for fate in [*fates, *["apply"] * len(made), "flush", "crash"]:
        at = state.next_message
        if fate == "apply" and at < len(made):
            mark = at * MINUTE // 2
            header = BlockHeader(1, (SourceRange(0, at, at + 1, mark, False),), 0)
            state.apply_block(at, frame(made[at]), header, "here")
        elif fate in ("flush", "abort") and state.flush_due(0, clock=True):
            state.begin_flush()
            if fate == "flush":
                log.commit(state)
            else:
                state.abort()
        elif fate == "crash":
            state = StageState(MINUTE, 1)
            state.restore(list(log.live.items()), "here")
    expected = _sums(Partials.joined([frame(b) for b in made[: state.next_message]]))
    assert _sums(partials.merge([w.whole() for w in state.windows.values()])) == expected
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

    def write(self, changes: Changes, state: StageState) -> None:
        for start in changes.newly_closed:
            self.closed |= _sums(state.windows[start].together(list(state.windows[start].pieces)))
        loose, whole = (state.corrections(changes, whole=whole) for whole in (False, True))
        for some, all_ in zip(loose, whole, strict=True):
            assert _sums(some) == _sums(all_)
            assert len(partials.merge([all_])) == len(all_)
            self.closed |= _sums(some)
        for cell, count in _sums(changes.delta.take(np.isin(changes.delta["window_ms"], changes.open))).items():
            self.open[cell] = self.open.get(cell, 0) + count
        self.closed_ms = changes.closed_ms or 0

    def read(self) -> dict[tuple[int, int], int]:
        seen = {c: n for c, n in self.open.items() if c[0] + MINUTE > self.closed_ms}
        return seen | {c: n for c, n in self.closed.items() if c[0] + MINUTE <= self.closed_ms}


def _sums(rows: Partials) -> dict[tuple[int, int], int]:
    found = as_frame(rows).group_by("window_ms", "campaign_id").agg(pl.sum("impressions"))
    return {(window, campaign): count for window, campaign, count in found.rows()}


# (partition, minutes that its watermark moves on, how late in minutes, whether it falls silent then)
_arrivals = st.tuples(st.integers(0, 1), st.sampled_from([0, 1, 30, 90]), st.integers(0, 59), st.booleans())
_moves = st.lists(st.one_of(_arrivals, st.sampled_from(["flush", "tick", "recover"])), max_size=40)


@settings(max_examples=300, deadline=None)
@given(_moves)
def test_readers_see_every_accepted_event_whenever_windows_close_and_are_dropped(moves: list[Any]) -> None:
    log, state, shown = Log(), StageState(MINUTE, 2), Shown()
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
            state = StageState(MINUTE, 2)
            state.restore(list(log.live.items()), "here")
        elif move == "tick":
            now += 20 * MINUTE
        for number in range(state.next_message, len(sent)):
            state.apply_block(number, *sent[number], "here")
        if move in ("flush", "tick") and state.flush_due(now, clock=True):
            state.begin_flush()
            shown.write(log.commit(state), state)
            assert shown.read() == truth


def test_a_log_is_rewritten_when_it_outweighs_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.state._COMPACT_ROWS", 10)
    log, state = Log(), StageState(MINUTE, 1)
    for offset in range(30):
        header = BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0)
        state.apply_block(offset, frame([partial(), partial(campaign_id=2)]), header, "here")
        state.begin_flush()
        log.commit(state)
    assert len(log.live) < 15
    again = StageState(MINUTE, 1)
    again.restore(list(log.live.items()), "here")
    assert again.next_message == 30
    assert again.windows[MINUTE].whole()["impressions"].tolist() == [30, 30]


def test_a_chunk_that_outlived_its_tombstone_is_not_added_to_the_base_that_contains_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream.state._COMPACT_ROWS", 10)
    log, state, ever = Log(), StageState(MINUTE, 1), dict[bytes, bytes]()
    for offset in range(30):
        header = BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0)
        state.apply_block(offset, frame([partial()]), header, "here")
        state.begin_flush()
        log.commit(state)
        ever |= log.live
    again = StageState(MINUTE, 1)
    again.restore(list(ever.items()), "here")
    assert len(ever) > len(log.live)
    assert again.windows[MINUTE].whole()["impressions"].tolist() == [30]


def test_windows_are_dropped_an_hour_after_their_end_and_late_rows_for_them_are_counted() -> None:
    log, state = Log(), StageState(MINUTE, 1)
    marks = [0, 2 * MINUTE, 70 * MINUTE, 71 * MINUTE, 72 * MINUTE]
    for offset, mark in enumerate(marks):
        rows = [partial(window_ms=0 if offset < 1 else (offset + 64) * MINUTE)]
        state.apply_block(
            offset, frame(rows), BlockHeader(1, (SourceRange(0, offset, offset + 1, mark, False),), 0), "h"
        )
        assert state.flush_due(0, clock=True)
        state.begin_flush()
        log.commit(state)
    assert 0 not in state.windows
    state.apply_block(5, frame([partial(window_ms=0)]), BlockHeader(1, (SourceRange(0, 5, 6, 0, False),), 0), "h")
    state.begin_flush()
    log.commit(state)
    assert state.too_old == 1
    assert 0 not in state.windows


def test_rows_that_come_after_the_close_are_marked_as_changes() -> None:
    log, state = Log(), StageState(MINUTE, 1)
    for offset, mark in enumerate([0, 5 * MINUTE, 5 * MINUTE]):
        state.apply_block(
            offset,
            frame([partial(window_ms=0)]),
            BlockHeader(1, (SourceRange(0, offset, offset + 1, mark, False),), 0),
            "h",
        )
        state.flush_due(0, clock=True)
        state.begin_flush()
        log.commit(state)
    assert [d[chunks.CHANGED].sum() for d, _ in log.downstream] == [0, 0, 1]
    assert state.windows[0].whole()["impressions"].tolist() == [3]


def test_a_block_that_leaves_a_hole_or_repeats_stops_the_reader() -> None:
    state = StageState(MINUTE, 1)
    state.apply_block(0, frame([]), BlockHeader(1, (SourceRange(0, 0, 10, None, False),), 0), "ad-blocks/0/0")
    for start in (9, 11):
        with pytest.raises(CorruptLog, match="ad-blocks/0/1"):
            state.apply_block(
                1, frame([]), BlockHeader(1, (SourceRange(0, start, 20, None, False),), 0), "ad-blocks/0/1"
            )
    with pytest.raises(CorruptLog, match="part 1"):
        state.apply_block(
            1, frame([]), BlockHeader(1, (SourceRange(0, 10, 20, None, False),), 0, 1, 2), "ad-blocks/0/1"
        )


def test_a_stage_notices_a_chunk_that_does_not_follow() -> None:
    log, minute = Log(), StageState(MINUTE, 1)
    for offset in range(3):
        minute.apply_block(
            offset, frame([partial()]), BlockHeader(1, (SourceRange(0, offset, offset + 1, 1, False),), 0), "h"
        )
        minute.begin_flush()
        log.commit(minute)
    hour = StageState(60 * MINUTE, 1)
    hour.apply_chunk(0, *log.downstream[0], "ad-minutes/0/0")
    with pytest.raises(CorruptLog, match="begins at 2, expected 1"):
        hour.apply_chunk(1, *log.downstream[2], "ad-minutes/0/1")


def block_of(minute: int, impressions: int) -> Partials:
    return frame([partial(window_ms=minute * MINUTE, impressions=impressions, late=0)])


def header_at(offset: int, watermark_ms: int) -> BlockHeader:
    return BlockHeader(1, (SourceRange(0, offset, offset + 1, watermark_ms, False),), 0)


@pytest.mark.parametrize("call", range(6))
def test_a_flush_that_fails_while_a_block_is_applied_loses_no_row_from_the_count(
    monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The flush's thread interrupts the input's wherever that looks at a length, which is where the interpreter may switch."""
    state, calls = StageState(MINUTE, 1), 0
    state.apply_block(0, block_of(1, 5), header_at(0, 0), "here")
    state.begin_flush()
    assert len(state.flushing.delta) == 1

    def length_of(things: Any) -> int:
        nonlocal calls
        result, calls = builtins.len(things), calls + 1
        if calls == call + 1 and state._taken is not None:
            state.abort()
        return result

    monkeypatch.setattr(state_module, "len", length_of, raising=False)
    state.apply_block(1, block_of(2, 7), header_at(1, 0), "here")
    monkeypatch.undo()
    if state._taken is not None:
        state.abort()
    assert state.pending_rows == 2
    assert state.corrects
    state.begin_flush()
    assert state.pending_rows == 0
    assert int(state.flushing.delta["impressions"].sum()) == 12


def test_a_row_for_a_window_that_is_dropped_in_the_same_moment_is_not_shown_as_all_of_it() -> None:
    state, hour = StageState(MINUTE, 1), 60 * MINUTE
    state.apply_block(0, block_of(1, 5), header_at(0, 2 * MINUTE), "here")
    state.begin_flush()
    state.commit()
    # Far past the hour for which late events are accepted: the next flush may drop the minute, the one after it does.
    state.apply_block(1, block_of(200, 1), header_at(1, 4 * hour), "here")
    state.begin_flush()
    state.commit()
    state.apply_block(2, block_of(201, 1), header_at(2, 4 * hour), "here")
    state.begin_flush()
    state.apply_block(3, block_of(1, 3), header_at(3, 4 * hour), "here")
    state.commit()
    assert 1 * MINUTE not in state.windows
    state.begin_flush()
    changes = state.commit()
    assert 1 * MINUTE not in state.windows
    assert changes.corrected == []
    assert state.too_old == 1
