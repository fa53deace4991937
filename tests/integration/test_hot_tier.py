"""The hot tier's sink and reader on the real Redis."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from functools import partial as given
from itertools import pairwise
from typing import Any

import pytest

from infra.clock import HOUR_MS
from infra.errors import Unavailable
from infra.redis import Redis
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from query.request import Held, parse
from query.tiers.hot import HotTier
from stream.sinks import gathering, hot, rows
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

    def flush(self, given: list[dict[str, Any]], watermark_ms: int) -> Changes:
        at = self.state.next_message
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        self.state.apply_block(at, frame(given), header, "here")
        assert self.state.flush_due(0, clock=True)
        self.state.begin_flush()
        return self.state.commit()

    def show(self, given: list[dict[str, Any]], watermark_ms: int) -> Changes:
        changes = self.flush(given, watermark_ms)
        self.sink.write(changes, self.state)
        return changes


@pytest.fixture
def shard(settings: Settings) -> Shard:
    return Shard(settings)


@pytest.fixture
def tier(settings: Settings) -> HotTier:
    return HotTier(Redis(settings.redis), settings.key_prefix, 1)


@pytest.fixture(autouse=True, params=[(128, 12), (0, 12), (0, 2)], ids=["rows", "roll-ups", "gathered"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are kept without roll-ups, and open cells are gathered after some flushes; here each way."""
    rolled_rows, flushes = request.param
    monkeypatch.setattr(rows, "ROLLED_ROWS", rolled_rows)
    monkeypatch.setattr(gathering, "_FLUSHES", flushes)
    monkeypatch.setattr(gathering, "_SPREAD", 1)
    monkeypatch.setattr(hot, "_ROLLED_AFTER_S", 0.0)


def minutes(tier: HotTier, **more: str) -> dict[Any, int]:
    """(minute, group…) → impressions: of the fewest rows that will do, which must be what all dimensions sum up to."""
    found, by = _read(tier, **more), more.get("group_by", "")
    everything = ",".join(dict.fromkeys([*by.split(","), "ad_id", "publisher_id"])).lstrip(",")
    summed: Counter[Any] = Counter()
    for key, impressions in _read(tier, **more | {"group_by": everything}).items():
        summed[key[: 1 + len(by.split(",")) if by else 1]] += impressions
    assert found == summed
    return found


