"""Rows that move from one tier to another while a question is paused between two reads are neither lost nor counted twice.

Each test pauses a reader between plan and read, and lets the writers go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS
from infra.errors import Unavailable
from infra.redis.client import Redis
from infra.settings import Settings
from query.plan import HOT, WARM
from query.question import Question, Retention, parse_question
from query.router import Answer, Router
from query.tiers.clickhouse import StoredTiers
from query.tiers.redis import HotTier
from stream.warm.writer import lowest_border
from tests.hooked_redis import HookedRedis
from tests.integration.test_hot_tier import MINUTE, START, Shard
from tests.integration.test_hot_tier import at as partial_at
from tests.integration.test_warm_tier import Owner
from tests.redis_loss import dump_keys, go_back, lose_keys

HELD = Retention(24 * HOUR_MS, 30 * 24 * HOUR_MS)
NOW = START + 2 * HOUR_MS
# By now the hours at START are old enough to leave Redis.
LATER = START + 60 * HOUR_MS


def question(**parameters: str) -> Question:
    base = {"campaign_id": "1", "start": "-2h", "end": "now", "granularity": "hour"} | parameters
    return parse_question([(name, value) for name, value in base.items() if value], NOW, HELD)


def at(minute: int, count: int, **more: Any) -> dict[str, Any]:
    return partial_at(minute, count, sampled=0, **more)


def impressions(answer: Answer) -> list[int]:
    return answer.page.frame["impressions"].to_list()


def finality(answer: Answer) -> list[str]:
    return answer.page.frame["finality"].to_list()


def tiers(answer: Answer) -> list[str]:
    return [piece.tier for piece in answer.pieces]


class Tiers:
    """One shard in Redis and in ClickHouse, and a router over both."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update={"block_partitions": 1})
        self.hot, self.warm = Shard(self.settings), Owner(self.settings)
        self.minutes = HotTier(Redis(self.settings.redis), self.settings.key_prefix, 1)
        client = ClickHouse(self.settings.clickhouse, self.settings.database)
        self.stored = StoredTiers(client, client, 1)
        self.router = Router(self.settings, hot=self.minutes, stored=self.stored)

    def store_first_hour(self, count: int, watermark_ms: int) -> None:
        """Write the hour at START to ClickHouse, and publish its border."""
        self.warm.show(self.warm.flush(count, watermark_ms, late=0, sampled=0))

    def drop_first_hour(self) -> None:
        """Drop the hour from Redis, as the stream worker does once it is stored and old."""
        border_ms = lowest_border(ClickHouse(self.settings.clickhouse, self.settings.database), "hours", 1)
        assert self.hot.sink.expire(LATER, border_ms) == 1

    def between_plan_and_rows(self, monkeypatch: pytest.MonkeyPatch, move: Callable[[], None]) -> None:
        """Call `move` just before the next read of Redis."""
        read, moves = self.minutes.read, [move]

        def move_first(*arguments: Any) -> Any:
            if moves:
                moves.pop()()
            return read(*arguments)

        monkeypatch.setattr(self.minutes, "read", move_first)


@pytest.fixture
def two(settings: Settings) -> Tiers:
    return Tiers(settings)


@pytest.mark.parametrize(
    ("parameters", "whole"),
    [
        ({}, [5, 7]),
        ({"granularity": "total"}, [12]),
        ({"campaign_id": "", "advertiser_id": "1"}, [5, 7]),
        ({"filter": "country:AE"}, None),
    ],
    ids=["by hour", "in total", "by advertiser", "with a filter"],
)
def test_an_hour_that_leaves_redis_between_plan_and_rows_comes_from_clickhouse(
    two: Tiers, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], whole: list[int] | None
) -> None:
    two.hot.show([at(0, 5), at(61, 7)], START + 3 * HOUR_MS)
    before = two.router.answer(question(**parameters))
    assert tiers(before) == [HOT]
    assert whole is None or impressions(before) == whole

    def move() -> None:
        two.store_first_hour(5, START + 3 * HOUR_MS)
        two.drop_first_hour()

    two.store_first_hour(0, START)  # ClickHouse is known, and has nothing yet
    two.between_plan_and_rows(monkeypatch, move)
    after = two.router.answer(question(**parameters))
    assert impressions(after) == impressions(before)
    assert set(finality(after)) <= {"closed", "corrected"}
    assert WARM in tiers(after)
    assert after.warnings == []
    assert two.router.answer(question(**parameters)).warnings == []


