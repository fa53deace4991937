"""Local days and hours of a time zone, as half-open ranges of epoch milliseconds. Pure.

Days have 23 to 27 hours, hours may be cut short where a clock is set by less than one, a midnight may be missing or come twice,
and a date may be skipped. A day begins at the first moment whose local date is that day's, so that days always tile time.
"""

from __future__ import annotations

import datetime as dt
import difflib
import zoneinfo
from collections.abc import Callable
from functools import cache, lru_cache

from infra.clock import DAY_MS, HOUR_MS

UTC = zoneinfo.ZoneInfo("UTC")
_SECOND_MS = 1000


class UnknownZone(Exception):
    """No time zone has this name. `suggestion` is the nearest name, or empty."""

    def __init__(self, name: str, suggestion: str) -> None:
        super().__init__(name)
        self.suggestion = suggestion


@cache
def names() -> frozenset[str]:
    """The IANA names."""
    return frozenset(zoneinfo.available_timezones())


@lru_cache(maxsize=1024)
def zone_named(name: str) -> zoneinfo.ZoneInfo:
    """The zone; UTC itself for all names of it, such as GMT, Etc/GMT and Zulu. Raises UnknownZone."""
    # ZoneInfo opens more names than these: "right/…" counts leap seconds.
    if name not in names():
        folded = {known.casefold(): known for known in names()}
        near = difflib.get_close_matches(name[:40].casefold(), folded, 1)
        raise UnknownZone(name, folded[near[0]] if near else "")
    zone = zoneinfo.ZoneInfo(name)
    return UTC if zone.utcoffset(None) == dt.timedelta() else zone


def day_start(time_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """The start of the local day that holds a time."""
    if zone is UTC:
        return time_ms // DAY_MS * DAY_MS
    day = _local_date(time_ms, zone)
    # Where midnight comes twice, a day has begun before its date is shown for good.
    following = _first_moment(day + 1, zone)
    return following if following <= time_ms else _first_moment(day, zone)


def day_end(start_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """The end of the local day that begins at `start_ms`."""
    return start_ms + DAY_MS if zone is UTC else _first_moment(_local_date(start_ms, zone) + 1, zone)


def day_of(ordinal: int, zone: zoneinfo.ZoneInfo) -> int:
    """The start of the local day of a date (a proleptic ordinal); of the next one where the date is skipped."""
    return _first_moment(ordinal, zone)


def last_month_start(now_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """The start of the calendar month before the one that is now."""
    first = dt.date.fromordinal(_local_date(now_ms, zone)).replace(day=1)
    return _first_moment((first - dt.timedelta(days=1)).replace(day=1).toordinal(), zone)


def hour_start(time_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """The start of the local hour that holds a time."""
    beyond = beyond_hours(time_ms, zone)
    start = time_ms - (time_ms + beyond) % HOUR_MS
    if beyond_hours(start, zone) == beyond:
        return start
    # The clock was set within this hour, by less than one.
    return _first(start, time_ms, lambda moment: beyond_hours(moment, zone) == beyond)


def hour_end(start_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """The end of the local hour that begins at `start_ms`."""
    beyond = beyond_hours(start_ms, zone)
    end = start_ms - (start_ms + beyond) % HOUR_MS + HOUR_MS
    if beyond_hours(end - _SECOND_MS, zone) == beyond:
        return end
    return _first(start_ms, end - _SECOND_MS, lambda moment: beyond_hours(moment, zone) != beyond)


def beyond_hours(time_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    """What a zone's offset from UTC has beyond whole hours, in ms."""
    if zone is UTC:
        return 0
    offset = dt.datetime.fromtimestamp(time_ms // _SECOND_MS, zone).utcoffset() or dt.timedelta()
    return int(offset.total_seconds() * 1000) % HOUR_MS


def has_whole_hours(start_ms: int, end_ms: int, zone: zoneinfo.ZoneInfo) -> bool:
    """Whether local hours are hours of UTC all over a range."""
    return zone is UTC or not any(beyond_hours(at, zone) for at in (*range(start_ms, end_ms, DAY_MS), end_ms))


def _local_date(time_ms: int, zone: zoneinfo.ZoneInfo) -> int:
    return dt.datetime.fromtimestamp(time_ms // _SECOND_MS, zone).toordinal()


@lru_cache(maxsize=65_536)
def _first_moment(day: int, zone: zoneinfo.ZoneInfo) -> int:
    """The first moment whose local date is this day (a proleptic ordinal), or a later one."""
    midnight = dt.datetime.fromordinal(day)
    # They differ where the clock is set around midnight, which then comes twice or is skipped.
    early, late = sorted(int(midnight.replace(tzinfo=zone, fold=fold).timestamp()) * _SECOND_MS for fold in (0, 1))
    if early == late or _local_date(early, zone) >= day:
        return early
    return _first(early, late, lambda moment: _local_date(moment, zone) >= day)


def _first(low_ms: int, high_ms: int, has_happened: Callable[[int], bool]) -> int:
    """The first whole second after `low_ms` at which something has happened; at `high_ms` it has."""
    while high_ms - low_ms > _SECOND_MS:
        middle = (low_ms + high_ms) // 2 // _SECOND_MS * _SECOND_MS
        low_ms, high_ms = (low_ms, middle) if has_happened(middle) else (middle, high_ms)
    return high_ms
