"""Anomalies of campaigns: what is unusual in their hours or minutes, by the detector, told as episodes with the numbers that led to them.

Nothing is stored: the same numbers give the same anomalies, and a number that late events have changed gives others. Only closed
buckets speak. Those before the range that is asked for teach the detector what is usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columnar.columns import Ints
from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_campaigns, parse_id
from query.question import MEASURES, Question, Retention, parse_question
from query.row_scope import RowScope
from query.sums import Sums
from query.times import parse_time
from stream.insights.detector import CRITICAL, WARNING, DetectorBank

SEVERITIES = ("warning", "critical")
KINDS = {
    "ctr-drop": "the click rate fell",
    "spend-spike": "more was spent than three times the usual",
    "zero-impressions": "no impressions, where more than a hundred are usual",
    "surge-ctr-collapse": "five times the usual impressions, at a tenth of the usual click rate",
}
"""What each kind is about."""
GRAINS = {"hour": (HOUR_MS, 7 * DAY_MS), "minute": (MINUTE_MS, 6 * HOUR_MS)}
"""Granularity → the length of its buckets, and how far back anomalies are listed by default."""
_SPIKE, _FEWEST_IMPRESSIONS, _SURGE, _COLLAPSE = 3.0, 100.0, 5.0, 0.1
# Buckets of a campaign before which nothing is said of it, and buckets between two that are unusual in the same way of one episode.
_LEARNED, _GAP = 24, 1
_MOST_VALUES = 2_000_000
# What the rules are about.
_MEASURES = ("impressions", "clicks", "spend_micros")


@dataclass(frozen=True)
class AnomaliesQuestion:
    """The numbers to look at, and since when anomalies are listed."""

    numbers: Question
    from_ms: int
    severities: tuple[str, ...]


class Episode(NamedTuple):
    """Consecutive buckets of a campaign that are unusual in the same way. `deviations`, `value` and `expected` are those of its worst
    bucket, of `measure`. `end_ms`: the end of its last bucket."""

    campaign: int
    kind: str
    start_ms: int
    end_ms: int
    open: bool
    deviations: float
    measure: str
    value: float
    expected: float

    @property
    def severity(self) -> str:
        """By how many deviations it is away."""
        return SEVERITIES[abs(self.deviations) >= CRITICAL]

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        return {
            "campaign_id": self.campaign, "kind": self.kind, "severity": self.severity, "start": iso(self.start_ms), "end": iso(self.end_ms),
            "open": self.open, "measure": self.measure, "value": _number(self.value), "expected": _number(self.expected),
            "deviations": round(self.deviations, 2),
        }  # fmt: skip


def parse_anomalies_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, retention: Retention, scope: RowScope
) -> AnomaliesQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, ("campaign_id", "advertiser_id", "granularity", "since", "severity"))
    grain = values.get("granularity", "hour")
    if grain not in GRAINS:
        raise BadQuestion("granularity", f"granularity must be {' or '.join(GRAINS)}, not {grain[:40]!r}")
    if ("campaign_id" in values) == ("advertiser_id" in values):
        raise BadQuestion("advertiser_id", "give either campaign_id (several, by comma) or advertiser_id")
    severity = values.get("severity", SEVERITIES[0])
    if severity not in SEVERITIES:
        raise BadQuestion("severity", f"severity must be {' or '.join(SEVERITIES)}, not {severity[:40]!r}")
    subject = "advertiser_id" if "advertiser_id" in values else "campaign_id"
    named = values[subject]
    text = ",".join(map(str, parse_campaigns(named))) if subject == "campaign_id" else f"{parse_id(subject, named)}"
    since_ms = parse_time("since", values, now_ms) if "since" in values else now_ms - GRAINS[grain][1]
    if since_ms >= now_ms:
        raise BadQuestion("since", f"since must be in the past, not {values['since'][:40]!r}")
    # All that is retained, so that the detector knows what is usual.
    start = f"-{retention.promised(grain) // MINUTE_MS}m"
    question = {subject: text, "start": start, "end": "now", "granularity": grain, "group_by": "campaign_id"}
    numbers = parse_question(list(question.items()), now_ms, retention, scope)
    return AnomaliesQuestion(numbers, since_ms, SEVERITIES[SEVERITIES.index(severity) :])


def find_anomalies(
    question: AnomaliesQuestion, table: Sums, closed_ms: int | None, degraded: Sequence[tuple[int, int]] = ()
) -> list[Episode]:
    """The episodes, the newest first. `table`: the rows of the answer; `closed_ms`: buckets that end by then speak. `degraded`: ranges,
    [start, end), in which numbers are missing, or may be: these are unknown, and not zero. Raises BadQuestion for too many numbers."""
    numbers = question.numbers
    size_ms = GRAINS[numbers.grain][0]
    end_ms = min(numbers.end_ms, (closed_ms or 0) // size_ms * size_ms)
    times = np.arange(numbers.start_ms, end_ms, size_ms)
    campaigns, columns = np.unique(table.groups[0], return_inverse=True)
    if len(times) * len(campaigns) > _MOST_VALUES:
        detail = f"{len(campaigns):,} campaigns are too many at granularity={numbers.grain}; name fewer by campaign_id"
        raise BadQuestion("advertiser_id", detail, 422, "too-many-campaigns")
    rows = (table.buckets - numbers.start_ms) // size_ms
    kept = rows < len(times)
    unknown = np.zeros(len(times), bool)
    for start_ms, until_ms in degraded:
        unknown |= (times + size_ms > start_ms) & (times < until_ms)
    matrices = dict[str, Any]()
    for name in _MEASURES:
        matrices[name] = np.zeros((len(times), len(campaigns)))
        matrices[name][rows[kept], columns[kept]] = table.measures[MEASURES.index(name)][kept].astype(np.float64)
        matrices[name][unknown] = np.nan
    finder = _Finder(campaigns, size_ms, end_ms)
    for number, at_ms in enumerate(times.tolist()):
        finder.take(at_ms, {name: matrix[number] for name, matrix in matrices.items()})
    episodes = [e for e in finder.episodes() if e.end_ms > question.from_ms and e.severity in question.severities]
    return sorted(episodes, key=lambda e: (-e.start_ms, e.campaign, e.kind))


class _Finder:
    """Takes the buckets of all campaigns, one after the other."""

    def __init__(self, campaigns: Ints, size_ms: int, end_ms: int) -> None:
        self._campaigns, self._size_ms, self._end_ms = campaigns, size_ms, end_ms
        self._rows = np.arange(len(campaigns))
        self._counts, self._spend = DetectorBank(len(campaigns), counts=True), DetectorBank(len(campaigns), counts=True)
        self._rates = DetectorBank(len(campaigns))
        self._known = np.zeros(len(campaigns), np.int64)
        self._running: dict[tuple[int, str], Episode] = {}
        self._over: list[Episode] = []

    def take(self, at_ms: int, values: dict[str, Any]) -> None:
        """The next bucket. Of a campaign without any event so far nothing is known, not even that it has none."""
        self._known += (self._known > 0) | (values["impressions"] > 0) | (values["spend_micros"] > 0)
        started = self._known > 0
        impressions, clicks = (np.where(started, values[name], np.nan) for name in ("impressions", "clicks"))
        spend = np.where(started, values["spend_micros"], np.nan)
        times = np.full(len(self._rows), at_ms)
        of_counts = self._counts.update(self._rows, times, impressions, np.sqrt(np.maximum(impressions, 1)))[:2]
        of_spend = self._spend.update(self._rows, times, spend)[:2]
        rate, noise = _click_rates(impressions, clicks)
        of_rates = self._rates.update(self._rows, times, rate, noise)[:2]
        learned = self._known > _LEARNED
        for kind, measure, unusual, (deviations, expected), value in _rules(
            impressions, spend, rate, of_counts, of_spend, of_rates
        ):
            for row in np.flatnonzero(unusual & learned).tolist():
                campaign = int(self._campaigns[row])
                self._add(
                    Episode(
                        campaign, kind, at_ms, at_ms + self._size_ms, True, float(deviations[row]), measure, float(value[row]),
                        float(expected[row]),
                    )
                )  # fmt: skip

    def _add(self, bucket: Episode) -> None:
        key = bucket.campaign, bucket.kind
        running = self._running.get(key)
        if running is not None and bucket.start_ms <= running.end_ms + _GAP * self._size_ms:
            worst = max(running, bucket, key=lambda episode: abs(episode.deviations))
            self._running[key] = worst._replace(start_ms=running.start_ms, end_ms=bucket.end_ms)
            return
        if running is not None:
            self._over.append(running._replace(open=False))
        self._running[key] = bucket

    def episodes(self) -> Iterator[Episode]:
        """All of them. One is open while it reaches to the last closed bucket, or nearly."""
        yield from self._over
        for running in self._running.values():
            yield running._replace(open=running.end_ms + _GAP * self._size_ms >= self._end_ms)


def _click_rates(impressions: Any, clicks: Any) -> tuple[Any, Any]:
    """Click rates, and the deviation that each has by chance: that of a binomial share. NaN without impressions."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(impressions > 0, clicks / impressions, np.nan)
        # Of a share of 0 or 1 the plain estimate is 0: two more of each, as Agresti and Coull have it (1998).
        likely = (clicks + 2) / (impressions + 4)
        return rates, np.nan_to_num(np.sqrt(likely * (1 - likely) / (impressions + 4)))


def _rules(
    impressions: Any, spend: Any, rate: Any, of_counts: Any, of_spend: Any, of_rates: Any
) -> Iterator[tuple[str, str, Any, Any, Any]]:
    """Of each kind: its measure, in which rows it is true, deviations and expected values, and the values."""
    yield "ctr-drop", "ctr", of_rates[0] <= -WARNING, of_rates, rate
    yield "spend-spike", "spend_micros", (of_spend[0] >= WARNING) & (spend > _SPIKE * of_spend[1]), of_spend, spend
    silent = (impressions == 0) & (of_counts[1] > _FEWEST_IMPRESSIONS) & (of_counts[0] <= -WARNING)
    yield "zero-impressions", "impressions", silent, of_counts, impressions
    surge = (of_counts[0] >= WARNING) & (impressions > _SURGE * of_counts[1]) & (rate < _COLLAPSE * of_rates[1])
    yield "surge-ctr-collapse", "impressions", surge, of_counts, impressions


def _number(value: float) -> float | int:
    return round(value) if abs(value) >= 100 else round(value, 4)
