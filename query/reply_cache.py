"""Replies of the last quarter of a second, by key: repeated requests share one reply, and concurrent ones are coalesced.

Bounded in bytes and in age: a reply that has expired is dropped by a timer, whether or not another request comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import cachetools

T = TypeVar("T")
TTL_S = 0.25
MAX_BYTES = 32 << 20
# Memory of an entry beside its value: the key, the reply's headers, the cache's own links.
_ENTRY_BYTES = 4096
_STRIPES = 256


class ReplyCache(Generic[T]):
    """A cache of this process. Thread-safe.

    `size` returns a value's bytes, or None for one that only its own request may have, which is not cached.
    """

    def __init__(
        self,
        size: Callable[[T], int | None],
        ttl_s: float = TTL_S,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size, self._ttl_s, self._max_bytes, self._clock = size, ttl_s, max_bytes, clock
        # Age counts from the moment that computing began: what was read then is as old as that.
        self._entries: cachetools.TLRUCache[Hashable, tuple[T, int, float]] = cachetools.TLRUCache(
            max_bytes,
            lambda _key, entry, _now: entry[2] + ttl_s,
            timer=clock,
            getsizeof=lambda entry: entry[1],
        )
        self._lock = threading.Lock()
        self._computing = [threading.Lock() for _ in range(_STRIPES)]
        self._timer: threading.Timer | None = None

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, at most `ttl_s` old, or the result of `compute`. Raises what `compute` raises."""
        if (entry := self._lookup(key)) is not None:
            return entry[0]
        with self._computing[hash(key) % _STRIPES]:
            if (entry := self._lookup(key)) is not None:
                return entry[0]
            began = self._clock()
            value = compute()
            self._store(key, value, began)
            return value

    @property
    def bytes(self) -> int:
        """Memory of the cached values, including expired ones that are not dropped yet."""
        return int(self._entries.currsize)

    def _lookup(self, key: Hashable) -> tuple[T, int, float] | None:
        with self._lock:
            entry: tuple[T, int, float] | None = self._entries.get(key)
            return entry

    def _store(self, key: Hashable, value: T, began: float) -> None:
        size = self._size(value)
        if size is None or size + _ENTRY_BYTES > self._max_bytes:
            return
        with self._lock:
            self._entries[key] = (value, size + _ENTRY_BYTES, began)
            self._schedule()

    def _schedule(self) -> None:
        """Start the timer, unless it runs. Called with the lock."""
        if self._timer is None:
            self._timer = threading.Timer(self._ttl_s, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._entries.expire()
            self._timer = None
            if self._entries:
                self._schedule()
