"""Stops an ingest worker from going on with a Redis that evicts dedup ids: before a session, and every two seconds of it."""

from __future__ import annotations

from infra.errors import Refused, Unavailable
from infra.redis.client import Redis
from infra.redis.eviction import NEVER_EVICT, EvictionWatch
from infra.worker_process import Every
from ingest.dedup.registry import RegistryLost

_EVERY_S = 2.0
_EVICTS = "EVICTS"


class EvictionCheck:
    """One worker's check of its Redis."""

    def __init__(self, redis: Redis) -> None:
        self._watch = EvictionWatch(redis)
        self._due = Every(_EVERY_S)

    def check(self) -> None:
        """Raises Refused while Redis may evict ids, RegistryLost once it has: the mirrors must then be loaded again. Raises Unavailable."""
        eviction = self._watch.look()
        if eviction.reason:
            raise Refused(eviction.reason, hint=NEVER_EVICT, backend="redis", code=_EVICTS)
        if eviction.evicted:
            raise RegistryLost(f"Redis evicted {eviction.evicted} keys")

    def maybe_check(self) -> None:
        """Check when it is due. A Redis that is away or refuses is waited out by the next batch, without leaving the group."""
        if not self._due.is_due():
            return
        try:
            self.check()
        except Unavailable as error:
            if isinstance(error, Refused) and error.code == _EVICTS:
                raise
