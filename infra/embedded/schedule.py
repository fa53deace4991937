"""When the nightly reconciliation is due. Pure."""

from __future__ import annotations

import datetime as dt

RETRY_S = 600.0


def due(at: str, now: dt.datetime, first_up: dt.datetime, last_done: dt.date | None) -> dt.date | None:
    """The day that ought to be reconciled now, or None. `at` is HH:MM in UTC, or off.

    A day is due at the scheduled moment after its end, if that moment came after the stack's first start.
    """
    if at == "off":
        return None
    hour, minute = map(int, at.split(":"))
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if moment > now:
        moment -= dt.timedelta(days=1)
    day = moment.date() - dt.timedelta(days=1)
    if moment <= first_up or (last_done is not None and last_done >= day):
        return None
    return day
