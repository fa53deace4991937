"""A range of time, cut into the buckets of an answer: aligned outwards to its grain, and refused where that is no longer held.

What a question may begin with and what is stored are two things. The promise is about the start as it is asked: 24 hours of
minutes, 30 days of hours, in another zone the days of this month and the last. What is stored reaches further back, by more than
aligning adds, so a range that begins within the promise is never refused.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.columns import Ints
from query import zones
from query.bad_question import BadQuestion
from query.zones import UTC

GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
MAX_BUCKETS = 200_000
AUTO_BUCKETS = 1_500
STORED_HOURS_MS = 64 * DAY_MS
"""The longest that two months can reach back. ClickHouse drops hours after 66 days (009_retention.sql)."""
# A client that takes "24 hours ago" from its own clock is heard a little later.
_LATENCY_MS = 30_000


@dataclass(frozen=True)
class Buckets:
    """[start_ms, end_ms), in buckets of a grain: minute, hour, day or total.

    `unit` is what its borders are whole in: "hour" for local days that begin at whole hours of UTC, "minute" for local hours
    that do not. Local days that begin within an hour of UTC whose minutes are gone have the unit "hour", too: such an hour counts
    for the day in which it begins.
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
        """From where to where the numbers of some buckets reach: their own borders, or whole hours of UTC."""
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
        """How a bucket is shown: RFC 3339, with the zone's offset."""
        if self.zone is UTC:
            return iso(bucket_ms)
        return dt.datetime.fromtimestamp(bucket_ms // 1000, self.zone).isoformat()


@dataclass(frozen=True)
class Held:
    """How long each grain is held for those who ask: `hours_ms` of hours, and of days in another zone at least that."""

    minutes_ms: int
    hours_ms: int
    days_ms: int = 731 * DAY_MS

    def promised(self, unit: str) -> int:
        """How far back a question may begin, in ms."""
        return {"minute": self.minutes_ms, "hour": self.hours_ms, "day": self.days_ms}[unit]

    def stored(self, unit: str) -> int:
        """How far back the stores reach, in ms: more than is promised, and less than they drop."""
        hours_ms = max(self.hours_ms + DAY_MS, STORED_HOURS_MS)
        return {"minute": self.minutes_ms + HOUR_MS, "hour": hours_ms, "day": self.days_ms + DAY_MS}[unit]


@dataclass(frozen=True)
class _Range:
    """A range as it is asked, and when."""

    start_ms: int
    end_ms: int
    zone: zoneinfo.ZoneInfo
    now_ms: int
    held: Held

    def fit(self, grain: str) -> Buckets | None:
        """Its buckets of a grain; None where that is no longer held."""
        return {"minute": self._minutes, "hour": self._hours, "day": self._days}[grain]()

    def finest(self, most: int) -> Buckets | None:
        """Its buckets of the finest grain that is held and has few enough; of the finest that is held where none has."""
        finest = None
        for grain, size in GRAINS.items():
            buckets = self.fit(grain)
            if buckets is not None and (buckets.end_ms - buckets.start_ms) // size <= most:
                return buckets
            finest = finest or buckets
        return finest

    def total(self) -> Buckets | None:
        """One bucket, aligned to the finest that is stored: the same in every zone."""
        for unit, size in GRAINS.items():
            low, high = self.start_ms // size * size, -(-self.end_ms // size) * size
            reach_ms = self.held.stored("hour") if unit == "hour" else self.held.promised(unit)
            if self._begins_within(reach_ms, lambda at, size=size: at // size * size):  # type: ignore[misc]
                return Buckets("total", unit, low, high, self.zone)
        return None

    def _minutes(self) -> Buckets | None:
        low, high = self.start_ms // MINUTE_MS * MINUTE_MS, -(-self.end_ms // MINUTE_MS) * MINUTE_MS
        held = self._begins_within(self.held.minutes_ms, lambda at: at // MINUTE_MS * MINUTE_MS)
        return Buckets("minute", "minute", low, high, self.zone) if held else None

    def _hours(self) -> Buckets | None:
        low, high = self._outwards(zones.hour_start, zones.hour_end)
        unit = "hour" if zones.has_whole_hours(low, high, self.zone) else "minute"
        held = self._begins_within(self.held.promised(unit), lambda at: zones.hour_start(at, self.zone))
        return Buckets("hour", unit, low, high, self.zone) if held else None

    def _days(self) -> Buckets | None:
        low, high = self._outwards(zones.day_start, zones.day_end)
        floor = lambda at: zones.day_start(at, self.zone)  # noqa: E731
        if not self._begins_within(self.held.days_ms, floor):
            return None
        if self.zone is UTC:
            return Buckets("day", "day", low, high, self.zone)
        local = Buckets("day", "minute", low, high, self.zone)
        borders = [*local.buckets(), high]
        if not any(border % DAY_MS for border in borders):
            return Buckets("day", "day", low, high, self.zone)
        if any(border % HOUR_MS for border in borders) and low >= self.now_ms - self.held.stored("minute"):
            return local
        if low < self._last_month_ms and not self._begins_within(self.held.hours_ms, floor):
            return None
        return Buckets("day", "hour", -(-low // HOUR_MS) * HOUR_MS, -(-high // HOUR_MS) * HOUR_MS, self.zone)

    def oldest_ms(self, grain: str) -> int:
        """How far back its buckets of a grain may begin."""
        minutes_ms, hours_ms, days_ms = (self.now_ms - self.held.promised(unit) for unit in GRAINS)
        if grain == "minute":
            return minutes_ms // MINUTE_MS * MINUTE_MS
        if grain == "hour":
            whole = zones.has_whole_hours(self.start_ms, self.end_ms, self.zone)
            return zones.hour_start(hours_ms if whole else minutes_ms, self.zone)
        if self.zone is UTC:
            return zones.day_start(days_ms, UTC)
        return min(zones.day_start(hours_ms, self.zone), self._last_month_ms)

    @property
    def _last_month_ms(self) -> int:
        # On the first day of a month another zone, or a client's clock, is still in the one before.
        return zones.last_month_start(self.now_ms - DAY_MS, self.zone)

    def _outwards(
        self, start_of: Callable[[int, zoneinfo.ZoneInfo], int], end_of: Callable[[int, zoneinfo.ZoneInfo], int]
    ) -> tuple[int, int]:
        last = start_of(self.end_ms, self.zone)
        high = last if last == self.end_ms else end_of(last, self.zone)
        return start_of(self.start_ms, self.zone), high

    def _begins_within(self, reach_ms: int, floor: Callable[[int], int]) -> bool:
        oldest_ms = self.now_ms - reach_ms
        return floor(self.start_ms) >= floor(oldest_ms) or self.start_ms >= oldest_ms - _LATENCY_MS


def align(asked: str, start_ms: int, end_ms: int, zone: zoneinfo.ZoneInfo, now_ms: int, held: Held) -> Buckets:
    """The buckets of a range, by `granularity` as it is asked. Raises BadQuestion (422) where it is no longer held."""
    if asked not in (*GRAINS, "total", "auto"):
        raise BadQuestion("granularity", f"granularity is minute, hour, day, total or auto, not {asked[:40]!r}")
    range_ = _Range(start_ms, end_ms, zone, now_ms, held)
    if asked in GRAINS:
        buckets = range_.fit(asked)
    elif asked == "total":
        buckets = range_.total()
    else:
        buckets = range_.finest(AUTO_BUCKETS)
    if buckets is None:
        raise _not_held(asked, range_)
    if buckets.grain in GRAINS and (buckets.end_ms - buckets.start_ms) // GRAINS[buckets.grain] > MAX_BUCKETS:
        raise BadQuestion("end", f"the range has more than {MAX_BUCKETS} {buckets.grain}s")
    return buckets


def _not_held(asked: str, range_: _Range) -> BadQuestion:
    """What is held, and what would do instead."""
    zone, grain = range_.zone, asked if asked in GRAINS else "day"
    if range_.total() is None:
        since = iso(zones.day_start(range_.now_ms - range_.held.days_ms, UTC))
        detail = f"nothing is held before {since}: numbers are kept for two years"
        return BadQuestion("granularity", detail, 422, "grain-not-held")
    fitting = [other for other in GRAINS if range_.fit(other) is not None]
    instead = f"granularity={' or '.join(fitting)}" if fitting else "granularity=total, or with timezone=UTC"
    since = iso(range_.oldest_ms(grain))
    if grain == "hour" and not zones.has_whole_hours(range_.start_ms, range_.end_ms, zone):
        detail = (
            f"{zone.key} is not a whole number of hours from UTC: its hours are served from minutes, and minutes before "
            f"{since} are no longer held; retry with {instead}"
        )
        return BadQuestion("timezone", detail, 422, "grain-not-held")
    shown = f"days of {zone.key}" if grain == "day" else f"{grain}s"
    return BadQuestion(
        "granularity", f"{shown} before {since} are no longer held; retry with {instead}", 422, "grain-not-held"
    )


def refuse_unless_stored(buckets: Buckets, now_ms: int, held: Held) -> None:
    """Raises BadQuestion (422) for the range of a cursor that has outlived what it is about."""
    if buckets.start_ms < now_ms - held.stored(buckets.unit):
        since = iso(buckets.start_ms)
        detail = (
            f"the {buckets.unit}s from {since} on that this cursor goes on with are no longer held; start without one"
        )
        raise BadQuestion("cursor", detail, 422, "grain-not-held")
