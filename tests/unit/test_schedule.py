"""When the nightly run is due."""

from __future__ import annotations

import datetime as dt

import pytest

from infra.embedded.schedule import due


@pytest.mark.parametrize(
    ("at", "now", "first_up", "done", "day"),
    [
        ("off", "2026-11-21T04:00", "2026-11-01T00:00", None, None),
        ("03:00", "2026-11-21T02:59", "2026-11-20T12:00", None, None),
        ("03:00", "2026-11-21T03:00", "2026-11-20T12:00", None, "2026-11-20"),
        ("03:00", "2026-11-21T03:00", "2026-11-21T03:30", None, None),
        ("03:00", "2026-11-21T23:00", "2026-11-20T12:00", "2026-11-19", "2026-11-20"),
        ("03:00", "2026-11-21T23:00", "2026-11-20T12:00", "2026-11-20", None),
        ("03:00", "2026-11-21T02:00", "2026-11-10T12:00", "2026-11-18", "2026-11-19"),
        # On Mondays, for all days since the last one (the 23rd is one).
        ("0 3 * * 1", "2026-11-22T04:00", "2026-11-10T12:00", "2026-11-18", None),
        ("0 3 * * 1", "2026-11-23T04:00", "2026-11-10T12:00", "2026-11-18", "2026-11-19"),
        # Missed since the first start: one after the other.
        ("03:00", "2026-11-25T04:00", "2026-11-20T12:00", None, "2026-11-20"),
        ("03:00", "2026-11-25T04:00", "2026-11-20T12:00", "2026-11-20", "2026-11-21"),
        ("03:00", "2026-11-25T04:00", "2026-11-20T02:00", None, "2026-11-19"),
    ],
)
def test_a_day_is_due_at_the_moment_after_its_end(
    at: str, now: str, first_up: str, done: str | None, day: str | None
) -> None:
    moments = [dt.datetime.fromisoformat(t + ":00+00:00") for t in (now, first_up)]
    due_day = due(at, moments[0], moments[1], dt.date.fromisoformat(done) if done else None)
    assert due_day == (dt.date.fromisoformat(day) if day else None)
