"""What is trending: groups that have more events now than they usually have, of many users, from many sources, and still.

    score = volume of the last hour ÷ usual volume of an hour × users × sources × recency

- **Usual volume**: the mean of an hour of the last seven days, hours without events included; at least LEAST_USUAL, so that a few
  events of a new campaign are no trend.
- **Users**: distinct users by event, at most 1, of the whole hours that the last hour overlaps, since users are counted by hour. Of a bot
  that clicks ten thousand times it is next to 0. Where no user of a group is known, as of a bot that sends no ids, the lowest factor of
  the others counts; where none of any group is known, and everywhere while counting users lags, it is left out.
- **Sources**: the probability that two events of the hour come from different publishers, countries or devices (Gini and Simpson: E. H.
  Simpson, "Measurement of diversity", Nature 163, 1949). Of a bot with one address and one page it is 0.
- **Recency**: events weigh half as much for every fifteen minutes of age; 1 for a steady hour, more for one that grows.

Pure, by column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columnar.columns import Ints
from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_limit
from query.question import MEASURES, Question, Retention, parse_question
from query.row_scope import RowScope
from query.sums import Sums, sort_by_keys
from query.top import parse_subject_or_only

DIMENSIONS = {"campaign": "campaign_id", "ad": "ad_id", "publisher": "publisher_id"}
"""What may be trending, and the dimension of questions that this is."""
VOLUMES = ("impressions", "clicks", "conversions")
LEAST_USUAL, USUAL_GROUPS, USUAL_VOLUME = 20.0, 50, "clicks"
LISTED, LISTED_DIMENSION = 50, "campaign_id"
"""So many campaigns of an advertiser, and of all of them together, are kept as lists, by USUAL_VOLUME."""
_SOURCES = ("publisher_id", "country", "device")
_DAYS, _HALF_LIFE_MS = 7, 15 * MINUTE_MS


@dataclass(frozen=True)
class TrendingQuestion:
    """The questions to ask: minutes of the whole hours that the last hour overlaps, its sources, and the days before; and what of the
    answers counts."""

    minutes: Question
    sources: Question
    before: Question
    dimension: str
    volume: str
    limit: int

    @property
    def start_ms(self) -> int:
        """The begin of the last hour."""
        return self.end_ms - HOUR_MS

    @property
    def end_ms(self) -> int:
        """The end of the last minute."""
        return self.minutes.end_ms

    @property
    def is_listed(self) -> bool:
        """Whether lists are kept that answer it."""
        scope, advertiser = self.minutes.scope, self.minutes.advertiser
        is_whole = scope.campaigns is None and (advertiser is not None or scope.advertisers is None)
        return is_whole and (self.dimension, self.volume) == (LISTED_DIMENSION, USUAL_VOLUME) and self.limit <= LISTED


@dataclass(frozen=True)
class UserCounts:
    """About how many users groups had within some hours: a row for each group of which any is known."""

    groups: tuple[Ints, ...]
    users: Ints


@dataclass(frozen=True)
class Trend:
    """A group, and the factors of its score. `users` None: left out; with `is_assumed` they are not known, and those of another group."""

    id: int
    volume: int
    usual: float
    users: float | None
    sources: float
    recency: float
    advertiser: int | None = None
    """Whose campaign it is, where advertisers are told apart."""
    is_assumed: bool = False

    @property
    def growth(self) -> float:
        """By how much there is more than usual."""
        return self.volume / self.usual

    @property
    def score(self) -> float:
        """The product of the factors."""
        return self.growth * (1.0 if self.users is None else self.users) * self.sources * self.recency

    def document(self, dimension: str) -> dict[str, Any]:
        """As it goes over HTTP."""
        factors = {
            "usual": self.usual, "growth": self.growth, "users": self.users, "sources": self.sources, "recency": self.recency,
        }  # fmt: skip
        return (
            {dimension: self.id, "score": round(self.score, 4), "volume": self.volume}
            | {name: None if value is None else round(value, 4) for name, value in factors.items()}
            | {"users_known": self.users is not None and not self.is_assumed}
        )


def parse_trending_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, retention: Retention, scope: RowScope, *, admin: bool
) -> TrendingQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, ("dimension", "by", "k", "advertiser_id"))
    name, volume = values.get("dimension", "campaign"), values.get("by", USUAL_VOLUME)
    if name not in DIMENSIONS:
        raise BadQuestion("dimension", f"dimension must be one of {', '.join(DIMENSIONS)}, not {name[:40]!r}")
    if volume not in VOLUMES:
        raise BadQuestion("by", f"by must be one of {', '.join(VOLUMES)}, not {volume[:40]!r}")
    limit = parse_limit({"k": values.get("k", str(USUAL_GROUPS))}, "k")
    advertiser, dimension = parse_subject_or_only(values, scope, admin), DIMENSIONS[name]
    end_ms = now_ms // MINUTE_MS * MINUTE_MS
    hour, day = end_ms // HOUR_MS * HOUR_MS, DAY_MS

    def question(start_ms: int, end_ms: int, grain: str, *groups: str) -> Question:
        given = {
            "advertiser_id": advertiser, "start": iso(start_ms), "end": iso(end_ms), "granularity": grain, "group_by": ",".join(groups),
        }  # fmt: skip
        return parse_question(list(given.items()), now_ms, retention, scope, admin=admin)

    return TrendingQuestion(
        question((end_ms - HOUR_MS) // HOUR_MS * HOUR_MS, end_ms, "minute", dimension),
        question(end_ms - HOUR_MS, end_ms, "total", dimension, *(s for s in _SOURCES if s != dimension)),
        question(hour - _DAYS * day - HOUR_MS, hour - HOUR_MS, "total", dimension),
        dimension,
        volume,
        limit,
    )


def find_trends(
    question: TrendingQuestion, minutes: Sums, sources: Sums, before: Sums, users: UserCounts | None = None, *, keys: int = 1
) -> list[Trend]:  # fmt: skip
    """All groups with a score above 0, in no order, from the rows of the three answers and their users; `users` is None of those without
    known ones. `keys`: how many of the group columns tell groups apart; with 2 the second one is the advertiser."""
    place = MEASURES.index(question.volume)
    columns = [minutes.groups, sources.groups, before.groups, () if users is None else users.groups]
    groups, (of_minutes, of_sources, of_before, of_users) = _number_groups([c[:keys] for c in columns], keys)
    count = len(groups[0])
    is_recent = minutes.buckets >= question.start_ms
    events = np.where(is_recent, minutes.measures[place], 0).astype(np.float64)
    weight = 0.5 ** ((question.end_ms - minutes.buckets) / _HALF_LIFE_MS)
    volume = np.bincount(of_minutes, events, count)
    # Of a steady hour the weights add up to their mean.
    steady = (0.5 ** (np.arange(1, HOUR_MS // MINUTE_MS + 1) * MINUTE_MS / _HALF_LIFE_MS)).mean()
    shares = sources.measures[place].astype(np.float64)
    former = np.bincount(of_before, before.measures[place].astype(np.float64), count)
    with np.errstate(invalid="ignore", divide="ignore"):
        recency = np.nan_to_num(np.bincount(of_minutes, events * weight, count) / volume / steady)
        whole = np.bincount(of_sources, shares, count)
        diversity = np.nan_to_num(1.0 - np.bincount(of_sources, shares**2, count) / whole**2)
        by_event = _users_by_event(minutes, of_minutes, users, of_users, count)
    usual = np.maximum(former / (_DAYS * 24), LEAST_USUAL)
    advertisers = groups[1] if keys > 1 else None
    trends = [
        Trend(
            int(groups[0][n]), int(volume[n]), float(usual[n]), None if np.isnan(by_event[n]) else float(by_event[n]),
            float(diversity[n]), float(recency[n]), None if advertisers is None else int(advertisers[n]),
        )
        for n in np.flatnonzero(volume > 0).tolist()
    ]  # fmt: skip
    return [trend for trend in trends if trend.score > 0]


def rank_trends(trends: Sequence[Trend], most: int | None = None) -> list[Trend]:
    """All trends of a list, the highest score first. Where users are not known, the lowest factor of the others counts."""
    return take_highest(assume_users(trends, lowest_factor(trend.users for trend in trends)), most)


def take_highest(trends: Iterable[Trend], most: int | None = None) -> list[Trend]:
    """The trends with the highest scores, the highest first; None: all."""
    return sorted(trends, key=lambda t: (-t.score, t.id))[:most]


def lowest_factor(factors: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    return min((factor for factor in factors if factor is not None), default=None)


def assume_users(trends: Iterable[Trend], factor: float | None) -> list[Trend]:
    """The trends with this factor where users are not known; None: they are left out."""
    return [
        trend if factor is None or trend.users is not None else replace(trend, users=factor, is_assumed=True)
        for trend in trends
    ]


def _users_by_event(minutes: Sums, of_minutes: Ints, users: UserCounts | None, of_users: Ints, count: int) -> Any:
    """Of each group, at most 1; not a number where no user is known."""
    if users is None:
        return np.full(count, np.nan)
    events = sum(minutes.measures[MEASURES.index(name)].astype(np.float64) for name in VOLUMES)
    known = np.bincount(of_users, users.users.astype(np.float64), count)
    by_event = np.minimum(1.0, known / np.bincount(of_minutes, events, count))
    return np.where(known > 0, by_event, np.nan)


def _number_groups(tables: Sequence[tuple[Ints, ...]], keys: int) -> tuple[list[Ints], list[Ints]]:
    """The distinct groups of some tables, by column, and the number of the group of each row of each table."""
    columns = [np.concatenate([table[n] for table in tables if table]) for n in range(keys)]
    lengths = np.cumsum([len(table[0]) if table else 0 for table in tables])[:-1]
    if not len(columns[0]):
        return columns, [np.zeros(0, np.int64)] * len(tables)
    order, ordered, is_new = sort_by_keys(columns)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(is_new) - 1
    return [column[is_new] for column in ordered], np.split(numbers, lengths)
