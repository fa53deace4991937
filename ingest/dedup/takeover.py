"""What a worker must know of a partition's past before it may judge: taken over from Redis, or read again from the log.

The filters are filled from Redis in the background. Until one is there, every id of its generation counts as positive.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from infra import faults, logs, topics
from infra.errors import Unavailable
from infra.kafka import Admin, columns_of, offset_at, read_to_end
from infra.redis import Redis
from infra.settings import Settings
from ingest import batch
from ingest.batch import Position
from ingest.decode import decode
from ingest.dedup import decision as dedup
from ingest.dedup.bloom import GrowingBloom
from ingest.dedup.decision import MemoryLost, PartitionMemory
from ingest.dedup.registry import RedisRegistry, Registry

_REBUILD_BATCH = 20_000


def _registry(settings: Settings, redis: Redis) -> RedisRegistry:
    # Closed segments of the log outlive its retention by one segment.
    return RedisRegistry(redis, settings.key_prefix, 2 * settings.events_retention_s)


class Memories:
    """The partitions' memories of one worker, on one Redis."""

    def __init__(self, settings: Settings, redis: Redis, worker: str) -> None:
        self._settings = settings
        self.registry: Registry = _registry(settings, redis)
        self._log = logs.get("ingest").bind(worker=worker)
        self._horizon_ms = settings.dedup_horizon_s * 1000
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="filters")
        self._closed = threading.Event()
        self._filling: dict[tuple[int, int], Future[GrowingBloom]] = {}
        """Filters on their way, by partition and generation."""
        self._former: dict[int, tuple[int, PartitionMemory]] = {}

    def close(self) -> None:
        """Stop filling."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)

    def keep(self, former: dict[int, tuple[int, PartitionMemory]]) -> None:
        """Partition → position and memory at the moment when Redis was found to have lost its own: the filters still know."""
        self._former |= former

    def taken(self) -> None:
        """All partitions of an assignment have their memory: what was kept is of no use any more."""
        self._former.clear()

    def begin(self, partition: int, offset: int) -> None:
        """The first time that this partition is read."""
        # Another worker may have recorded before its first commit: its ids are those of a replay.
        if self.registry.recorded_up_to(partition) is None:
            self.registry.begin(partition, offset)

    def of(self, partition: int, position: Position) -> PartitionMemory:
        """The memory at a position: from Redis, or, where Redis lost it, from the log itself."""
        recorded = self.registry.recorded_up_to(partition)
        generation = position.log_time_ms // self._horizon_ms
        if recorded is None or recorded < position.offset:
            self._log.warning(
                "redis lost its memory", partition=partition, recorded=recorded, committed=position.offset
            )
            memory = self._from_log(partition, position)
        else:
            doubtful = {g for g in self.registry.doubtful(partition) if g >= generation - 1}
            memory = PartitionMemory(partition, recorded, generation, doubtful=doubtful)
        self._start_filling(memory)
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
        self.registry.forget(partition)
        memory = PartitionMemory(partition, start, assigned_generation=-1)
        doubtful = self._lost_generations(partition, start, position)
        self.registry.begin(partition, start, doubtful)
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
            self.record(memory, judged, int(offsets[-1]) + 1, generation - 1)
            dedup.remember(memory, judged)
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
        if memory.recorded_up_to < position.offset:
            self.registry.begin(partition, position.offset, doubtful)
            memory.recorded_up_to = position.offset
        memory.assigned_generation, memory.doubtful = generation, doubtful
        self._log.info("memory rebuilt from the log", partition=partition, from_offset=start, to_offset=position.offset)
        if doubtful:
            offset, former = self._former.get(partition, (-1, memory))
            if offset == position.offset:
                memory.inherit(former)
            self._log.error(
                "ids are lost for good: what may be a copy is dropped and left to the nightly job",
                partition=partition, generations=sorted(doubtful), filters=sorted(memory.complete),
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

    def _start_filling(self, memory: PartitionMemory) -> None:
        for generation in (memory.assigned_generation, memory.assigned_generation - 1):
            # A doubtful one is not whole in Redis.
            if generation not in memory.doubtful:
                self._filling[memory.partition, generation] = self._pool.submit(
                    self._read_filter, memory.partition, generation
                )

    def _read_filter(self, partition: int, generation: int) -> GrowingBloom:
        found = GrowingBloom()
        client = Redis(self._settings.redis)
        try:
            for page in _registry(self._settings, client).pages(partition, generation):
                if len(page):
                    found.add(page)
                if self._closed.is_set():
                    raise Unavailable("stopping: this filter is not whole")
        finally:
            client.close()
        return found

    def adopt_filled(self, memory: PartitionMemory) -> None:
        """Put finished filters to use. What was added meanwhile is in Redis, too, but may have been missed by the scan."""
        partition = memory.partition
        for generation in [g for (p, g), f in self._filling.items() if p == partition and f.done()]:
            future = self._filling.pop((partition, generation))
            if future.exception() is not None:
                # Until it is there all ids count as positive, which is slow and right. Try again.
                self._filling[partition, generation] = self._pool.submit(self._read_filter, partition, generation)
                continue
            found = future.result()
            if generation in memory.filters:
                found.join(memory.filters[generation])
            memory.filters[generation] = found
            memory.complete.add(generation)

    def record(self, memory: PartitionMemory, judged: dedup.Decision, up_to: int, committed_generation: int) -> None:
        """Make the ids of a batch known, up to its end. Whoever reads it again begins in `committed_generation`.

        Raises MemoryLost, Unavailable.
        """
        if not judged.news and up_to == memory.recorded_up_to:
            return
        if not self.registry.record(
            memory.partition,
            judged.news,
            expected=memory.recorded_up_to,
            up_to=up_to,
            oldest_generation=dedup.oldest_needed(committed_generation),
        ):
            raise MemoryLost(f"Redis lost the ids of partition {memory.partition}")
        memory.recorded_up_to = max(memory.recorded_up_to, up_to)
