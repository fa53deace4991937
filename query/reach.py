"""Users of an answer's rows, and how often each was reached: where they are read, and the columns beside the rows. Pure.

Users are counted by whole hours of UTC, by campaign and advertiser. Of several rows they are a union, never a sum, so each bucket and
the total are estimated apart. `stream.reach.registers` has the arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from infra.clock import DAY_MS, HOUR_MS
from infra.columnar.columns import Ints
from query import sums
from query.plan import Borders, Piece
from query.question import MEASURES, Question
from query.ratios import Ratio, round_half_up
from query.sums import Sums
from stream.reach.registers import PRECISION

STREAM_HOURS, STREAM_DAYS = "stream_reach_hours", "stream_reach_days"
RUN_HOURS, RUN_DAYS, RUNS = "exact_reach_hours", "exact_reach_days", "exact_reach_runs"
"""The tables that users are read from: those of the stream, and those of nightly runs."""
OF_RUNS = (RUN_HOURS, RUN_DAYS)
EVENTS = ("impressions", "clicks", "conversions")
"""Frequency is these, summed, by user."""
ENCODING = hashlib.sha256(repr((PRECISION, EVENTS)).encode()).hexdigest()[:16]
_CENTS = 100


@dataclass(frozen=True)
class Users:
    """About how many users there were, by bucket (epoch ms) and, where rows are grouped by campaign, campaign; none elsewhere."""

    buckets: Ints
    campaigns: Ints
    counts: Ints

    def of(self, question: Question, table: Sums) -> Ints:
        """The users of each row of a table of the question."""
        keys = [self.buckets, self.campaigns] if question.group_by else [self.buckets]
        if not len(self.counts) or not len(table):
            return np.zeros(len(table), np.int64)
        ours, rows = np.zeros(len(self.counts), np.int64), np.zeros(len(table), np.int64)
        for own, wanted in zip(keys, table.keys, strict=True):
            distinct = np.unique(np.concatenate((own, wanted)))
            ours = ours * len(distinct) + np.searchsorted(distinct, own)
            rows = rows * len(distinct) + np.searchsorted(distinct, wanted)
        order = np.argsort(ours)
        places = np.minimum(np.searchsorted(ours[order], rows), len(ours) - 1)
        return np.where(ours[order][places] == rows, self.counts[order][places], 0)


@dataclass(frozen=True)
class Reach:
    """What is known of the users of an answer. `rows`, `total`: None where they were not asked for, or are not known; `warnings` says
    why. `whole`: whether counts are of the same range as users, so that one can be divided by the other. `settled`: whether nothing
    can change them."""

    rows: Users | None = None
    total: Users | None = None
    whole: bool = True
    settled: bool = False
    warnings: list[str] = field(default_factory=list)
    rows_read: int = 0

    def beside_rows(self, question: Question, table: Sums) -> dict[str, Ratio]:
        """The columns USERS beside rows."""
        return self._columns(self.rows, question, table)

    def beside_total(self, question: Question, table: Sums) -> dict[str, Ratio]:
        """The columns USERS beside the one row of all rows."""
        return self._columns(self.total, question, table)

    def _columns(self, users: Users | None, question: Question, table: Sums) -> dict[str, Ratio]:
        unknown = np.full(len(table), users is None)
        counts = np.zeros(len(table), np.int64) if users is None else users.of(question, table)
        events = sum_events(table)
        absent = unknown | (counts == 0) | (not self.whole)
        hundredths = round_half_up(sums.widen(events, 2 * _CENTS) * _CENTS, np.where(absent, 1, counts))
        return {
            "users": Ratio(counts, unknown),
            "frequency": Ratio(hundredths.astype(np.float64) / _CENTS, absent),
        }


def covers_whole_hours(question: Question, now_ms: int) -> bool:
    """Whether counts of the question's range are of the same hours as its users. An hour that has not ended has nothing behind `now_ms`."""
    start_ms, end_ms = whole_hours(question)
    return start_ms == question.start_ms and (end_ms == question.end_ms or question.end_ms >= now_ms)


def sum_events(table: Sums) -> sums.Exact:
    """Impressions, clicks and conversions of each row together."""
    columns = [sums.widen(table.measures[MEASURES.index(name)], len(EVENTS)) for name in EVENTS]
    return np.asarray(sum(columns[1:], columns[0]))


def whole_hours(question: Question) -> tuple[int, int]:
    """The range that users are counted in: that of the question, widened to whole hours."""
    return question.start_ms // HOUR_MS * HOUR_MS, -(-question.end_ms // HOUR_MS) * HOUR_MS


def plan_users(
    question: Question, borders: Borders, hour_runs: Collection[str], day_runs: Collection[str]
) -> list[Piece]:
    """Which table has the users of which part of the range, in the order of time: of a day with a current run, that run's, else the
    stream's; of either the day, where all of it is in one bucket, or else the hours. `hour_runs`, `day_runs`: the runs that have their
    users in RUN_HOURS, and in RUN_DAYS."""
    start_ms, end_ms = whole_hours(question)
    whole_days = question.grain == "total" or question.utc_days
    pieces = list[Piece]()

    def add(table: str, from_ms: int, until_ms: int, run: str = "") -> None:
        if from_ms >= until_ms:
            return
        former = pieces[-1] if pieces else None
        if former is not None and (former.tier, former.run, former.end_ms) == (table, run, from_ms):
            pieces[-1] = Piece(table, former.start_ms, until_ms, run)
        else:
            pieces.append(Piece(table, from_ms, until_ms, run))

    for day in range(start_ms // DAY_MS * DAY_MS, end_ms, DAY_MS):
        at, until = max(start_ms, day), min(end_ms, day + DAY_MS)
        run = borders.runs.get(day, "")
        run_end = max(at, min(until, borders.run_end_ms(day) // HOUR_MS * HOUR_MS))
        if whole_days and run in day_runs and run_end - at == DAY_MS:
            add(RUN_DAYS, at, until, run)
            at = until
        elif run in hour_runs:
            add(RUN_HOURS, at, run_end, run)
            at = run_end
        add(STREAM_DAYS if whole_days and until - at == DAY_MS else STREAM_HOURS, at, until)
    return pieces
