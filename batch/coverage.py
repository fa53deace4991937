"""Whether the archive holds all that it must before a day can be recomputed.

Every message of ad-events is in the archive if it is valid, in ad-events-dead if it is not, and has a mark in ad-canaries if it is a
canary. So the offsets of all three must leave no gap between where a partition's messages of that time begin and where they ended when
the job began.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt
import polars as pl

from batch import archived_rows
from batch.archived_rows import RejectedIds
from infra.clock import DAY_MS, day_start_ms
from infra.errors import AdclickError
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import offset_at
from infra.kafka.range_reader import read_range
from infra.kafka.record_batches import CorruptBatch, Records
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.archive.progress import archived_to
from ingest.canary.marker import may_be_canary, sent_ms_of
from ingest.canary.marks import read_marks
from ingest.committed_positions import read_positions
from ingest.dead_letters import letters as dead_letters
from ingest.decoding.json_fields import valid_id
from ingest.events import Reason

# By this much a message may come before its event's day begins: clocks of producers run ahead.
_AHEAD_MS = DAY_MS
_SHOWN = 5
# Gaps that are nearer are read together: to ask Kafka anew takes as long as to read so many messages.
_NEAR = 100_000


@dataclass(frozen=True)
class Stretch:
    """Offsets [from_offset, to_offset) of one partition of ad-events."""

    partition: int
    from_offset: int
    to_offset: int
    region: str = ""
    """The name of the region, where it is another one than the run's."""

    def __str__(self) -> str:
        region = f"{self.region} " if self.region else ""
        return f"{region}{self.partition}/{self.from_offset} to {self.to_offset}"


@dataclass(frozen=True)
class Proof:
    """What was looked at, and what was missing."""

    files: Sequence[File]
    looked_at: list[Stretch]
    missing: list[Stretch]
    rejected: RejectedIds
    ends: Sequence[int]
    """Offsets of ad-events up to which the archive was complete when the run began."""
    other_ends: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The same of other regions, by name, in the order of their numbers."""
    set_aside: Sequence[Stretch] = ()
    """What an operator has set aside unread: dead letters whose events may be of the day, and are in no bill."""


@dataclass(frozen=True)
class SourceLog:
    """ad-events as it is now, in the offsets of events: per partition, `bases` is by how much those exceed Kafka's."""

    bases: list[int]
    starts: list[int]
    stable_ends: list[int]
    ends: list[int]

    def held_back(self) -> list[str]:
        """What open transactions keep from being read."""
        return [
            f"a transaction that is open since offset {stable - base} of partition {p} holds back {end - stable:,} messages"
            for p, (base, stable, end) in enumerate(zip(self.bases, self.stable_ends, self.ends, strict=True))
            if stable < end
        ]


def read_source(settings: Settings) -> SourceLog:
    """Raises AdclickError when the topic is not the one that was read."""
    topic, count = settings.topic(topics.EVENTS), settings.event_partitions
    admin = Admin(settings.kafka_connection)
    state = admin.describe([topic]).get(topic)
    positions = read_positions(settings, admin, count)
    if state is None or any(p is not None and p.topic_id not in ("", state.topic_id) for p in positions):
        raise AdclickError(f"topic {topic} is not the one that was read", hint="adclick status says what to do")
    bases = [0 if p is None else p.base for p in positions]

    def counted(offsets: list[int]) -> list[int]:
        return [offset + base for offset, base in zip(offsets, bases, strict=True)]

    return SourceLog(
        bases,
        counted(admin.starts(topic, count)),
        counted(admin.ends(topic, count)),
        counted(admin.high_watermarks(topic, count)),
    )


