"""The dedup ids of a partition that was assigned: loaded from Redis, or rebuilt from ad-events where Redis has lost it.

Also the last position of a group whose offsets are gone, from ad-archive.
"""

from __future__ import annotations

import msgspec
import numpy as np

from infra import faults, logs
from infra.clock import now_ms
from infra.errors import AdclickError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import offset_at, read_to_end
from infra.kafka.range_reader import read_range
from infra.kafka.record_batches import Records
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import blocks, log_time
from ingest.archive import schema as archive_schema
from ingest.decoding.decode import Events, decode_events
from ingest.dedup import copies as dedup
from ingest.dedup.mirror import PartitionMirror
from ingest.dedup.registry import Registry
from ingest.events import MAX_AHEAD_MS
from ingest.lateness import NO_WATERMARK
from ingest.poison import split_at_poison
from ingest.position import Position

_REBUILD_BATCH = 20_000
# Of ad-archive, looked at first for the last one that was committed.
_LAST_MESSAGES = 20


class DedupRebuilder:
    """Loads and rebuilds the dedup ids of one worker's partitions."""

    def __init__(self, settings: Settings, redis: Redis, worker: str) -> None:
        self._settings = settings
        # Closed segments of the log outlive its retention by one segment.
        ttl_s, ids = 2 * settings.events_retention_s, settings.dedup_segment_ids
        self.registry = Registry(redis, settings.key_prefix, ttl_s=ttl_s, segment_ids=ids)
        self._log = logs.get("ingest").bind(worker=worker)
        self._horizon_ms = settings.dedup_horizon_s * 1000
        self._former: dict[int, tuple[int, PartitionMirror]] = {}

    def keep_former(self, former: dict[int, tuple[int, PartitionMirror]]) -> None:
        """Keep mirrors of ids that Redis may have lost, by partition with the offset they stood at: their filters still know the ids."""
        self._former |= former

    def drop_former(self) -> None:
        """Drop what `keep_former` kept: all partitions of an assignment have their ids again."""
        self._former.clear()

    def begin_if_new(self, partition: int, offset: int) -> None:
        """Start the ids of a partition that was never committed, unless it has some."""
        # Another worker may have recorded before its first commit: its ids are those of a replay.
        if self.registry.load(partition) is None:
            self.registry.begin(partition, offset)

    def load_or_rebuild(self, partition: int, position: Position) -> PartitionMirror:
        """The ids of a partition at a position: loaded from Redis, or, where Redis lost it, rebuilt from the log."""
        mirror = self.registry.load(partition)
        if mirror is None or mirror.recorded_up_to < position.offset:
            recorded = None if mirror is None else mirror.recorded_up_to
            self._log.warning("redis lost dedup ids", partition=partition, recorded=recorded, committed=position.offset)
            return self._rebuild(partition, position)
        # An older version took log time from wrong timestamps: such generations would never turn.
        if max(mirror.generations, default=0) > (now_ms() + log_time.AHEAD_MS) // self._horizon_ms:
            self._log.warning("dedup ids are of the future: building them anew", partition=partition)
            return self._rebuild(partition, position)
        return mirror

    def with_turns(self, partition: int, position: Position) -> Position:
        """The position, with where its generations began: by timestamps, where an older version did not commit that."""
        if position.turns or position.offset == position.base:
            return position
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka_connection
        newest = position.log_time_ms // self._horizon_ms
        turns = list[tuple[int, int]]()
        log_start = Admin(kafka).starts(topic, partition + 1)[partition]
        for generation in range(max(0, newest - log_time.KEPT_TURNS + 1), newest + 1):
            first = offset_at(kafka, topic, partition, generation * self._horizon_ms)
            # Where the log begins within a generation, some of it may be deleted: that it began before says so.
            first -= first == log_start > 0
            turns.append((generation, min(first + position.base, position.offset)))
        return msgspec.structs.replace(position, turns=tuple(turns))

    def archived_position(self, partition: int) -> Position | None:
        """The position after the last transaction, as ad-archive has it; None when nothing of the partition was written.

        For a group whose offsets are gone: each transaction that moves a position writes to ad-archive.
        """
        topic, kafka = self._settings.topic(topics.ARCHIVE), self._settings.kafka_connection
        admin = Admin(kafka)
        start, end = admin.starts(topic, partition + 1)[partition], admin.ends(topic, partition + 1)[partition]
        reach, last = _LAST_MESSAGES, None
        while last is None and start < end:
            first = max(start, end - reach)
            for last in read_to_end(kafka, topic, partition, first):  # noqa: B007
                pass
            if first == start:
                break
            reach *= 10
        if last is None:
            return None
        rows, header = blocks.decode_block(last.value(), f"{topic}/{partition}/{last.offset()}")
        (written,) = header.ranges
        times = archive_schema.decode_archived(rows).column("log_time_ms").to_numpy()
        # Of earlier releases a block without events does not say it.
        log_time_ms = header.log_time_ms or (int(times[-1]) if len(times) else header.sent_at_ms)
        watermark_ms = NO_WATERMARK if written.watermark_ms is None else written.watermark_ms
        position = Position(written.to_offset, watermark_ms, log_time_ms, canary_ms=written.canary_ms)
        self._log.error(
            "the group's offsets are gone; taken from ad-archive", partition=partition, offset=position.offset
        )
        return position

    def _rebuild(self, partition: int, position: Position) -> PartitionMirror:
        """Read the ids of the last horizons from ad-events again, by the same rules, up to `position`.

        Generations that the topic no longer holds whole are in doubt from now on.
        """
        start, doubtful = self.rebuild_range(partition, position)
        mirror = self.registry.begin(partition, start, doubtful)
        mirror.doubtful = {}  # what is read again is what there is
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka_connection
        log_start, log_end = start - position.base, position.log_offset
        for records in read_range(kafka, topic, partition, log_start, log_end, _REBUILD_BATCH, pass_over=True):
            self._record_again(mirror, position, records.shifted(position.base))
            faults.point("ingest.rebuilding")
        oldest = dedup.oldest_needed(position.log_time_ms // self._horizon_ms)
        self.registry.record(mirror, {}, up_to=position.offset, oldest_generation=oldest)
        mirror.doubtful = dict.fromkeys(doubtful)
        self._log.info(
            "dedup ids rebuilt from the log", partition=partition, from_offset=start, to_offset=position.offset
        )
        if doubtful:
            self._inherit_filters(mirror, position)
        return mirror

    def rebuild_range(self, partition: int, position: Position) -> tuple[int, set[int]]:
        """The offset to read from, and the generations of which the topic no longer holds the beginning. Changes nothing."""
        generation = position.log_time_ms // self._horizon_ms
        log_start = Admin(self._settings.kafka_connection).starts(self._settings.topic(topics.EVENTS), partition + 1)[
            partition
        ]
        oldest_kept = log_start + position.base
        # Ids of two generations are looked up; the one before decides which of those were copies themselves.
        needed = [first for g, first in position.turns if g >= generation - 2]
        start = min(max(min(needed, default=position.offset), oldest_kept), position.offset)
        cut_before = min(oldest_kept, position.offset)
        return start, {g for g, first in position.turns if g >= generation - 1 and first < cut_before}

    def _record_again(self, mirror: PartitionMirror, position: Position, records: Records) -> None:
        """Record the first occurrences among the valid events of some messages, as they were recorded when first read. A message that this
        release fails on was set aside, or it could not lie before the position."""
        try:
            self._record(mirror, position, records)
        except (AdclickError, MemoryError):
            raise
        except Exception:
            before, poisons = split_at_poison({0: [records]}, lambda messages: self._decode(position, messages[0][0]))
            if not poisons:
                raise
            self._record(mirror, position, before[0][0])
            behind = int(np.searchsorted(records.offsets, poisons[0].last, side="right"))
            if behind < len(records.offsets):
                self._record_again(mirror, position, records.split(behind)[1])

    def _decode(self, position: Position, records: Records) -> Events:
        references = log_time.reference_times(records.timestamps_ms, position.log_time_ms)
        latest_ms = np.minimum(references + MAX_AHEAD_MS, position.log_time_ms + 2 * log_time.AHEAD_MS)
        return decode_events(records.values, references, latest_ms=latest_ms).events

    def _record(self, mirror: PartitionMirror, position: Position, records: Records) -> None:
        if not len(records.offsets):
            return
        events, offsets = self._decode(position, records), records.offsets
        rows = events["row"]
        generations = log_time.generations_at(position.turns, offsets[rows])
        copies = dedup.find_copies(mirror, self.registry, events.digests, offsets[rows], generations)
        oldest = dedup.oldest_needed(position.log_time_ms // self._horizon_ms - 1)
        self.registry.record(mirror, copies.news, up_to=int(offsets[-1]) + 1, oldest_generation=oldest)

    def _inherit_filters(self, mirror: PartitionMirror, position: Position) -> None:
        """For generations in doubt, take the filters that this worker had at the same position: what they have not seen is new."""
        offset, former = self._former.get(mirror.partition, (-1, mirror))
        if offset == position.offset:
            mirror.inherit(former)
        self._log.error(
            "ids are lost for good: what may be a copy is dropped and left to the nightly job",
            partition=mirror.partition, generations=sorted(mirror.doubtful),
            filters=[g for g, filters in mirror.doubtful.items() if filters is not None],
        )  # fmt: skip
