"""The hot tier's sink and reader on the real Redis."""

from __future__ import annotations

import functools
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from infra.clock import HOUR_MS
from infra.errors import Unavailable
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.blocks import BlockHeader, SourceRange
from query.question import Retention, parse_question
from query.row_scope import RowScope
from query.tiers import redis as redis_tier
from query.tiers.redis import HotTier
from stream.hot import cell_format
from stream.hot.layout import ROWS
from stream.hot.limits import DEFAULT_LIMITS, HotLimits
from stream.hot.writer import HotSink
from stream.published import Publication
from tests.hooked_redis import HookedRedis
from tests.product import PATIENCE
from tests.redis_loss import dump_keys, go_back, lose_keys
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

MINUTE = 60_000
START = 1_795_132_800_000
NOW = START + HOUR_MS


class Shard:
    """A stage and its sink, as a worker drives them."""

    def __init__(self, settings: Settings, limits: HotLimits = DEFAULT_LIMITS, number: int = 0) -> None:
        self.redis = HookedRedis(settings.redis)
        self._settings, self._limits, self._number = settings, limits, number
        self.stage = Stage(MINUTE, 1)
        self.sink = self.new_sink()
        self.attach(self.sink)

    def new_sink(self, redis: Redis | None = None) -> HotSink:
        return HotSink(redis or self.redis, self._settings.key_prefix, self._number, 24, limits=self._limits)

    def attach(self, sink: HotSink) -> None:
        """Bring a sink up to what is durable."""
        sink.attach(self.stage.state.snapshot())

    def flush(self, rows: list[dict[str, Any]], watermark_ms: int) -> Publication:
        """Make rows durable."""
        at = self.stage.next_message
        header = BlockHeader(1, (SourceRange(0, at, at + 1, watermark_ms, False),), 0)
        self.stage.apply_block(at, frame(rows), header, "here")
        assert self.stage.flush_due(0)
        self.stage.begin_flush()
        return self.stage.commit()

    def write(self, published: Publication, sink: HotSink | None = None) -> None:
        """Show a flush."""
        sink = sink or self.sink
        if not sink.write(published):
            self.attach(sink)

    def refresh(self) -> None:
        """Check whether Redis still has what was written, and write it again if not."""
        if not self.sink.refresh(0):
            self.attach(self.sink)

    def show(self, rows: list[dict[str, Any]], watermark_ms: int) -> Publication:
        """Make rows durable, and show them."""
        published = self.flush(rows, watermark_ms)
        self.write(published)
        return published


@pytest.fixture(params=[(128, 12), (0, 12), (0, 2)], ids=["rows", "roll-ups", "gathered"])
def limits(request: pytest.FixtureRequest) -> HotLimits:
    """Cells have roll-ups only above some rows, and are gathered after some flushes; here each way."""
    rows, flushes = request.param
    return HotLimits(roll_up_above_rows=rows, roll_up_after_s=0.0, gather_after_flushes=flushes, gather_spread=1)


@pytest.fixture
def live_limits(limits: HotLimits) -> HotLimits:
    """Every minute is one of live traffic: packed after it has closed, a cell a call."""
    return replace(limits, live_after_s=0.0, pack_call_bytes=0)


@pytest.fixture
def shard(settings: Settings, limits: HotLimits) -> Shard:
    return Shard(settings, limits)


@pytest.fixture
def live_shard(settings: Settings, live_limits: HotLimits) -> Shard:
    return Shard(settings, live_limits)


@pytest.fixture
def tier(settings: Settings) -> HotTier:
    return HotTier(Redis(settings.redis), settings.key_prefix, 1)


def minutes(tier: HotTier, **more: str) -> dict[Any, int]:
    """(minute, group…) → impressions, read from the smallest roll-up. They must equal the sums over all dimensions."""
    sums, group_by = _read(tier, **more), more.get("group_by", "")
    everything = ",".join(dict.fromkeys([*group_by.split(","), "ad_id", "publisher_id"])).lstrip(",")
    summed: Counter[Any] = Counter()
    for key, impressions in _read(tier, **more | {"group_by": everything}).items():
        summed[key[: 1 + len(group_by.split(",")) if group_by else 1]] += impressions
    assert sums == summed
    return sums


