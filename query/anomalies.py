"""Anomalies of campaigns: what is unusual in their hours or minutes, by the detector, told as episodes with the numbers that led to them.

Nothing is stored: the same numbers give the same anomalies, and a number that late events have changed gives others. Only closed
buckets speak. Those before the range that is asked for teach the detector what is usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infra.clickhouse.alerts import SEVERITIES as SEVERITIES
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_campaigns, parse_id
from query.question import MEASURES, Question, Retention, parse_question
from query.row_scope import RowScope
from query.sums import Sums
from query.times import parse_time
from stream.insights import rules
from stream.insights.rules import KINDS as KINDS
from stream.insights.rules import Finding
from stream.insights.watch import Key, Watch

GRAINS = {"hour": (HOUR_MS, 7 * DAY_MS), "minute": (MINUTE_MS, 6 * HOUR_MS)}
"""Granularity → the length of its buckets, and how far back anomalies are listed by default."""
# Buckets of a campaign before which nothing is said of it, and buckets between two that are unusual in the same way of one episode.
_LEARNED, _GAP = 24, 1
_MOST_VALUES = 2_000_000


@dataclass(frozen=True)
class AnomaliesQuestion:
    """The numbers to look at, and since when anomalies are listed."""

    numbers: Question
    from_ms: int
    severities: tuple[str, ...]


class Episode(NamedTuple):
    """Consecutive buckets of a campaign that are unusual in the same way. `end_ms`: the end of the last one."""

    campaign: int
    worst: Finding
    start_ms: int
    end_ms: int
    open: bool

    @property
    def kind(self) -> str:
        """What is unusual."""
        return self.worst.kind

    @property
    def severity(self) -> str:
        """That of the worst bucket."""
        return self.worst.severity

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        worst = self.worst
        return {
            "campaign_id": self.campaign, "kind": self.kind, "severity": self.severity, "start": iso(self.start_ms), "end": iso(self.end_ms),
            "open": self.open, "measure": worst.measure, "value": _number(worst.value), "expected": _number(worst.expected),
            "deviations": round(worst.deviations, 2),
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


@dataclass(frozen=True)
class ClosedNumbers:
    """The rows of an answer. `closed_ms`: buckets that end by then speak. `degraded`: ranges, [start, end), in which numbers are missing, or
    may be: these are unknown, and not zero."""

    table: Sums
    closed_ms: int | None
    degraded: Sequence[tuple[int, int]] = ()

    def end_ms(self, question: Question) -> int:
        """The end of the last bucket that speaks."""
        size_ms = GRAINS[question.grain][0]
        return min(question.end_ms, (self.closed_ms or 0) // size_ms * size_ms)


class Bucket(NamedTuple):
    """What is unusual in a bucket, and how many campaigns were to have impressions in it."""

    at_ms: int
    findings: Iterator[tuple[Key, Finding]]
    watch: Watch


def find_anomalies(question: AnomaliesQuestion, closed: ClosedNumbers) -> list[Episode]:
    """The episodes, the newest first. Raises BadQuestion for too many numbers."""
    size_ms, end_ms = GRAINS[question.numbers.grain][0], closed.end_ms(question.numbers)
    found = _Episodes(size_ms, end_ms)
    for bucket in watch_buckets(question.numbers, closed):
        for (campaign, _), finding in bucket.findings:
            found.add(campaign, bucket.at_ms, finding)
    episodes = [e for e in found.all() if e.end_ms > question.from_ms and e.severity in question.severities]
    return sorted(episodes, key=lambda e: (-e.start_ms, e.campaign, e.kind))


def watch_buckets(numbers: Question, closed: ClosedNumbers) -> Iterator[Bucket]:
    """All closed buckets, in the order of time. The advertiser of each key is 0. Raises BadQuestion for too many numbers."""
    table, size_ms = closed.table, GRAINS[numbers.grain][0]
    times = np.arange(numbers.start_ms, closed.end_ms(numbers), size_ms)
    campaigns, columns = np.unique(table.groups[0], return_inverse=True)
    if len(times) * len(campaigns) > _MOST_VALUES:
        detail = f"{len(campaigns):,} campaigns are too many at granularity={numbers.grain}; name fewer by campaign_id"
        raise BadQuestion("advertiser_id", detail, 422, "too-many-campaigns")
    rows = (table.buckets - numbers.start_ms) // size_ms
    kept = rows < len(times)
    unknown = np.zeros(len(times), bool)
    for start_ms, until_ms in closed.degraded:
        unknown |= (times + size_ms > start_ms) & (times < until_ms)
    matrices = dict[str, Any]()
    for name in rules.MEASURES:
        matrices[name] = np.zeros((len(times), len(campaigns)))
        matrices[name][rows[kept], columns[kept]] = table.measures[MEASURES.index(name)][kept].astype(np.float64)
        matrices[name][unknown] = np.nan
    watch = Watch(_LEARNED)
    watch.rows_of(campaigns, np.zeros_like(campaigns))
    for number, at_ms in enumerate(times.tolist()):
        findings = watch.take(at_ms, *(matrices[name][number] for name in rules.MEASURES))
        yield Bucket(at_ms, findings, watch)


class _Episodes:
    """Puts unusual buckets together that follow each other."""

    def __init__(self, size_ms: int, end_ms: int) -> None:
        self._size_ms, self._end_ms = size_ms, end_ms
        self._running: dict[tuple[int, str], Episode] = {}
        self._over: list[Episode] = []

    def add(self, campaign: int, at_ms: int, finding: Finding) -> None:
        """An unusual bucket, after those before it."""
        bucket = Episode(campaign, finding, at_ms, at_ms + self._size_ms, True)
        key = campaign, finding.kind
        running = self._running.get(key)
        if running is not None and at_ms <= running.end_ms + _GAP * self._size_ms:
            worst = max(running, bucket, key=lambda episode: abs(episode.worst.deviations))
            self._running[key] = worst._replace(start_ms=running.start_ms, end_ms=bucket.end_ms)
            return
        if running is not None:
            self._over.append(running._replace(open=False))
        self._running[key] = bucket

    def all(self) -> Iterator[Episode]:
        """All of them. One is open while it reaches to the last closed bucket, or nearly."""
        yield from self._over
        for running in self._running.values():
            yield running._replace(open=running.end_ms + _GAP * self._size_ms >= self._end_ms)


def _number(value: float) -> float | int:
    return round(value) if abs(value) >= 100 else round(value, 4)
