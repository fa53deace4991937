"""The caches of tier replies and of HTTP replies, and the circuit breaker before a backend."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from infra.errors import Refused, TimedOut, Unavailable
from query import tier_cache
from query.circuit import OPEN_S, Guard
from query.reply_cache import ReplyCache
from query.tier_cache import TierCache
from tests.product import wait_until
from tests.unit.fakes import Clock, FakeRedis


def cache_of(store: FakeRedis, clock: Clock | None = None) -> TierCache:
    return TierCache(store, Guard("redis"), "x:", clock or time.time)


class Source:
    """What a cache reads from: returns how often it was read, or is away."""

    def __init__(self) -> None:
        self.reads, self.away = 0, False

    def __call__(self) -> bytes:
        self.reads += 1
        if self.away:
            raise Unavailable("ClickHouse is away")
        return b"%d" % self.reads


@pytest.mark.parametrize("away", [False, True], ids=["Redis is there", "Redis is away"])
def test_a_fresh_value_is_not_read_again(away: bool) -> None:
    store, source = FakeRedis(), Source()
    store.away = away
    cache, another = cache_of(store), cache_of(store)
    assert [cache.get_or_read("q", 60, source).value for _ in range(3)] == [b"1"] * 3
    assert cache.get_or_read("other", 60, source).value == b"2"
    assert another.get_or_read("q", 60, source).value == (b"3" if away else b"1")


def test_a_value_that_another_process_stored_just_before_it_unlocked_is_not_read_again() -> None:
    class Late(FakeRedis):
        """Another process answers between a look for the value and the lock."""

        def call(self, *command: Any) -> Any:
            if command[0] == "SET" and "NX" in command and others:
                another = others.pop()
                assert another.get_or_read("q", 60, source).value == b"1"
            return super().call(*command)

    store, source = Late(), Source()
    others = [cache_of(store)]
    assert cache_of(store).get_or_read("q", 60, source).value == b"1"
    assert source.reads == 1


def test_an_expired_value_stands_in_for_a_tier_that_is_away_and_says_so() -> None:
    clock = Clock()
    cache, source = cache_of(FakeRedis(clock), clock), Source()
    assert cache.get_or_read("q", 0, source).outcome == "answered"
    assert cache.get_or_read("q", 0, source).value == b"2"
    source.away = True
    lookup = cache.get_or_read("q", 0, source)
    assert (lookup.value, lookup.stale) == (b"2", True)
    reads = source.reads
    clock.now += tier_cache.RETRY_AFTER_S - 0.1
    assert cache.get_or_read("q", 0, source).stale
    assert source.reads == reads, "a key that failed is not read again for a moment"
    clock.now += 0.2
    assert cache.get_or_read("q", 0, source).stale
    assert source.reads == reads + 1
    with pytest.raises(Unavailable):
        cache.get_or_read("never asked", 0, source)
    clock.now += tier_cache.KEPT_S
    with pytest.raises(Unavailable):
        cache.get_or_read("q", 0, source)
    source.away = False
    assert cache.get_or_read("q", 0, source).outcome == "answered"


def test_two_keys_that_share_a_slot_do_not_share_a_value() -> None:
    store, source = FakeRedis(), Source()
    for key, value in (("a", b"1"), ("b", b"2"), ("b", b"2"), ("a", b"3")):
        process = TierCache(store, Guard("redis"), "x:", slots=1)
        assert process.get_or_read(key, 60, source).value == value


def test_few_callers_renew_a_value_before_it_expires() -> None:
    entry = tier_cache.CacheEntry("k", 0.0, 1.0, 100.0, b"")
    due = [sum(entry.due(now) for _ in range(2000)) / 2000 for now in (50.0, 97.0, 99.0, 100.0)]
    assert due[0] == 0.0
    assert 0.02 < due[1] < 0.09  # e^-3
    assert 0.3 < due[2] < 0.45  # e^-1
    assert due[3] == 1.0


def test_a_backend_that_fails_opens_the_circuit_and_one_call_probes_it() -> None:
    clock, calls = Clock(), list[int]()
    guarded = Guard("redis", clock)

    def fail() -> None:
        calls.append(1)
        raise TimedOut("no answer")

    for _ in range(5):
        with pytest.raises(Unavailable):
            guarded.call(fail)
    assert len(calls) == 3
    clock.now += OPEN_S - 0.1
    with pytest.raises(Unavailable):
        guarded.call(fail)
    assert len(calls) == 3
    clock.now += 0.1
    began, go = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go.wait(60)
        return "back"

    # The probe itself does not wait for long either; once it succeeds, the circuit is closed.
    with pytest.raises(Unavailable):
        guarded.call(slow)
    assert began.wait(60)
    with pytest.raises(Unavailable):
        guarded.call(lambda: "me, too")
    go.set()

    def answers() -> bool:
        try:
            return guarded.call(lambda: "all") == "all"
        except Unavailable:
            return False

    wait_until(answers, 5, "it is known to be back")


def test_writes_that_are_refused_do_not_open_the_circuit() -> None:
    guarded, calls = Guard("redis"), []

    def write() -> None:
        calls.append(1)
        raise Refused("OOM", backend="redis", code="OOM")

    for _ in range(10):
        with pytest.raises(Refused):
            guarded.call(write)
        assert guarded.call(lambda: "read") == "read"
    assert len(calls) == 10, "a refusal is an answer: it is not asked for twice"


def test_a_connection_that_broke_is_tried_once_more_and_a_time_out_is_not() -> None:
    guarded, calls = Guard("clickhouse"), []

    def broken_once() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise Unavailable("connection reset")
        return "there"

    assert guarded.call(broken_once) == "there"

    def late() -> str:
        calls.append(1)
        raise TimedOut("no answer")

    calls.clear()
    with pytest.raises(TimedOut):
        guarded.call(late)
    assert len(calls) == 1


def test_a_reply_of_a_moment_ago_is_reused_and_concurrent_requests_are_coalesced() -> None:
    clock, computed = Clock(), list[str]()
    recent = ReplyCache[int](lambda _: 1, ttl_s=0.2, clock=clock)

    def compute(key: str) -> int:
        computed.append(key)
        return len(computed)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: recent.get("a", lambda: compute("a")), range(64))) == {1}
    assert recent.get("b", lambda: compute("b")) == 2
    clock.now += 0.1
    assert recent.get("a", lambda: compute("a")) == 1
    clock.now += 0.15
    assert recent.get("a", lambda: compute("a")) == 3
    with pytest.raises(ZeroDivisionError):
        recent.get("c", lambda: 1 // 0)
    assert recent.get("c", lambda: compute("c")) == 4


def test_replies_are_bounded_in_bytes_and_dropped_when_they_expire_without_another_request() -> None:
    clock = Clock()
    recent = ReplyCache[bytes](len, ttl_s=0.05, max_bytes=1_000_000, clock=clock)
    for number in range(1_000):
        recent.get(number, lambda: bytes(100_000))
        assert recent.bytes <= 1_000_000
    assert recent.bytes > 0
    clock.now += 0.05
    wait_until(lambda: recent.bytes == 0, 30, "expired replies are dropped")


def test_a_reply_that_is_too_large_or_for_one_request_only_is_computed_each_time() -> None:
    for size in (10_000, None):
        recent, computed = ReplyCache[int](lambda _, size=size: size, ttl_s=60, max_bytes=10_000), list[int]()  # type: ignore[misc]
        for _ in range(2):
            recent.get("a", lambda computed=computed: computed.append(1) or len(computed))  # type: ignore[misc]
        assert computed == [1, 1]
        assert recent.bytes == 0
