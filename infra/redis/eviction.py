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
    """What a look at a Redis found. `reason`: a sentence when a primary may evict keys, empty when all keep them, or do not say.
    `evicted`: how many were evicted since the last look at which they said so. `memories`: of each primary; none where they may not be
    asked."""

    reason: str
    evicted: int
    memories: tuple[Memory, ...]


class EvictionWatch:
    """Notices a Redis that may evict keys, or has: dedup ids and minutes are then lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._before: dict[str, int] = {}
        """Run id of each primary, and its count of evicted keys."""

    def look(self) -> Eviction:
        """What Redis says now, by one INFO of each primary. Raises Unavailable."""
        memories, before = self._memories(), self._before
        policies = {memory.policy for memory in memories if memory.policy} or self._configured_policies()
        reason, evicting = "", sorted(policies - {"", "noeviction"})
        if evicting:
            policy = ", ".join(evicting)
            reason = f"Redis may evict keys (maxmemory-policy {policy}), and ids and minutes would be lost with them"
        evicted = sum(max(0, m.evicted_keys - before[m.run_id]) for m in memories if m.run_id in before)
        if memories:
            self._before = {memory.run_id: memory.evicted_keys for memory in memories}
        return Eviction(reason, evicted, memories)

    # Managed services forbid CONFIG, hardened ones INFO.

    def _memories(self) -> tuple[Memory, ...]:
        with contextlib.suppress(BadStatement, Denied):
            return tuple(self._redis.memories())
        return ()

    def _configured_policies(self) -> set[str]:
        with contextlib.suppress(BadStatement, Denied):
            replies = self._redis.on_each_primary("CONFIG", "GET", "maxmemory-policy")
            return {bytes(reply[1]).decode() for reply in replies.values() if reply}
        return set()


def eviction_risk(redis: Redis) -> str:
    """A sentence when Redis may evict keys, with which dedup ids and minutes would be lost; empty when it keeps all, or does not say."""
    return EvictionWatch(redis).look().reason