def wait_for_archive(
    settings: Settings, wait_s: float, say: Callable[[str], None], *, force: bool = False
) -> list[int]:
    """Wait until the archive has passed the ends of ad-events as they are now; returns those ends, by partition.

    Raises AdclickError when that takes longer than `wait_s`, or where partitions are not read. With `force` these, and what open
    transactions hold back, are left out.
    """
    unread = _unread_partitions(settings)
    if unread and not force:
        raise AdclickError(unread, hint="raise ADCLICK_EVENT_PARTITIONS, or --force leaves them out")
    now = read_source(settings)
    ends, deadline, announced = now.ends, time.monotonic() + wait_s, False
    while True:
        missing = _not_archived(settings, ends, now.starts)
        if not missing:
            return ends
        if time.monotonic() > deadline:
            held_back = read_source(settings).held_back()
            if held_back and force and ends is not now.stable_ends:
                say(f"left out: {'; '.join(held_back)}")
                ends, deadline = now.stable_ends, time.monotonic() + wait_s
                continue
            if held_back:
                raise AdclickError(
                    f"the archive is {missing:,} events behind ad-events after {wait_s:.0f} s: {'; '.join(held_back)}",
                    hint="its producer must commit or abort it, or kafka-transactions.sh abort; --force leaves them out",
                )
            raise AdclickError(
                f"the archive is {missing:,} events behind ad-events after {wait_s:.0f} s",
                hint="is an archive worker running? --wait gives it longer",
            )
        if not announced:
            say(f"waiting for the archive: {missing:,} events to go")
            announced = True
        time.sleep(0.3)


def _not_archived(settings: Settings, ends: Sequence[int], starts: Sequence[int]) -> int:
    topic, group = settings.topic(topics.ARCHIVE), settings.topic(topics.ARCHIVE_GROUP)
    done = Admin(settings.kafka_connection).committed(group, topic, settings.event_partitions)
    return sum(
        max(0, end - archived_to(c.metadata)) for end, start, c in zip(ends, starts, done, strict=True) if end > start
    )


def _unread_partitions(settings: Settings) -> str:
    """What lies in partitions that the setting leaves out; empty when nothing does."""
    topic, admin, count = settings.topic(topics.EVENTS), Admin(settings.kafka_connection), settings.event_partitions
    partition_count = admin.partitions().get(topic, 0)
    if partition_count <= count:
        return ""
    starts, ends = admin.starts(topic, partition_count)[count:], admin.high_watermarks(topic, partition_count)[count:]
    messages = sum(ends) - sum(starts)
    return (
        f"partitions {count} to {partition_count - 1} of {topic} are not read, and hold {messages:,} messages"
        if messages
        else ""
    )


def prove(settings: Settings, files: Sequence[File], date: dt.date, ends: Sequence[int]) -> Proof:
    """What ad-events has of a day, below its `ends`, and what of that is neither archived nor a dead letter.

    Raises UnreadableFile.
    """
    since_ms = _since_ms(date)
    bases = read_source(settings).bases
    store = FileStore(settings.archive)
    stretches = _stretches(settings, since_ms, ends, bases)
    elsewhere = _files_elsewhere(store, files, stretches)
    stretches = _without_older(store, elsewhere, stretches, since_ms)
    seen = {s.partition: np.zeros(s.to_offset - s.from_offset, bool) for s in stretches}
    firsts = {s.partition: s.from_offset for s in stretches}

    def mark(partition: int, offsets: npt.NDArray[np.int64]) -> None:
        if partition in seen:
            at = offsets - firsts[partition]
            seen[partition][at[(at >= 0) & (at < len(seen[partition]))]] = True

    for file in [*files, *elsewhere]:
        rows = archive_files.read_columns(store, file.name, ("partition", "offset"))
        for (partition,), part in rows.group_by("partition"):
            mark(int(str(partition)), part["offset"].to_numpy())
    rejected = _rejections(settings, since_ms)
    for (partition,), part in rejected.drop_nulls("partition").group_by("partition"):
        mark(int(str(partition)), part["offset"].to_numpy())
    for canaries in read_marks(settings, since_ms):
        mark(canaries.partition, np.array(canaries.offsets, np.int64))
    unreadable = rejected.drop_nulls("partition").filter("is_unreadable").select("partition", "offset", "messages")
    set_aside = clip_to((Stretch(p, offset, offset + count) for p, offset, count in unreadable.iter_rows()), stretches)
    for stretch in set_aside:
        first = firsts[stretch.partition]
        seen[stretch.partition][stretch.from_offset - first : stretch.to_offset - first] = True
    gaps = [Stretch(p, firsts[p] + low, firsts[p] + high) for p, found in seen.items() for low, high in _runs(~found)]
    missing = _with_messages(settings, gaps, bases)
    return Proof(files, stretches, missing, _by_id(rejected), ends, set_aside=set_aside)


