"""Tier 2 of dedup: Redis knows, for each id of the last horizons, the offset of its first occurrence.

For each partition one head, which tells what is there, and for each of its generations a list of chunks (the open segment)
and the closed segments. Every write is one MULTI under a WATCH on the head, and happens only while the head is what this
worker has last seen: what a worker holds is what Redis holds, or the write is refused. A head that is missing or behind
tells a Redis that lost its memory from one that never knew; one that is ahead, that another worker wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from infra import faults
from infra.errors import SessionLost, Unavailable
from ingest.dedup import segments
from ingest.dedup.digest import Digests
from ingest.dedup.memory import Head, Kept, PartitionMemory
from ingest.dedup.segments import (
    FIRST_CAPACITY,
    HEAD_BYTES,
    ROW,
    ROW_BYTES,
    UNKNOWN,
    Closed,
    Damaged,
    Generation,
    Offsets,
)

Command = tuple[Any, ...]
News = dict[int, tuple[Digests, Offsets]]
"""Ids to record with their offsets, by generation."""
_CHUNKS = 256
_GOLDEN = 0.618034  # spreads any number of them evenly


class MemoryLost(SessionLost):
    """Redis no longer knows what this partition has recorded: rebuild before going on."""

    backend = "redis"


class Store(Protocol):
    """What is asked of Redis. See infra.redis."""

    def call(self, *command: Any) -> Any:
        """One command."""

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of strings, from first to last."""

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Command] | None]) -> bool:
        """Commands that happen together, if at all."""

    def scan_keys(self, pattern: str) -> Iterable[bytes]:
        """Keys that match."""


