"""When the nightly reconciliation is due. Pure."""

from __future__ import annotations

import datetime as dt

from infra import cron

RETRY_S = 600.0
DONE = (0, 3)
"""How the job exits when it need not be tried again: done, done with an alert."""
_DAY = dt.timedelta(days=1)


def due(at: str, now: dt.datetime, first_up: dt.datetime, last_done: dt.date | None) -> dt.date | None:
    """The earliest day that ought to be reconciled now, or None. `at` is what the setting `reconcile_at` may be.

    A day is due at the first scheduled moment after its end, if that moment came after the stack's first start: what was missed since
    is caught up with, day by day.
    """
    if at == "off":
        return None

    def moment_of(day: dt.date) -> dt.datetime:
        return cron.first_from(at, dt.datetime.combine(day + _DAY, dt.time(), dt.UTC))

    day = first_up.date() - 2 * _DAY if last_done is None else last_done + _DAY
    while moment_of(day) <= first_up:
        day += _DAY
    return day if moment_of(day) <= now else None
