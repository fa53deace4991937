"""Answers that are kept: in this process, and in Redis for all query workers.

An entry is fresh for a while, and kept for longer, to bridge an outage. Shortly before it is no longer fresh one caller renews
it: at random, the earlier the longer renewing takes (XFetch: Vattani, Chierichetti, Lowenstein, "Optimal
probabilistic cache stampede prevention", VLDB 2015). Of callers that miss together one asks, and the others wait for it: by a
lock in the process, and by one in Redis across processes.

Redis holds what must not be lost beside this, so the cache takes a fixed number of places there: whoever comes later takes the
place.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from infra.errors import Unavailable
from infra.redis import Redis
from query.tiers.guard import Guard

KEPT_S = 3600.0
"""For how long an entry may stand in for a tier that is away."""
_BETA = 1.0
_LOCK_S, _POLL_S = 10.0, 0.01
_MOST_BYTES = 64 << 20
_STRIPES = 256
_PLACES, _PLACE_BYTES = 2048, 128 << 10
# What could not be asked a moment ago is not asked for again: those who wait for it would wait one after the other.
_LEFT_ALONE_S = 2.0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A value, what it is the value of, when it was asked for (epoch s), how long that took, and until when it is fresh."""

    key: str
    asked_at: float
    took_s: float
    fresh_until: float
    value: bytes

    def due(self, now: float) -> bool:
        """Whether the caller should renew it: certainly when it is not fresh, before that with growing probability."""
        return now - self.took_s * _BETA * math.log(1.0 - random.random()) >= self.fresh_until

    def found(self, now: float, outcome: str = "cached") -> Found:
        """As callers get it."""
        return Found(self.value, now - self.asked_at, outcome)


@dataclass(frozen=True)
class Found:
    """A value, how old it is, and whether it was answered just now, cached, or is stale: it stands in for what could not be
    asked."""

    value: bytes
    age_s: float
    outcome: str = "cached"

    @property
    def stale(self) -> bool:
        """Whether it stands in for what could not be asked."""
        return self.outcome == "stale"