def _read(tier: HotTier, **more: str) -> dict[Any, int]:
    parameters = {"campaign_id": "1", "start": "-60m", "end": "now", "granularity": "minute"} | more
    question = parse_question(list(parameters.items()), NOW, Retention(24 * HOUR_MS, 10**12))
    table, _, _ = tier.read(question, question.start_ms, question.end_ms)
    keys = zip((table.buckets - START) // MINUTE, *table.groups, strict=True)
    return dict(zip((tuple(map(int, key)) for key in keys), table.measures[0].tolist(), strict=True))


def at(minute: int, impressions: int, **more: Any) -> dict[str, Any]:
    return partial(window_ms=START + minute * MINUTE, impressions=impressions, late=0, **more)


def open_cells(shard: Shard) -> set[tuple[int, int]]:
    """(minute, campaign) of each cell that has rows by flush."""
    keys = shard.sink.keys
    cells = map(keys.minute_and_campaign, shard.redis.scan_keys(keys.all_by_flush()))
    return {((minute - START) // MINUTE, campaign) for minute, campaign in cells}


def test_open_and_closed_minutes_are_added_up(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1), at(1, 2)], START)
    shard.show([at(0, 10), at(1, 20, ad_id=2)], START + 30_000)
    assert minutes(tier) == {(0,): 11, (1,): 22}
    shard.show([at(1, 100)], START + MINUTE)
    assert minutes(tier) == {(0,): 11, (1,): 122}
    assert minutes(tier, group_by="ad_id") == {(0, 1): 11, (1, 1): 102, (1, 2): 20}
    shard.show([at(0, 1000)], START + 2 * MINUTE)
    assert minutes(tier) == {(0,): 1011, (1,): 122}
    assert not open_cells(shard)


def test_readers_see_no_row_twice_or_taken_back_during_a_flush_of_several_calls(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1), at(1, 2), at(2, 4)], START)
    shard.sink.ops_per_call = 1
    answers: list[dict[Any, int]] = []

    def read_before(call: Callable[[], Any]) -> Any:
        answers.append(minutes(tier))
        return call()

    shard.redis.around_script = read_before
    shard.show([at(0, 10), at(1, 20), at(3, 8)], START + 2 * MINUTE)
    assert len(answers) >= 3
    for before, after in pairwise([{(0,): 1, (1,): 2, (2,): 4}, *answers, {(0,): 11, (1,): 22, (2,): 4, (3,): 8}]):
        assert all(before[m] <= after[m] for m in before), "what was shown is never taken back"
    assert all(step[(0,)] in (1, 11) and step[(1,)] in (2, 22) and step[(2,)] == 4 for step in answers)
    assert minutes(tier) == {(0,): 11, (1,): 22, (2,): 4, (3,): 8}
    assert {minute for minute, _ in open_cells(shard)} == {2, 3}


def test_writing_a_flush_again_changes_nothing(shard: Shard, tier: HotTier) -> None:
    published = shard.show([at(0, 1)], START)
    shard.write(published)
    shard.attach(shard.sink)
    assert minutes(tier) == {(0,): 1}


def test_an_ousted_owner_cannot_write(shard: Shard, tier: HotTier, settings: Settings, limits: HotLimits) -> None:
    stuck = shard.flush([at(0, 1)], START + 2 * MINUTE)
    successor = Shard(settings, limits)
    successor.show([at(0, 1)], START + 2 * MINUTE)
    successor.show([at(0, 5)], START + 2 * MINUTE)
    since = tier.span().from_ms
    shard.write(stuck)
    assert minutes(tier) == {(0,): 6}
    successor.show([at(3, 2)], START + 3 * MINUTE)
    assert minutes(tier) == {(0,): 6, (3,): 2}
    assert tier.span().from_ms == since


def test_a_recovered_owner_shows_flushes_that_its_predecessor_did_not(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1)], START)
    shard.flush([at(0, 2), at(3, 4)], START + 2 * MINUTE)
    successor = shard.new_sink()
    shard.attach(successor)
    assert minutes(tier) == {(0,): 3, (3,): 4}
    shard.write(shard.flush([at(3, 1)], START + 5 * MINUTE), successor)
    assert minutes(tier) == {(0,): 3, (3,): 5}


