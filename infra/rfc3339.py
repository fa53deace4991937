"""Times of RFC 3339. Pure."""

from __future__ import annotations

import datetime as dt
import re

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,18}))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII)


def time_ms_of(text: str) -> int | None:
    """Epoch milliseconds of an RFC 3339 time with an offset, rounded down; None when it is not one."""
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        return None
    date, clock, fraction, _, sign, hours, minutes = parts.groups()
    if sign and (int(hours) > 23 or int(minutes) > 59):
        return None
    try:
        moment = dt.datetime.fromisoformat(f"{date}T{clock}+00:00")
    except ValueError:
        return None
    seconds = (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(seconds=1)
    if sign:
        shift = (int(hours) * 60 + int(minutes)) * 60
        seconds -= shift if sign == "+" else -shift
    return seconds * 1000 + (int(fraction[:3].ljust(3, "0")) if fraction else 0)
