"""Which days of an archive lack files: compared with offsets that are counted one by one."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from threading import Event
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.rebuild.command import refuse_other_regions
from batch.rebuild.former_archive import FormerArchive
from batch.rebuild.holes import ArchiveGap, find_archive_gaps, without_rejected
from infra.clock import DAY_MS, day_start_ms
from infra.errors import UserError
from infra.file_store import FileStore, Stored
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.files import File
from tests.unit.fakes import FakeRedis

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


def test_an_archive_is_sent_in_parts_that_keep_the_order_of_each_partition(tmp_path: Path) -> None:
    store, log = FileStore(str(tmp_path / "former")), {0: range(23), 1: range(100, 131)}
    for partition, offsets in log.items():
        # The second file of a partition repeats the end of the first one, as after a crash; times are all over two days.
        for start, stop in ((0, 12), (8, len(offsets))):
            rows = [_row(partition, offset) for offset in offsets[start:stop]]
            wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
            archive_worker.write_files(store, partition, offsets[start], offsets[stop - 1] + 1, wire)
    settings, redis = Settings.model_validate({"archive": str(tmp_path / "own")}), cast(Redis, FakeRedis())
    archive = FormerArchive(settings, redis, store.where, window_messages=10)
    windows = archive.windows
    assert len(windows) == 6
    sent = [json.loads(line)["event_id"] for window in windows for part in window.lines(Event()) for line in part]
    for partition, offsets in log.items():
        assert [name for name in sent if name.startswith(f"{partition}-")] == [f"{partition}-{n}" for n in offsets]
    assert len(sent) == sum(map(len, log.values()))


def test_days_that_can_no_longer_be_published_are_left_out_of_a_former_archive(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "former"))
    for day in range(4):
        rows = [
            _row(0, day)
            | {"time_ms": day_start_ms(FIRST) + day * DAY_MS, "log_time_ms": day_start_ms(FIRST) + day * DAY_MS}
        ]
        archive_worker.write_files(store, 0, day, day + 1, pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA))
    settings, redis = Settings.model_validate({"archive": str(tmp_path / "own")}), cast(Redis, FakeRedis())
    archive = FormerArchive(settings, redis, store.where, first_day=FIRST + dt.timedelta(2))
    (window,) = archive.windows
    sent = [json.loads(line)["event_id"] for part in window.lines(Event()) for line in part]
    assert (sent, archive.days_left_out) == (["0-2", "0-3"], 2)
    with pytest.raises(UserError, match=r"all 4 days of .* can no longer be billed"):
        FormerArchive(settings, redis, store.where, first_day=FIRST + dt.timedelta(4))


def test_days_that_are_billed_with_other_regions_are_left_to_reconcile() -> None:
    with pytest.raises(UserError, match="ADCLICK_OTHER_REGIONS") as refused:
        refuse_other_regions(Settings.model_validate({"other_regions": "/etc/adclick/us.toml"}))
    assert "adclick reconcile --from --to" in (refused.value.hint or "")
    refuse_other_regions(Settings.model_validate({}))


def _row(partition: int, offset: int) -> dict[str, Any]:
    log_time_ms = 1_796_000_000_000 + 1_000 * offset
    return {
        "event_id": f"{partition}-{offset}", "offset": offset, "log_time_ms": log_time_ms, "event_type": 1,
        "time_ms": log_time_ms - offset * 7_919_000 % DAY_MS, "campaign_id": 1, "ad_id": 2, "advertiser_id": 3, "publisher_id": 4,
        "country": 0, "device": 0, "user": None, "cost_micros": 7, "weight": 1, "lateness": 0, "copy_of": None, "decision": 0,
    }  # fmt: skip
