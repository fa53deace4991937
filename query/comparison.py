"""The earlier range that a question is compared with, and which part of it. Pure.

| `compare` | range | is compared with |
|---|---|---|
| previous | whole local days, up to midnight | as many local days before |
| previous | whole calendar months | as many calendar months before, however long these are |
| previous | any other | the same length before |
| week | any | the same local days and times, seven days before |

Buckets pair by their position: in their local day where days are compared with days, else in their range. So a day of 23 hours lacks
a partner for one hour of a day of 24, and November for the 31st of October.

A range that begins at a midnight, written as such, and reaches until now counts as whole days, the last of them unfinished. Of an
unfinished range, only what has been counted is compared: the earlier range ends where the watermark stands in its own day, at the
finest unit that is still retained there, rounded down.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columnar.columns import Ints
from query import zones
from query.bad_question import BadQuestion
from query.buckets import GRAINS, Buckets, Retention, align_range
from query.zones import UTC

COMPARISONS = ("previous", "week")
_WEEK_DAYS = 7
_NOTHING = -1


@dataclass(frozen=True)
class RangeComparison:
    """`earlier`: the whole earlier range. A moment moves there by `days` local days, or by `shift_ms` where that is not 0.

    `hours_from_ms`: hours before this may no longer be stored; not part of what is asked. `drawn_ms`: by how much the earlier range
    lies before that, to begin at a unit that is still retained.
    """

    kind: str
    earlier: Buckets
    days: int
    shift_ms: int
    hours_from_ms: int
    drawn_ms: int = 0

    @property
    def state(self) -> tuple[Any, ...]:
        """What tells it from other comparisons of the same range; `of_state` makes it again."""
        earlier = self.earlier
        return self.kind, earlier.unit, earlier.start_ms, earlier.end_ms, self.days, self.shift_ms, self.drawn_ms

    @staticmethod
    def of_state(state: Sequence[Any], buckets: Buckets, now_ms: int, retention: Retention) -> RangeComparison:
        """The comparison that the first page of an answer settled on."""
        kind, unit, start_ms, end_ms, days, shift_ms, drawn_ms = state
        earlier = Buckets(buckets.grain, unit, start_ms, end_ms, buckets.zone)
        return RangeComparison(kind, earlier, days, shift_ms, _hours_from(now_ms, retention), drawn_ms)

    # -- moments --------------------------------------------------------------------------------------------

    def earlier_moment(self, time_ms: int) -> int:
        """The moment that a moment of the question's range is compared with: as far into its local day, or at that day's end where
        it is shorter."""
        if self.shift_ms:
            return time_ms - self.shift_ms
        return _move(time_ms, -self.days, self.earlier.zone)[0]

    def partners(self, buckets: Ints) -> Ints:
        """Of buckets of the question, the start of each one's partner in the earlier range; negative for none."""
        return self._move_buckets(buckets, -self.days, -self.shift_ms)

    def present_buckets(self, buckets: Ints) -> Ints:
        """Of buckets of the earlier range, the start of each one's partner in the question's range; negative for none."""
        return self._move_buckets(buckets, self.days, self.shift_ms)

    def _move_buckets(self, buckets: Ints, days: int, shift_ms: int) -> Ints:
        zone = self.earlier.zone
        if shift_ms or zone is UTC:
            return buckets + (shift_ms or days * DAY_MS)
        distinct, numbers = np.unique(buckets, return_inverse=True)
        moved = [_move(bucket, days, zone) for bucket in distinct.tolist()]
        return np.array([to if there else _NOTHING for to, there in moved], np.int64)[numbers]

    # -- the part that is compared --------------------------------------------------------------------------

    def counted_part(self, end_ms: int, watermark_ms: int | None, minutes_from_ms: int | None) -> CountedPart:
        """The part of the earlier range that is compared with a range that ends at `end_ms` and has been counted up to
        `watermark_ms`. `minutes_from_ms`: from when on minutes are retained; None: from nowhere on."""
        whole = self.earlier
        counted_ms: int | None = 0 if watermark_ms is None else _floor(watermark_ms, MINUTE_MS)
        wanted_ms = whole.end_ms
        if counted_ms is not None and counted_ms < end_ms:
            moved_ms = (
                self.earlier_moment(counted_ms) - self.drawn_ms
                if counted_ms > _WEEK_DAYS * DAY_MS + self.shift_ms
                else 0
            )
            wanted_ms = max(whole.start_ms, min(whole.end_ms, moved_ms))
        else:
            counted_ms = None
        cut_ms = wanted_ms
        if cut_ms % HOUR_MS and not whole.only_minutes:
            hour_ms = _floor(cut_ms, HOUR_MS)
            cut_ms = cut_ms if minutes_from_ms is not None and hour_ms >= minutes_from_ms else hour_ms
        if cut_ms % DAY_MS and cut_ms < self.hours_from_ms:
            cut_ms = _floor(cut_ms, DAY_MS)
        return CountedPart(whole.start_ms, max(whole.start_ms, cut_ms), counted_ms, rounded=cut_ms < wanted_ms)


@dataclass(frozen=True)
class CountedPart:
    """[start_ms, end_ms) of the earlier range. `counted_ms`: up to when the question's range counts for it; None: all of it.
    `rounded`: whether the part is shorter than that, since nothing finer than its end is retained."""

    start_ms: int
    end_ms: int
    counted_ms: int | None
    rounded: bool = False


