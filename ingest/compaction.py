"""Files of the archive: which of them count, how many small ones of an hour become one, and when the oldest go.

The archive writes a file for each hour and each few seconds. Once an hour has been quiet, those of a source partition are merged into
one whose name says so (`….merged.parquet`); it stands for all files whose ranges its own covers. These are removed an hour later, so
that whoever listed them before can still read them; until then readers pass them over.
"""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from infra.clock import DAY_MS, HOUR_MS, day_start_ms
from ingest import archive_files

QUIET_MS = 2 * HOUR_MS
"""An hour is merged when it has been over, and its files unchanged, for so long."""
KEPT_MS = HOUR_MS
"""For so long after that the merged files stay."""
_MOST_BYTES = 256 << 20
_NAME = re.compile(r"p(\d{4,})-(\d{15,})-(\d{15,})(\.merged)?\.parquet")


@dataclass(frozen=True)
class File:
    """A file of one source partition and hour, by its name: rows of the offsets [from_offset, to_offset)."""

    path: Path
    partition: int
    from_offset: int
    to_offset: int
    merged: bool

    def stands_for(self, other: File) -> bool:
        """Whether all rows of another file are in this one."""
        same = self.partition == other.partition and self.path.parent == other.path.parent
        return same and self.merged and self is not other and self._covers(other)

    def _covers(self, other: File) -> bool:
        wider = (self.to_offset - self.from_offset, self.merged) > (other.to_offset - other.from_offset, other.merged)
        return wider and self.from_offset <= other.from_offset and other.to_offset <= self.to_offset


def named(paths: Iterable[Path]) -> list[File]:
    """Those of some paths that are files of the archive, in order."""
    found = ((path, _NAME.fullmatch(path.name)) for path in paths)
    files = [File(p, int(m[1]), int(m[2]), int(m[3]), m[4] is not None) for p, m in found if m is not None]
    return sorted(files, key=lambda f: (f.path.parent, f.partition, f.from_offset, f.to_offset))


def current(folder: Path) -> list[Path]:
    """The files below a folder that count: those that no merged one stands for."""
    files = named(folder.rglob("p*.parquet"))
    found: list[Path] = []
    for _, group in groupby(files, lambda f: (f.path.parent, f.partition)):
        mine = list(group)
        merged = [f for f in mine if f.merged]
        found += [f.path for f in mine if not any(m.stands_for(f) for m in merged)]
    return found


def due(root: Path, partitions: Iterable[int], now_ms: int) -> Iterator[list[Path]]:
    """Small files that ought to become one, of some source partitions: a group at a time."""
    wanted = set(partitions)
    for folder in sorted(root.glob("event_date=*/hour=*")):
        if not _quiet(folder, now_ms):
            continue
        for partition, group in groupby(named(current(folder)), lambda f: f.partition):
            files, size = list[Path](), 0
            for file in group if partition in wanted else ():
                more = file.path.stat().st_size
                if size + more > _MOST_BYTES:
                    if len(files) > 1:
                        yield files
                    files, size = [], 0
                files.append(file.path)
                size += more
            if len(files) > 1:
                yield files


def merge(paths: list[Path]) -> Path:
    """Write one file that stands for several of a partition and hour, in the order of offsets; a row of two of them once."""
    files = named(paths)
    rows = pa.concat_tables(parquet.read_table(f.path, partitioning=None) for f in files).sort_by("offset")
    offsets = rows["offset"].to_numpy()
    if len(offsets) and (offsets[1:] == offsets[:-1]).any():
        rows = rows.filter(pa.array([True, *(offsets[1:] != offsets[:-1])]))
    low, high = min(f.from_offset for f in files), max(f.to_offset for f in files)
    name = archive_files.name_of(files[0].partition, low, high, merged=True)
    return archive_files.write(paths[0].parent, name, rows.unify_dictionaries())


def clean(root: Path, partitions: Iterable[int], now_ms: int) -> list[Path]:
    """Remove files that a merged one has stood for, for long enough; returns them."""
    wanted, gone = set(partitions), list[Path]()
    for folder in root.glob("event_date=*/hour=*"):
        files = [f for f in named(folder.iterdir()) if f.partition in wanted]
        for merged in (f for f in files if f.merged and now_ms - f.path.stat().st_mtime * 1000 >= KEPT_MS):
            gone += [f.path for f in files if merged.stands_for(f)]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def expire(root: Path, now_ms: int, keep_days: int | None, most_bytes: float | None) -> list[Path]:
    """Remove the oldest days: those over for `keep_days`, and, beyond `most_bytes`, what lies before the newest two; returns
    their folders."""
    days = sorted(root.glob("event_date=*"))
    sizes = {day: sum(f.stat().st_size for f in day.rglob("*.parquet")) for day in days}
    total, gone = sum(sizes.values()), list[Path]()
    for day in days:
        over_ms = now_ms - day_start_ms(_date_of(day)) - DAY_MS
        too_old = keep_days is not None and over_ms >= keep_days * DAY_MS
        too_much = most_bytes is not None and total > most_bytes and day not in days[-2:]
        if too_old or too_much:
            total -= sizes[day]
            shutil.rmtree(day)
            gone.append(day)
    return gone


def _date_of(folder: Path) -> dt.date:
    return dt.date.fromisoformat(folder.name.split("=", 1)[1])


def _quiet(folder: Path, now_ms: int) -> bool:
    over_ms = day_start_ms(_date_of(folder.parent)) + (int(folder.name.split("=", 1)[1]) + 1) * HOUR_MS
    newest_ms = max((f.stat().st_mtime * 1000 for f in folder.iterdir()), default=0.0)
    return now_ms - max(over_ms, newest_ms) >= QUIET_MS
