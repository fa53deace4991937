"""The lists of what trends, computed in parts: they are those of all campaigns at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest

from infra import logs
from infra.clock import HOUR_MS, MINUTE_MS
from infra.errors import Refused
from infra.settings import Settings
from query.notify import trends as keeper_module
from query.notify.trends import TrendKeeper
from query.question import MEASURES, Question
from query.router import Answer, Router
from query.sums import Sums, empty_sums
from query.tiers.redis import HotTier
from query.tiers.span import Span
from query.tiers.trending_users import HourlyUsers
from query.trend_lists import ListHeader, TrendLists
from query.trending import Trend, UserCounts
from query.warnings import NO_TRENDING_USERS
from tests.unit.questions import NOW, RETENTION

END = NOW // MINUTE_MS * MINUTE_MS
SHARDS, EVENTS = 4, 30
ADVERTISERS = (1, 2)


class Minutes:
    """Campaigns in shards; each has EVENTS clicks in each shard that has it, half of them from each of two publishers."""

    def __init__(self, shards: Sequence[Sequence[int]]) -> None:
        self.shards = [tuple(sorted(of_shard)) for of_shard in shards]
        self.largest_part = 0

    def campaigns_of(self, _advertiser: int | None) -> tuple[list[tuple[int, ...]], Span]:
        moments: list[int | None] = [END - 3 * HOUR_MS] * SHARDS
        return self.shards, Span(moments, moments, moments, moments)

    def read_campaigns(
        self, question: Question, campaigns: Sequence[tuple[int, ...]], start_ms: int, _end_ms: int
    ) -> tuple[Sums, int, Span]:
        rows = [(campaign, publisher) for of_shard in campaigns for campaign in of_shard for publisher in (1, 2)]
        self.largest_part = max(self.largest_part, len({campaign for campaign, _ in rows}))
        ids, publishers = np.array(rows, np.int64).reshape(-1, 2).T
        values = {"campaign_id": ids, "advertiser_id": 1 + ids % len(ADVERTISERS), "publisher_id": publishers}
        groups = tuple(values.get(name, np.zeros(len(ids), np.int64)) for name in question.group_by)
        buckets = np.full(len(ids), start_ms if question.grain == "total" else END - MINUTE_MS)
        clicks = np.full(len(ids), EVENTS // 2)
        measures = tuple(clicks if name == "clicks" else clicks * 0 for name in MEASURES)
        flags = np.zeros(len(ids), bool)
        return Sums(buckets, groups, measures, flags, flags), len(ids), self.campaigns_of(None)[1]


class UsersOfEach:
    """Of campaigns so many users; fails at call number `fails_at`."""

    def __init__(self, users: Mapping[int, int], fails_at: int = 0) -> None:
        self._users, self._fails_at, self.calls = users, fails_at, 0

    def is_behind(self, _now_ms: int) -> bool:
        return False

    def read(self, _start_ms: int, _end_ms: int, campaigns: Sequence[int], *, by_advertiser: bool) -> UserCounts:
        self.calls += 1
        if self.calls == self._fails_at:
            raise Refused("ClickHouse: memory limit exceeded", hint="", backend="clickhouse", code="241")
        ids = np.array([campaign for campaign in campaigns if campaign in self._users], np.int64)
        counts = np.array([self._users[campaign] for campaign in ids.tolist()], np.int64)
        return UserCounts((ids, 1 + ids % len(ADVERTISERS))[: 1 + by_advertiser], counts)


class WrittenLists:
    header: ListHeader
    of_all: Sequence[Trend]
    by_advertiser: Mapping[int, Sequence[Trend]]

    def write(self, header: ListHeader, of_all: Sequence[Trend], by_advertiser: Mapping[int, Sequence[Trend]]) -> None:
        self.header, self.of_all, self.by_advertiser = header, of_all, by_advertiser


class NothingBefore:
    retention = RETENTION

    def answer(self, question: Question) -> Any:
        page = type("Page", (), {"rows": type("Rows", (), {"sums": empty_sums(question)})})
        return cast(Answer, type("Empty", (), {"degraded": False, "page": page}))


def refresh(minutes: Minutes, users: UsersOfEach) -> WrittenLists:
    keeper, lists = TrendKeeper(Settings.model_validate({}), lambda: NOW, logs.get("test")), WrittenLists()
    keeper._hot, keeper._users = cast(HotTier, minutes), cast(HourlyUsers, users)
    keeper._lists, keeper._router = cast(TrendLists, lists), cast(Router, NothingBefore())
    keeper.refresh(lambda: None)
    return lists


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_CAMPAIGNS_AT_ONCE", 3)


def test_a_part_has_so_many_campaigns_over_all_shards_and_one_of_several_shards_is_in_one_part() -> None:
    minutes = Minutes([[1, 2, 3, 7], [4, 5, 6, 7], [7, 8, 9, 10], []])
    lists = refresh(minutes, UsersOfEach({}))
    assert {trend.id: trend.volume for trend in lists.of_all} == dict.fromkeys(range(1, 11), EVENTS) | {7: 3 * EVENTS}
    assert sorted(trend.id for own in lists.by_advertiser.values() for trend in own) == [*range(1, 11)]
    assert minutes.largest_part == 3


def test_users_that_a_part_lacks_are_left_out_of_all_lists() -> None:
    minutes, halves = Minutes([range(1, 11), [], [], []]), dict.fromkeys(range(1, 11), EVENTS // 2)
    lists = refresh(minutes, UsersOfEach(halves, fails_at=2))
    assert lists.header.warnings == [NO_TRENDING_USERS]
    assert len(lists.of_all) == 10 and {trend.users for trend in lists.of_all} == {None}
    assert {trend.users for own in lists.by_advertiser.values() for trend in own} == {None}
    complete = refresh(minutes, UsersOfEach(halves))
    assert complete.header.warnings == [] and {trend.users for trend in complete.of_all} == {0.5}


def test_campaigns_without_known_users_count_as_the_lowest_of_their_list_in_any_part() -> None:
    # Of the second advertiser the odd campaigns, of the first the even ones; known are those of the last parts.
    lists = refresh(Minutes([range(1, 11), [], [], []]), UsersOfEach({7: EVENTS, 8: 3, 9: 6}))
    lowest = {None: 0.1, 1: 0.1, 2: 0.2}
    for advertiser, trends in ((None, lists.of_all), *lists.by_advertiser.items()):
        assert {t.id: t.users for t in trends if not t.is_assumed} == {
            campaign: users for campaign, users in {7: 1.0, 8: 0.1, 9: 0.2}.items() if advertiser in (None, 1 + campaign % 2)
        }  # fmt: skip
        assert {t.users for t in trends if t.is_assumed} == {lowest[advertiser]}
        scores = [t.score for t in trends]
        assert scores == sorted(scores, reverse=True) and len(trends) == (10 if advertiser is None else 5)
