"""What a replay says of events that come too late: only what holds on every partition."""

from __future__ import annotations

import datetime as dt
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clickhouse.retention import PUBLISHED_DAYS
from infra.clickhouse.schema import all_statements
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.errors import UserError
from ingest.lateness import Lateness, judge_lateness
from ingest.replay.backfill import Backfill

_DAY = 20_000
_WATERMARK_MS = _DAY * DAY_MS + 5 * HOUR_MS
_TIMES = st.integers(_WATERMARK_MS - 2 * HOUR_MS, _WATERMARK_MS + HOUR_MS)


@given(st.lists(_TIMES, max_size=30), st.integers(0, HOUR_MS))
def test_an_event_called_late_is_too_late_on_every_partition(times_ms: list[int], ahead_ms: int) -> None:
    backfill = Backfill(_WATERMARK_MS - HOUR_MS, 0)
    backfill.add(times_ms)
    too_late = 0
    for time_ms in times_ms:
        verdict, _, _ = judge_lateness(np.array([time_ms]), np.array([True]), _WATERMARK_MS + ahead_ms)
        too_late += verdict[0] == Lateness.TOO_LATE
    assert backfill.events <= too_late
    if not ahead_ms:
        near = sum(abs(time_ms - (_WATERMARK_MS - HOUR_MS)) <= MINUTE_MS for time_ms in times_ms)
        assert backfill.events >= too_late - near


def test_days_are_named_once_with_the_command_that_counts_them() -> None:
    backfill = Backfill(_WATERMARK_MS - HOUR_MS, (_DAY - 30) * DAY_MS)
    for days_ago in (3, 1, 3, None, 0, 31):
        backfill.add([None if days_ago is None else (_DAY - days_ago) * DAY_MS + 5 * HOUR_MS])
    day = dt.date(1970, 1, 1) + dt.timedelta(days=_DAY)
    assert backfill.days == [day - dt.timedelta(days=3), day - dt.timedelta(days=1)]
    late, expired = backfill.lines()
    assert late.startswith("3 events ")
    assert f"--from {backfill.days[0]} --to {backfill.days[1]}" in late
    assert expired.startswith("1 events ") and "never billed" in expired


def test_a_file_that_could_never_be_billed_is_refused_and_one_wild_date_in_a_file_is_not() -> None:
    kept_from_ms = (_DAY - 30) * DAY_MS
    backfill = Backfill(None, kept_from_ms)
    backfill.add([kept_from_ms] * 19 + [0])
    with pytest.raises(UserError, match="20 of 20 events"):
        backfill.add([kept_from_ms - 1] * 20)
    assert (backfill.expired, backfill.events) == (1, 0)


def test_the_days_that_are_kept_are_those_of_the_tables() -> None:
    for table in ("exact_days", "exact_hours"):
        ends = [statement for statement in all_statements() if f".{table} MODIFY TTL" in statement]
        assert re.findall(r"time \+ INTERVAL (\d+) DAY\b(?! TO VOLUME)", ends[-1]) == [str(PUBLISHED_DAYS)]
