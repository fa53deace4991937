"""Whether Redis evicts keys, or may."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from infra.errors import BadStatement, Denied
from infra.redis.client import Memory, Redis

NEVER_EVICT = "CONFIG SET maxmemory-policy noeviction, and in its configuration file"
"""What to do about a Redis that may evict keys."""


@dataclass(frozen=True)
class Eviction:
    """What a look at a Redis found. `reason`: a sentence when it may evict keys, empty when it keeps all, or does not say. `evicted`:
    how many it has evicted since the last look at which it said so. `memory`: None where it may not be asked."""

    reason: str
    evicted: int
    memory: Memory | None


class EvictionWatch:
    """Notices a Redis that may evict keys, or has: dedup ids and minutes are then lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._before: Memory | None = None

    def look(self) -> Eviction:
        """What Redis says now, by one INFO. Raises Unavailable."""
        memory, before = self._memory(), self._before
        policy = (memory.policy if memory else "") or self._configured_policy()
        reason, evicted = "", 0
        if policy not in ("", "noeviction"):
            reason = f"Redis may evict keys (maxmemory-policy {policy}), and ids and minutes would be lost with them"
        if memory and before and memory.run_id == before.run_id:
            evicted = max(0, memory.evicted_keys - before.evicted_keys)
        if memory is not None:
            self._before = memory
        return Eviction(reason, evicted, memory)

    # Managed services forbid CONFIG, hardened ones INFO.

    def _memory(self) -> Memory | None:
        with contextlib.suppress(BadStatement, Denied):
            return self._redis.memory()
        return None

    def _configured_policy(self) -> str:
        with contextlib.suppress(BadStatement, Denied):
            reply = self._redis.pipeline([("CONFIG", "GET", "maxmemory-policy")])[0]
            return bytes(reply[1]).decode() if reply else ""
        return ""


def eviction_risk(redis: Redis) -> str:
    """A sentence when Redis may evict keys, with which dedup ids and minutes would be lost; empty when it keeps all, or does not say."""
    return EvictionWatch(redis).look().reason