def resolve_comparison(
    kind: str, buckets: Buckets, now_ms: int, retention: Retention, *, from_midnight: bool = False
) -> RangeComparison:
    """The comparison of a range. `from_midnight`: whether the client wrote its start as a time, not as one back from now. Raises
    BadQuestion, with 422 where the earlier range is no longer retained by the question's grain."""
    if kind not in COMPARISONS:
        raise BadQuestion("compare", f"compare must be {' or '.join(COMPARISONS)}, not {kind[:40]!r}")
    zone = buckets.zone
    start_ms, end_ms = buckets.bucket(buckets.start_ms), buckets.end_ms
    if buckets.cuts_hours:
        end_ms = zones.day_start(end_ms, zone)
    days, months_end_ms = _WEEK_DAYS, 0
    if kind == "previous":
        days = _whole_days(start_ms, end_ms, zone, open_until_ms=now_ms if from_midnight else None)
        if days and (months := _whole_months(start_ms, end_ms, zone)):
            days, months_end_ms = _days_of_months_before(start_ms, months, zone), start_ms
    shift_ms = 0 if days else end_ms - start_ms
    if shift_ms:
        earlier_start_ms, earlier_end_ms = start_ms - shift_ms, start_ms
    else:
        earlier_start_ms = _move(start_ms, -days, zone)[0]
        earlier_end_ms = months_end_ms or _move(end_ms, -days, zone)[0]
    earlier, drawn_ms = _align(kind, buckets, earlier_start_ms, earlier_end_ms, now_ms, retention)
    return RangeComparison(kind, earlier, days, shift_ms, _hours_from(now_ms, retention), drawn_ms)


def _hours_from(now_ms: int, retention: Retention) -> int:
    """From when on hours are stored, by the day."""
    return _floor(now_ms - retention.stored("hour"), DAY_MS) + DAY_MS


def _align(
    kind: str, buckets: Buckets, start_ms: int, end_ms: int, now_ms: int, retention: Retention
) -> tuple[Buckets, int]:
    """The earlier range in buckets of the question's grain, and by how much it had to be moved to begin at a unit that is still
    retained."""
    if start_ms >= end_ms:
        raise BadQuestion("compare", "there is no such range before this one; retry without compare")
    # What is stored reaches further back than what questions may ask for.
    stored = replace(retention, minutes_ms=retention.stored("minute"), hours_ms=retention.stored("hour"))
    try:
        earlier = align_range(buckets.grain, start_ms, end_ms, buckets.zone, now_ms, stored)
    except BadQuestion as error:
        retry = _coarser(buckets, start_ms, end_ms, now_ms, stored)
        advice = (
            f"retry with granularity={' or '.join(retry)}, or without compare" if retry else "retry without compare"
        )
        detail = (
            f"compare={kind} needs {buckets.grain}s from {iso(start_ms)} on, which are no longer retained; {advice}"
        )
        raise BadQuestion("compare", detail, 422, "grain-not-held") from error
    if buckets.grain != "total":
        return earlier, 0
    # Aligned outwards, it would be longer than the question's range.
    drawn_ms = start_ms % GRAINS[earlier.unit]
    return replace(earlier, start_ms=start_ms - drawn_ms, end_ms=end_ms - drawn_ms), drawn_ms


def _coarser(buckets: Buckets, start_ms: int, end_ms: int, now_ms: int, retention: Retention) -> list[str]:
    """The granularities by which both ranges are retained."""
    fitting: list[str] = []
    for grain in list(GRAINS)[list(GRAINS).index(buckets.grain) + 1 :] if buckets.grain in GRAINS else []:
        try:
            align_range(grain, buckets.start_ms, buckets.end_ms, buckets.zone, now_ms, retention)
            align_range(grain, start_ms, end_ms, buckets.zone, now_ms, retention)
        except BadQuestion:
            continue
        fitting.append(grain)
    return fitting


# -- local days and months ------------------------------------------------------------------------------------


def _whole_days(start_ms: int, end_ms: int, zone: zoneinfo.ZoneInfo, open_until_ms: int | None) -> int:
    """How many local days a range has; 0 where it does not have whole ones. A range that reaches beyond `open_until_ms` has the day
    in which it ends."""
    if zones.day_start(start_ms, zone) != start_ms:
        return 0
    last_ms = zones.day_start(end_ms, zone)
    is_open = open_until_ms is not None and end_ms > open_until_ms - MINUTE_MS
    if last_ms != end_ms and not is_open:
        return 0
    return _date(last_ms, zone).toordinal() - _date(start_ms, zone).toordinal() + (last_ms != end_ms)


def _whole_months(start_ms: int, end_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """How many calendar months a range of whole days has; 0 where it does not have whole ones."""
    first, last = _date(start_ms, zone), _date(end_ms, zone)
    if first.day != 1 or last.day != 1 or zones.day_start(end_ms, zone) != end_ms:
        return 0
    return (last.year - first.year) * 12 + last.month - first.month


def _days_of_months_before(start_ms: int, months: int, zone: zoneinfo.ZoneInfo) -> int:
    first = _date(start_ms, zone)
    number = first.year * 12 + first.month - 1 - months
    return (first - dt.date(number // 12, number % 12 + 1, 1)).days


def _move(time_ms: int, days: int, zone: zoneinfo.ZoneInfo) -> tuple[int, bool]:
    """A moment some local days later, as far into its day; at the end of that day, and False, where it is shorter."""
    if zone is UTC:
        return time_ms + days * DAY_MS, True
    start_ms = zones.day_start(time_ms, zone)
    there_ms = zones.day_of(_date(start_ms, zone).toordinal() + days, zone)
    end_ms, moved_ms = zones.day_end(there_ms, zone), there_ms + time_ms - start_ms
    return min(moved_ms, end_ms), moved_ms < end_ms


def _date(day_start_ms: int, zone: zoneinfo.ZoneInfo) -> dt.date:
    return dt.datetime.fromtimestamp(day_start_ms // 1000, zone).date()


def _floor(ms: int, size: int) -> int:
    return ms // size * size
