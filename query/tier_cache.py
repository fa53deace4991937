"""A cache of what the tiers answer: in this process, and in Redis for all query workers.

An entry is fresh for a while, and kept for longer, to bridge an outage. Shortly before it expires one caller renews it: at random,
the earlier the longer reading takes (XFetch: Vattani, Chierichetti, Lowenstein, "Optimal probabilistic cache stampede
prevention", VLDB 2015). Concurrent misses are coalesced: one caller reads and the others wait for it, by a lock in the process,
and by one in Redis across processes.

Redis also holds what must not be lost, so the cache has a fixed number of slots there; a later entry replaces the one in its slot.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from infra.errors import Unavailable
from infra.redis.client import Redis
from infra.structs import decodable
from query.circuit import Guard

KEPT_S = 3600.0
"""For how long an entry may stand in for a tier that is away."""
_BETA = 1.0
_LOCK_S, _POLL_S = 10.0, 0.01
_MAX_BYTES = 64 << 20
_STRIPES = 256
_SLOTS, _SLOT_BYTES = 2048, 128 << 10
# After a failure a key is not read again for so long: callers that wait for it would fail one after the other.
RETRY_AFTER_S = 2.0
UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@dataclass(frozen=True)
class Lookup:
    """A value, when reading it began (epoch s), and its outcome: `answered` just now, `cached`, or `stale`: it stands in for a tier
    that is away."""

    value: bytes
    read_at: float
    outcome: str = "cached"

    @property
    def stale(self) -> bool:
        """Whether it stands in for a tier that is away."""
        return self.outcome == "stale"


@decodable
class CacheEntry(msgspec.Struct, frozen=True, array_like=True):
    """A value by the digest of its key, when reading it began (epoch s), how long that took, and when it expires."""

    digest: str
    read_at: float
    took_s: float
    fresh_until: float
    value: bytes

    def due(self, now: float) -> bool:
        """Whether the caller should renew it: certainly once it has expired, before that with growing probability."""
        return now - self.took_s * _BETA * math.log(1.0 - random.random()) >= self.fresh_until

    def lookup(self, outcome: str = "cached") -> Lookup:
        """The value as callers get it."""
        return Lookup(self.value, self.read_at, outcome)


def all_keys(prefix: str) -> str:
    """Pattern of the keys of all entries and locks."""
    return f"{_namespace(prefix)}*"


def _namespace(prefix: str) -> str:
    return f"{prefix}cache:"


class TierCache:
    """Values by key, which is text of any length. Thread-safe. While Redis is away, each process has a cache of its own."""

    def __init__(
        self, redis: Redis, guard: Guard, prefix: str, clock: Callable[[], float] = time.time, slots: int = _SLOTS
    ) -> None:
        """`slots`: how many entries Redis holds at most."""
        self._redis, self._guard, self._prefix, self._slots = redis, guard, _namespace(prefix), slots
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._bytes = 0
        self._clock = clock
        self._failed_at: dict[str, float] = {}
        self._storing = threading.Lock()
        self._reading = [threading.Lock() for _ in range(_STRIPES)]

    def peek(self, key: str, expired_s: float) -> tuple[Lookup | None, bool]:
        """The entry in this process, unless it expired longer than `expired_s` ago, and whether it is due for renewal."""
        entry, now = self._entries.get(_digest(key)), self._clock()
        if entry is None or now >= entry.fresh_until + expired_s:
            return None, True
        return entry.lookup(), entry.due(now)

    def get_fresh(self, key: str) -> Lookup | None:
        """The entry in this process, if it is fresh and not due for renewal."""
        lookup, due = self.peek(key, 0.0)
        return None if due else lookup

    def get_or_read(self, key: str, fresh_s: float, read: Callable[[], bytes]) -> Lookup:
        """A fresh value, or what `read` returns, which is fresh for `fresh_s`. Raises what `read` raises, but Unavailable only
        where no entry is kept."""
        return self.get_fresh(key) or self.renew(key, fresh_s, read)

    def renew(self, key: str, fresh_s: float, read: Callable[[], bytes]) -> Lookup:
        """As `get_or_read`, after `get_fresh` has returned None."""
        digest = _digest(key)
        now, entry = self._clock(), self._entries.get(digest)
        if entry is not None and now - self._failed_at.get(digest, 0.0) < RETRY_AFTER_S:
            return entry.lookup("stale")
        lock = self._reading[int(digest[:8], 16) % _STRIPES]
        if not lock.acquire(blocking=entry is None or now >= entry.fresh_until):
            assert entry is not None  # another thread renews it, and it is still fresh
            return entry.lookup()
        try:
            return self._coalesce(digest, fresh_s, read)
        finally:
            lock.release()

    def read_anew(self, key: str, fresh_s: float, read: Callable[[], bytes]) -> Lookup:
        """What `read` returns, though a fresh value may be cached: for a caller that knows it to be too old. Raises what `read`
        raises, but Unavailable only where no entry is kept."""
        digest = _digest(key)
        return self._read(digest, fresh_s, read, self._entries.get(digest))

    def _coalesce(self, digest: str, fresh_s: float, read: Callable[[], bytes]) -> Lookup:
        """Read, unless another process has done so or is doing so. One thread of this process at a time."""
        deadline = self._clock() + _LOCK_S
        while True:
            entry, now = self._entries.get(digest), self._clock()
            if entry is None or entry.due(now):
                entry = self._newest(digest, entry)
            if entry is not None and not entry.due(now):
                return self._use(digest, entry)
            with self._redis_lock(digest) as locked:
                if locked or now > deadline:
                    # The last owner of the lock may have stored an entry since the cache was looked at.
                    entry, now = self._newest(digest, entry), self._clock()
                    if entry is not None and not entry.due(now):
                        return self._use(digest, entry)
                    return self._read(digest, fresh_s, read, entry)
            if entry is not None and now < entry.fresh_until:
                return entry.lookup()  # another process renews it, and it is still fresh
            time.sleep(_POLL_S)

    def _read(self, digest: str, fresh_s: float, read: Callable[[], bytes], entry: CacheEntry | None) -> Lookup:
        """Read and store. Where the tier is away, `entry` stands in for it, unless it is too old."""
        began = self._clock()
        try:
            value = read()
        except Unavailable:
            if entry is None or began - entry.read_at > KEPT_S:
                raise
            self._store(digest, entry)
            self._failed_at[digest] = self._clock()
            return entry.lookup("stale")
        took_s = self._clock() - began
        entry = CacheEntry(digest, began, took_s, began + fresh_s, value)
        self._failed_at.pop(digest, None)
        self._store(digest, entry)
        self._store_in_redis(entry)
        return Lookup(value, began, "answered")

    # -- this process ---------------------------------------------------------------------------------------

    def _use(self, digest: str, entry: CacheEntry) -> Lookup:
        self._store(digest, entry)
        return entry.lookup()

    def _store(self, digest: str, entry: CacheEntry) -> None:
        with self._storing:
            replaced = self._entries.pop(digest, None)
            self._bytes += len(entry.value) - (len(replaced.value) if replaced else 0)
            self._entries[digest] = entry
            while self._bytes > _MAX_BYTES:
                evicted_digest, evicted = self._entries.popitem(last=False)
                self._bytes -= len(evicted.value)
                self._failed_at.pop(evicted_digest, None)

    # -- all processes --------------------------------------------------------------------------------------

    def _newest(self, digest: str, entry: CacheEntry | None) -> CacheEntry | None:
        """The newer one of `entry` and of what Redis has."""
        entries = (e for e in (self._from_redis(digest), entry) if e is not None)
        return max(entries, key=lambda e: e.read_at, default=None)

    def _from_redis(self, digest: str) -> CacheEntry | None:
        try:
            raw = self._guard.call(lambda: self._redis.call("GET", self._slot(digest)))
            entry = None if raw is None else msgspec.msgpack.decode(raw, type=CacheEntry)
        except (Unavailable, msgspec.MsgspecError):
            return None
        return entry if entry is not None and entry.digest == digest else None

    def _store_in_redis(self, entry: CacheEntry) -> None:
        if len(entry.value) <= _SLOT_BYTES:
            kept_ms = int((max(KEPT_S, entry.fresh_until - entry.read_at)) * 1000)
            self._try_call("SET", self._slot(entry.digest), msgspec.msgpack.encode(entry), "PX", kept_ms)

    def _slot(self, digest: str) -> str:
        return f"{self._prefix}{int(digest[:8], 16) % self._slots}"

    @contextmanager
    def _redis_lock(self, digest: str) -> Iterator[bool]:
        """Whether this process may read: it has the lock, or Redis does not answer."""
        name, token = f"{self._prefix}{digest}:lock", random.randbytes(8).hex()
        try:
            command = ("SET", name, token, "NX", "PX", int(_LOCK_S * 1000))
            locked = bool(self._guard.call(lambda: self._redis.call(*command)))
        except Unavailable:
            locked = True
        try:
            yield locked
        finally:
            if locked:
                self._try_call("EVAL", UNLOCK, 1, name, token)

    def _try_call(self, *command: object) -> None:
        """A write that may fail: the value is cached in this process."""
        try:
            self._guard.call(lambda: self._redis.call(*command))
        except Unavailable:
            pass


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
