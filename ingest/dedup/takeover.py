"""What a worker must know of a partition's past before it may judge: taken over from Redis, or read again from the log."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from infra import faults, logs, topics
from infra.clock import now_ms
from infra.kafka import Admin, columns_of, offset_at, read_to_end
from infra.redis import Redis
from infra.settings import Settings
from ingest import archived, blocks, log_time
from ingest.decode import decode
from ingest.dedup import decision as dedup
from ingest.dedup.memory import PartitionMemory
from ingest.dedup.registry import Registry
from ingest.events import MAX_AHEAD_MS
from ingest.lateness import NO_WATERMARK
from ingest.position import Position

_REBUILD_BATCH = 20_000
# Of ad-archive, looked at first for the last one that was committed.
_LAST_MESSAGES = 20


class Memories:
    """The partitions' memories of one worker, on one Redis."""

    def __init__(self, settings: Settings, redis: Redis, worker: str) -> None:
        self._settings = settings
        # Closed segments of the log outlive its retention by one segment.
        ttl_s, ids = 2 * settings.events_retention_s, settings.dedup_segment_ids
        self.registry = Registry(redis, settings.key_prefix, ttl_s=ttl_s, segment_ids=ids)
        self._log = logs.get("ingest").bind(worker=worker)
        self._horizon_ms = settings.dedup_horizon_s * 1000
        self._former: dict[int, tuple[int, PartitionMemory]] = {}

    def keep(self, former: dict[int, tuple[int, PartitionMemory]]) -> None:
        """Partition → position and memory at the moment when Redis was found to have lost its own: the filters still know."""
        self._former |= former

    def taken(self) -> None:
        """All partitions of an assignment have their memory: what was kept is of no use any more."""
        self._former.clear()

    def begin(self, partition: int, offset: int) -> None:
        """The first time that this partition is read."""
        # Another worker may have recorded before its first commit: its ids are those of a replay.
        if self.registry.load(partition) is None:
            self.registry.begin(partition, offset)

    def of(self, partition: int, position: Position) -> PartitionMemory:
        """The memory at a position: from Redis, or, where Redis lost it, from the log itself."""
        memory = self.registry.load(partition)
        if memory is None or memory.recorded_up_to < position.offset:
            recorded = None if memory is None else memory.recorded_up_to
            self._log.warning(
                "redis lost its memory", partition=partition, recorded=recorded, committed=position.offset
            )
            return self._from_log(partition, position)
        # An older version took log time from wrong timestamps: such generations would never turn.
        if max(memory.generations, default=0) > (now_ms() + log_time.AHEAD_MS) // self._horizon_ms:
            self._log.warning("memory is of the future: building it anew", partition=partition)
            return self._from_log(partition, position)
        return memory

    def with_turns(self, partition: int, position: Position) -> Position:
        """The position, with where its generations began: by timestamps, where an older version did not commit that."""
        if position.turns or position.offset == position.base:
            return position
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka
        newest = position.log_time_ms // self._horizon_ms
        turns = list[tuple[int, int]]()
        held_from = Admin(kafka).starts(topic, partition + 1)[partition]
        for generation in range(max(0, newest - log_time.KEPT_TURNS + 1), newest + 1):
            first = offset_at(kafka, topic, partition, generation * self._horizon_ms)
            # Where the log begins within a generation, some of it may be deleted: that it began before says so.
            first -= first == held_from > 0
            turns.append((generation, min(first + position.base, position.offset)))
        return msgspec.structs.replace(position, turns=tuple(turns))

    def archived_position(self, partition: int) -> Position | None:
        """The position after the last transaction, as ad-archive has it; None when nothing of the partition was written.

        For a group whose offsets are gone: each transaction that moves a position writes to ad-archive.
        """
        topic, kafka = self._settings.topic(topics.ARCHIVE), self._settings.kafka
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
        rows, header = blocks.decode(last.value(), f"{topic}/{partition}/{last.offset()}")
        (written,) = header.ranges
        times = archived.off_wire(rows).column("log_time_ms").to_numpy()
        position = Position(
            written.to_offset,
            NO_WATERMARK if written.watermark_ms is None else written.watermark_ms,
            int(times[-1]) if len(times) else header.sent_at_ms,
        )
        self._log.error(
            "the group's offsets are gone; taken from ad-archive", partition=partition, offset=position.offset
        )
        return position

    def _from_log(self, partition: int, position: Position) -> PartitionMemory:
        """Read the ids of the last horizons from ad-events again, by the same rules, up to `position`.

        Generations that the topic no longer holds whole are in doubt from now on.
        """
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka
        generation = position.log_time_ms // self._horizon_ms
        held_from = Admin(kafka).starts(topic, partition + 1)[partition] + position.base
        # Ids of two generations are looked up; the one before tells which of those were copies themselves.
        needed = [first for g, first in position.turns if g >= generation - 2]
        start = min(max(min(needed, default=position.offset), held_from), position.offset)
        doubtful = {g for g, first in position.turns if g >= generation - 1 and first < min(held_from, position.offset)}
        memory = self.registry.begin(partition, start, doubtful)
        memory.doubtful = {}  # what is read again is what there is
        latest_ms = position.log_time_ms + 2 * log_time.AHEAD_MS
        pending = list[Any]()

        def take() -> None:
            if not pending:
                return
            columns = columns_of(pending)
            offsets = columns.offsets + position.base
            references = log_time.reference_times(columns.timestamps_ms, position.log_time_ms)
            decoded = decode(columns.values, references, latest_ms=np.minimum(references + MAX_AHEAD_MS, latest_ms))
            rows = decoded.events["row"]
            generations = log_time.generations_at(position.turns, offsets[rows])
            judged = dedup.decide(memory, self.registry, decoded.events.digests, offsets[rows], generations)
            oldest = dedup.oldest_needed(generation - 1)
            self.registry.record(memory, judged.news, up_to=int(offsets[-1]) + 1, oldest_generation=oldest)
            pending.clear()
            faults.point("ingest.rebuilding")

        if start < position.offset:
            for message in read_to_end(kafka, topic, partition, start - position.base):
                if message.offset() >= position.log_offset:
                    break
                pending.append(message)
                if len(pending) >= _REBUILD_BATCH:
                    take()
            take()
        self.registry.record(memory, {}, up_to=position.offset, oldest_generation=dedup.oldest_needed(generation))
        memory.doubtful = dict.fromkeys(doubtful)
        self._log.info("memory rebuilt from the log", partition=partition, from_offset=start, to_offset=position.offset)
        if doubtful:
            offset, former = self._former.get(partition, (-1, memory))
            if offset == position.offset:
                memory.inherit(former)
            self._log.error(
                "ids are lost for good: what may be a copy is dropped and left to the nightly job",
                partition=partition, generations=sorted(doubtful),
                filters=[g for g, known in memory.doubtful.items() if known is not None],
            )  # fmt: skip
        return memory