def test_a_redis_that_lost_its_keys_is_refilled_from_the_state_and_states_its_retained_range(
    shard: Shard, tier: HotTier, settings: Settings
) -> None:
    def lose_all() -> None:
        lose_keys(shard.redis, shard.sink.keys.all())
        assert tier.span().unknown == [0]

    shard.show([at(0, 1)], START)
    shard.show([at(5, 2)], START + 6 * MINUTE)
    assert tier.span().from_ms == [0]
    lose_all()
    shard.show([at(7, 4)], START + 6 * MINUTE)
    assert minutes(tier) == {(0,): 1, (5,): 2, (7,): 4}
    # The state holds a minute until an hour after its end.
    assert tier.span().from_ms == [START + 5 * MINUTE - HOUR_MS]
    # The fourth minute has no rows when Redis is written anew, and is known all the same.
    for _ in range(2):
        shard.show([at(20, 1)], START + HOUR_MS + 5 * MINUTE)
    lose_all()
    shard.show([at(4, 8)], START + HOUR_MS + 5 * MINUTE)
    assert minutes(tier) == {(4,): 8, (5,): 2, (7,): 4, (20,): 2}
    assert tier.span().from_ms == [START + 4 * MINUTE]


@pytest.mark.parametrize("idle", [True, False])
def test_a_redis_restored_from_an_older_file_is_brought_up_to_the_state(
    shard: Shard, tier: HotTier, settings: Settings, idle: bool
) -> None:
    shard.show([at(0, 1), at(5, 1)], START)
    old = dump_keys(shard.redis, shard.sink.keys.all())
    shard.show([at(0, 10)], START)
    shard.show([at(5, 2)], START + 6 * MINUTE)
    go_back(shard.redis, shard.sink.keys.all(), old)
    if idle:
        shard.refresh()
    else:
        shard.show([at(7, 4)], START + 6 * MINUTE)
    assert minutes(tier) == {(0,): 11, (5,): 3} | ({} if idle else {(7,): 4})
    watermark_before_ms = START if idle else START + 6 * MINUTE
    assert tier.span().from_ms == [watermark_before_ms - HOUR_MS - MINUTE]


@pytest.mark.parametrize("then", ["refresh", "show", "attach fails"])
def test_a_redis_that_went_back_to_before_a_minute_was_packed_is_noticed_at_the_same_sequence(
    settings: Settings, tier: HotTier, then: str
) -> None:
    # As a failover to a replica that lacks the last calls, or an older file.
    shard = Shard(settings, HotLimits(live_after_s=0.0))
    shard.show([at(0, 10)], START + MINUTE // 2)
    shard.show([at(1, 20)], START + MINUTE + 10_000)
    assert shard.sink.packs
    before = dump_keys(shard.redis, shard.sink.keys.all())
    shard.sink.pack(lambda: False)
    assert not shard.sink.packs
    go_back(shard.redis, shard.sink.keys.all(), before)
    if then == "attach fails":

        def fail(call: Callable[[], Any]) -> Any:
            raise Unavailable("away")

        shard.redis.around_script = fail
        with pytest.raises(Unavailable):
            shard.refresh()
        shard.redis.around_script = lambda call: call()
    if then != "show":
        shard.refresh()
    shard.show([at(1, 1)], START + MINUTE + 20_000)
    assert minutes(tier) == {(0,): 10, (1,): 21}
    assert not shard.sink.packs or tier.span().packed_ms == [START]


def test_a_campaign_id_of_two_advertisers_is_answered_for_each_alone(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1, advertiser_id=1), at(0, 10, advertiser_id=2)], START)
    assert minutes(tier, campaign_id="1") == {(0,): 11}
    parameters = [("advertiser_id", "2"), ("start", "-60m"), ("end", "now"), ("granularity", "minute")]
    question = parse_question(parameters, NOW, Retention(24 * HOUR_MS, 10**12))
    table, _, _ = tier.read(question, question.start_ms, question.end_ms)
    assert table.measures[0].tolist() == [10]
    scoped = parse_question(
        [("campaign_id", "1"), *parameters[1:]], NOW, Retention(24 * HOUR_MS, 10**12), RowScope(frozenset([1]))
    )
    table, _, _ = tier.read(scoped, question.start_ms, question.end_ms)
    assert table.measures[0].tolist() == [1]
    shard.show([at(1, 100, campaign_id=5, advertiser_id=2)], START)
    for campaigns, expected in (([1, 5], [10, 100]), ([5], [100]), ([1, 9], [10]), ([9], [])):
        scope = RowScope(frozenset([2]), frozenset(campaigns))
        narrowed = parse_question(parameters, NOW, Retention(24 * HOUR_MS, 10**12), scope)
        table, _, _ = tier.read(narrowed, question.start_ms, question.end_ms)
        assert sorted(table.measures[0].tolist()) == expected


