"""How many small files of the archive become one, and when the oldest go.

The archive writes a file for each hour and each few seconds. Once an hour has been quiet, those of a source partition are merged into
one whose name says so (`….merged.parquet`); it stands for all files whose ranges its own covers. These are removed an hour later, so
that whoever listed them before can still read them; until then readers pass them over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import pyarrow as pa
from pyarrow import parquet

from infra.clock import DAY_MS, HOUR_MS, day_start_ms
from infra.file_store import FileStore
from ingest.archive import files as archive_files
from ingest.archive.files import File

QUIET_MS = 2 * HOUR_MS
"""An hour is merged when it has been over, and its files unchanged, for so long."""
KEPT_MS = HOUR_MS
"""For so long after that the merged files stay."""
_MOST_BYTES = 256 << 20
# Days that stay, however large the archive is.
_NEWEST = 2


def due_groups(store: FileStore, partitions: Iterable[int], now_ms: int) -> Iterator[list[File]]:
    """Small files that ought to become one, of some source partitions: a group at a time."""
    wanted = set(partitions)
    for folder, stored in groupby(archive_files.parse_names(store.files()), lambda f: f.folder):
        files_of_hour = list(stored)
        if not _quiet(folder, files_of_hour, now_ms):
            continue
        for partition, group in groupby(archive_files.current_files(files_of_hour), lambda f: f.partition):
            files, size = list[File](), 0
            for file in group if partition in wanted else ():
                if size + file.stored.bytes > _MOST_BYTES:
                    if len(files) > 1:
                        yield files
                    files, size = [], 0
                files.append(file)
                size += file.stored.bytes
            if len(files) > 1:
                yield files


def merge_files(store: FileStore, files: list[File]) -> str:
    """Write one file that stands for several of a partition and hour, in the order of offsets; a row of two of them once.

    Returns its name.
    """
    parts = list[pa.Table]()
    for file in files:
        with store.open(file.name) as source:
            parts.append(parquet.read_table(source, partitioning=None))
    rows = pa.concat_tables(parts).sort_by("offset")
    offsets = rows["offset"].to_numpy()
    if len(offsets) and (offsets[1:] == offsets[:-1]).any():
        rows = rows.filter(pa.array([True, *(offsets[1:] != offsets[:-1])]))
    low, high = min(f.from_offset for f in files), max(f.to_offset for f in files)
    name = archive_files.file_name(files[0].partition, low, high, merged=True)
    return archive_files.write_file(store, files[0].folder, name, rows.unify_dictionaries())


def remove_merged(store: FileStore, partitions: Iterable[int], now_ms: int) -> list[str]:
    """Remove files that a merged one has stood for, for long enough; returns them."""
    wanted, removed = set(partitions), list[str]()
    files = (f for f in archive_files.parse_names(store.files()) if f.partition in wanted)
    for _, group in groupby(files, lambda f: (f.folder, f.partition)):
        of_partition = list(group)
        merged = [f for f in of_partition if f.merged and now_ms - f.stored.modified_ms >= KEPT_MS]
        removed += [f.name for f in of_partition if any(m.stands_for(f) for m in merged)]
    for name in removed:
        store.remove(name)
    return removed


def remove_expired_days(store: FileStore, now_ms: int, keep_days: int | None, most_bytes: float | None) -> list[str]:
    """Remove the oldest days: those over for `keep_days`, and, beyond `most_bytes`, what lies before the newest two.

    A day to which late events were written is young again, so that they can be reconciled: by `keep_days` it goes as long after its
    last file as after its end, and by `most_bytes` two days after its last file. Returns the folders.
    """
    if keep_days is None and most_bytes is None:
        return []
    files = {day: store.files(day) for day in archive_files.day_folders(store)}
    days = list(files)
    total, removed = sum(f.bytes for stored in files.values() for f in stored), list[str]()
    for day, stored in files.items():
        ended_ms = day_start_ms(archive_files.folder_date(day)) + DAY_MS
        quiet_ms = now_ms - max((ended_ms, *(f.modified_ms for f in stored)))
        too_old = keep_days is not None and quiet_ms >= keep_days * DAY_MS
        too_much = (
            most_bytes is not None
            and total > most_bytes
            and day not in days[-_NEWEST:]
            and quiet_ms >= _NEWEST * DAY_MS
        )
        if too_old or too_much:
            total -= sum(f.bytes for f in stored)
            store.remove_folder(day)
            removed.append(day)
    return removed


def _quiet(folder: str, files: list[File], now_ms: int) -> bool:
    over_ms = archive_files.folder_start_ms(folder) + HOUR_MS
    return now_ms - max(over_ms, *(f.stored.modified_ms for f in files)) >= QUIET_MS
