"""What a check of a Redis reports about evictions, and what it costs."""

from __future__ import annotations

import pytest

from infra.redis.eviction import EvictionWatch
from tests.unit.fakes import FakeRedis


def test_a_check_sends_one_info() -> None:
    redis = FakeRedis()
    watch = EvictionWatch(redis)
    for _ in range(3):
        watch.look()
    assert redis.commands == {"INFO": 3}


def test_evictions_between_two_checks_are_reported_once() -> None:
    redis = FakeRedis()
    watch = EvictionWatch(redis)
    evicted = []
    for run_id, evicted_keys in [("a", 5), ("a", 5), ("a", 8), ("a", 8), ("b", 1), ("b", 3)]:
        redis.info |= {"run_id": run_id, "evicted_keys": str(evicted_keys)}
        evicted.append(watch.look().evicted)
    assert evicted == [0, 0, 3, 0, 0, 2]


def test_evictions_while_info_is_denied_are_reported_once_it_is_allowed() -> None:
    redis = FakeRedis()
    watch = EvictionWatch(redis)
    evicted = []
    for forbidden, evicted_keys in [
        (set[str](), 5),
        ({"INFO"}, 7),
        ({"INFO"}, 505),
        (set[str](), 505),
        (set[str](), 505),
    ]:
        redis.forbidden = forbidden
        redis.info["evicted_keys"] = str(evicted_keys)
        evicted.append(watch.look().evicted)
    assert evicted == [0, 0, 0, 500, 0]


@pytest.mark.parametrize(
    ("policy", "forbidden", "reason", "memory"),
    [
        ("noeviction", set(), False, True),
        ("allkeys-lru", set(), True, True),
        ("allkeys-lru", {"CONFIG"}, True, True),
        ("allkeys-lru", {"INFO"}, True, False),
        ("allkeys-lru", {"INFO", "CONFIG"}, False, False),
        ("", set(), False, True),
    ],
)
def test_the_policy_is_read_from_info_or_config_whichever_is_allowed(
    policy: str, forbidden: set[str], reason: bool, memory: bool
) -> None:
    redis = FakeRedis()
    redis.info["maxmemory_policy"] = policy
    redis.forbidden = forbidden
    eviction = EvictionWatch(redis).look()
    if reason:
        assert policy in eviction.reason
    else:
        assert eviction.reason == ""
    assert bool(eviction.memories) == memory
