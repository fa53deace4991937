"""Which days of an archive lack files: compared with offsets that are counted one by one."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.rebuild.holes import ArchiveGap, find_archive_gaps, without_rejected
from infra.file_store import Stored
from ingest.archive import files as archive_files
from ingest.archive.files import File

FIRST = dt.date(2026, 11, 1)


def file(day: int, partition: int, start: int, stop: int) -> File:
    """A file of the n-th day."""
    name = archive_files.file_name(partition, start, stop)
    folder = archive_files.folder_name((FIRST + dt.timedelta(day)).isoformat(), 3)
    (parsed,) = archive_files.parse_names([Stored(f"{folder}/{name}", 1, 0)])
    return parsed


def offsets_of(gaps: list[ArchiveGap]) -> set[tuple[int, int]]:
    return {(g.stretch.partition, n) for g in gaps for n in range(g.stretch.from_offset, g.stretch.to_offset)}


_batches = st.lists(
    # What the archive worker writes at once: how many offsets, and the days that it has rows of; none of what was all rejected.
    st.tuples(st.integers(1, 9), st.sets(st.integers(0, 5), max_size=2), st.booleans()),
    max_size=20,
)


@given(st.lists(_batches, min_size=1, max_size=3), st.integers(0, 60))
def test_gaps_are_the_offsets_between_files_that_no_file_has_and_ad_events_neither(
    partitions: list[list[tuple[int, set[int], bool]]], kafka_start: int
) -> None:
    files, missing = list[File](), set[tuple[int, int]]()
    for partition, batches in enumerate(partitions):
        offset, covered, lost = 0, list[tuple[int, int]](), list[tuple[int, int]]()
        for size, days, is_lost in batches:
            batch = [(partition, n) for n in range(offset, offset + size)]
            if days and not is_lost:
                files += [file(day, partition, offset, offset + size) for day in days]
                covered += batch
            else:
                lost += batch
            offset += size
        if covered:
            missing |= {(p, n) for p, n in lost if covered[0][1] < n < covered[-1][1] and n < kafka_start}
    assert offsets_of(find_archive_gaps(files, [kafka_start] * len(partitions))) == missing


@pytest.mark.parametrize(
    ("lost", "days"),
    [
        # Two files a day, each the next ten offsets.
        ([2], [0, 1]),  # one of two files: it may have begun the day, or ended the one before
        ([2, 3], [0, 1, 2]),  # both: the first of them may have been of the day before, the last of the day after
        ([4, 5, 6, 7], [1, 2, 3, 4]),
        ([9], []),  # nothing is behind it: whether there was more is not known
    ],
)
def test_a_gap_may_be_of_the_days_from_the_file_before_it_to_the_file_behind_it(
    lost: list[int], days: list[int]
) -> None:
    files = [file(n // 2, 0, 10 * n, 10 * n + 10) for n in range(10) if n not in lost]
    gaps = find_archive_gaps(files, [1000])
    assert [n for n in range(5) if any(gap.may_be_of(FIRST + dt.timedelta(n)) for gap in gaps)] == days


def test_a_gap_of_dead_letters_alone_lacks_nothing() -> None:
    gaps = find_archive_gaps([file(0, 1, 0, 10), file(0, 1, 13, 20)], [0, 1000])
    assert offsets_of(gaps) == {(1, 10), (1, 11), (1, 12)}
    letters = [(1, 10), (1, 11), (1, 12), (0, 12)]
    assert without_rejected(gaps, letters) == []
    assert without_rejected(gaps, letters[:2] + letters[3:]) == gaps
