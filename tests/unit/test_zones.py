"""Local days and hours: they tile time in every zone, whatever is done to the clocks there."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, iso
from query import zones
from query.zones import UTC, day_end, day_start, hour_end, hour_start, zone_named

# Where clocks were set at midnight, by half an hour, or by a whole day.
_ODD = (
    "Africa/Cairo", "America/Havana", "America/Santiago", "America/St_Johns", "America/Sao_Paulo", "Antarctica/Casey",
    "Antarctica/Troll", "Asia/Amman", "Asia/Beirut", "Asia/Gaza", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Pyongyang",
    "Asia/Tehran", "Atlantic/Azores", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Pacific/Kwajalein",
)  # fmt: skip
_zone = st.one_of(st.sampled_from(_ODD), st.sampled_from(sorted(zones.names()))).map(zone_named)
_second = st.integers(631_152_000, 2_208_988_800).map(lambda second: second * 1000)  # 1990 to 2040


def local(time_ms: int, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).astimezone(zone)


@st.composite
def _near_a_change(draw: st.DrawFn) -> tuple[int, zoneinfo.ZoneInfo]:
    """A moment, mostly within a day of one where the zone's clocks were set."""
    zone, at = draw(_zone), draw(_second)
    offset = local(at, zone).utcoffset()
    month = next((n for n in range(12) if local(at + n * 30 * DAY_MS, zone).utcoffset() != offset), None)
    if month is None:
        return at, zone
    low, high = at + (month - 1) * 30 * DAY_MS, at + month * 30 * DAY_MS
    while high - low > 1000:
        middle = (low + high) // 2
        low, high = (middle, high) if local(middle, zone).utcoffset() == offset else (low, middle)
    return high // 1000 * 1000 + draw(st.integers(-90_000, 90_000)) * 1000, zone


@given(_near_a_change())
def test_every_moment_is_in_one_local_day_and_days_tile_time(sample: tuple[int, zoneinfo.ZoneInfo]) -> None:
    at, zone = sample
    start = day_start(at, zone)
    end = day_end(start, zone)
    assert start <= at < end
    assert day_start(start, zone) == start
    assert day_start(end - 1, zone) == start
    assert day_start(end, zone) == end
    assert end - start <= 27 * HOUR_MS
    # Never early: no moment of the date before, but where it is shown again; never late.
    assert local(start, zone).date() > local(start - 1, zone).date()
    assert local(end, zone).date() > local(end - 1, zone).date()


@given(_near_a_change())
def test_every_moment_is_in_one_local_hour_and_hours_tile_time(sample: tuple[int, zoneinfo.ZoneInfo]) -> None:
    at, zone = sample
    start = hour_start(at, zone)
    end = hour_end(start, zone)
    assert start <= at < end <= start + HOUR_MS
    assert hour_start(start, zone) == start
    assert hour_start(end - 1, zone) == start
    assert hour_start(end, zone) == end
    # Its minutes are those that the clock shows, also where it jumps by whole hours within one.
    shown = [local(moment, zone).minute * 60 + local(moment, zone).second for moment in (start, at // 1000 * 1000)]
    assert shown[1] - shown[0] == (at - start) // 1000
    cut = local(start, zone).utcoffset() != local(start - 1, zone).utcoffset()
    assert cut or (local(start, zone).minute, local(start, zone).second) == (0, 0)


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", 25),
        ("Africa/Cairo", "2026-04-24T12:00:00Z", "2026-04-23T22:00:00Z", 23),  # no midnight
        ("America/Havana", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", 25),  # midnight twice
        ("America/Santiago", "2026-04-04T12:00:00Z", "2026-04-04T03:00:00Z", 25),  # 23 o'clock twice
        (
            "America/St_Johns",
            "2010-11-07T03:00:00Z",
            "2010-11-07T02:30:00Z",
            25,
        ),  # a minute of the day, then the day before
        ("Australia/Lord_Howe", "2026-04-04T14:00:00Z", "2026-04-04T13:00:00Z", 24.5),
        ("Asia/Kolkata", "2026-11-20T00:00:00Z", "2026-11-19T18:30:00Z", 24),
        ("Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29T10:00:00Z", 24),  # the next date was skipped
        ("Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", 24),
        ("America/Toronto", "1919-03-31T12:00:00Z", "1919-03-31T04:30:00Z", 23.5),  # from 23:30 to 0:30
        ("Asia/Amman", "2021-03-26T12:00:00Z", "2021-03-25T22:00:00Z", 23),
    ],
)
def test_days_begin_with_their_date(zone: str, moment: str, start: str, hours: float) -> None:
    at = int(dt.datetime.fromisoformat(moment).timestamp()) * 1000
    begin = day_start(at, zone_named(zone))
    assert iso(begin) == start
    assert day_end(begin, zone_named(zone)) - begin == hours * HOUR_MS


@pytest.mark.parametrize("name", ["UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "Etc/Zulu", "UCT", "Universal", "GMT+0", "Etc/Greenwich"])  # fmt: skip
def test_all_names_of_utc_are_utc(name: str) -> None:
    assert zone_named(name) is UTC


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("europe/berlin", "Europe/Berlin"), ("Europe/Berlni", "Europe/Berlin"), ("utc", "UTC"), ("", ""), ("Europe", None),
     ("right/Europe/Berlin", "Europe/Berlin"), ("posixrules", ""), ("Mars/Olympus", ""), ("x" * 5000, ""), ("\0", "")],
)  # fmt: skip
def test_a_zone_without_an_iana_name_is_refused_with_the_nearest_name(name: str, suggestion: str | None) -> None:
    with pytest.raises(zones.UnknownZone) as error:
        zone_named(name)
    # None: whichever comes first of many.
    assert suggestion in (None, error.value.suggestion)
