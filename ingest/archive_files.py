"""A file of the archive: its name, how its columns are laid out, and how it is written so that it is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from infra import faults

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


def name_of(partition: int, from_offset: int, to_offset: int, *, merged: bool = False) -> str:
    """By source partition and the range of its offsets."""
    return f"p{partition:04d}-{from_offset:015d}-{to_offset:015d}{'.merged' if merged else ''}.parquet"


def write(folder: Path, name: str, rows: pa.Table) -> Path:
    """Write under a temporary name, sync, rename, sync the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".{name}.{os.getpid()}", folder / name
    try:
        parquet.write_table(rows, temporary, **LAYOUT)
        _sync(temporary)
        faults.point("archive.written")
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    for made in (folder, folder.parent):
        _sync(made)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
