"""For how long published numbers stay in ClickHouse."""

from __future__ import annotations

import datetime as dt

from infra.clock import date_of

PUBLISHED_DAYS = 735
"""Rows of days and of reconciled hours are deleted after this: the TTL of their tables (`009_retention.sql`)."""


def first_published_day(now_ms: int) -> dt.date:
    """The oldest day (UTC) whose published rows stay."""
    return date_of(now_ms) - dt.timedelta(days=PUBLISHED_DAYS - 1)
