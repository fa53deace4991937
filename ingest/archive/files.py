"""Files of the archive: their names, which of them count, how their columns are laid out, and how they are written and read."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from infra.clock import DAY_MS, HOUR_MS, date_of, day_start_ms
from infra.errors import UserError
from infra.file_store import FileStore, Stored, decision_on, folder_of, is_from_a_bucket

# No dictionary where nearly every value is another one, and statistics where readers use them.
LAYOUT = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": [
        "partition", "event_type", "campaign_id", "ad_id", "advertiser_id", "publisher_id", "country", "device",
        "cost_micros", "decision", "weight", "lateness", "copy_of",
    ],
    "column_encoding": {
        **dict.fromkeys(("offset", "log_time_ms", "time_ms"), "DELTA_BINARY_PACKED"),
        "event_id": "DELTA_LENGTH_BYTE_ARRAY",
    },
    "write_statistics": ["offset", "time_ms"],
}  # fmt: skip
_DAY = "event_date="
_NAME = re.compile(r"p(\d{4,})-(\d{15,})-(\d{15,})(\.merged)?\.parquet")


class UnreadableFile(UserError):
    """A file of the archive cannot be read."""


@dataclass(frozen=True)
class File:
    """A file of one source partition and hour, by its name: rows of the offsets [from_offset, to_offset)."""

    stored: Stored
    folder: str
    partition: int
    from_offset: int
    to_offset: int
    merged: bool
    region: int = 0
    """Whose archive it is in, where a run reads those of several regions; 0: its own."""

    @property
    def name(self) -> str:
        """The path below the archive's root."""
        return self.stored.name

    @property
    def reference(self) -> str:
        """The file among those of several archives, for `batch.archived_rows.Archives`."""
        return f"{self.region}:{self.name}"

    def stands_for(self, other: File) -> bool:
        """Whether all rows of another file are in this one."""
        same = self.partition == other.partition and self.folder == other.folder
        return same and self.merged and self is not other and self._covers(other)

    def _covers(self, other: File) -> bool:
        wider = (self.to_offset - self.from_offset, self.merged) > (other.to_offset - other.from_offset, other.merged)
        return wider and self.from_offset <= other.from_offset and other.to_offset <= self.to_offset


def folder_name(date: str, hour: int) -> str:
    """The folder of one hour (UTC) of a day."""
    return f"{_DAY}{date}/hour={hour:02d}"


def folder_start_ms(folder: str) -> int:
    """When the hour of a folder begins."""
    return day_start_ms(folder_date(folder)) + int(folder.rsplit("=", 1)[1]) * HOUR_MS


def folder_date(folder: str) -> dt.date:
    """The day of a folder, or of what lies below it."""
    return dt.date.fromisoformat(folder.split("/", 1)[0].removeprefix(_DAY))


def file_name(partition: int, from_offset: int, to_offset: int, *, merged: bool = False) -> str:
    """The name of a file, by source partition and the range of its offsets."""
    return f"p{partition:04d}-{from_offset:015d}-{to_offset:015d}{'.merged' if merged else ''}.parquet"


def day_folders(store: FileStore) -> list[str]:
    """The folders of days, the oldest first."""
    return [name for name in store.folders() if name.startswith(_DAY)]


def parse_names(stored_files: Iterable[Stored]) -> list[File]:
    """The files of the archive among stored ones, in the order of folder, partition and offsets."""
    files = list[File]()
    for stored in stored_files:
        folder = folder_of(stored.name)
        if (m := _NAME.fullmatch(stored.name.removeprefix(f"{folder}/"))) is not None:
            files.append(File(stored, folder, int(m[1]), int(m[2]), int(m[3]), m[4] is not None))
    return sorted(files, key=lambda f: (f.folder, f.partition, f.from_offset, f.to_offset))


def current_files(files: Sequence[File]) -> list[File]:
    """The files that count: those that no merged one stands for."""
    counted = list[File]()
    for _, group in groupby(files, lambda f: (f.folder, f.partition)):
        of_partition = list(group)
        merged = [f for f in of_partition if f.merged]
        counted += [f for f in of_partition if not any(m.stands_for(f) for m in merged)]
    return counted


def files_around(store: FileStore, date: dt.date) -> list[File]:
    """The current files that may hold events of D−1 … D+1: of folders from D−1 on, since too-late events lie where they arrived."""
    first = date - dt.timedelta(days=1)
    return [
        file
        for day in day_folders(store)
        if folder_date(day) >= first
        for file in current_files(parse_names(store.files(day)))
    ]


def days_of(store: FileStore, file: File) -> set[dt.date]:
    """The days of the events in a file: mostly that of its folder, by the statistics of its times. Raises UnreadableFile, Unavailable."""
    with reading(store, file.name), store.open(file.name) as source:
        metadata = parquet.ParquetFile(source).metadata
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    column = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).name == "time_ms")
    ends = [group.column(column).statistics for group in groups]
    numbers = {t // DAY_MS for end in ends if end is not None and end.has_min_max for t in (end.min, end.max)}
    if len(numbers) == 1 and all(end is not None and end.has_min_max for end in ends):
        return {date_of(number * DAY_MS) for number in numbers}
    times = read_columns(store, file.name, ("time_ms",))["time_ms"]
    return {date_of(number * DAY_MS) for number in (times // DAY_MS).unique().to_list()}


def write_file(store: FileStore, folder: str, name: str, rows: pa.Table) -> str:
    """Write a file, whole and durable; returns its name below the root."""
    into = pa.BufferOutputStream()
    parquet.write_table(rows, into, **LAYOUT)
    store.write(f"{folder}/{name}", into.getvalue())
    return f"{folder}/{name}"


def read_columns(store: FileStore, name: str, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of a file. Raises UnreadableFile, Unavailable."""
    with reading(store, name):
        if store.folder is not None:
            return pl.read_parquet(store.folder / name, columns=list(columns), glob=False)
        with store.open(name) as source:
            return pl.DataFrame(pl.from_arrow(parquet.read_table(source, columns=list(columns), partitioning=None)))


@contextmanager
def reading(store: FileStore, name: str) -> Iterator[None]:
    """Raise errors of a file that is read as decisions: UnreadableFile, Unavailable."""
    try:
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_from_a_bucket(error):
            raise decision_on(error, store.shown) from error
        raise unreadable_file(store, name, error, "restore the file") from error


def unreadable_file(store: FileStore, name: str, error: Exception, hint: str) -> UnreadableFile:
    """The error for a file that cannot be read, with its address and what to do."""
    return UnreadableFile(f"{store.address(name)} cannot be read: {str(error).splitlines()[0]}", hint=hint)