class Registry:
    """The memories of partitions, in Redis. Every method may raise Unavailable."""

    def __init__(self, store: Store, prefix: str, *, ttl_s: int, segment_ids: int) -> None:
        """`ttl_s`: for generations that nobody drops; longer than the log is kept. `segment_ids`: of one at most."""
        self._store, self._prefix, self._ttl_s, self._limit = store, prefix, ttl_s, segment_ids

    def _key(self, partition: int, *more: object) -> str:
        return ":".join((f"{self._prefix}dedup:{{p{partition}}}", *map(str, more)))

    def _head_key(self, partition: int) -> str:
        return self._key(partition, "head")

    def load(self, partition: int) -> PartitionMemory | None:
        """What is recorded of a partition; None when nothing is, or not all that there should be."""
        while True:
            held = self._store.call("GET", self._head_key(partition))
            head = _parsed(held)
            if head is None:
                return None
            memory = PartitionMemory(partition, head, doubtful=dict.fromkeys(head.doubtful))
            try:
                memory.generations = {g: self._load(partition, g, kept) for g, kept in head.generations.items()}
            except Damaged:
                memory.generations.clear()
            if self._store.call("GET", self._head_key(partition)) != held:
                continue  # a worker that had this partition before has just written
            return memory if memory.generations.keys() == head.generations.keys() else None

    def _load(self, partition: int, generation: int, kept: Kept) -> Generation:
        found = Generation(self._limit, _first_capacity(partition))
        keys = [self._key(partition, generation, number) for number in range(kept.closed)]
        heads = self._store.ranges([(key, 0, HEAD_BYTES - 1) for key in keys])
        for key, head in zip(keys, heads, strict=True):
            _, rows, size = Closed.sizes(head)
            if self._store.call("STRLEN", key) != size + ROW_BYTES * rows:
                raise Damaged("cut short")
            found.closed.append(Closed.loaded(*self._store.ranges([(key, 0, size - 1)])))
        if kept.open:
            key, at = self._key(partition, generation, "open"), 0
            while chunks := self._store.call("LRANGE", key, at, at + _CHUNKS - 1):
                raw = b"".join(chunks)
                found.opened().add(np.frombuffer(raw, ROW, len(raw) // ROW_BYTES))
                at += _CHUNKS
            if found.opened().count != kept.open:
                raise Damaged("rows are missing")
        return found

    def begin(self, partition: int, up_to: int, doubtful: Collection[int] = ()) -> PartitionMemory:
        """Start the memory of a partition anew: nothing before `up_to` matters, but in the generations that are
        `doubtful` ids are lost."""
        keys = self._store.scan_keys(self._key(partition, "*"))
        if keys:
            self._store.call("UNLINK", *keys)
        head = Head(up_to, doubtful=tuple(sorted(doubtful)))
        self._store.call("SET", self._head_key(partition), head.told())
        return PartitionMemory(partition, head, doubtful=dict.fromkeys(head.doubtful))

    def lookup(self, memory: PartitionMemory, generation: int, digests: Digests) -> tuple[Offsets, int]:
        """The offset of each first occurrence in that generation, UNKNOWN where there is none; and how many had to be
        looked for in Redis. Raises MemoryLost."""
        found = np.full(len(digests), UNKNOWN, np.int64)
        held = memory.generations.get(generation)
        if held is None:
            return found, 0
        digests = np.ascontiguousarray(digests)
        if held.open is not None:
            held.open.find(digests, found)
        rows, wanted = [], list[tuple[str, int, int]]()
        for number, segment in enumerate(held.closed):
            asked = np.flatnonzero(segment.filter.contains(digests))
            if asked.size:
                first, last = segment.windows(digests[asked])
                key = self._key(memory.partition, generation, number)
                rows.append(asked)
                wanted += ((key, *window) for window in zip(first.tolist(), last.tolist(), strict=True))
        if wanted:
            windows = self._store.ranges(wanted)
            if any(len(got) != last - first + 1 for got, (_, first, last) in zip(windows, wanted, strict=True)):
                raise MemoryLost(f"Redis lost ids of partition {memory.partition}")
            segments.scan(digests, np.concatenate(rows), windows, found)
        return found, len(wanted)

    def record(self, memory: PartitionMemory, news: News, *, up_to: int, oldest_generation: int) -> None:
        """Add ids, move recorded-up-to, drop older generations; all of it or nothing.

        Raises MemoryLost when Redis lost what was recorded before, and Unavailable when another worker has recorded
        meanwhile: the memory then holds that, too, and the batch is to be judged again.
        """
        head, partition = memory.head, memory.partition
        if not news and up_to <= head.up_to:
            return
        generations = {g: kept for g, kept in head.generations.items() if g >= oldest_generation}
        rows = {g: segments.rows_of(*told) for g, told in news.items()}
        commands = list[Command]()
        for g, added in rows.items():
            kept, key = generations.get(g, Kept()), self._key(partition, g, "open")
            generations[g] = Kept(kept.closed, kept.open + len(added))
            commands += [("RPUSH", key, added.tobytes()), ("EXPIRE", key, self._ttl_s)]
        dropped = {g: kept for g, kept in head.generations.items() if g not in generations}
        if dropped:
            commands.append(("UNLINK", *(key for g, kept in dropped.items() for key in self._keys(partition, g, kept))))
        doubtful = tuple(g for g in head.doubtful if g >= oldest_generation)
        self._write(memory, Head(max(up_to, head.up_to), generations, doubtful), commands)
        for g in dropped:
            del memory.generations[g]
        memory.doubtful = {g: filters for g, filters in memory.doubtful.items() if g in doubtful}
        for g, added in rows.items():
            held = memory.generations.setdefault(g, Generation(self._limit, _first_capacity(partition)))
            held.opened().add(added)
        self._close(memory)

    def _keys(self, partition: int, generation: int, kept: Kept) -> list[str]:
        return [self._key(partition, generation, part) for part in (*range(kept.closed), "open")]

    def _close(self, memory: PartitionMemory) -> None:
        """Put full segments in order, and those of generations that are over."""
        newest = max(memory.generations, default=0)
        for g, held in memory.generations.items():
            if held.open is None or not (held.open.full or g < newest):
                continue
            kept, key = memory.head.generations[g], self._key(memory.partition, g, len(held.closed))
            closed, stored = held.open.closed()
            commands = [("SET", key, stored, "EX", self._ttl_s), ("UNLINK", self._key(memory.partition, g, "open"))]
            faults.point("ingest.closing")
            generations = memory.head.generations | {g: Kept(kept.closed + 1, 0)}
            self._write(memory, msgspec.structs.replace(memory.head, generations=generations), commands)
            held.closed.append(closed)
            held.open = None

    def _write(self, memory: PartitionMemory, head: Head, commands: list[Command]) -> None:
        expected, found = memory.head.told(), None
        key = self._head_key(memory.partition)

        def accept(held: bytes | None) -> list[Command] | None:
            nonlocal found
            found = held
            return [*commands, ("SET", key, head.told())] if held == expected else None

        if self._store.write_if(key, accept):
            memory.head = head
            return
        other = _parsed(found)
        now = self.load(memory.partition) if other is not None and other.up_to >= memory.head.up_to else None
        if now is None or now.head.up_to < memory.head.up_to:
            raise MemoryLost(f"Redis lost the ids of partition {memory.partition}")
        memory.become(now)
        raise Unavailable(f"another worker recorded ids of partition {memory.partition}: judging again")


def _first_capacity(partition: int) -> int:
    """Of the first segment. Partitions fill at the same pace, and closing a segment takes a while: not all at once."""
    return int(FIRST_CAPACITY * (1 + partition * _GOLDEN % 1))


def _parsed(held: bytes | None) -> Head | None:
    if held is None:
        return None
    try:
        return msgspec.json.decode(held, type=Head)
    except msgspec.MsgspecError:
        return None
