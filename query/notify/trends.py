"""Computes what trends for all advertisers at once, each minute, and keeps it as lists in Redis.

Campaigns are taken in parts, so that memory depends on the size of a part, and not on how many campaigns there are.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from infra.clickhouse.client import ClickHouse
from infra.clock import iso
from infra.errors import AdclickError
from infra.redis.client import Redis
from infra.settings import Settings
from query import sums, warnings
from query.question import Question
from query.router import Router
from query.row_scope import ALL_ROWS
from query.sums import Sums
from query.tiers.redis import HotTier
from query.tiers.trending_users import HourlyUsers
from query.trend_lists import ListHeader, TrendLists
from query.trending import (
    LISTED,
    Trend,
    TrendingQuestion,
    UserCounts,
    assume_users,
    find_trends,
    lowest_factor,
    parse_trending_question,
    take_highest,
)
from stream.reach.progress import read_progress

# Over all shards.
_CAMPAIGNS_AT_ONCE = 1_000
_TIMEOUT_S = 20
_KEYS = ("campaign_id", "advertiser_id")


class _UsersNotRead(Exception):
    """Compute trends without users."""


@dataclass
class _Ranking:
    """The highest trends of a list, of all parts so far. Those whose users are not known are apart: which factor counts for them, the
    last part may decide; among each other it does not change their order."""

    known: list[Trend] = field(default_factory=list)
    unknown: list[Trend] = field(default_factory=list)
    lowest: float | None = None

    def add(self, trends: Sequence[Trend]) -> None:
        known = [trend for trend in trends if trend.users is not None]
        self.lowest = lowest_factor([self.lowest, *(trend.users for trend in known)])
        self.known = take_highest([*self.known, *known], LISTED)
        self.unknown = take_highest([*self.unknown, *(trend for trend in trends if trend.users is None)], LISTED)

    @property
    def trends(self) -> list[Trend]:
        return take_highest([*self.known, *assume_users(self.unknown, self.lowest)], LISTED)


@dataclass
class _Rankings:
    """Those of all lists."""

    of_all: _Ranking = field(default_factory=_Ranking)
    by_advertiser: dict[int, _Ranking] = field(default_factory=lambda: defaultdict(_Ranking))

    def add(self, of_all: Sequence[Trend], of_advertisers: Sequence[Trend]) -> None:
        self.of_all.add(of_all)
        parts = defaultdict[int, list[Trend]](list)
        for trend in of_advertisers:
            parts[trend.advertiser or 0].append(trend)
        for advertiser, trends in parts.items():
            self.by_advertiser[advertiser].add(trends)


class TrendKeeper:
    """Used by one thread. `refresh` raises Unavailable where minutes cannot be read or lists cannot be written."""

    def __init__(self, settings: Settings, now: Callable[[], int], log: Any) -> None:
        self._settings, self._now, self._log = settings, now, log
        redis = Redis(settings.redis_access, timeout_s=_TIMEOUT_S)
        self._hot = HotTier(redis, settings.key_prefix, settings.block_partitions)
        self._lists = TrendLists(redis, settings.key_prefix)
        client = ClickHouse.of(settings, timeout_s=_TIMEOUT_S)
        progress = partial(read_progress, redis, settings.key_prefix, settings.event_partitions)
        self._users = HourlyUsers(client, _TIMEOUT_S, progress)
        self._before: tuple[int, Sums] | None = None
        self._failing = ""

    @cached_property
    def _router(self) -> Router:
        return Router(self._settings)

    def refresh(self, check: Callable[[], None]) -> float:
        """Compute all lists once; returns how many seconds that took. `check` is called between parts, and may raise to end it."""
        began, now_ms = time.monotonic(), self._now()
        question = parse_trending_question([], now_ms, self._router.retention, ALL_ROWS, admin=True)
        question = replace(
            question, minutes=_by_advertiser(question.minutes), sources=_by_advertiser(question.sources),
            before=_by_advertiser(question.before),
        )  # fmt: skip
        notes = list[str]()
        before, reads_users = self._read_before(question, notes), self._settings.reach == "on"
        if reads_users and self._users.is_behind(now_ms):
            reads_users = False
            notes.append(warnings.NO_TRENDING_USERS)
        campaigns, span = self._hot.campaigns_of(None)
        if span.held_from_ms is None or span.held_from_ms > question.start_ms:
            notes.append(f"minutes since {iso(question.start_ms)} are missing")
        try:
            rankings = self._rank(question, campaigns, before, check, reads_users=reads_users)
        except _UsersNotRead:
            # Scores with users and scores without them do not compare: a list has either.
            notes.append(warnings.NO_TRENDING_USERS)
            rankings = self._rank(question, campaigns, before, check, reads_users=False)
        check()
        by_advertiser = {advertiser: ranking.trends for advertiser, ranking in rankings.by_advertiser.items()}
        self._lists.write(ListHeader(now_ms, question.end_ms, notes), rankings.of_all.trends, by_advertiser)
        return time.monotonic() - began

    def _rank(
        self, question: TrendingQuestion, campaigns: Sequence[tuple[int, ...]], before: Sums, check: Callable[[], None], *,
        reads_users: bool,
    ) -> _Rankings:  # fmt: skip
        """The highest trends of some campaigns, shard by shard. Raises _UsersNotRead where users of a part are missing."""
        rankings = _Rankings()
        for part in _parts(campaigns):
            check()
            minutes, *_ = self._hot.read_campaigns(question.minutes, part, question.minutes.start_ms, question.end_ms)
            if not len(minutes):
                continue
            sources, *_ = self._hot.read_campaigns(question.sources, part, question.start_ms, question.end_ms)
            of_part = _of_campaigns(before, np.unique(minutes.groups[0]))
            ids, shared = _campaigns_in(minutes)
            users = self._read_users(question, ids, by_advertiser=True) if reads_users else None
            own = find_trends(question, minutes, sources, of_part, users, keys=2)
            rankings.add(own if not shared else self._of_campaigns(question, minutes, sources, of_part, users), own)
        return rankings

    def _of_campaigns(
        self, question: TrendingQuestion, minutes: Sums, sources: Sums, before: Sums, users: UserCounts | None
    ) -> list[Trend]:
        """The same with the events of a campaign of several advertisers taken together."""
        ids, _ = _campaigns_in(minutes)
        whole = None if users is None else self._read_users(question, ids, by_advertiser=False)
        return find_trends(
            question, _without_advertiser(minutes), _without_advertiser(sources), _without_advertiser(before), whole
        )

    def _read_before(self, question: TrendingQuestion, notes: list[str]) -> Sums:
        """What was counted on the days before: read once an hour, unless something of it was missing."""
        start_ms = question.before.start_ms
        if self._before is None or self._before[0] != start_ms:
            answer = self._router.answer(question.before)
            if answer.degraded:
                notes += answer.warnings
                return answer.page.rows.sums
            self._before = start_ms, answer.page.rows.sums
        return self._before[1]

    def _read_users(self, question: TrendingQuestion, campaigns: Sequence[int], *, by_advertiser: bool) -> UserCounts:
        """Raises _UsersNotRead where they cannot be read, which is logged once."""
        try:
            users = self._users.read(question.minutes.start_ms, question.end_ms, campaigns, by_advertiser=by_advertiser)
        except AdclickError as error:
            if self._failing != type(error).__name__:
                self._log.warning("trends are computed without users", why=str(error))
            self._failing = type(error).__name__
            raise _UsersNotRead from error
        self._failing = ""
        return users


def _by_advertiser(question: Question) -> Question:
    """A question that tells the advertisers of campaigns apart. Only for questions about all advertisers."""
    return replace(question, group_by=(*_KEYS, *(name for name in question.group_by if name not in _KEYS)))


def _without_advertiser(table: Sums) -> Sums:
    return sums.sum_equal_keys(replace(table, groups=(table.groups[0], *table.groups[2:])))


def _campaigns_in(minutes: Sums) -> tuple[list[int], bool]:
    """The campaigns of a table, and whether any of them is of several advertisers."""
    pairs = np.unique(np.stack(minutes.groups[:2]), axis=1)
    ids = np.unique(pairs[0])
    return ids.tolist(), len(ids) < pairs.shape[1]


def _of_campaigns(before: Sums, ids: Any) -> Sums:
    """The rows of some campaigns."""
    return sums.take(before, np.flatnonzero(np.isin(before.groups[0], ids)))


def _parts(campaigns: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """The campaigns of each shard, in ascending order, a number of them at once. One that several shards have is in one part."""
    ids = sorted(set[int]().union(*campaigns))
    for first in range(0, len(ids), _CAMPAIGNS_AT_ONCE):
        lowest, highest = ids[first], ids[min(first + _CAMPAIGNS_AT_ONCE, len(ids)) - 1]
        yield [of_shard[bisect_left(of_shard, lowest) : bisect_right(of_shard, highest)] for of_shard in campaigns]
