"""Which days lack messages: in the archive's own offsets where ad-events no longer has them, and by the messages themselves where it has.

A run of one day needs all that came since the day before it, since an event may come late. A rebuild of many days would refuse nearly
all of them for one file that is gone. So here each hole is given to the days that it may be of, and to no others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from batch.coverage import Stretch
from infra.clock import DAY_MS, date_of
from infra.kafka import topics
from infra.kafka.range_reader import read_range
from infra.kafka.record_batches import CorruptBatch
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.decoding import json_fields

# Of a larger hole every day is taken to lack something.
_MOST_MESSAGES = 2_000_000
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class ArchiveGap:
    """Offsets that no file of the archive covers, and the days of the files before and behind it."""

    stretch: Stretch
    first: dt.date
    last: dt.date

    def may_be_of(self, day: dt.date) -> bool:
        """Whether the messages may be events of this day."""
        return self.first <= day <= self.last


def find_archive_gaps(files: Iterable[File], starts: Sequence[int]) -> list[ArchiveGap]:
    """Gaps between files below `starts`, where ad-events begins by partition: what lies above is compared with ad-events itself.

    Files of one transaction of the archive worker have one range of offsets, whatever hours they are of, and the next ones go on where
    it ends. So a range that no file has was of messages that were all rejected, or its files are gone.
    """
    gaps = list[ArchiveGap]()
    for partition, group in groupby(sorted(files, key=lambda f: (f.partition, f.from_offset)), lambda f: f.partition):
        start = starts[partition] if partition < len(starts) else 0
        reach, last_day = -1, dt.date.min
        for file in group:
            day = archive_files.folder_date(file.folder)
            if -1 < reach < min(file.from_offset, start):
                low, high = sorted((last_day, day))
                gaps.append(ArchiveGap(Stretch(partition, reach, min(file.from_offset, start)), low, high))
            if file.to_offset > reach:
                reach, last_day = file.to_offset, day
            elif file.to_offset == reach:
                last_day = max(last_day, day)
    return gaps


def without_rejected(gaps: Sequence[ArchiveGap], rejected: Iterable[tuple[int, int]]) -> list[ArchiveGap]:
    """The gaps without those of which each message is a dead letter. `rejected`: (partition, offset) of letters."""
    offsets = set(rejected)
    return [
        gap
        for gap in gaps
        if any((gap.stretch.partition, n) not in offsets for n in range(gap.stretch.from_offset, gap.stretch.to_offset))
    ]


class HoleDays:
    """The days that messages of ad-events are of, for the holes that a proof has found. Each hole is read once."""

    def __init__(self, settings: Settings, bases: Sequence[int]) -> None:
        """`bases`: by how much offsets of events exceed Kafka's, by partition."""
        self._settings, self._bases = settings, bases
        self._known = dict[Stretch, frozenset[dt.date] | None]()

    def may_be_of(self, hole: Stretch, day: dt.date) -> bool:
        """Whether a message of the hole may change what is counted for this day: it is of the day, or of one beside it, as its id may
        be that of a copy there. Raises Unavailable."""
        if hole not in self._known:
            self._known[hole] = self._read(hole)
        days = self._known[hole]
        return days is None or not days.isdisjoint((day - _DAY, day, day + _DAY))

    def _read(self, hole: Stretch) -> frozenset[dt.date] | None:
        """The days of the hole's events; None where it is too large, or cannot be read. What is no event is of no day."""
        if hole.to_offset - hole.from_offset > _MOST_MESSAGES:
            return None
        base, numbers, topic = self._bases[hole.partition], set[int](), self._settings.topic(topics.EVENTS)
        first, end = hole.from_offset - base, hole.to_offset - base
        try:
            for records in read_range(self._settings.kafka_connection, topic, hole.partition, first, end):
                values = [records.values[row] or b"" for row in range(len(records.values))]
                numbers.update(ms // DAY_MS for ms in json_fields.read_ids_and_times(values)[1] if ms is not None)
        except CorruptBatch:
            return None
        # Times of what is no valid event may be beyond any calendar.
        return frozenset(date_of(n * DAY_MS) for n in numbers if 0 <= n < 100_000)