def test_a_large_cell_is_read_by_its_roll_ups_open_or_closed(shard: Shard, tier: HotTier) -> None:
    shown: list[dict[str, Any]] = []

    def show(impressions: int, watermark_ms: int) -> None:
        rows = [
            at(0, impressions + n, ad_id=n, publisher_id=n % 7, country=n % 5, device=n % 3, advertiser_id=n % 2)
            for n in range(200)
        ]
        shown.extend(rows)
        shard.show(rows, watermark_ms)

    def check(most_rows: int) -> None:
        for group_by in ("", "ad_id", "publisher_id", "country", "device"):
            minutes(tier, group_by=group_by)
        parameters = [("campaign_id", "1"), ("start", "-60m"), ("end", "now"), ("granularity", "total")]
        for scope in (None, frozenset([0]), frozenset([1])):
            question = parse_question(parameters, NOW, Retention(24 * HOUR_MS, 10**12), RowScope(scope))
            table, read, _ = tier.read(question, question.start_ms, question.end_ms)
            expected = sum(row["impressions"] for row in shown if scope is None or row["advertiser_id"] in scope)
            assert table.measures[0].tolist() == [expected]
            assert read <= most_rows

    show(0, START)
    show(1000, START + 30_000)
    check(200 + 6)  # the first flush of a minute comes as rows; then three devices of two advertisers
    show(2000, START + 2 * MINUTE)
    assert not open_cells(shard)
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
            names = [shard.sink.keys.by_flush(START, campaign) + part for part in (b"", ROWS)]
            values = [value for name in names for value in shard.redis.call("HVALS", name)]
            assert len(values) <= 13
            assert sum(map(cell_format.count, values)) <= 3 * 100


def test_late_rows_are_appended_until_they_outweigh_rewriting_the_cell(shard: Shard, tier: HotTier) -> None:
    key, rows_before = shard.sink.keys.hour(START), 200
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


def test_a_minute_of_live_traffic_is_packed_beside_the_flushes(live_shard: Shard, tier: HotTier) -> None:
    live_shard.show([at(0, 1, campaign_id=c) for c in (1, 2, 3)], START)
    live_shard.show([at(0, 10, campaign_id=1), at(1, 5)], START + MINUTE)
    assert live_shard.sink.packs
    assert not live_shard.redis.scan_keys(live_shard.sink.keys.hours()), "a flush does not wait for that"
    truth = {(0, 1): 11, (0, 2): 1, (0, 3): 1, (1, 1): 5}

    def between() -> bool:
        assert minutes(tier, campaign_id="1,2,3,4", group_by="campaign_id") == truth
        if len(truth) == 4 and len([minute for minute, _ in open_cells(live_shard) if minute == 0]) == 1:
            # Two that are packed already, and one that is new.
            live_shard.show([at(0, 100, campaign_id=c) for c in (1, 2, 4)], START + MINUTE)
            truth.update({(0, 1): 111, (0, 2): 101, (0, 4): 100})
        return False

    live_shard.sink.pack(between)
    assert not live_shard.sink.packs
    assert len(truth) == 5
    assert minutes(tier, campaign_id="1,2,3,4", group_by="campaign_id") == truth
    assert {minute for minute, _ in open_cells(live_shard)} == {1}
    live_shard.show([at(0, 1_000)], START + MINUTE)
    assert minutes(tier) == {(0,): 1111, (1,): 5}
    assert tier.span().packed_ms == [START + MINUTE]


def test_an_ousted_owner_that_packs_changes_nothing(
    live_shard: Shard, live_limits: HotLimits, tier: HotTier, settings: Settings
) -> None:
    successor = Shard(settings, live_limits)
    for owner in (live_shard, successor):
        flushes = owner.flush([at(0, 1)], START), owner.flush([at(0, 2), at(1, 4)], START + MINUTE)
        for published in flushes:
            owner.write(published)
    slower, packed = live_shard.new_sink(), 0
    live_shard.attach(slower)
    successor.attach(successor.sink)
    successor.sink.ops_per_call = 1

    def pack_after(call: Callable[[], Any]) -> Any:
        nonlocal packed
        reply = call()
        ousted = live_shard.new_sink()
        live_shard.attach(ousted)
        packed += ousted.packs
        ousted.pack(lambda: False)
        return reply

    successor.redis.around_script = pack_after
    successor.show([at(0, 10), at(1, 20)], START + MINUTE)
    successor.redis.around_script = lambda call: call()
    assert packed >= 2
    assert minutes(tier) == {(0,): 13, (1,): 24}
    successor.sink.pack(lambda: False)
    slower.pack(lambda: False)
    assert minutes(tier) == {(0,): 13, (1,): 24}


