"""Tier 2 of dedup: Redis knows, for each id of the last horizons, the offset of its first occurrence.

For each partition one head, which lists what is stored, and for each of its generations a list of chunks (the open segment)
and the closed segments. Every write is one MULTI under a WATCH on the head, and happens only while the head is what this
worker has last seen: its mirror equals Redis, or the write is refused. A head that is missing or behind shows that Redis has
lost ids; one that is ahead, that another worker has written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from infra import faults
from infra.errors import SessionLost, Unavailable
from ingest.dedup import segments
from ingest.dedup.digest import Digests
from ingest.dedup.mirror import PartitionMirror, RegistryHead, SegmentCounts
from ingest.dedup.segments import (
    FIRST_CAPACITY,
    HEAD_BYTES,
    ROW,
    ROW_BYTES,
    UNKNOWN,
    ClosedSegment,
    Damaged,
    Generation,
    Offsets,
)

RedisCommand = tuple[Any, ...]
News = dict[int, tuple[Digests, Offsets]]
"""Ids to record with their offsets, by generation."""
_CHUNKS = 256
_GOLDEN = 0.618034  # spreads any number of them evenly


@dataclass(frozen=True)
class Lookups:
    """How many positives of Bloom filters were looked for in Redis, and how many of them were not there."""

    positives: int = 0
    false: int = 0

    def __add__(self, other: Lookups) -> Lookups:
        return Lookups(self.positives + other.positives, self.false + other.false)


class RegistryLost(SessionLost):
    """Redis no longer knows what this partition has recorded: rebuild before going on."""

    backend = "redis"


class Store(Protocol):
    """The part of `infra.redis.client.Redis` that the registry uses."""

    def call(self, *command: Any) -> Any:
        """One command."""

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of strings, from first to last."""

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[RedisCommand] | None]) -> bool:
        """Commands that happen together, if at all."""

    def scan_keys(self, pattern: str) -> Iterable[bytes]:
        """Keys that match."""


def redis_key(prefix: str, partition: int, *parts: object) -> str:
    """Key of a part of what is recorded of a partition: `head`; of a generation the number of a closed segment, or `open`."""
    return ":".join((f"{prefix}dedup:{{p{partition}}}", *map(str, parts)))


def all_keys(prefix: str) -> str:
    """Pattern of the keys of all partitions."""
    return f"{prefix}dedup:*"