def read_rejected_ids(settings: Settings, date: dt.date) -> RejectedIds:
    """The ids of dead letters that may be of a day."""
    return _by_id(_rejections(settings, _since_ms(date)))


def describe_missing(missing: Sequence[Stretch]) -> str:
    """A sentence on missing messages: how many, and where the first ones are."""
    return f"{_describe_stretches(missing)} are neither archived nor dead letters: {_shown(missing)}"


def describe_set_aside(stretches: Sequence[Stretch]) -> str:
    """A sentence on what was set aside unread."""
    return f"{_describe_stretches(stretches)} were set aside unread, and are in no bill unless they were sent again: {_shown(stretches)}"


def _describe_stretches(stretches: Sequence[Stretch]) -> str:
    return f"{sum(s.to_offset - s.from_offset for s in stretches):,} messages of ad-events"


def _shown(stretches: Sequence[Stretch]) -> str:
    return ", ".join(map(str, stretches[:_SHOWN])) + (", …" if len(stretches) > _SHOWN else "")


def _since_ms(date: dt.date) -> int:
    return day_start_ms(date) - DAY_MS - _AHEAD_MS


def _stretches(settings: Settings, since_ms: int, ends: Sequence[int], bases: Sequence[int]) -> list[Stretch]:
    """The messages since a moment, as far as ad-events still has them: only of those can it be known what there was."""
    topic, admin = settings.topic(topics.EVENTS), Admin(settings.kafka_connection)
    starts = admin.starts(topic, len(ends))
    firsts = [
        max(start, offset_at(settings.kafka_connection, topic, p, since_ms)) + base
        for p, (start, base) in enumerate(zip(starts, bases, strict=True))
    ]
    return [Stretch(p, first, end) for p, (first, end) in enumerate(zip(firsts, ends, strict=True)) if first < end]


def _files_elsewhere(store: FileStore, files: Sequence[File], stretches: Sequence[Stretch]) -> list[File]:
    """Files of other days with messages of these stretches: an event lies under its own day, however late it was sent."""
    names, by_partition = {file.name for file in files}, {s.partition: s for s in stretches}
    elsewhere = list[File]()
    for day in archive_files.day_folders(store):
        for file in archive_files.current_files(archive_files.parse_names(store.files(day))):
            stretch = by_partition.get(file.partition)
            if stretch is None or file.name in names:
                continue
            if file.from_offset < stretch.to_offset and stretch.from_offset < file.to_offset:
                elsewhere.append(file)
    return elsewhere


