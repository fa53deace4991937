"""How far users are counted: no event whose user is missing goes without a warning, and what is complete has none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.errors import Unavailable
from ingest.blocks import BlockHeader, SourceRange
from query.plan import Piece
from query.reach import STREAM_HOURS
from query.reach_progress import BEHIND_MS, Partitions, is_behind, warn_of_missing_users
from query.tiers.trending_users import HourlyUsers
from stream.reach.progress import (
    Progress,
    ProgressTracker,
    SavedProgress,
    publish_progress,
    read_progress,
)
from tests.unit.fakes import FakeRedis

START = 1_795_132_800_000
NOW = START + 10 * DAY_MS


Block = tuple[int, list[int], int]
"""When a block was sent, the times of its events, and the watermark after them."""


@st.composite
def logs(draw: st.DrawFn) -> list[Block]:
    """Blocks of a partition of `ad-archive`, with events that are as late as counted ones may be."""
    log, sent_ms, watermark_ms = list[Block](), START, START - 10 * HOUR_MS
    for _ in range(draw(st.integers(1, 12))):
        sent_ms += draw(st.integers(1, 5 * HOUR_MS))
        oldest_ms = watermark_ms - HOUR_MS - MINUTE_MS
        times = draw(st.lists(st.integers(oldest_ms, sent_ms), min_size=1, max_size=3))
        watermark_ms = max(watermark_ms, *times)
        log.append((sent_ms, times, watermark_ms))
    return log


def header_of(block: Block, part: int = 0, parts: int = 1) -> BlockHeader:
    sent_ms, _, watermark_ms = block
    return BlockHeader(1, (SourceRange(0, 0, 1, watermark_ms, False),), sent_ms, part, parts)


@given(logs(), st.lists(st.integers(0, 12), min_size=3, max_size=3), st.booleans())
def test_each_event_whose_user_is_missing_is_warned_of_and_what_is_complete_is_not(
    log: list[Block], cuts: list[int], at_end: bool
) -> None:
    """A writer reads some blocks and ends; some are deleted; the next one reads some of those that are left."""
    read, kept, last = sorted(min(cut, len(log)) for cut in cuts)
    tracker, metadata = ProgressTracker(), ""
    for start, stop, is_torn in ((0, read, False), (kept, last, kept > read)):
        tracker.begin(0, SavedProgress.decode(metadata), is_torn=is_torn)
        for offset in range(start, stop):
            tracker.add(0, offset, header_of(log[offset]))
        metadata = tracker.saved(0, "tables").encode()
    if at_end:
        log = log[:last]
        tracker.reach_end(0, last)
    progress = tracker.current({0: len(log)}, NOW).get(0)
    missing = [time_ms for _, times, _ in log[read:kept] + log[last:] for time_ms in times]
    for time_ms in missing:
        hour_ms = time_ms // HOUR_MS * HOUR_MS
        piece = Piece(STREAM_HOURS, hour_ms, hour_ms + HOUR_MS)
        assert warn_of_missing_users([progress], [piece], 0, NOW)
    if not missing and at_end:
        assert progress is not None
        assert not progress.holes
        assert not is_behind([progress], NOW + BEHIND_MS)
        assert is_behind([progress], NOW + BEHIND_MS + 1)


def test_a_block_counts_as_read_with_its_last_part() -> None:
    tracker, block = ProgressTracker(), (START, [START], START)
    tracker.begin(0, SavedProgress(), is_torn=False)
    for part in range(2):
        assert tracker.current({0: 9}, NOW) == {}
        tracker.add(0, part, header_of(block, part, 2))
    assert tracker.current({0: 9}, NOW) == {0: Progress(START, START)}


def test_of_many_holes_the_oldest_are_told_as_one() -> None:
    tracker, saved = ProgressTracker(), SavedProgress()
    for n in range(30):
        tracker.begin(0, saved, is_torn=True)
        tracker.add(0, n, header_of((START + n * DAY_MS, [], START + n * DAY_MS)))
        saved = tracker.saved(0, "tables")
    assert len(saved.holes) == 20
    assert (saved.holes[0][0], saved.holes[-1][1]) == (0, START + 29 * DAY_MS)
    assert len(saved.encode()) < 4_096  # which Kafka takes at most


def test_progress_is_read_as_it_was_published_and_nothing_is_known_of_other_partitions() -> None:
    redis, progress = FakeRedis(), Progress(START, None, ((0, START),))
    publish_progress(redis, "p:", {1: progress})
    assert read_progress(redis, "p:", 3) == [None, progress, None]
    redis.away = True
    publish_progress(redis, "p:", {1: progress})


@pytest.mark.parametrize(
    ("partitions", "is_left_out"),
    [
        ([Progress(NOW), Progress(NOW - BEHIND_MS)], False),
        ([Progress(NOW), Progress(NOW - BEHIND_MS - 1)], True),
        ([Progress(NOW), None], True),
        (None, True),
    ],
)
def test_users_are_left_out_of_trends_while_they_lag_or_nobody_knows(
    partitions: Partitions | None, is_left_out: bool
) -> None:
    def read() -> Partitions:
        if partitions is None:
            raise Unavailable("Redis: it is away", backend="redis")
        return partitions

    assert HourlyUsers(ClickHouse("http://fake:1", "db"), 5, read).is_behind(NOW) == is_left_out