class Cache:
    """Values by key. Thread-safe. Without Redis each process has its own."""

    def __init__(self, redis: Redis, guard: Guard, prefix: str) -> None:
        self._redis, self._guard, self._prefix = redis, guard, f"{prefix}cache:"
        self._held: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._failed: dict[str, float] = {}
        self._holding = threading.Lock()
        self._asking = [threading.Lock() for _ in range(_STRIPES)]

    def held(self, asked: str, late_s: float) -> tuple[Found | None, bool]:
        """The value of `asked` at once, if it is here and has not been fresh for `late_s` at most; whether to renew it."""
        entry, now = self._held.get(hashlib.sha256(asked.encode()).hexdigest()), time.time()
        if entry is None or now >= entry.fresh_until + late_s:
            return None, True
        return entry.found(now), entry.due(now)

    def fresh(self, asked: str) -> Found | None:
        """The value of `asked` at once, if it is here, and need not be renewed."""
        found, due = self.held(asked, 0.0)
        return None if due else found

    def get(self, asked: str, fresh_s: float, ask: Callable[[], bytes]) -> Found:
        """The value of `asked`, at most `fresh_s` old, or the result of `ask`. Raises what `ask` raises, but Unavailable only
        where nothing is kept."""
        return self.fresh(asked) or self.renewed(asked, fresh_s, ask)

    def replaced(self, asked: str, fresh_s: float, ask: Callable[[], bytes]) -> Found:
        """The result of `ask`, whatever is kept: for a caller who knows that what is kept is too old. Raises what `ask` raises, but
        Unavailable only where nothing is kept."""
        key = hashlib.sha256(asked.encode()).hexdigest()
        return self._ask(key, fresh_s, ask, self._held.get(key))

    def renewed(self, asked: str, fresh_s: float, ask: Callable[[], bytes]) -> Found:
        """The same, for who has seen that it is not `fresh`, and so does not draw lots for it again."""
        key = hashlib.sha256(asked.encode()).hexdigest()
        now, entry = time.time(), self._held.get(key)
        if entry is not None and now - self._failed.get(key, 0.0) < _LEFT_ALONE_S:
            return entry.found(now, "stale")
        lock = self._asking[int(key[:8], 16) % _STRIPES]
        if not lock.acquire(blocking=entry is None or now >= entry.fresh_until):
            assert entry is not None  # somebody is renewing it, and it is still fresh
            return entry.found(now)
        try:
            return self._shared(key, fresh_s, ask)
        finally:
            lock.release()

    def _shared(self, key: str, fresh_s: float, ask: Callable[[], bytes]) -> Found:
        """Look again, now that nobody else in this process does; then in Redis; then ask."""
        token = ""
        deadline = time.time() + _LOCK_S
        while True:
            now, entry = time.time(), self._held.get(key)
            if entry is None or entry.due(now):
                entry = self._newer(self._from_redis(key), entry)
            if entry is not None and not entry.due(now):
                self._hold(key, entry)
                return entry.found(now)
            token = self._lock(key)
            if token or now > deadline:
                break
            if entry is not None and now < entry.fresh_until:
                return entry.found(now)
            time.sleep(_POLL_S)
        try:
            # Whoever had the lock may have answered since this was looked for.
            now, entry = time.time(), self._newer(self._from_redis(key), entry)
            if entry is not None and not entry.due(now):
                self._hold(key, entry)
                return entry.found(now)
            return self._ask(key, fresh_s, ask, entry)
        finally:
            self._unlock(key, token)

    def _ask(self, key: str, fresh_s: float, ask: Callable[[], bytes], entry: Entry | None) -> Found:
        began = time.time()
        try:
            value = ask()
        except Unavailable:
            if entry is None or began - entry.asked_at > KEPT_S:
                raise
            self._hold(key, entry)
            self._failed[key] = time.time()
            return entry.found(began, "stale")
        now = time.time()
        made = Entry(key, began, now - began, began + fresh_s, value)
        self._failed.pop(key, None)
        self._hold(key, made)
        self._to_redis(key, made)
        return Found(value, now - began, "answered")

    # -- this process ---------------------------------------------------------------------------------------

    def _hold(self, key: str, entry: Entry) -> None:
        with self._holding:
            before = self._held.pop(key, None)
            self._bytes += len(entry.value) - (len(before.value) if before else 0)
            self._held[key] = entry
            while self._bytes > _MOST_BYTES:
                former, oldest = self._held.popitem(last=False)
                self._bytes -= len(oldest.value)
                self._failed.pop(former, None)

    @staticmethod
    def _newer(a: Entry | None, b: Entry | None) -> Entry | None:
        return max((e for e in (a, b) if e is not None), key=lambda e: e.asked_at, default=None)

    # -- all processes --------------------------------------------------------------------------------------

    def _from_redis(self, key: str) -> Entry | None:
        try:
            raw = self._guard.call(lambda: self._redis.call("GET", self._place(key)))
            found = None if raw is None else msgspec.msgpack.decode(raw, type=Entry)
        except (Unavailable, msgspec.MsgspecError):
            return None
        return found if found is not None and found.key == key else None

    def _to_redis(self, key: str, entry: Entry) -> None:
        if len(entry.value) <= _PLACE_BYTES:
            kept_ms = int((max(KEPT_S, entry.fresh_until - entry.asked_at)) * 1000)
            self._quietly("SET", self._place(key), msgspec.msgpack.encode(entry), "PX", kept_ms)

    def _place(self, key: str) -> str:
        return f"{self._prefix}{int(key[:8], 16) % _PLACES}"

    def _lock(self, key: str) -> str:
        """A token when this process may ask: also when Redis cannot tell."""
        token = random.randbytes(8).hex()
        try:
            held = self._guard.call(
                lambda: self._redis.call("SET", f"{self._prefix}{key}:lock", token, "NX", "PX", int(_LOCK_S * 1000))
            )
        except Unavailable:
            return token
        return token if held else ""

    def _unlock(self, key: str, token: str) -> None:
        self._quietly("EVAL", _UNLOCK, 1, f"{self._prefix}{key}:lock", token)

    def _quietly(self, *command: object) -> None:
        """What may fail: the value is there."""
        try:
            self._guard.call(lambda: self._redis.call(*command))
        except Unavailable:
            pass


_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
