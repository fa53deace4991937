"""The rate limit of each key: a token bucket in Redis, shared by all query workers; one in this process while Redis does not count.

A request costs a token, and one more for each thousand rows that it read, which is taken afterwards and may leave the
bucket in debt, by one burst at most.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from infra.errors import BadStatement, Unavailable
from infra.redis.client import Redis
from query.circuit import Guard
from query.keys import Access

ROWS_A_TOKEN = 1000

ANY_DEBT = -1e18
"""Tokens that must be there for a charge: it is taken whatever is left."""


@dataclass(frozen=True)
class Allowance:
    """Whether a request may go on, and the headers that say so. `left`: tokens in the bucket; negative in debt."""

    allowed: bool
    access: Access
    left: float

    @property
    def wait_s(self) -> int:
        """Whole seconds until one more is allowed, at least one."""
        return max(1, math.ceil((1 - self.left) / (self.access.rate or 1)))

    def headers(self) -> dict[str, str]:
        """RateLimit fields (draft-ietf-httpapi-ratelimit-headers); none for a key without limit."""
        access = self.access
        if access.rate is None or access.burst is None:
            return {}
        window = max(1, round(access.burst / access.rate))
        reset = max(0, math.ceil((access.burst - self.left) / access.rate))
        return {
            "RateLimit-Policy": f'"key";q={access.burst:.0f};w={window}',
            "RateLimit": f'"key";r={max(0, int(self.left))};t={reset}',
        } | ({} if self.allowed else {"Retry-After": str(self.wait_s)})


class ProcessBuckets:
    """The buckets of this process; `token_bucket.lua` does the same in Redis. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, rate: float, burst: float, cost: float, needed: float) -> tuple[bool, float]:
        """Take `cost` tokens where `needed` are there; returns whether they were taken, and how many are left."""
        with self._lock:
            now = self._clock()
            before, at = self._buckets.get(key, (burst, now))
            tokens = min(burst, before + max(0.0, now - at) * rate)
            taken = tokens >= needed
            if taken:
                tokens = max(tokens - cost, -burst)
            self._buckets[key] = (tokens, now)
            return taken, tokens


class RateLimits:
    """The buckets of all keys, in Redis, and in this process while Redis does not count. Thread-safe."""

    def __init__(self, redis: Redis, guard: Guard, prefix: str) -> None:
        self._guard, self._prefix = guard, f"{prefix}limit:"
        self._script = redis.script((resources.files(__package__) / "token_bucket.lua").read_text())
        self._buckets = ProcessBuckets()

    def take(self, access: Access) -> Allowance:
        """Take the token that a request costs, before it is answered."""
        return self._take(access, 1.0, 1.0)

    def charge(self, access: Access, rows_read: int) -> None:
        """Take what an answer costs beyond that: a token for each thousand rows that were read."""
        if access.rate is not None and rows_read >= ROWS_A_TOKEN:
            self._take(access, rows_read / ROWS_A_TOKEN, ANY_DEBT)

    def _take(self, access: Access, cost: float, needed: float) -> Allowance:
        rate, burst = access.rate, access.burst
        if rate is None or burst is None:
            return Allowance(True, access, 0)
        try:
            taken, left = self._guard.call(
                lambda: self._script([self._prefix + access.key], [rate, burst, cost, needed])
            )
            return Allowance(bool(taken), access, left / 1000)
        except (Unavailable, BadStatement):
            allowed, left = self._buckets.take(access.key, rate, burst, cost, needed)
            return Allowance(allowed, access, left)