class Registry:
    """The ids of partitions, in Redis. Every method may raise Unavailable."""

    def __init__(self, store: Store, prefix: str, *, ttl_s: int, segment_ids: int) -> None:
        """`ttl_s`: of generations that no worker drops; longer than the log is retained. `segment_ids`: at most in one segment."""
        self._store, self._prefix, self._ttl_s, self._limit = store, prefix, ttl_s, segment_ids

    def _key(self, partition: int, *parts: object) -> str:
        return redis_key(self._prefix, partition, *parts)

    def _head_key(self, partition: int) -> str:
        return self._key(partition, "head")

    def load(self, partition: int) -> PartitionMirror | None:
        """What is recorded of a partition; None when nothing is, or not all that there should be."""
        while True:
            stored = self._store.call("GET", self._head_key(partition))
            head = _parsed(stored)
            if head is None:
                return None
            mirror = PartitionMirror(partition, head, doubtful=dict.fromkeys(head.doubtful))
            try:
                mirror.generations = {g: self._load(partition, g, counts) for g, counts in head.generations.items()}
            except Damaged:
                mirror.generations.clear()
            if self._store.call("GET", self._head_key(partition)) != stored:
                continue  # the partition's former worker has just written
            return mirror if mirror.generations.keys() == head.generations.keys() else None

    def recorded_up_to(self, partition: int) -> int | None:
        """The offset before which every id of a partition is recorded, by its head alone; None where there is none."""
        head = _parsed(self._store.call("GET", self._head_key(partition)))
        return None if head is None else head.up_to

    def _load(self, partition: int, generation: int, counts: SegmentCounts) -> Generation:
        loaded = Generation(self._limit, _first_capacity(partition))
        keys = [self._key(partition, generation, number) for number in range(counts.closed)]
        heads = self._store.ranges([(key, 0, HEAD_BYTES - 1) for key in keys])
        for key, head in zip(keys, heads, strict=True):
            _, rows, size = ClosedSegment.sizes(head)
            if self._store.call("STRLEN", key) != size + ROW_BYTES * rows:
                raise Damaged("cut short")
            loaded.closed.append(ClosedSegment.loaded(*self._store.ranges([(key, 0, size - 1)])))
        if counts.open:
            key, at = self._key(partition, generation, "open"), 0
            while chunks := self._store.call("LRANGE", key, at, at + _CHUNKS - 1):
                raw = b"".join(chunks)
                loaded.opened().add(np.frombuffer(raw, ROW, len(raw) // ROW_BYTES))
                at += _CHUNKS
            if loaded.opened().count != counts.open:
                raise Damaged("rows are missing")
        return loaded

    def begin(self, partition: int, up_to: int, doubtful: Collection[int] = ()) -> PartitionMirror:
        """Start the ids of a partition anew: nothing before `up_to` matters, but in the generations that are
        `doubtful` ids are lost."""
        keys = self._store.scan_keys(self._key(partition, "*"))
        if keys:
            self._store.call("UNLINK", *keys)
        head = RegistryHead(up_to, doubtful=tuple(sorted(doubtful)))
        self._store.call("SET", self._head_key(partition), head.encoded())
        return PartitionMirror(partition, head, doubtful=dict.fromkeys(head.doubtful))

    def lookup(self, mirror: PartitionMirror, generation: int, digests: Digests) -> tuple[Offsets, Lookups]:
        """The offset of each first occurrence in that generation, UNKNOWN where there is none; and what had to be looked for in
        Redis. Raises RegistryLost."""
        offsets = np.full(len(digests), UNKNOWN, np.int64)
        recorded = mirror.generations.get(generation)
        if recorded is None:
            return offsets, Lookups()
        digests = np.ascontiguousarray(digests)
        if recorded.open is not None:
            recorded.open.find(digests, offsets)
        rows, wanted = [], list[tuple[str, int, int]]()
        for number, segment in enumerate(recorded.closed):
            positives = np.flatnonzero(segment.filter.contains(digests))
            if positives.size:
                first, last = segment.windows(digests[positives])
                key = self._key(mirror.partition, generation, number)
                rows.append(positives)
                wanted += ((key, *window) for window in zip(first.tolist(), last.tolist(), strict=True))
        if wanted:
            windows = self._store.ranges(wanted)
            if any(len(window) != last - first + 1 for window, (_, first, last) in zip(windows, wanted, strict=True)):
                raise RegistryLost(f"Redis lost ids of partition {mirror.partition}")
            searched = np.concatenate(rows)
            segments.scan_windows(digests, searched, windows, offsets)
            # An id is recorded once in a generation: of all segments that may have it, one does.
            is_searched = np.zeros(len(digests), np.bool_)
            is_searched[searched] = True
            there = int((offsets[is_searched] != UNKNOWN).sum())
            return offsets, Lookups(len(wanted), len(wanted) - there)
        return offsets, Lookups()

    def record(self, mirror: PartitionMirror, news: News, *, up_to: int, oldest_generation: int) -> None:
        """Add ids, move recorded-up-to, drop older generations; all of it or nothing.

        Raises RegistryLost when Redis lost what was recorded before, and Unavailable when another worker has recorded
        meanwhile: the mirror then holds that, too, and the batch is to be judged again.
        """
        head, partition = mirror.head, mirror.partition
        if not news and up_to <= head.up_to:
            return
        generations = {g: counts for g, counts in head.generations.items() if g >= oldest_generation}
        rows = {g: segments.segment_rows(*ids) for g, ids in news.items()}
        commands = list[RedisCommand]()
        for g, added in rows.items():
            counts, key = generations.get(g, SegmentCounts()), self._key(partition, g, "open")
            generations[g] = SegmentCounts(counts.closed, counts.open + len(added))
            commands += [("RPUSH", key, added.tobytes()), ("EXPIRE", key, self._ttl_s)]
        dropped = {g: counts for g, counts in head.generations.items() if g not in generations}
        if dropped:
            commands.append(
                ("UNLINK", *(key for g, counts in dropped.items() for key in self._keys(partition, g, counts)))
            )
        doubtful = tuple(g for g in head.doubtful if g >= oldest_generation)
        self._write(mirror, RegistryHead(max(up_to, head.up_to), generations, doubtful), commands)
        for g in dropped:
            del mirror.generations[g]
        mirror.doubtful = {g: filters for g, filters in mirror.doubtful.items() if g in doubtful}
        for g, added in rows.items():
            recorded = mirror.generations.setdefault(g, Generation(self._limit, _first_capacity(partition)))
            recorded.opened().add(added)
        self._close(mirror)

    def _keys(self, partition: int, generation: int, counts: SegmentCounts) -> list[str]:
        return [self._key(partition, generation, part) for part in (*range(counts.closed), "open")]

    def _close(self, mirror: PartitionMirror) -> None:
        """Close segments that are full, and those of generations that have ended."""
        newest = max(mirror.generations, default=0)
        for g, generation in mirror.generations.items():
            if generation.open is None or not (generation.open.full or g < newest):
                continue
            counts, key = mirror.head.generations[g], self._key(mirror.partition, g, len(generation.closed))
            closed, stored = generation.open.closed()
            commands = [("SET", key, stored, "EX", self._ttl_s), ("UNLINK", self._key(mirror.partition, g, "open"))]
            faults.point("ingest.closing")
            generations = mirror.head.generations | {g: SegmentCounts(counts.closed + 1, 0)}
            self._write(mirror, msgspec.structs.replace(mirror.head, generations=generations), commands)
            generation.closed.append(closed)
            generation.open = None

    def _write(self, mirror: PartitionMirror, head: RegistryHead, commands: list[RedisCommand]) -> None:
        expected, stored = mirror.head.encoded(), None
        key = self._head_key(mirror.partition)

        def accept(current: bytes | None) -> list[RedisCommand] | None:
            nonlocal stored
            stored = current
            return [*commands, ("SET", key, head.encoded())] if current == expected else None

        if self._store.write_if(key, accept):
            mirror.head = head
            return
        other = _parsed(stored)
        now = self.load(mirror.partition) if other is not None and other.up_to >= mirror.head.up_to else None
        if now is None or now.head.up_to < mirror.head.up_to:
            raise RegistryLost(f"Redis lost the ids of partition {mirror.partition}")
        mirror.become(now)
        raise Unavailable(f"another worker recorded ids of partition {mirror.partition}: judging again")


def _first_capacity(partition: int) -> int:
    """The capacity of a partition's first segment. Partitions fill at the same pace; this keeps them from closing one at the same time."""
    return int(FIRST_CAPACITY * (1 + partition * _GOLDEN % 1))


def _parsed(stored: bytes | None) -> RegistryHead | None:
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=RegistryHead)
    except msgspec.MsgspecError:
        return None
