"""Moments at which something is due, by cron expressions: the only module that imports croniter."""

from __future__ import annotations

import datetime as dt
import re
from typing import cast

from croniter import croniter

_MINUTE, _FIELDS = dt.timedelta(minutes=1), 5


def first_from(schedule: str, moment: dt.datetime) -> dt.datetime:
    """The first moment of a schedule, a time of the day (HH:MM) or a cron expression of five fields, that is not before
    `moment`. Raises ValueError for what is neither, or never comes."""
    time = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", schedule)
    expression = f"{int(time[2])} {int(time[1])} * * *" if time else schedule
    try:
        if len(expression.split()) != _FIELDS:
            raise ValueError
        return cast("dt.datetime", croniter(expression, moment - _MINUTE).get_next(dt.datetime))
    except ValueError:
        raise ValueError("must be HH:MM or a cron expression like 0 3 * * *") from None
