"""The token bucket in Redis: its Lua script alone, on the real Redis."""

from __future__ import annotations

from importlib import resources

import pytest

from infra.redis.client import Redis
from infra.settings import Settings
from tests.token_bucket_cases import BURST, CASES, RATE


@pytest.mark.parametrize("name", CASES)
def test_the_token_bucket_in_redis(settings: Settings, name: str) -> None:
    redis, key = Redis(settings.redis), f"{settings.key_prefix}limit:key"
    take = redis.script((resources.files("query") / "token_bucket.lua").read_text())
    for step in CASES[name]:
        if step.wait_s:
            # The clock is Redis' own: the bucket is made older instead.
            redis.call("HINCRBYFLOAT", key, "at", -step.wait_s)
        taken, left = take([key], [RATE, BURST, step.cost, step.needed])
        assert (bool(taken), left / 1000) == (step.taken, pytest.approx(step.left, abs=0.3)), step


def test_a_bucket_expires_once_it_is_full_again(settings: Settings) -> None:
    redis, key = Redis(settings.redis), f"{settings.key_prefix}limit:key"
    take = redis.script((resources.files("query") / "token_bucket.lua").read_text())
    take([key], [10, 600, 1, 1])
    assert 100_000 < int(redis.call("PTTL", key)) <= 121_000
