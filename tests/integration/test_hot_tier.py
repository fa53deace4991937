"""The hot tier's sink and reader on the real Redis."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from infra.clock import HOUR_MS
from infra.errors import Unavailable
from infra.redis import Redis
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from query.request import Held, parse
from query.tiers.hot import HotTier
from stream.sinks import hot
from stream.sinks.hot import HotSink
from stream.state import Changes, StageState
from tests.unit.test_partials_and_rows import frame, partial

MINUTE = 60_000
START = 1_795_132_800_000
NOW = START + HOUR_MS


class Shard:
    """A stage and its sink, as a worker drives them."""

    def __init__(self, settings: Settings) -> None:
        self.redis = Redis(settings.redis)
        self._settings = settings
        self.state = StageState(MINUTE, 1)
        self.sink = self.new_sink()
        self.sink.attach(self.state)

    def new_sink(self) -> HotSink:
        return HotSink(self.redis, self._settings.key_prefix, 0, 24)

    def flush(self, rows: list[dict[str, Any]], watermark_ms: int) -> Changes:
        at = self.state.next_message
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        self.state.apply_block(at, frame(rows), header, "here")
        assert self.state.flush_due(0, clock=True)
        self.state.begin_flush()
        return self.state.commit()

    def show(self, rows: list[dict[str, Any]], watermark_ms: int) -> Changes:
        changes = self.flush(rows, watermark_ms)
        self.sink.write(changes, self.state)
        return changes


@pytest.fixture
def shard(settings: Settings) -> Shard:
    return Shard(settings)


@pytest.fixture
def tier(settings: Settings) -> HotTier:
    return HotTier(Redis(settings.redis), settings.key_prefix, 1)


def minutes(tier: HotTier, **more: str) -> dict[Any, int]:
    given = {"campaign_id": "1", "start": "-60m", "end": "now", "granularity": "minute"} | more
    question = parse(list(given.items()), NOW, Held(24 * HOUR_MS, 10**12))
    table, _ = tier.read(question, question.start_ms, question.end_ms, tier.span())
    return {((k[0] - START) // MINUTE, *k[1:]): v.values[0] for k, v in table.items()}


def at(minute: int, impressions: int, **more: Any) -> dict[str, Any]:
    return partial(window_ms=START + minute * MINUTE, impressions=impressions, late=0, **more)


def test_open_and_closed_minutes_are_read_as_one(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1), at(1, 2)], START)
    shard.show([at(0, 10), at(1, 20, ad_id=2)], START + 30_000)
    assert minutes(tier) == {(0,): 11, (1,): 22}
    shard.show([at(1, 100)], START + MINUTE)
    assert minutes(tier) == {(0,): 11, (1,): 122}
    assert minutes(tier, group_by="ad_id") == {(0, 1): 11, (1, 1): 102, (1, 2): 20}
    shard.show([at(0, 1000)], START + 2 * MINUTE)
    assert minutes(tier) == {(0,): 1011, (1,): 122}
    assert not shard.redis.scan_keys(f"{shard.sink._base}:o:*")


def test_a_flush_of_several_calls_is_never_counted_twice_or_missed_in_between(
    shard: Shard, tier: HotTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.show([at(0, 1), at(1, 2), at(2, 4)], START)
    shard.sink.ops_per_call = 1
    seen: list[dict[Any, int]] = []
    call = shard.sink._script

    def watched(keys: Any, args: Any) -> Any:
        seen.append(minutes(tier))
        return call(keys, args)

    monkeypatch.setattr(shard.sink, "_script", watched)
    shard.show([at(0, 10), at(1, 20), at(3, 8)], START + 2 * MINUTE)
    assert len(seen) >= 3
    for step in seen:
        assert {m: step[(m,)] for m in range(3)} == {0: 1, 1: 2, 2: 4}
    assert minutes(tier) == {(0,): 11, (1,): 22, (2,): 4, (3,): 8}
    assert {key.split(b":")[-2] for key in shard.redis.scan_keys(f"{shard.sink._base}:o:*")} == {
        str(START + m * MINUTE).encode() for m in (2, 3)
    }


def test_writing_a_flush_again_changes_nothing(shard: Shard, tier: HotTier) -> None:
    changes = shard.show([at(0, 1)], START)
    shard.sink.write(changes, shard.state)
    shard.sink.attach(shard.state)
    assert minutes(tier) == {(0,): 1}


def test_an_ousted_owner_cannot_write(shard: Shard, tier: HotTier, settings: Settings) -> None:
    stuck = shard.flush([at(0, 1)], START + 2 * MINUTE)
    successor = Shard(settings)
    successor.show([at(0, 1)], START + 2 * MINUTE)
    successor.show([at(0, 5)], START + 2 * MINUTE)
    since = tier.span().from_ms
    shard.sink.write(stuck, shard.state)
    assert minutes(tier) == {(0,): 6}
    successor.show([at(3, 2)], START + 3 * MINUTE)
    assert minutes(tier) == {(0,): 6, (3,): 2}
    assert tier.span().from_ms == since


def test_a_recovered_owner_shows_what_its_predecessor_had_not(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1)], START)
    shard.flush([at(0, 2), at(3, 4)], START + 2 * MINUTE)
    successor = shard.new_sink()
    successor.attach(shard.state)
    assert minutes(tier) == {(0,): 3, (3,): 4}
    successor.write(shard.flush([at(3, 1)], START + 5 * MINUTE), shard.state)
    assert minutes(tier) == {(0,): 3, (3,): 5}


def test_a_redis_that_lost_its_memory_is_filled_from_what_is_held_and_says_since_when(
    shard: Shard, tier: HotTier, settings: Settings
) -> None:
    shard.show([at(0, 1)], START)
    shard.show([at(5, 2)], START + 6 * MINUTE)
    assert tier.span().from_ms == [0]
    for key in shard.redis.scan_keys(f"{settings.key_prefix}hot:*"):
        shard.redis.call("DEL", key)
    assert tier.span().unknown == [0]
    shard.show([at(7, 4)], START + 6 * MINUTE)
    assert minutes(tier) == {(0,): 1, (5,): 2, (7,): 4}
    assert tier.span().from_ms == [START]


@pytest.mark.parametrize("idle", [True, False])
def test_a_redis_that_went_back_in_time_is_brought_up_to_what_is_held(
    shard: Shard, tier: HotTier, settings: Settings, idle: bool
) -> None:
    shard.show([at(0, 1), at(5, 1)], START)
    old = {k: shard.redis.call("DUMP", k) for k in shard.redis.scan_keys(f"{settings.key_prefix}hot:*")}
    shard.show([at(0, 10)], START)
    shard.show([at(5, 2)], START + 6 * MINUTE)
    for key in shard.redis.scan_keys(f"{settings.key_prefix}hot:*"):
        shard.redis.call("DEL", key)
    for key, value in old.items():
        shard.redis.call("RESTORE", key, 0, value)
    if idle:
        shard.sink.refresh(shard.state)
    else:
        shard.show([at(7, 4)], START + 6 * MINUTE)
    assert minutes(tier) == {(0,): 11, (5,): 3} | ({} if idle else {(7,): 4})
    assert tier.span().from_ms == [START]


def test_another_advertisers_use_of_the_campaigns_number_is_kept_apart(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1, advertiser_id=1), at(0, 10, advertiser_id=2)], START)
    assert minutes(tier, campaign_id="1") == {(0,): 11}
    given = [("advertiser_id", "2"), ("start", "-60m"), ("end", "now"), ("granularity", "minute")]
    question = parse(given, NOW, Held(24 * HOUR_MS, 10**12))
    table, _ = tier.read(question, question.start_ms, question.end_ms, tier.span())
    assert [v.values[0] for v in table.values()] == [10]


def test_what_comes_late_is_added_until_that_is_more_than_writing_the_cell_again(shard: Shard, tier: HotTier) -> None:
    key, rows_before = f"{shard.sink._base}:h:{START}", 200
    shard.show([at(m, 1, ad_id=n) for m in (0, 1) for n in range(rows_before)], START + 2 * MINUTE)
    closed = shard.redis.call("HGET", key, "1:0")
    truth = {(0,): rows_before, (1,): rows_before}
    for n in range(30):
        shard.show([at(0, 2, ad_id=ad) for ad in range(10)] + ([at(1, 3)] if n == 0 else []), START + 2 * MINUTE)
        truth[(0,)] += 20
        truth[(1,)] += 3 if n == 0 else 0
        assert minutes(tier) == truth
        if n == 0:
            assert shard.redis.call("HGET", key, "1:0") == closed
    assert shard.redis.call("HGET", key, "1:0") != closed, "written whole in between"
    assert 0 < len(shard.redis.call("HGET", key, "1+")) < 2_000


@pytest.mark.parametrize("seed", range(4))
def test_whatever_breaks_between_two_calls_each_row_counts_once(
    shard: Shard, tier: HotTier, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(hot, "_REWRITTEN_ROWS", 2)
    truth: Counter[tuple[int]] = Counter()
    sink = shard.sink

    def unreliable(keys: Any, args: Any) -> Any:
        fate = draw.random()
        if fate < 0.2:
            raise Unavailable("not sent")
        answer = script(keys, args)
        if fate < 0.4:
            raise Unavailable("the answer was lost")
        return answer

    script = sink._script
    for flush in range(40):
        sink.ops_per_call = draw.randint(1, 3)
        monkeypatch.setattr(sink, "_script", unreliable)
        late = [at(draw.randint(0, 6), draw.randint(1, 9), ad_id=draw.randint(1, 4)) for _ in range(draw.randint(1, 4))]
        for row in late:
            truth[((row["window_ms"] - START) // MINUTE,)] += row["impressions"]
        changes = shard.flush(late, START + min(flush // 4, 8) * MINUTE)
        while True:
            try:
                sink.write(changes, shard.state)
                break
            except Unavailable:
                if draw.random() < 0.3:  # this worker dies, and another one takes over
                    sink = shard.new_sink()
                    script = sink._script
                    sink.attach(shard.state)
                    break
        assert minutes(tier) == truth, f"after flush {flush}"


def test_hours_leave_only_when_they_are_old_and_in_clickhouse(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1)], START + 2 * MINUTE)
    old = START + 27 * HOUR_MS
    assert shard.sink.expire(old, None) == 0
    assert shard.sink.expire(old, START) == 0
    assert shard.sink.expire(START + 20 * HOUR_MS, old) == 0
    assert shard.sink.expire(old, START + HOUR_MS) == 1
