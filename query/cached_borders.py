"""The borders of the stored tiers and the current runs, cached: no question waits for ClickHouse only to learn what it is to read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor

from infra.errors import Unavailable
from query.tier_cache import Lookup, TierCache

_KEY = "borders"
_FRESH_S = 1.0
# For so long expired ones are used while they are read again: they are as right, only not the newest.
EXPIRED_S = 1.0


class CachedBorders:
    """Thread-safe."""

    def __init__(self, cache: TierCache, read: Callable[[], bytes], pool: Executor) -> None:
        """`read` asks ClickHouse, and may raise Unavailable."""
        self._cache, self._read, self._pool = cache, read, pool
        self._renewing = threading.Lock()

    def begin(self, expired_s: float = EXPIRED_S) -> Callable[[], Lookup]:
        """Return what waits for the borders. They are read meanwhile, unless cached ones have not expired for longer than
        `expired_s`: these are used at once, and renewed in the background when that is due."""
        lookup, due = self._cache.peek(_KEY, expired_s)
        if lookup is None:
            return self._pool.submit(self._get).result
        if due and self._renewing.acquire(blocking=False):
            self._pool.submit(self._renew)
        return lambda: lookup

    def read_newest(self) -> Lookup:
        """Read the borders again, since the cached ones proved too old."""
        return self._cache.read_anew(_KEY, _FRESH_S, self._read)

    def _get(self) -> Lookup:
        return self._cache.get_or_read(_KEY, _FRESH_S, self._read)

    def _renew(self) -> None:
        try:
            self._get()
        except Unavailable:
            pass  # the next question that needs them reads them itself, and reports it
        finally:
            self._renewing.release()