def _read(tier: HotTier, **more: str) -> dict[Any, int]:
    given = {"campaign_id": "1", "start": "-60m", "end": "now", "granularity": "minute"} | more
    question = parse(list(given.items()), NOW, Held(24 * HOUR_MS, 10**12))
    table, _, _ = tier.read(question, question.start_ms, question.end_ms)
    keys = zip((table.buckets - START) // MINUTE, *table.groups, strict=True)
    return dict(zip((tuple(map(int, key)) for key in keys), table.measures[0].tolist(), strict=True))


def at(minute: int, impressions: int, **more: Any) -> dict[str, Any]:
    return partial(window_ms=START + minute * MINUTE, impressions=impressions, late=0, **more)


def open_cells(shard: Shard) -> set[tuple[int, int]]:
    """(minute, campaign) of those that have rows by flush."""
    base = f"{shard.sink._base}:o:"
    found = (key.decode()[len(base) :].split(":") for key in shard.redis.scan_keys(f"{base}*"))
    return {((int(minute) - START) // MINUTE, int(campaign)) for minute, campaign, *_ in found}


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
    for before, after in pairwise([{(0,): 1, (1,): 2, (2,): 4}, *seen, {(0,): 11, (1,): 22, (2,): 4, (3,): 8}]):
        assert all(before[m] <= after[m] for m in before), "what was shown is never taken back"
    assert all(step[(0,)] in (1, 11) and step[(1,)] in (2, 22) and step[(2,)] == 4 for step in seen)
    assert minutes(tier) == {(0,): 11, (1,): 22, (2,): 4, (3,): 8}
    assert {minute for minute, _ in open_cells(shard)} == {2, 3}


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
    table, _, _ = tier.read(question, question.start_ms, question.end_ms)
    assert table.measures[0].tolist() == [10]
    seen = parse([("campaign_id", "1"), *given[1:]], NOW, Held(24 * HOUR_MS, 10**12), frozenset([1]))
    table, _, _ = tier.read(seen, question.start_ms, question.end_ms)
    assert table.measures[0].tolist() == [1]


def test_a_large_cell_is_read_by_its_roll_ups_wherever_it_lies(shard: Shard, tier: HotTier) -> None:
    shown: list[dict[str, Any]] = []

    def show(impressions: int, watermark_ms: int) -> None:
        some = [
            at(0, impressions + n, ad_id=n, publisher_id=n % 7, country=n % 5, device=n % 3, advertiser_id=n % 2)
            for n in range(200)
        ]
        shown.extend(some)
        shard.show(some, watermark_ms)

    def check(most_rows: int) -> None:
        for group_by in ("", "ad_id", "publisher_id", "country", "device"):
            minutes(tier, group_by=group_by)
        asked = [("campaign_id", "1"), ("start", "-60m"), ("end", "now"), ("granularity", "total")]
        for scope in (None, frozenset([0]), frozenset([1])):
            question = parse(asked, NOW, Held(24 * HOUR_MS, 10**12), scope)
            table, read, _ = tier.read(question, question.start_ms, question.end_ms)
            true = sum(row["impressions"] for row in shown if scope is None or row["advertiser_id"] in scope)
            assert table.measures[0].tolist() == [true]
            assert read <= most_rows

    show(0, START)
    show(1000, START + 30_000)
    check(200 + 6)  # the first flush of a minute comes as rows; then three devices of two advertisers
    show(2000, START + 2 * MINUTE)
    assert not shard.redis.scan_keys(f"{shard.sink._base}:o:*")
    check(6)
    for _ in range(3):
        show(5, START + 2 * MINUTE)  # late: added as rows, and written whole once that is half of the cell
    check(6 + 2 * 200)


def test_an_open_minute_of_many_flushes_has_few_pieces_and_few_rows(shard: Shard, tier: HotTier) -> None:
    truth = {(0,): 0}
    for n in range(60):
        shard.show([at(0, 1, ad_id=ad) for ad in range(100)] + [at(0, 1, campaign_id=2)], START)
        truth[(0,)] += 100
        assert minutes(tier) == truth
        assert minutes(tier, campaign_id="2") == {(0,): n + 1}
        for campaign in (1, 2):
            names = [f"{shard.sink._base}:o:{START}:{campaign}{kind}" for kind in ("", ":r")]
            values = [value for name in names for value in shard.redis.call("HVALS", name)]
            assert len(values) <= 13
            assert sum(map(rows.count, values)) <= 3 * 100


def test_what_comes_late_is_added_until_that_is_more_than_writing_the_cell_again(shard: Shard, tier: HotTier) -> None:
    key, rows_before = f"{shard.sink._base}:h:{START}", 200
    shard.show([at(m, 1, ad_id=n) for m in (0, 1) for n in range(rows_before)], START + 2 * MINUTE)
    closed = shard.redis.call("HMGET", key, "1:0", "1:0:r")
    truth = {(0,): rows_before, (1,): rows_before}
    for n in range(30):
        shard.show([at(0, 2, ad_id=ad) for ad in range(10)] + ([at(1, 3)] if n == 0 else []), START + 2 * MINUTE)
        truth[(0,)] += 20
        truth[(1,)] += 3 if n == 0 else 0
        assert minutes(tier) == truth
        if n == 0:
            assert shard.redis.call("HMGET", key, "1:0", "1:0:r") == closed
    assert shard.redis.call("HMGET", key, "1:0", "1:0:r") != closed, "written whole in between"
    assert 0 < len(shard.redis.call("HGET", key, "1+")) < 2_000


def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every minute is taken for one of live traffic: packed after it has closed, a cell a call."""
    monkeypatch.setattr(hot, "_LIVE_S", 0.0)
    monkeypatch.setattr(hot, "_PACKED_BYTES", 0)


def test_a_minute_of_live_traffic_is_packed_beside_the_flushes(
    shard: Shard, tier: HotTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(monkeypatch)
    shard.show([at(0, 1, campaign_id=c) for c in (1, 2, 3)], START)
    shard.show([at(0, 10, campaign_id=1), at(1, 5)], START + MINUTE)
    assert shard.sink.packs
    assert not shard.redis.scan_keys(f"{shard.sink._base}:h:*"), "a flush does not wait for that"
    truth = {(0, 1): 11, (0, 2): 1, (0, 3): 1, (1, 1): 5}

    def between() -> bool:
        assert minutes(tier, campaign_id="1,2,3,4", group_by="campaign_id") == truth
        if len(truth) == 4 and len([minute for minute, _ in open_cells(shard) if minute == 0]) == 1:
            # Two that are packed already, and one that is new.
            shard.show([at(0, 100, campaign_id=c) for c in (1, 2, 4)], START + MINUTE)
            truth.update({(0, 1): 111, (0, 2): 101, (0, 4): 100})
        return False

    shard.sink.pack(between)
    assert not shard.sink.packs
    assert len(truth) == 5
    assert minutes(tier, campaign_id="1,2,3,4", group_by="campaign_id") == truth
    assert {minute for minute, _ in open_cells(shard)} == {1}
    shard.show([at(0, 1_000)], START + MINUTE)
    assert minutes(tier) == {(0,): 1111, (1,): 5}
    assert tier.span().packed_ms == [START + MINUTE]


def test_an_ousted_owner_that_packs_changes_nothing(
    shard: Shard, tier: HotTier, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(monkeypatch)
    successor = Shard(settings)
    for owner in (shard, successor):
        changes = owner.flush([at(0, 1)], START), owner.flush([at(0, 2), at(1, 4)], START + MINUTE)
        for change in changes:
            owner.sink.write(change, owner.state)
    slower, packed = shard.new_sink(), 0
    slower.attach(shard.state)
    successor.sink.attach(successor.state)
    successor.sink.ops_per_call = 1
    call = successor.sink._script

    def between(keys: Any, args: Any) -> Any:
        nonlocal packed
        answer = call(keys, args)
        ousted = shard.new_sink()
        ousted.attach(shard.state)
        packed += ousted.packs
        ousted.pack(lambda: False)
        return answer

    monkeypatch.setattr(successor.sink, "_script", between)
    successor.show([at(0, 10), at(1, 20)], START + MINUTE)
    assert packed >= 2
    assert minutes(tier) == {(0,): 13, (1,): 24}
    successor.sink.pack(lambda: False)
    slower.pack(lambda: False)
    assert minutes(tier) == {(0,): 13, (1,): 24}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_breaks_between_two_calls_each_row_counts_once(
    shard: Shard, tier: HotTier, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(hot, "_REWRITTEN_ROWS", 2)
    if seed % 2:
        live(monkeypatch)
    truth: Counter[tuple[int]] = Counter()
    sinks = [shard.sink]
    packed = 0

    def unreliable(script: Any) -> Any:
        def call(keys: Any, args: Any) -> Any:
            fate = draw.random()
            if fate < 0.2:
                raise Unavailable("not sent")
            answer = script(keys, args)
            if fate < 0.4:
                raise Unavailable("the answer was lost")
            return answer

        return call

    def taken_over() -> None:
        sinks.append(shard.new_sink())
        sinks[-1].attach(shard.state)
        broken()

    def broken() -> None:
        sinks[-1]._script, sinks[-1]._pack_script = (unreliable(s) for s in (sinks[-1]._script, sinks[-1]._pack_script))

    def flush(number: int) -> None:
        sinks[-1].ops_per_call = draw.randint(1, 3)
        rows = [
            at(draw.randint(0, 6), draw.randint(1, 9), ad_id=draw.randint(1, 4), campaign_id=draw.randint(1, 3))
            for _ in range(draw.randint(1, 4))
        ]
        for row in rows:
            truth[((row["window_ms"] - START) // MINUTE,)] += row["impressions"]
        changes = shard.flush(rows, START + min(number // 4, 8) * MINUTE)
        while True:
            try:
                sinks[-1].write(changes, shard.state)
                break
            except Unavailable:
                with suppress(Unavailable):
                    sinks[-1].pack(lambda: False)
                if draw.random() < 0.3:  # this worker dies, and another one takes over
                    taken_over()
                    break
        assert minutes(tier, campaign_id="1,2,3") == truth, f"after flush {number}"

    def between(number: int) -> bool:
        assert minutes(tier, campaign_id="1,2,3") == truth, f"packing after flush {number}"
        if draw.random() < 0.1:
            flush(number)
        return draw.random() < 0.05

    broken()
    for number in range(40):
        flush(number)
        # The owner, or one that does not know that it is owner no more.
        sink = draw.choice([sinks[-1], sinks[-1], draw.choice(sinks)])
        packed += sink.packs
        with suppress(Unavailable):
            sink.pack(given(between, number))
        assert minutes(tier, campaign_id="1,2,3") == truth, f"packed after flush {number}"
    assert packed > (5 if seed % 2 else 0)


def test_hours_leave_only_when_they_are_old_and_in_clickhouse(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1)], START + 2 * MINUTE)
    old = START + 27 * HOUR_MS
    assert shard.sink.expire(old, None) == 0
    assert shard.sink.expire(old, START) == 0
    assert shard.sink.expire(START + 20 * HOUR_MS, old) == 0
    assert shard.sink.expire(old, START + HOUR_MS) == 1


@pytest.mark.parametrize("unshown", [False, True])
def test_what_was_not_packed_before_its_window_was_dropped_is_still_shown(
    shard: Shard, tier: HotTier, monkeypatch: pytest.MonkeyPatch, unshown: bool
) -> None:
    live(monkeypatch)
    shard.show([at(0, 1), at(0, 2, campaign_id=2)], START)
    shard.show([at(0, 5), at(3, 1)], START + 2 * MINUTE)
    shard.show([at(0, 10), at(0, 20, ad_id=2)], START + 3 * MINUTE)
    for minute in (64, 65):
        shard.show([at(minute, 1)], START + minute * MINUTE)
    assert START not in shard.state.windows
    if unshown:
        shard.flush([at(66, 1)], START + 66 * MINUTE)
    shard.sink = shard.new_sink()
    shard.sink.attach(shard.state)
    for _ in range(2):
        assert minutes(tier, campaign_id="1,2")[(0,)] == 38
        shard.show([at(67, 1)], START + 67 * MINUTE)
    while shard.sink.packs:
        shard.sink.pack(lambda: False)
    assert minutes(tier, campaign_id="1,2")[(0,)] == 38
    assert {minute for minute, _ in open_cells(shard)} <= {64, 65, 66, 67}
