"""Rate limits while Redis is away, and the headers that report them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from infra.errors import BadStatement, Refused, TimedOut, Unavailable
from infra.redis.client import Redis
from query.circuit import Guard
from query.keys import Access
from query.limits import Allowance, ProcessBuckets, RateLimits
from tests.token_bucket_cases import BURST, CASES, RATE


@pytest.mark.parametrize("name", CASES)
def test_the_token_bucket_of_a_process(name: str) -> None:
    now = 1_000_000.0
    buckets = ProcessBuckets(lambda: now)
    for step in CASES[name]:
        now += step.wait_s
        taken, left = buckets.take("key", RATE, BURST, step.cost, step.needed)
        assert (taken, round(left, 6)) == (step.taken, step.left), step


class Failing:
    """A Redis whose scripts fail."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def script(self, _source: str) -> Any:
        def run(*_: Any) -> Any:
            raise self._error

        return run


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Refused("OOM", code="OOM"), TimedOut("late"), BadStatement("WRONGTYPE")], ids=str
)
def test_a_key_is_limited_by_the_process_while_redis_is_away(error: Exception) -> None:
    limits = RateLimits(cast(Redis, Failing(error)), Guard("redis"), "x:")
    access = Access("k", None, admin=False, rate=0.001, burst=2)
    assert [limits.take(access).allowed for _ in range(3)] == [True, True, False]
    limits.charge(access, 5_000)
    refused = limits.take(access)
    assert not refused.allowed
    assert refused.wait_s > 1_000
    assert refused.headers()["Retry-After"] == str(refused.wait_s)
    assert limits.take(Access("unlimited", None, admin=True)).allowed


@pytest.mark.parametrize(
    ("allowed", "left", "headers"),
    [
        (True, 9.5, {"RateLimit": '"key";r=9;t=1'}),
        (True, 0.0, {"RateLimit": '"key";r=0;t=5'}),
        (False, -10.0, {"RateLimit": '"key";r=0;t=10', "Retry-After": "6"}),
    ],
)
def test_headers_report_the_remaining_tokens_and_when_the_bucket_is_full(
    allowed: bool, left: float, headers: dict[str, str]
) -> None:
    access = Access("k", None, admin=False, rate=2, burst=10)
    assert Allowance(allowed, access, left).headers() == {"RateLimit-Policy": '"key";q=10;w=5'} | headers
