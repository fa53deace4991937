"""How long a rebuild takes, about: by what the rehearsals of docs/recovery.md and the benchmarks of docs/performance.md measured.

A quarter of an hour or a week is what an operator asks; a cluster with more cores takes less.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence

from ingest.archive import files as archive_files
from ingest.archive.files import File

# On two cores. `make bench-batch`, and one day of a rehearsal.
_SPARK_START_S, _DAY_S, _RECOUNTED_ROWS_S = 8.0, 5.0, 385_000
# `make rehearse`: a second each for a run whose rows are compared with their digest.
_ATTACHED_RUN_S = 0.5
# Ids of a partition are read from ad-events and recorded again; a group that takes partitions anew needs some seconds for it.
_REGROUP_S, _REBUILT_IDS_S = 8.0, 120_000
SHARDS_S = 8.0
"""For the workers of the stream to write what is in their state."""
# Sent from the archive, ingested, and archived once more.
_REPLAYED_S, _NEW_WATERMARK_S = 25_000, 15.0
# Of a row in a small file; in large ones 28 and less.
_ROW_BYTES = 45


def rows_by_day(files: Sequence[File]) -> Counter[dt.date]:
    """About how many events the folder of each day has."""
    size = Counter[dt.date]()
    for file in files:
        size[archive_files.folder_date(file.folder)] += file.stored.bytes
    return Counter({day: bytes_ // _ROW_BYTES for day, bytes_ in size.items()})


def rows_of(files: Sequence[File]) -> int:
    """About how many events files hold, by their sizes."""
    return sum(file.stored.bytes for file in files) // _ROW_BYTES


def recount_seconds(rows_by_day: Sequence[int]) -> float:
    """To recount days, each of which reads so many rows."""
    if not rows_by_day:
        return 0.0
    return _SPARK_START_S + sum(_DAY_S + rows / _RECOUNTED_ROWS_S for rows in rows_by_day)


def attach_seconds(runs: int) -> float:
    """To compare runs with their digests."""
    return _ATTACHED_RUN_S * runs


def ids_seconds(messages: int) -> float:
    """To rebuild the ids of so many messages."""
    return _REGROUP_S + messages / _REBUILT_IDS_S if messages else 0.0


def replay_seconds(rows: int) -> float:
    """To send so many events, and have them ingested and archived."""
    return _NEW_WATERMARK_S + rows / _REPLAYED_S


def shown(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
