"""What is kept of answers, for how long, and what happens while a backend is away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from infra.errors import BadStatement, Refused, TimedOut, Unavailable
from infra.redis import Redis
from query import cache
from query.cache import Cache
from query.keys import Access
from query.limits import Limits
from query.recent import Recent
from query.tiers import guard
from query.tiers.guard import Guard
from tests.product import wait_until


class Store:
    """As much of Redis as the cache asks for."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.away = False

    def call(self, name: str, key: Any, *more: Any) -> Any:
        if self.away:
            raise Unavailable("away")
        if name == "GET":
            return self.held.get(key)
        if name == "SET" and "NX" in more and key in self.held:
            return None
        if name == "EVAL":
            return self.held.pop(more[1], None)
        self.held[key] = more[0]
        return b"OK"

    def script(self, _source: str) -> Any:
        def run(*_: Any) -> Any:
            raise Unavailable("away")

        return run


def made(store: Store) -> Cache:
    return Cache(cast(Redis, store), Guard("redis"), "x:")


class Asked:
    """Answers with how often it was asked, or fails."""

    def __init__(self) -> None:
        self.times, self.away = 0, False

    def __call__(self) -> bytes:
        self.times += 1
        if self.away:
            raise Unavailable("ClickHouse is away")
        return b"%d" % self.times


@pytest.mark.parametrize("away", [False, True], ids=["Redis is there", "Redis is away"])
def test_a_fresh_value_is_not_asked_for_again(away: bool) -> None:
    store, ask = Store(), Asked()
    store.away = away
    kept, another = made(store), made(store)
    assert [kept.get("q", 60, ask).value for _ in range(3)] == [b"1"] * 3
    assert kept.get("other", 60, ask).value == b"2"
    assert another.get("q", 60, ask).value == (b"3" if away else b"1")


def test_what_another_process_answered_just_before_it_let_go_of_the_lock_is_not_asked_for_again() -> None:
    class Late(Store):
        """Another process answers between a look for the value and the lock."""

        def call(self, name: str, key: Any, *more: Any) -> Any:
            if name == "SET" and "NX" in more and others:
                another = others.pop()
                assert another.get("q", 60, ask).value == b"1"
            return super().call(name, key, *more)

    store, ask = Late(), Asked()
    others = [made(store)]
    assert made(store).get("q", 60, ask).value == b"1"
    assert ask.times == 1


def test_what_is_no_longer_fresh_stands_in_for_what_is_away_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, ask = made(Store()), Asked()
    assert kept.get("q", 0, ask).outcome == "answered"
    assert kept.get("q", 0, ask).value == b"2"
    ask.away = True
    found = kept.get("q", 0, ask)
    assert (found.value, found.stale) == (b"2", True)
    times = ask.times
    assert kept.get("q", 0, ask).stale
    assert ask.times == times, "it is left alone for a moment"
    with pytest.raises(Unavailable):
        kept.get("never asked", 0, ask)
    monkeypatch.setattr(cache, "_LEFT_ALONE_S", 0.0)
    monkeypatch.setattr(cache, "KEPT_S", 0.0)
    with pytest.raises(Unavailable):
        kept.get("q", 0, ask)
    ask.away = False
    assert kept.get("q", 0, ask).outcome == "answered"


def test_two_questions_that_share_a_place_do_not_share_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PLACES", 1)
    store, ask = Store(), Asked()
    assert made(store).get("a", 60, ask).value == b"1"
    assert made(store).get("b", 60, ask).value == b"2"
    assert made(store).get("b", 60, ask).value == b"2"
    assert made(store).get("a", 60, ask).value == b"3"


def test_a_value_is_renewed_before_it_is_no_longer_fresh_by_few() -> None:
    entry = cache.Entry("k", 0.0, 1.0, 100.0, b"")
    due = [sum(entry.due(now) for _ in range(2000)) / 2000 for now in (50.0, 97.0, 99.0, 100.0)]
    assert due[0] == 0.0
    assert 0.02 < due[1] < 0.09  # e^-3
    assert 0.3 < due[2] < 0.45  # e^-1
    assert due[3] == 1.0


def test_a_backend_that_fails_is_left_alone_and_found_again_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LEFT_ALONE_S", 0.2)
    guarded, calls = Guard("redis"), []

    def fail() -> None:
        calls.append(1)
        raise TimedOut("no answer")

    for _ in range(5):
        with pytest.raises(Unavailable):
            guarded.call(fail)
    assert len(calls) == 3
    time.sleep(0.25)
    began, go = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go.wait(60)
        return "back"

    # Whoever asks first does not wait for it either; but when it is back, everybody knows.
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


def test_writes_that_are_refused_do_not_keep_anybody_from_reading() -> None:
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


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Refused("OOM", code="OOM"), TimedOut("late"), BadStatement("WRONGTYPE")], ids=str
)
def test_a_key_is_limited_by_the_process_while_redis_does_not_count(error: Exception) -> None:
    class Failing(Store):
        def script(self, _source: str) -> Any:
            def run(*_: Any) -> Any:
                raise error

            return run

    limits = Limits(cast(Redis, Failing()), Guard("redis"), "x:")
    access = Access("k", None, admin=False, rate=0.001, burst=2)
    assert [limits.take(access).allowed for _ in range(3)] == [True, True, False]
    limits.charge(access, 5_000)
    refused = limits.take(access)
    assert not refused.allowed
    assert refused.wait_s > 1_000
    assert refused.headers()["Retry-After"] == str(refused.wait_s)
    assert limits.take(Access("unlimited", None, admin=True)).allowed


def test_an_answer_of_a_moment_ago_is_given_again_and_made_once_at_a_time() -> None:
    recent, made = Recent[int](lambda _: 1, ttl_s=0.2), list[str]()

    def make(key: str) -> int:
        made.append(key)
        time.sleep(0.05)
        return len(made)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: recent.get("a", lambda: make("a")), range(64))) == {1}
    assert recent.get("b", lambda: make("b")) == 2
    time.sleep(0.25)
    assert recent.get("a", lambda: make("a")) == 3
    with pytest.raises(ZeroDivisionError):
        recent.get("c", lambda: 1 // 0)
    assert recent.get("c", lambda: make("c")) == 4


def test_replies_are_bounded_in_bytes_and_dropped_when_they_expire_without_another_request() -> None:
    recent = Recent[bytes](len, ttl_s=0.3, max_bytes=1_000_000)
    for number in range(1_000):
        recent.get(number, lambda: bytes(100_000))
        assert recent.bytes <= 1_000_000
    assert recent.bytes > 0
    wait_until(lambda: recent.bytes == 0, 30, "expired replies are dropped")


def test_a_reply_that_is_too_large_or_for_one_request_only_is_computed_each_time() -> None:
    for size in (10_000, None):
        recent, computed = Recent[int](lambda _, size=size: size, ttl_s=60, max_bytes=10_000), list[int]()  # type: ignore[misc]
        for _ in range(2):
            recent.get("a", lambda computed=computed: computed.append(1) or len(computed))  # type: ignore[misc]
        assert computed == [1, 1]
        assert recent.bytes == 0
