"""A range of time, cut into the buckets of an answer: aligned outwards to its grain, and refused where that is no longer retained.

How far back a question may begin and how far back numbers are stored are two things. The promise is about the start before it is
aligned. What is stored reaches further back, by more than aligning adds, so a range that begins within the promise is never
refused.

| granularity | borders of its buckets | read in units of | may begin |
|---|---|---|---|
| minute | minutes | minutes | 24 hours ago |
| hour | local hours | hours; minutes where the zone is not whole hours from UTC | 30 days ago; 24 hours ago |
| day, UTC | days | days | 2 years ago |
| day, other zones | local midnights | hours; minutes where they are retained and a midnight needs them | 30 days ago, or last month |
| total | the range itself | the finest of minutes, hours and days that is retained | 2 years ago |
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columnar.columns import Ints
from query import zones
from query.bad_question import BadQuestion
from query.zones import UTC

GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
MAX_BUCKETS = 200_000
AUTO_BUCKETS = 1_500
STORED_HOURS_MS = 64 * DAY_MS
"""The longest that two months can reach back. ClickHouse drops hours after 66 days (009_retention.sql)."""
# A request that says "24 hours ago" by its client's clock arrives a little later.
_LATENCY_MS = 30_000


@dataclass(frozen=True)
class Buckets:
    """[start_ms, end_ms), in buckets of a grain: minute, hour, day or total.

    `unit` is the coarsest grain that all its borders are multiples of: "hour" for local days that begin at whole hours of UTC,
    "minute" for local hours that do not. Local days that begin within an hour of UTC whose minutes are no longer retained have the
    unit "hour", too: such an hour counts for the day in which it begins.
    """

    grain: str
    unit: str
    start_ms: int
    end_ms: int
    zone: zoneinfo.ZoneInfo

    @property
    def only_minutes(self) -> bool:
        """Whether hours and days do not fit its buckets."""
        return self.unit == "minute" and self.grain != "total"

    @property
    def utc_days(self) -> bool:
        """Whether its days are days of UTC."""
        return self.unit == "day" and self.grain == "day"

    @property
    def will_cut_hours(self) -> bool:
        """Whether a local day begins within an hour of UTC, and is exact for as long as its minutes are retained."""
        return self.grain == "day" and self.unit == "minute"

    @property
    def cuts_hours(self) -> bool:
        """Whether a local day begins within an hour that counts for the day before."""
        return self.grain == "day" and self.unit == "hour" and any(bucket % HOUR_MS for bucket in self.buckets())

    def bucket(self, time_ms: int) -> int:
        """The start of the bucket that holds a time."""
        if self.grain == "total":
            return self.start_ms
        if self.grain == "day" and not self.utc_days:
            return zones.day_start(time_ms // GRAINS[self.unit] * GRAINS[self.unit], self.zone)
        if self.grain == "hour" and self.only_minutes:
            return zones.hour_start(time_ms, self.zone)
        return time_ms // GRAINS[self.grain] * GRAINS[self.grain]

    def bucket_end(self, bucket_ms: int) -> int:
        """The end of a bucket."""
        if self.grain == "total":
            return self.end_ms
        if self.grain == "day" and not self.utc_days:
            return zones.day_end(bucket_ms, self.zone)
        if self.grain == "hour" and self.only_minutes:
            return zones.hour_end(bucket_ms, self.zone)
        return bucket_ms + GRAINS[self.grain]

    def extents(self, buckets: Ints) -> tuple[Ints, Ints]:
        """Start and end of what is read for buckets: their own borders, or whole hours of UTC."""
        if self.grain in GRAINS and GRAINS[self.grain] == GRAINS[self.unit]:
            return buckets, buckets + GRAINS[self.grain]
        ends = np.array([self.bucket_end(bucket) for bucket in buckets.tolist()], np.int64)
        unit = GRAINS[self.unit]
        return -(-buckets // unit) * unit, -(-ends // unit) * unit

    def buckets(self) -> list[int]:
        """The starts of all buckets of the range."""
        starts, at, unit = list[int](), self.bucket(self.start_ms), GRAINS[self.unit]
        while -(-at // unit) * unit < self.end_ms:
            starts.append(at)
            at = self.bucket_end(at)
        return starts

    def label(self, bucket_ms: int) -> str:
        """The bucket's time as answers have it: RFC 3339, with the zone's offset."""
        return label_of(bucket_ms, self.zone)


def label_of(time_ms: int, zone: zoneinfo.ZoneInfo) -> str:
    """A time as answers have it: RFC 3339, with the zone's offset."""
    return iso(time_ms) if zone is UTC else dt.datetime.fromtimestamp(time_ms // 1000, zone).isoformat()


@dataclass(frozen=True)
class Retention:
    """How far back questions may begin, in ms, by grain; local days of other zones at least as far as hours."""

    minutes_ms: int
    hours_ms: int
    days_ms: int = 731 * DAY_MS

    def promised(self, grain: str) -> int:
        """How far back a question may begin, in ms."""
        return {"minute": self.minutes_ms, "hour": self.hours_ms, "day": self.days_ms}[grain]

    def stored(self, grain: str) -> int:
        """How far back the stores reach, in ms: further than what is promised, and less far than what they drop."""
        hours_ms = max(self.hours_ms + DAY_MS, STORED_HOURS_MS)
        return {"minute": self.minutes_ms + HOUR_MS, "hour": hours_ms, "day": self.days_ms + DAY_MS}[grain]


@dataclass(frozen=True)
class _RequestedRange:
    """A range before it is aligned, and the time of the request."""

    start_ms: int
    end_ms: int
    zone: zoneinfo.ZoneInfo
    now_ms: int
    retention: Retention

    def align(self, granularity: str) -> Buckets | None:
        """The buckets of a granularity, by the table above; None where they are no longer retained."""
        if granularity == "total":
            return self._as_total()
        if granularity == "auto":
            return self._as_finest(AUTO_BUCKETS)
        return {"minute": self._as_minutes, "hour": self._as_hours, "day": self._as_days}[granularity]()

    def _as_minutes(self) -> Buckets | None:
        low, high = _outwards(self.start_ms, self.end_ms, MINUTE_MS)
        retained = self._begins_within(self.retention.minutes_ms, lambda at: at // MINUTE_MS * MINUTE_MS)
        return Buckets("minute", "minute", low, high, self.zone) if retained else None

    def _as_hours(self) -> Buckets | None:
        low, high = self._local_outwards(zones.hour_start, zones.hour_end)
        unit = "hour" if zones.has_whole_hours(low, high, self.zone) else "minute"
        retained = self._begins_within(self.retention.promised(unit), lambda at: zones.hour_start(at, self.zone))
        return Buckets("hour", unit, low, high, self.zone) if retained else None

    def _as_days(self) -> Buckets | None:
        low, high = self._local_outwards(zones.day_start, zones.day_end)
        if not self._begins_within(self.retention.days_ms, self._day_start):
            return None
        borders = [low, high] if self.zone is UTC else [*Buckets("day", "minute", low, high, self.zone).buckets(), high]
        if not any(border % DAY_MS for border in borders):
            return Buckets("day", "day", low, high, self.zone)
        needs_minutes = any(border % HOUR_MS for border in borders)
        if needs_minutes and low >= self.now_ms - self.retention.stored("minute"):
            return Buckets("day", "minute", low, high, self.zone)
        if low >= self._last_month_ms or self._begins_within(self.retention.hours_ms, self._day_start):
            return Buckets("day", "hour", _round_up(low, HOUR_MS), _round_up(high, HOUR_MS), self.zone)
        return None

    def _as_total(self) -> Buckets | None:
        """One bucket, aligned to the finest grain that is retained: the same in every zone."""
        for unit, size in GRAINS.items():
            reach_ms = self.retention.stored("hour") if unit == "hour" else self.retention.promised(unit)
            if self._begins_within(reach_ms, lambda at, size=size: at // size * size):  # type: ignore[misc]
                return Buckets("total", unit, *_outwards(self.start_ms, self.end_ms, size), self.zone)
        return None

    def _as_finest(self, max_buckets: int) -> Buckets | None:
        """Buckets of the finest grain that is retained and has few enough; of the finest that is retained where none has."""
        finest = None
        for grain, size in GRAINS.items():
            buckets = self.align(grain)
            if buckets is not None and (buckets.end_ms - buckets.start_ms) // size <= max_buckets:
                return buckets
            finest = finest or buckets
        return finest

    def oldest_ms(self, grain: str) -> int:
        """The earliest start that buckets of a grain may have."""
        minutes_ms, hours_ms, days_ms = (self.now_ms - self.retention.promised(unit) for unit in GRAINS)
        if grain == "minute":
            return minutes_ms // MINUTE_MS * MINUTE_MS
        if grain == "hour":
            return zones.hour_start(hours_ms if self.has_whole_hours else minutes_ms, self.zone)
        if self.zone is UTC:
            return zones.day_start(days_ms, UTC)
        return min(self._day_start(hours_ms), self._last_month_ms)

    @property
    def has_whole_hours(self) -> bool:
        """Whether local hours are hours of UTC all over the range."""
        return zones.has_whole_hours(self.start_ms, self.end_ms, self.zone)

    @property
    def _last_month_ms(self) -> int:
        # On the first day of a month another zone, or a client's clock, is still in the one before.
        return zones.last_month_start(self.now_ms - DAY_MS, self.zone)

    def _day_start(self, time_ms: int) -> int:
        return zones.day_start(time_ms, self.zone)

    def _local_outwards(
        self, start_of: Callable[[int, zoneinfo.ZoneInfo], int], end_of: Callable[[int, zoneinfo.ZoneInfo], int]
    ) -> tuple[int, int]:
        last = start_of(self.end_ms, self.zone)
        high = last if last == self.end_ms else end_of(last, self.zone)
        return start_of(self.start_ms, self.zone), high

    def _begins_within(self, reach_ms: int, floor: Callable[[int], int]) -> bool:
        oldest_ms = self.now_ms - reach_ms
        return floor(self.start_ms) >= floor(oldest_ms) or self.start_ms >= oldest_ms - _LATENCY_MS


def align_range(
    granularity: str, start_ms: int, end_ms: int, zone: zoneinfo.ZoneInfo, now_ms: int, retention: Retention
) -> Buckets:
    """The buckets of a range, by `granularity` as the client gave it. Raises BadQuestion, with 422 where they are no longer retained."""
    if granularity not in (*GRAINS, "total", "auto"):
        raise BadQuestion(
            "granularity", f"granularity must be minute, hour, day, total or auto, not {granularity[:40]!r}"
        )
    requested = _RequestedRange(start_ms, end_ms, zone, now_ms, retention)
    buckets = requested.align(granularity)
    if buckets is None:
        raise _not_held(granularity, requested)
    if buckets.grain in GRAINS and (buckets.end_ms - buckets.start_ms) // GRAINS[buckets.grain] > MAX_BUCKETS:
        raise BadQuestion(
            "end",
            f"the range has more than {MAX_BUCKETS:,} {buckets.grain}s; retry with a shorter range or a coarser granularity",
        )
    return buckets


def refuse_unless_stored(buckets: Buckets, now_ms: int, retention: Retention) -> None:
    """Raises BadQuestion (422) for the range of a cursor once the stores no longer have it."""
    if buckets.start_ms < now_ms - retention.stored(buckets.unit):
        since = iso(buckets.start_ms)
        detail = f"the {buckets.unit}s from {since} on that the cursor continues are no longer retained; retry without cursor"
        raise BadQuestion("cursor", detail, 422, "grain-not-held")


def _not_held(granularity: str, requested: _RequestedRange) -> BadQuestion:
    """The refusal of a granularity: since when it is retained, and which one to retry with."""
    zone, grain = requested.zone, granularity if granularity in GRAINS else "day"
    if requested.align("total") is None:
        since = iso(zones.day_start(requested.now_ms - requested.retention.days_ms, UTC))
        detail = f"nothing before {since} is retained: numbers are kept for two years; retry with a later start"
        return BadQuestion("granularity", detail, 422, "grain-not-held")
    fitting = [other for other in GRAINS if requested.align(other) is not None]
    retry = f"granularity={' or '.join(fitting)}" if fitting else "granularity=total, or with timezone=UTC"
    since = iso(requested.oldest_ms(grain))
    if grain == "hour" and not requested.has_whole_hours:
        detail = (
            f"hours of {zone.key}, which is not a whole number of hours from UTC, are read from minutes, and minutes before {since} "
            f"are no longer retained; retry with {retry}"
        )
        return BadQuestion("timezone", detail, 422, "grain-not-held")
    shown = f"days of {zone.key}" if grain == "day" else f"{grain}s"
    detail = f"{shown} before {since} are no longer retained; retry with {retry}"
    return BadQuestion("granularity", detail, 422, "grain-not-held")


def _outwards(start_ms: int, end_ms: int, size: int) -> tuple[int, int]:
    return start_ms // size * size, _round_up(end_ms, size)


def _round_up(time_ms: int, size: int) -> int:
    return -(-time_ms // size) * size
