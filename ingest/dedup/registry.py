"""Tier 2 of dedup: Redis knows, for each id of the last horizons, the offset of its first occurrence.

One hash a (partition, generation): digest → offset, eight bytes. Beside it one number a partition: recorded-up-to, the
offset below which every id is in here; it is written in the same MULTI as the ids, and tells a Redis that lost its
memory from one that never knew. A set names the generations whose ids were lost for good.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infra.redis import Redis, pack, pack_hset
from ingest.dedup.digest import DIGEST, DIGEST_BYTES, Digests

_PAGE = 20_000
# Generations dropped with each batch: more than one, for a log that jumps.
_DROPPED = 8

Offsets = npt.NDArray[np.int64]
UNKNOWN = -1


class Registry(Protocol):
    """What a partition's memory must do. Every method may raise Unavailable."""

    def recorded_up_to(self, partition: int) -> int | None:
        """The offset below which all ids are recorded; None when nothing is known of this partition."""

    def lookup(self, partition: int, generation: int, digests: Digests) -> Offsets:
        """The offset of each first occurrence in that generation, UNKNOWN where there is none."""

    def begin(self, partition: int, up_to: int, doubtful: Collection[int] = ()) -> None:
        """Start the memory of a partition: nothing before `up_to` matters, but in the generations that are `doubtful`
        ids are lost that no log holds any more."""

    def doubtful(self, partition: int) -> set[int]:
        """Generations whose ids are not all known any more."""

    def record(
        self,
        partition: int,
        news: dict[int, tuple[Digests, Offsets]],
        *,
        expected: int,
        up_to: int,
        oldest_generation: int,
    ) -> bool:
        """Add ids by generation and move recorded-up-to, atomically; False, and nothing written, where
        recorded-up-to is below `expected`: the registry lost its memory."""

    def pages(self, partition: int, generation: int) -> Iterator[Digests]:
        """All ids of a generation, in pages; some may come twice."""

    def forget(self, partition: int) -> None:
        """Drop everything of a partition."""


class RedisRegistry:
    """The registry on Redis."""

    def __init__(self, client: Redis, prefix: str, ttl_s: int) -> None:
        """`ttl_s`: for generations that nobody drops, since the log jumped over them; longer than the log is kept."""
        self._redis, self._prefix, self._ttl_s = client, prefix, ttl_s

    def _key(self, partition: int, generation: int) -> str:
        return f"{self._prefix}dedup:{{p{partition}}}:{generation}"

    def _up_to_key(self, partition: int) -> str:
        return f"{self._prefix}dedup:{{p{partition}}}:upto"

    def _doubt_key(self, partition: int) -> str:
        return f"{self._prefix}dedup:{{p{partition}}}:doubt"

    def recorded_up_to(self, partition: int) -> int | None:
        found = self._redis.call("GET", self._up_to_key(partition))
        return None if found is None else int(found)

    def lookup(self, partition: int, generation: int, digests: Digests) -> Offsets:
        if not len(digests):
            return np.empty(0, np.int64)
        key, raw = self._key(partition, generation), digests.tobytes()
        fields = [raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)]
        pages = [("HMGET", key, *fields[i : i + _PAGE]) for i in range(0, len(fields), _PAGE)]
        missing = UNKNOWN.to_bytes(8, "little", signed=True)
        found = b"".join([v or missing for page in self._redis.pipeline(pages) for v in page])
        return np.frombuffer(found, "<i8").astype(np.int64)

    def begin(self, partition: int, up_to: int, doubtful: Collection[int] = ()) -> None:
        commands: list[tuple[object, ...]] = [("SET", self._up_to_key(partition), up_to)]
        if doubtful:
            commands.append(("SADD", self._doubt_key(partition), *doubtful))
            commands.append(("EXPIRE", self._doubt_key(partition), self._ttl_s))
        self._redis.pipeline(commands, atomic=True)

    def doubtful(self, partition: int) -> set[int]:
        return {int(g) for g in self._redis.call("SMEMBERS", self._doubt_key(partition))}

    def record(
        self,
        partition: int,
        news: dict[int, tuple[Digests, Offsets]],
        *,
        expected: int,
        up_to: int,
        oldest_generation: int,
    ) -> bool:
        commands: list[bytes] = []
        for generation, (digests, offsets) in news.items():
            key = self._key(partition, generation)
            fields = np.ascontiguousarray(digests).view(np.uint8).reshape(-1, DIGEST_BYTES)
            values = offsets.astype("<i8").view(np.uint8).reshape(-1, 8)
            commands += [
                pack_hset(key, fields[i : i + _PAGE], values[i : i + _PAGE]) for i in range(0, len(digests), _PAGE)
            ]
            commands.append(pack("EXPIRE", key, self._ttl_s))
        gone = range(oldest_generation - _DROPPED, oldest_generation)
        commands.append(pack("UNLINK", *(self._key(partition, g) for g in gone)))

        def accept(held: bytes | None) -> list[bytes] | None:
            if held is None or int(held) < expected:
                return None
            # A stopped worker's late write must not move it back.
            return [*commands, pack("SET", self._up_to_key(partition), max(up_to, int(held)))]

        return self._redis.write_if(self._up_to_key(partition), accept)

    def pages(self, partition: int, generation: int) -> Iterator[Digests]:
        for page in self._redis.scan_hash(self._key(partition, generation)):
            yield np.frombuffer(b"".join(page), dtype=DIGEST)

    def forget(self, partition: int) -> None:
        keys = self._redis.scan_keys(f"{self._prefix}dedup:{{p{partition}}}:*")
        if keys:
            self._redis.call("UNLINK", *keys)
