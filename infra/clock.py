"""The one place that reads the wall clock; pure code takes `now_ms` as an argument."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
# What a clock by NTP is off by is a hundredth of it; a lease, and the time after which a partition is silent, are longer.
_MOST_SKEW_S = 2.0


def now_ms() -> int:
    """Epoch milliseconds."""
    return time.time_ns() // 1_000_000


def day_start_ms(date: dt.date) -> int:
    """When a day of UTC begins."""
    return int(dt.datetime.combine(date, dt.time(), dt.UTC).timestamp()) * 1000


def iso(ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds only where there are some."""
    moment = dt.datetime.fromtimestamp(ms // 1000, dt.UTC)
    if ms % 1000:
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def describe_skews(clocks: Mapping[str, float]) -> list[str]:
    """A sentence for each clock that differs from this machine's by too much. `clocks`: name → by how many seconds it is ahead."""
    return [
        f"the clock of {clock} is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's: set both by NTP"
        for clock, ahead_s in clocks.items()
        if abs(ahead_s) > _MOST_SKEW_S
    ]


def date_of(ms: int) -> dt.date:
    """The day (UTC) of a moment."""
    return dt.date(1970, 1, 1) + dt.timedelta(days=ms // DAY_MS)
