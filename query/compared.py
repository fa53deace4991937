"""The numbers of an earlier range beside those of a question, and the relative change of each. Pure, and by column.

Changes are exact: of ratios, too, they follow from the sums, not from the rounded ratios.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Bools, Ints
from ingest.partials import BILLED
from query import sums
from query.comparison import CountedPart, RangeComparison
from query.question import CHANGES, MEASURES, PREVIOUS, RATIOS, Question
from query.ratios import FRACTIONS, Ratio, ratios_of, round_half_up
from query.sums import Exact, Sums

_DECIMALS = 10_000


@dataclass(frozen=True)
class EarlierSums:
    """The sums of the part of an earlier range that was read; `known`: whether any tier has answered for it."""

    comparison: RangeComparison
    part: CountedPart
    sums: Sums
    known: bool = True


def join_earlier(question: Question, table: Sums, earlier: EarlierSums) -> Sums:
    """The table with the measures of the earlier range behind its own: a row for each bucket and group that either has."""
    zeros = (np.zeros(len(table), np.int64),) * len(MEASURES)
    moved = _move_to_present(question, earlier)
    before = (np.zeros(len(moved), np.int64),) * len(MEASURES)
    flags = np.zeros(len(moved), bool)
    both = [
        replace(table, measures=(*table.measures, *zeros)),
        replace(moved, measures=(*before, *moved.measures), corrected=flags, sampled=flags),
    ]
    return sums.sum_equal_keys(sums.concatenate(both))


def split_joined(table: Sums) -> tuple[Sums, Sums]:
    """The present and the earlier sums of a table of `join_earlier`, row by row."""
    present, before = table.measures[: len(MEASURES)], table.measures[len(MEASURES) :]
    return replace(table, measures=present), replace(table, measures=before)


def compare_columns(question: Question, table: Sums, before: Sums, earlier: EarlierSums) -> dict[str, Ratio]:
    """PREVIOUS and CHANGES by name: what of the earlier range is beside each row of the table. Null for buckets without a partner in the part of
    the earlier range that is compared."""
    absent = _lacks_partner(question, table.buckets, earlier)
    previous = {f"previous_{m}": Ratio(column, absent) for m, column in zip(MEASURES, before.measures, strict=True)}
    for name, ratio in ratios_of(before).items():
        previous[f"previous_{name}"] = Ratio(ratio.values, ratio.absent | absent)
    now = dict(zip(MEASURES, table.measures, strict=True))
    then = dict(zip(MEASURES, before.measures, strict=True))
    changes = {f"change_{m}": _change(now[m], _ONE, then[m], _ONE, absent) for m in BILLED}
    for name in RATIOS:
        part, whole = FRACTIONS[name]
        changes[f"change_{name}"] = _change(now[part], now[whole], then[part], then[whole], absent)
    assert (*previous, *changes) == (*PREVIOUS, *CHANGES)
    return previous | changes


_ONE = np.ones(1, np.int64)


def _change(part: Exact, whole: Exact, part_before: Exact, whole_before: Exact, absent: Bools) -> Ratio:
    """(part / whole) / (part_before / whole_before) - 1, to four decimals, halves up; null where it is not defined."""
    absent = (
        absent | np.asarray(part_before == 0, bool) | np.asarray(whole_before == 0, bool) | np.asarray(whole == 0, bool)
    )
    now, then = _multiply(part, whole_before), _multiply(part_before, whole)
    then = np.where(absent, 1, then)
    wide = [sums.widen(column, 4 * _DECIMALS) for column in (now, then)]
    values = round_half_up((wide[0] - wide[1]) * _DECIMALS, wide[1])
    return Ratio(values.astype(np.float64) / _DECIMALS, np.broadcast_to(absent, values.shape))


def _multiply(column: Exact, factor: Exact) -> Exact:
    return np.asarray(sums.widen(column, int(factor.max(initial=0))) * factor)


def _move_to_present(question: Question, earlier: EarlierSums) -> Sums:
    """The earlier sums in the buckets of the question that they are compared with, without those that have no partner there."""
    table = earlier.sums
    if question.grain == "total":
        buckets = np.full(len(table), question.start_ms, np.int64)
    else:
        buckets = earlier.comparison.present_buckets(table.buckets)
    first_ms = question.bucket(question.start_ms)
    there = (first_ms <= buckets) & (buckets < question.end_ms)
    if question.only_minutes and question.grain == "hour":
        # Hours that a clock cut short: into the one that holds their beginning.
        buckets = np.array([question.bucket(bucket) for bucket in buckets.tolist()], np.int64)
    return sums.sum_equal_keys(sums.take(replace(table, buckets=buckets), np.flatnonzero(there)))


def _lacks_partner(question: Question, buckets: Ints, earlier: EarlierSums) -> Bools:
    part = earlier.part
    if not earlier.known or part.end_ms <= part.start_ms:
        return np.ones(len(buckets), bool)
    if question.grain == "total":
        return np.zeros(len(buckets), bool)
    partners: npt.NDArray[Any] = earlier.comparison.partners(buckets)
    return np.asarray((partners < 0) | (partners >= part.end_ms), bool)