def _without_older(
    store: FileStore, files: Sequence[File], stretches: Sequence[Stretch], since_ms: int
) -> list[Stretch]:
    """The stretches without what was certainly written before: one wrong timestamp can make a stretch begin far too early."""
    firsts = {s.partition: s.from_offset for s in stretches}
    for file in files:
        rows = archive_files.read_columns(store, file.name, ("offset", "log_time_ms")).filter(
            pl.col("log_time_ms") < since_ms
        )
        if len(rows):
            firsts[file.partition] = max(firsts[file.partition], int(str(rows["offset"].max())) + 1)
    moved = [Stretch(s.partition, firsts[s.partition], s.to_offset) for s in stretches]
    return [s for s in moved if s.from_offset < s.to_offset]


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """[first, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def clip_to(stretches: Iterable[Stretch], looked_at: Sequence[Stretch]) -> list[Stretch]:
    """What of the stretches is in those that are looked at, one for each partition: a letter of a foreign producer may name any offsets."""
    whole = {s.partition: s for s in looked_at}
    clipped = [
        Stretch(
            s.partition,
            max(s.from_offset, whole[s.partition].from_offset),
            min(s.to_offset, whole[s.partition].to_offset),
        )
        for s in stretches
        if s.partition in whole
    ]
    return [s for s in clipped if s.from_offset < s.to_offset]


def _with_messages(settings: Settings, gaps: Sequence[Stretch], bases: Sequence[int]) -> list[Stretch]:
    """The gaps that have messages, of gaps in the order of partition and offset."""
    missing, topic = list[Stretch](), settings.topic(topics.EVENTS)
    for partition, of_partition in groupby(gaps, lambda gap: gap.partition):
        read = partial(read_range, settings.kafka_connection, topic, partition)
        for near in _near_each_other(of_partition):
            missing += find_occupied(near, bases[partition], read)
    return missing


def _near_each_other(gaps: Iterable[Stretch]) -> list[list[Stretch]]:
    groups = list[list[Stretch]]()
    for gap in gaps:
        if groups and gap.from_offset - groups[-1][-1].to_offset < _NEAR:
            groups[-1].append(gap)
        else:
            groups.append([gap])
    return groups


def find_occupied(gaps: Sequence[Stretch], base: int, read: Callable[[int, int], Iterator[Records]]) -> list[Stretch]:
    """The gaps of one partition that have messages, from one pass over it. `read`: the messages of [first, end) in Kafka's offsets; it
    raises CorruptBatch.

    Offsets are also taken by what is no message: the marks of a producer's transactions; and by canaries whose marks are gone.
    """
    starts = np.array([gap.from_offset - base for gap in gaps], np.int64)
    ends = np.array([gap.to_offset - base for gap in gaps], np.int64)
    occupied, position, end = np.zeros(len(gaps), bool), int(starts[0]), int(ends[-1])
    while position < end and not occupied.all():
        try:
            for records in read(position, end):
                number = np.searchsorted(starts, records.offsets, "right") - 1
                for row in np.flatnonzero((records.offsets < ends[number]) & ~occupied[number]).tolist():
                    occupied[number[row]] = occupied[number[row]] or not _is_canary(records, row)
                if occupied.all():
                    break
            position = end
        except CorruptBatch as corrupt:
            occupied |= (starts < corrupt.next_offset) & (corrupt.offset < ends)
            position = max(position + 1, corrupt.next_offset)
    return [gap for gap, has_messages in zip(gaps, occupied, strict=True) if has_messages]


def _is_canary(records: Records, row: int) -> bool:
    value = records.values[row]
    return may_be_canary(value) and sent_ms_of(value, records.headers(row)) is not None


def _rejections(settings: Settings, since_ms: int) -> pl.DataFrame:
    """Which message of ad-events each dead letter is about, and the event's id, null where a letter does not have it.

    Other producers may have written to the topic, any bytes. What came too late is archived, and left out here.
    """
    topic = settings.topic(topics.EVENTS)
    rows: list[tuple[int | None, int | None, int, str | None, int, bool]] = []
    for letter in dead_letters.read_letters(settings, since_ms):
        if letter.headers.get("reason") == Reason.TOO_LATE:
            continue
        place = letter.source
        partition, offset = (place.partition, place.offset) if place and place.topic == topic else (None, None)
        is_unreadable = letter.headers.get("reason") == Reason.UNREADABLE
        rows.append(
            (partition, offset, letter.time_ms, valid_id(letter.value), letter.batch_messages or 1, is_unreadable)
        )
    schema = {
        "partition": pl.Int64(), "offset": pl.Int64(), "time_ms": pl.Int64(), "event_id": pl.String(), "messages": pl.Int64(),
        "is_unreadable": pl.Boolean(),
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _by_id(rejections: pl.DataFrame) -> RejectedIds:
    first = rejections.drop_nulls("event_id").group_by("event_id").agg(pl.min("time_ms"))
    hashed = archived_rows.id_hashes(first)
    order = np.argsort(hashed)
    return RejectedIds(hashed[order], first["time_ms"].to_numpy()[order])
