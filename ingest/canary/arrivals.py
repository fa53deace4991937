"""Which canaries have got to a tier. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Canaries:
    """Of the last canary of each source partition that has got somewhere: when the oldest and the newest of them were sent (epoch ms).
    Both are 0 before the first one. Partitions that never had one are left out."""

    oldest_ms: int = 0
    newest_ms: int = 0

    @classmethod
    def of(cls, sent_ms: Iterable[int]) -> Canaries:
        """Of the moments at which the last canary of each partition was sent, 0 where there was none."""
        known = [ms for ms in sent_ms if ms]
        return cls(min(known), max(known)) if known else NO_CANARIES

    @classmethod
    def over(cls, parts: Iterable[Canaries]) -> Canaries:
        """Over the shards of a tier."""
        known = [part for part in parts if part.newest_ms]
        if not known:
            return NO_CANARIES
        return cls(min(part.oldest_ms for part in known), max(part.newest_ms for part in known))


NO_CANARIES = Canaries()
