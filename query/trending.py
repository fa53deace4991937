"""What is trending: groups that have more events now than they usually have, from many sources, and still.

    score = volume of the last hour ÷ usual volume of an hour × diversity × recency

- **Usual volume**: the mean of an hour of the last seven days, hours without events included; at least LEAST_USUAL, so that a few
  events of a new campaign are no trend.
- **Diversity**: the probability that two events of the hour come from different publishers, countries or devices (Gini and Simpson: E. H.
  Simpson, "Measurement of diversity", Nature 163, 1949). Of a bot with one address and one page it is 0.
- **Recency**: events weigh half as much for every fifteen minutes of age; 1 for a steady hour, more for one that grows.

Pure, by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columnar.columns import Ints
from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_limit
from query.question import MEASURES, Question, Retention, parse_question
from query.row_scope import RowScope
from query.sums import Sums
from query.top import parse_subject_or_only

DIMENSIONS = {"campaign": "campaign_id", "ad": "ad_id", "publisher": "publisher_id"}
"""What may be trending, and the dimension of questions that this is."""
VOLUMES = ("impressions", "clicks", "conversions")
LEAST_USUAL, USUAL_GROUPS, USUAL_VOLUME = 20.0, 50, "clicks"
_SOURCES = ("publisher_id", "country", "device")
_DAYS, _HALF_LIFE_MS = 7, 15 * MINUTE_MS


@dataclass(frozen=True)
class TrendingQuestion:
    """The questions to ask: minutes of the last hour, its sources, and the days before; and what of the answers counts."""

    minutes: Question
    sources: Question
    before: Question
    dimension: str
    volume: str
    limit: int


@dataclass(frozen=True)
class Trend:
    """A group, and the factors of its score."""

    id: int
    volume: int
    usual: float
    diversity: float
    recency: float

    @property
    def score(self) -> float:
        """The product of the factors."""
        return self.volume / self.usual * self.diversity * self.recency

    def document(self, dimension: str) -> dict[str, Any]:
        """As it goes over HTTP."""
        factors = {
            "usual": self.usual,
            "growth": self.volume / self.usual,
            "diversity": self.diversity,
            "recency": self.recency,
        }
        return {dimension: self.id, "score": round(self.score, 4), "volume": self.volume} | {
            name: round(value, 4) for name, value in factors.items()
        }


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
        question(end_ms - HOUR_MS, end_ms, "minute", dimension),
        question(end_ms - HOUR_MS, end_ms, "total", dimension, *(s for s in _SOURCES if s != dimension)),
        question(hour - _DAYS * day - HOUR_MS, hour - HOUR_MS, "total", dimension),
        dimension,
        volume,
        limit,
    )


def find_trends(question: TrendingQuestion, minutes: Sums, sources: Sums, before: Sums) -> list[Trend]:
    """The groups with a score above 0, the highest first, from the rows of the three answers."""
    place = MEASURES.index(question.volume)
    ids, rows = np.unique(minutes.groups[0], return_inverse=True)
    events = minutes.measures[place].astype(np.float64)
    age = question.minutes.end_ms - minutes.buckets
    weight = 0.5 ** (age / _HALF_LIFE_MS)
    volume = np.bincount(rows, events, len(ids))
    # Of a steady hour the weights add up to their mean.
    steady = (0.5 ** (np.arange(1, HOUR_MS // MINUTE_MS + 1) * MINUTE_MS / _HALF_LIFE_MS)).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        recency = np.nan_to_num(np.bincount(rows, events * weight, len(ids)) / volume / steady)
        of_sources, shares = _rows_among(ids, sources.groups[0]), sources.measures[place].astype(np.float64)
        kept = of_sources >= 0
        squares = np.bincount(of_sources[kept], shares[kept] ** 2, len(ids))
        whole = np.bincount(of_sources[kept], shares[kept], len(ids))
        diversity = np.nan_to_num(1.0 - squares / whole**2)
    of_before = _rows_among(ids, before.groups[0])
    kept = of_before >= 0
    former = np.bincount(of_before[kept], before.measures[place][kept].astype(np.float64), len(ids))
    usual = np.maximum(former / (_DAYS * 24), LEAST_USUAL)
    trends = [
        Trend(int(i), int(v), float(u), float(d), float(r))
        for i, v, u, d, r in zip(ids, volume, usual, diversity, recency, strict=True)
    ]
    return sorted((t for t in trends if t.score > 0), key=lambda t: (-t.score, t.id))[: question.limit]


def _rows_among(ids: Ints, values: Ints) -> Ints:
    """The place of each value in `ids`, which are sorted; -1 where it is none of them."""
    if not len(ids):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.where(ids[places] == values, places, -1)