def test_a_minute_is_packed_in_a_thread_of_its_own_while_flushes_correct_it(live_shard: Shard, tier: HotTier) -> None:
    draw, campaigns = random.Random(1), ",".join(map(str, range(1, 41)))
    live_shard.show([at(0, 1, campaign_id=c) for c in range(1, 31)], START)
    live_shard.show([at(1, 1)], START + MINUTE)
    truth, flushed = 30, threading.Event()

    def pack() -> None:
        while not flushed.is_set() or live_shard.sink.packs:
            live_shard.sink.pack(lambda: False)

    thread = threading.Thread(target=pack)
    thread.start()
    for _ in range(12):
        live_shard.show([at(0, 10, campaign_id=draw.randint(1, 40), ad_id=draw.randint(1, 3))], START + MINUTE)
        truth += 10
        assert _read(tier, campaign_id=campaigns)[(0,)] == truth
    flushed.set()
    thread.join(60 * PATIENCE)
    assert not thread.is_alive()
    assert minutes(tier, campaign_id=campaigns) == {(0,): truth, (1,): 1}
    assert {minute for minute, _ in open_cells(live_shard)} == {1}
    live_shard.show([at(1, 1)], START + MINUTE)
    assert tier.span().packed_ms == [START + MINUTE]


def test_minutes_of_an_advertiser_and_of_all_are_in_whichever_shards_have_the_campaigns(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = HotLimits(roll_up_above_rows=0, roll_up_after_s=0.0)
    shards, both = (
        [Shard(settings, limits, n) for n in range(2)],
        HotTier(Redis(settings.redis), settings.key_prefix, 2),
    )
    for minute in range(3):
        of_first = [at(minute, 1, campaign_id=7, advertiser_id=9), at(minute, 50, campaign_id=6)]
        of_second = [at(minute, 10, campaign_id=7, advertiser_id=9), at(minute, 2, campaign_id=8, advertiser_id=9)]
        for shard, rows in zip(shards, (of_first, of_second), strict=True):
            shard.show(rows, START + MINUTE)
    assert both.campaigns_of(9)[0] == [(7,), (7, 8)]
    # One by one or together, by transactions or by the script.
    for campaigns_a_call, fields_by_script in ((1, 0), (250, 0), (250, 1_000_000)):
        monkeypatch.setattr(redis_tier, "_CAMPAIGNS_A_CALL", campaigns_a_call)
        monkeypatch.setattr(redis_tier, "_FIELDS_BY_SCRIPT", fields_by_script)
        assert _by_campaign(both, "9") == {7: 33, 8: 6}
        assert _by_campaign(both, "*") == {6: 150, 7: 33, 8: 6}


def test_all_campaigns_are_listed_anew_from_those_of_advertisers_and_never_taken_for_none(settings: Settings) -> None:
    shard, tier = Shard(settings), HotTier(Redis(settings.redis), settings.key_prefix, 1)
    shard.show([at(0, 1, campaign_id=7, advertiser_id=9), at(0, 2, campaign_id=8, advertiser_id=4)], START + MINUTE)
    shard.redis.call("DEL", shard.sink.keys.campaigns)  # as after an earlier version
    assert _by_campaign(tier, "9") == {7: 1}
    with pytest.raises(Unavailable, match="has not listed its campaigns"):
        _by_campaign(tier, "*")
    shard.attach(shard.new_sink())
    assert _by_campaign(tier, "*") == {7: 1, 8: 2}


def _by_campaign(tier: HotTier, advertiser: str) -> dict[int, int]:
    parameters = {
        "advertiser_id": advertiser, "start": "-60m", "end": "now", "granularity": "total", "group_by": "campaign_id"
    }  # fmt: skip
    question = parse_question(list(parameters.items()), NOW, Retention(24 * HOUR_MS, 10**12), admin=True)
    table, _, _ = tier.read(question, START, NOW)
    return dict(zip(table.groups[0].tolist(), table.measures[0].tolist(), strict=True))


def test_a_refilled_redis_has_the_campaigns_of_closed_minutes(shard: Shard, tier: HotTier, settings: Settings) -> None:
    shard.show([at(0, 1, campaign_id=7, advertiser_id=9), at(5, 2, campaign_id=8, advertiser_id=9)], START + MINUTE)
    lose_keys(shard.redis, shard.sink.keys.all())
    shard.refresh()
    assert tier.campaigns_of(9)[0] == [(7, 8)]


@pytest.mark.parametrize("seed", range(8))
def test_each_row_counts_once_whichever_calls_fail(
    settings: Settings, limits: HotLimits, live_limits: HotLimits, tier: HotTier, seed: int
) -> None:
    draw = random.Random(seed)
    shard = Shard(settings, replace(live_limits if seed % 2 else limits, rewrite_above_rows=2))
    truth: Counter[tuple[int]] = Counter()
    sinks = [shard.sink]
    packed = 0

    def fail_sometimes(call: Callable[[], Any]) -> Any:
        fate = draw.random()
        if fate < 0.2:
            raise Unavailable("not sent")
        reply = call()
        if fate < 0.4:
            raise Unavailable("the reply was lost")
        return reply

    def take_over() -> None:
        redis = HookedRedis(settings.redis)
        sinks.append(shard.new_sink(redis))
        shard.attach(sinks[-1])
        redis.around_script = fail_sometimes

    def flush(number: int) -> None:
        sinks[-1].ops_per_call = draw.randint(1, 3)
        rows = [
            at(draw.randint(0, 6), draw.randint(1, 9), ad_id=draw.randint(1, 4), campaign_id=draw.randint(1, 3))
            for _ in range(draw.randint(1, 4))
        ]
        for row in rows:
            truth[((row["window_ms"] - START) // MINUTE,)] += row["impressions"]
        published = shard.flush(rows, START + min(number // 4, 8) * MINUTE)
        while True:
            try:
                shard.write(published, sinks[-1])
                break
            except Unavailable:
                with suppress(Unavailable):
                    sinks[-1].pack(lambda: False)
                if draw.random() < 0.3:  # this worker dies, and another one takes over
                    take_over()
                    break
        assert minutes(tier, campaign_id="1,2,3") == truth, f"after flush {number}"

    def between(number: int) -> bool:
        assert minutes(tier, campaign_id="1,2,3") == truth, f"packing after flush {number}"
        if draw.random() < 0.1:
            flush(number)
        return draw.random() < 0.05

    shard.redis.around_script = fail_sometimes
    for number in range(40):
        flush(number)
        # The owner, or one that does not know that it is owner no more.
        sink = draw.choice([sinks[-1], sinks[-1], draw.choice(sinks)])
        packed += sink.packs
        with suppress(Unavailable):
            sink.pack(functools.partial(between, number))
        assert minutes(tier, campaign_id="1,2,3") == truth, f"packed after flush {number}"
    assert packed > (5 if seed % 2 else 0)


def test_hours_are_dropped_only_once_they_are_old_and_in_clickhouse(shard: Shard, tier: HotTier) -> None:
    shard.show([at(0, 1)], START + 2 * MINUTE)
    old = START + 27 * HOUR_MS
    assert shard.sink.expire(old, None) == 0
    assert shard.sink.expire(old, START) == 0
    assert shard.sink.expire(START + 20 * HOUR_MS, old) == 0
    assert shard.sink.expire(old, START + HOUR_MS) == 1


@pytest.mark.parametrize("unshown", [False, True])
def test_rows_not_packed_before_their_window_was_dropped_are_still_shown(
    live_shard: Shard, tier: HotTier, unshown: bool
) -> None:
    live_shard.show([at(0, 1), at(0, 2, campaign_id=2)], START)
    live_shard.show([at(0, 5), at(3, 1)], START + 2 * MINUTE)
    live_shard.show([at(0, 10), at(0, 20, ad_id=2)], START + 3 * MINUTE)
    for minute in (64, 65):
        live_shard.show([at(minute, 1)], START + minute * MINUTE)
    assert START not in live_shard.stage.windows
    if unshown:
        live_shard.flush([at(66, 1)], START + 66 * MINUTE)
    live_shard.sink = live_shard.new_sink()
    live_shard.attach(live_shard.sink)
    for _ in range(2):
        assert minutes(tier, campaign_id="1,2")[(0,)] == 38
        live_shard.show([at(67, 1)], START + 67 * MINUTE)
    while live_shard.sink.packs:
        live_shard.sink.pack(lambda: False)
    assert minutes(tier, campaign_id="1,2")[(0,)] == 38
    assert {minute for minute, _ in open_cells(live_shard)} <= {64, 65, 66, 67}
