"""What a worker must know of a partition's past before it may judge: taken over from Redis, or read again from the log."""

from __future__ import annotations

from typing import Any

from infra import faults, logs, topics
from infra.kafka import Admin, columns_of, offset_at, read_to_end
from infra.redis import Redis
from infra.settings import Settings
from ingest import batch
from ingest.batch import Position
from ingest.decode import decode
from ingest.dedup import decision as dedup
from ingest.dedup.memory import PartitionMemory
from ingest.dedup.registry import Registry

_REBUILD_BATCH = 20_000


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
        return memory

    def _from_log(self, partition: int, position: Position) -> PartitionMemory:
        """Read the ids of the last horizons from ad-events again, by the same rules, up to `position`.

        Generations that the topic no longer holds whole are in doubt from now on.
        """
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka
        generation = position.log_time_ms // self._horizon_ms
        # Ids of two generations are looked up; the one before tells which of those were copies themselves.
        start = offset_at(kafka, topic, partition, max(0, generation - 2) * self._horizon_ms)
        start = min(start, position.offset)
        doubtful = self._lost_generations(partition, start, position)
        memory = self.registry.begin(partition, start, doubtful)
        memory.doubtful = {}  # what is read again is what there is
        log_time, pending = 0, list[Any]()

        def take() -> None:
            nonlocal log_time
            if not pending:
                return
            columns = columns_of(pending)
            offsets, times = columns.offsets, batch.log_times(columns.timestamps_ms, log_time)
            decoded = decode(columns.values, times)
            rows = decoded.events["row"]
            generations = times[rows] // self._horizon_ms
            judged = dedup.decide(memory, self.registry, decoded.events.digests, offsets[rows], generations)
            oldest = dedup.oldest_needed(generation - 1)
            self.registry.record(memory, judged.news, up_to=int(offsets[-1]) + 1, oldest_generation=oldest)
            log_time = int(times[-1])
            pending.clear()
            faults.point("ingest.rebuilding")

        if start < position.offset:
            for message in read_to_end(kafka, topic, partition, start):
                if message.offset() >= position.offset:
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

    def _lost_generations(self, partition: int, start: int, position: Position) -> set[int]:
        """Of the two generations that are looked up at `position`, those that the topic no longer holds whole."""
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka
        first = Admin(kafka).starts(topic, self._settings.event_partitions)[partition]
        if first == 0 or start > first:
            return set()
        # What was deleted came before the first message that is left.
        left = next(iter(read_to_end(kafka, topic, partition, start)), None) if start < position.offset else None
        newest = position.log_time_ms if left is None else min(left.timestamp()[1], position.log_time_ms)
        generation = position.log_time_ms // self._horizon_ms
        return {g for g in (generation - 1, generation) if g <= newest // self._horizon_ms}
