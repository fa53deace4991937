"""How often a key may ask: a token bucket in Redis, the same for all query workers; one in this process while Redis does not count.

A request costs a token, and one more for each thousand rows that it read, which is taken afterwards and may leave the
bucket in debt.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

from infra.errors import BadStatement, Unavailable
from infra.redis import Redis
from query.keys import Access
from query.tiers.guard import Guard

ROWS_A_TOKEN = 1000

# KEYS[1] the bucket; ARGV: tokens a second, tokens at most, tokens to take, tokens that must be there. Returns whether they were
# taken, and how many are left, in thousandths. The clock is Redis' own.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local rate, most, cost, needed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(most, (tonumber(held[1]) or most) + math.max(0, now - (tonumber(held[2]) or now)) * rate)
local taken = 0
if tokens >= needed then
  tokens, taken = math.max(tokens - cost, -most), 1
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(2000 * most / rate) + 1000)
return {taken, math.floor(tokens * 1000)}
"""
_ANY_DEBT = -1e18


@dataclass(frozen=True)
class Taken:
    """Whether a request may go on, and what its headers say. `left`: tokens; `wait_s`: until there is one again."""

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


class Limits:
    """Of all keys. Thread-safe."""

    def __init__(self, redis: Redis, guard: Guard, prefix: str) -> None:
        self._guard, self._prefix = guard, f"{prefix}limit:"
        self._script = redis.script(_TAKE)
        self._local: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, access: Access) -> Taken:
        """One token, before a request is answered."""
        return self._take(access, 1.0, 1.0)

    def charge(self, access: Access, rows_read: int) -> None:
        """What an answer has cost beyond that."""
        if access.rate is not None and rows_read >= ROWS_A_TOKEN:
            self._take(access, rows_read / ROWS_A_TOKEN, _ANY_DEBT)

    def _take(self, access: Access, cost: float, needed: float) -> Taken:
        rate, burst = access.rate, access.burst
        if rate is None or burst is None:
            return Taken(True, access, 0)
        try:
            taken, left = self._guard.call(
                lambda: self._script([self._prefix + access.key], [rate, burst, cost, needed])
            )
            return Taken(bool(taken), access, left / 1000)
        except (Unavailable, BadStatement):
            return self._take_here(access, rate, burst, cost, needed)

    def _take_here(self, access: Access, rate: float, burst: float, cost: float, needed: float) -> Taken:
        with self._lock:
            now = time.monotonic()
            tokens, at = self._local.get(access.key, (burst, now))
            tokens = min(burst, tokens + (now - at) * rate)
            allowed = tokens >= needed
            if allowed:
                tokens = max(tokens - cost, -burst)
            self._local[access.key] = (tokens, now)
            return Taken(allowed, access, tokens)
