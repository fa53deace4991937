"""The closing watermark, and a stage's state under any order of blocks, flushes, aborts and recoveries."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import CorruptLog
from ingest import partials
from ingest.blocks import BlockHeader, SourceRange
from stream import chunks
from stream.state import StageState
from stream.windows import Closing
from tests.unit.test_partials_and_rows import frame, partial

MINUTE = 60_000


def seen(*news: tuple[int | None, bool]) -> Closing:
    return Closing().see(SourceRange(p, 0, 1, mark, silent) for p, (mark, silent) in enumerate(news))


def test_nothing_closes_before_every_partition_is_known() -> None:
    assert seen((100, False)).advance(2, 0).closed_ms is None
    assert seen((100, False), (None, False)).advance(2, 0).closed_ms is None


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
    assert seen(*news).advance(2, 0).closed_ms == closed


def test_when_all_are_silent_it_moves_at_the_pace_of_the_clock_from_where_it_stood() -> None:
    closing = seen((100, False), (90, False)).advance(2, 10_000)
    closing = closing.see([SourceRange(0, 1, 1, 100, True), SourceRange(1, 1, 1, 90, True)]).advance(2, 20_000)
    assert closing.closed_ms == 90
    assert closing.advance(2, 20_700).closed_ms == 790
    # A clock that is set back moves nothing back; a partition that comes back does not either.
    later = closing.advance(2, 20_700).advance(2, 5_000)
    assert later.closed_ms == 790
    assert later.see([SourceRange(0, 1, 2, 200, False)]).advance(2, 21_000).closed_ms == 790


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.booleans(), st.integers(0, 10**6)), max_size=40))
def test_it_never_goes_back(steps: list[tuple[int, int, bool, int]]) -> None:
    closing, marks = Closing(), [0, 0, 0]
    last: int | None = None
    for partition, mark, silent, now in steps:
        marks[partition] = max(marks[partition], mark)
        closing = closing.see([SourceRange(partition, 0, 0, marks[partition], silent)]).advance(3, now)
        if last is not None:
            assert closing.closed_ms is not None
            assert closing.closed_ms >= last
        last = closing.closed_ms


def test_state_is_kept_while_any_partition_may_still_send_for_it() -> None:
    assert seen((10_000_000, True), (None, True)).droppable_ms(2) is None
    assert seen((10_000_000, False), (9_000_000, True)).droppable_ms(2) == 9_000_000 - 3_600_000


class Log:
    """A compacted state log: keys to values, with what a transaction writes."""

    def __init__(self) -> None:
        self.live: dict[bytes, bytes] = {}
        self.downstream: list[tuple[pl.DataFrame, Any]] = []

    def commit(self, state: StageState) -> None:
        flush = state.flushing
        for key in flush.tombstones:
            self.live.pop(key, None)
        for key, value in chunks.encode(flush.state, flush.state_header):
            assert key not in self.live
            self.live[key] = value
        self.downstream.append((flush.delta, flush.header))
        state.commit()


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
    applied = pl.concat([frame(b) for b in made[: state.next_message]] or [partials.empty()])
    held = chunks.merge([w.whole() for w in state.windows.values()])
    sent = pl.concat([d for d, _ in log.downstream] or [chunks.empty()])
    keys = ["window_ms", "campaign_id"]
    expected = applied.group_by(keys).agg(pl.sum("impressions")).sort(keys).rows()
    assert held.group_by(keys).agg(pl.sum("impressions")).sort(keys).rows() == expected
    assert sent.group_by(keys).agg(pl.sum("impressions")).sort(keys).rows() == expected
    # What goes to the next stage tiles the input.
    ranges = [(h.from_offset, h.to_offset) for _, h in log.downstream]
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


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
    assert again.windows[MINUTE].whole().sort("campaign_id")["impressions"].to_list() == [30, 30]


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
    assert state.too_old == 1


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
    assert state.windows[0].whole()["impressions"].to_list() == [3]


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