def test_an_hour_that_is_in_neither_tier_for_the_moment_is_named_as_missing(
    two: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.hot.show([at(0, 5), at(61, 7)], START + 3 * HOUR_MS)
    two.store_first_hour(5, START)

    def move() -> None:
        two.store_first_hour(5, START + 3 * HOUR_MS)
        two.drop_first_hour()
        monkeypatch.setattr(two.stored, "borders", fail)

    def fail() -> bytes:
        raise Unavailable("ClickHouse: Connection refused")

    two.between_plan_and_rows(monkeypatch, move)
    answer = two.router.answer(question())
    assert any("may be missing" in warning or "is missing" in warning for warning in answer.warnings), answer.warnings


def test_an_hour_stays_in_redis_until_every_shard_has_it_in_clickhouse(two: Tiers) -> None:
    client = ClickHouse(two.settings.clickhouse, two.settings.database)
    two.store_first_hour(5, START + 3 * HOUR_MS)
    assert lowest_border(client, "hours", 1) == START + HOUR_MS
    assert lowest_border(client, "hours", 2) is None
    two.hot.show([at(0, 5)], START + 3 * HOUR_MS)
    assert two.hot.sink.expire(LATER, lowest_border(client, "hours", 2)) == 0
    assert impressions(two.router.answer(question(start="-2h"))) == [5]


def test_a_window_is_closed_by_the_watermark_of_the_tier_that_its_rows_come_from(two: Tiers) -> None:
    two.hot.show([at(0, 5)], START)
    unshown = two.hot.flush([at(1, 7)], START + HOUR_MS)
    # The stage of hours has read what Redis was not given yet, and says that the hour is closed.
    two.store_first_hour(12, START + HOUR_MS + MINUTE)
    lagging = two.router.answer(question())
    assert (impressions(lagging), finality(lagging), lagging.finality) == ([5], ["provisional"], "provisional")
    two.hot.write(unshown)
    two.minutes.span()
    shown = two.router.answer(question())
    assert (impressions(shown), finality(shown)) == ([12], ["closed"])


def test_hours_in_place_of_lost_minutes_come_with_a_warning_about_late_events(two: Tiers) -> None:
    two.hot.show([at(0, 5)], START + HOUR_MS)
    two.store_first_hour(5, START + HOUR_MS)
    lose_keys(two.hot.redis, two.hot.sink.keys.all())
    answer = two.router.answer(question())
    assert WARM in tiers(answer)
    assert impressions(answer) == [5]
    assert any("may lack late events" in warning for warning in answer.warnings)


# -- within Redis -----------------------------------------------------------------------------------------------


@pytest.fixture
def reader_redis(two: Tiers) -> HookedRedis:
    return HookedRedis(two.settings.redis)


@pytest.fixture
def tier(two: Tiers, reader_redis: HookedRedis) -> HotTier:
    return HotTier(reader_redis, two.settings.key_prefix, 1)


def before_each_round(redis: HookedRedis, moves: list[Callable[[], Any]]) -> None:
    """Call the next one of `moves` before each round of a reader."""

    def move_first(read: Callable[[], Any]) -> Any:
        if moves:
            moves.pop(0)()
        return read()

    redis.around_script = move_first


def test_a_reader_paused_between_its_rounds_closes_no_minute_that_it_did_not_read(
    two: Tiers, tier: HotTier, reader_redis: HookedRedis
) -> None:
    two.hot.show([at(0, 1)], START)
    tier.span()
    before_each_round(
        reader_redis,
        [lambda n=n: two.hot.show([at(n, 10**n)], START + (n + 1) * MINUTE) for n in (1, 2, 3)],  # type: ignore[misc]
    )
    by_minute = question(granularity="minute")
    table, _, span = tier.read(by_minute, by_minute.start_ms, by_minute.end_ms)
    rows = dict(zip(((table.buckets - START) // MINUTE).tolist(), table.measures[0].tolist(), strict=True))
    assert span.watermark_ms is not None
    closed = {minute: count for minute, count in {0: 1, 1: 10, 2: 100, 3: 1000}.items() if START + (minute + 1) * MINUTE <= span.watermark_ms}  # fmt: skip
    assert closed.items() <= rows.items()
    assert len(closed) >= 1


def test_a_campaign_added_after_the_look_up_of_an_advertisers_campaigns_closes_no_minute(
    two: Tiers, tier: HotTier, reader_redis: HookedRedis
) -> None:
    two.hot.show([at(0, 1, campaign_id=1, advertiser_id=9)], START)
    before_each_round(
        reader_redis,
        [lambda: two.hot.show([at(0, 2, campaign_id=2, advertiser_id=9)], START + MINUTE)],
    )
    by_minute = question(campaign_id="", advertiser_id="9", granularity="minute")
    table, _, span = tier.read(by_minute, by_minute.start_ms, by_minute.end_ms)
    assert table.measures[0].tolist() == [1]
    assert span.watermark_ms == START
    table, _, span = tier.read(by_minute, by_minute.start_ms, by_minute.end_ms)
    assert (int(np.sum(table.measures[0])), span.watermark_ms) == (3, START + MINUTE)


def test_hours_dropped_while_a_lost_redis_is_refilled_are_not_retained(two: Tiers, tier: HotTier) -> None:
    shard = two.hot
    shard.show([at(5, 5), at(61, 7)], START + 62 * MINUTE)
    old = dump_keys(shard.redis, shard.sink.keys.all())
    for count in (1, 2):
        shard.show([at(62, count)], START + 62 * MINUTE)
    go_back(shard.redis, shard.sink.keys.all(), old)
    shard.sink.ops_per_call = 1
    ousted, calls = shard.new_sink(Redis(two.settings.redis)), 0  # whose upkeep goes on

    def expire_before_the_second(call: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert ousted.expire(LATER, START + HOUR_MS) == 1
        return call()

    shard.redis.around_script = expire_before_the_second
    shard.refresh()
    assert calls > 2
    assert tier.span().from_ms == [START + HOUR_MS]


def test_the_hours_of_a_replayed_year_are_dropped_at_once(two: Tiers, tier: HotTier) -> None:
    two.hot.show([at(0, 5)], START + 3 * HOUR_MS)
    year = 9_000
    names = [two.hot.sink.keys.hour(START - hour * HOUR_MS) for hour in range(1, year + 1)]
    two.hot.redis.pipeline([("HSET", name, "1:0", b"x") for name in names])
    assert two.hot.sink.expire(LATER, START + HOUR_MS) == year + 1
    assert tier.span().from_ms == [START + HOUR_MS]
    assert not two.hot.redis.scan_keys(two.hot.sink.keys.hours())


def test_keys_evicted_while_no_worker_watched_are_rewritten_or_missing(
    two: Tiers, tier: HotTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = two.hot
    for rows in ([at(0, 5)], [at(61, 7)], [at(62, 1)]):
        shard.show(rows, START + 62 * MINUTE)
    (memory,) = shard.redis.memories()
    shard.sink.mark_whole([memory])
    shard.redis.call("UNLINK", shard.sink.keys.hour(START + HOUR_MS))  # as an eviction does
    unwatched = shard.new_sink()
    shard.attach(unwatched)
    assert tier.span().from_ms == [0], "the count of evicted keys is as it was"
    monkeypatch.setattr(shard.redis, "memories", lambda: [replace(memory, evicted_keys=memory.evicted_keys + 1)])
    successor = shard.new_sink()
    shard.attach(successor)
    by_minute = question(granularity="minute")
    table, _, span = tier.read(by_minute, by_minute.start_ms, by_minute.end_ms)
    assert sorted(table.measures[0].tolist()) == [1, 5, 7]
    assert span.held_from_ms == START + MINUTE


def test_nothing_is_dropped_from_a_shard_without_a_span(two: Tiers, tier: HotTier) -> None:
    two.hot.show([at(0, 5)], START + 3 * HOUR_MS)
    two.hot.redis.call("DEL", two.hot.sink.keys.span)
    assert two.hot.sink.expire(LATER, START + HOUR_MS) == 0
    assert tier.span().unknown == [0]
