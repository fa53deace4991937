"""Small files of the archive are merged, and readers see each row once at every moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from infra.clock import DAY_MS, HOUR_MS
from infra.file_store import FileStore
from ingest.archive import compaction
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker

DAY = 20_000 * DAY_MS
_ROW: dict[str, Any] = {
    "event_type": 1, "campaign_id": 1, "ad_id": 2, "advertiser_id": 3, "publisher_id": 4, "country": 0, "device": 0, "user": None,
    "cost_micros": 7, "weight": 1, "lateness": 0, "copy_of": None, "decision": 0,
}  # fmt: skip


def write(root: Path, partition: int, first: int, last: int, hour: int = 1) -> None:
    rows = [
        _ROW | {"event_id": f"e{n}", "offset": n, "log_time_ms": DAY, "time_ms": DAY + hour * HOUR_MS + n}
        for n in range(first, last)
    ]
    archive_worker.write_files(
        FileStore(str(root)), partition, first, last, pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
    )


def offsets(root: Path, partition: int = 0) -> list[int]:
    store = FileStore(str(root))
    files = archive_files.current_files(archive_files.parse_names(store.files()))
    rows = pl.concat([archive_files.read_columns(store, f.name, ["partition", "offset"]) for f in files])
    return sorted(rows.filter(pl.col("partition") == partition)["offset"].to_list())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in range(6):
        write(tmp_path, 0, n * 10, n * 10 + 10)
    # Written twice: a worker died before it committed.
    write(tmp_path, 0, 50, 75)
    write(tmp_path, 1, 0, 10)
    write(tmp_path, 1, 10, 20)
    write(tmp_path, 0, 75, 80, hour=2)
    return tmp_path


def compact(root: Path, now_ms: int) -> int:
    store = FileStore(str(root))
    groups = list(compaction.due_groups(store, [0], now_ms))
    for group in groups:
        compaction.merge_files(store, group)
    return len(groups)


def at(root: Path, moment_ms: int) -> None:
    for path in root.rglob("*.parquet"):
        os.utime(path, (moment_ms / 1000, moment_ms / 1000))


def test_readers_see_each_row_once_before_during_and_after_a_merge(root: Path) -> None:
    at(root, DAY + 2 * HOUR_MS)
    now = DAY + 5 * HOUR_MS
    before = sorted({*range(75), *range(75, 80)})
    assert sorted(set(offsets(root))) == before
    assert compact(root, now) == 1
    assert offsets(root) == before
    assert len(list(root.rglob("p0000*"))) == 7 + 1 + 1, "merged ones stay for who has listed them"
    assert compaction.remove_merged(FileStore(str(root)), [0], now) == []
    at(root, now)
    assert len(compaction.remove_merged(FileStore(str(root)), [0], now + compaction.KEPT_MS)) == 7
    assert offsets(root) == before
    assert compact(root, now + DAY_MS) == 0
    assert offsets(root, 1) == list(range(20)), "other partitions are merged by their own worker"


def test_later_files_are_merged_with_the_merged_one(root: Path) -> None:
    at(root, DAY + 2 * HOUR_MS)
    compact(root, DAY + 5 * HOUR_MS)
    write(root, 0, 80, 90)
    at(root, DAY + 6 * HOUR_MS)
    assert compact(root, DAY + 7 * HOUR_MS) == 0, "not quiet yet"
    assert compact(root, DAY + 9 * HOUR_MS) == 1
    assert offsets(root) == list(range(90))
    at(root, DAY + 9 * HOUR_MS)
    compaction.remove_merged(FileStore(str(root)), [0], DAY + 2 * DAY_MS)
    assert [p.name for p in sorted(root.rglob("p0000*"))] == [
        "p0000-000000000000000-000000000000090.merged.parquet", "p0000-000000000000075-000000000000080.parquet",
    ]  # fmt: skip


def test_the_oldest_days_are_removed(tmp_path: Path) -> None:
    for day in range(4):
        write(tmp_path, 0, day, day + 1, hour=24 * day)
    at(tmp_path, DAY)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.parquet"))
    now = DAY + 4 * DAY_MS
    store = FileStore(str(tmp_path))
    assert compaction.remove_expired_days(store, now, None, None) == []
    assert len(compaction.remove_expired_days(store, now, 3, size)) == 1
    assert len(compaction.remove_expired_days(store, now, None, 1)) == 1, "the newest two stay"
    assert len(list(tmp_path.glob("event_date=*"))) == 2


def test_an_old_day_that_late_events_were_written_to_is_kept_as_long_as_a_new_one(tmp_path: Path) -> None:
    for day in range(4):
        write(tmp_path, 0, day, day + 1, hour=24 * day)
    arrived = DAY + 100 * DAY_MS
    at(tmp_path, arrived)
    store = FileStore(str(tmp_path))
    assert compaction.remove_expired_days(store, arrived + 3 * DAY_MS - 1, 3, None) == []
    assert compaction.remove_expired_days(store, arrived + 2 * DAY_MS - 1, None, 1) == []
    assert len(compaction.remove_expired_days(store, arrived + 2 * DAY_MS, None, 1)) == 2
    assert len(compaction.remove_expired_days(store, arrived + 3 * DAY_MS, 3, None)) == 2
