"""Ranges to buckets: aligned outwards, and refused once they are no longer retained."""

from __future__ import annotations

import pytest

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query.plan import EXACT_HOURS, Borders, Piece
from query.question import BadQuestion, Retention, parse_question
from query.rows import build_rows
from tests.unit.questions import NOW, frame_of, question_of, rows_of, sums_of


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"granularity": "minute", "start": "-25h"}, "hour or day"),
        ({"granularity": "minute", "start": "-25h"}, "minutes before 2026-11-19T13:38:00Z .* granularity=hour or day"),
        ({"granularity": "hour", "start": "-31d"}, "day"),
        ({"granularity": "hour", "start": "-31d"}, "hours before 2026-10-21T13:00:00Z .* granularity=day"),
        ({"granularity": "minute", "start": "-25h", "timezone": "Asia/Kolkata"}, "granularity=day$"),
        (
            {"granularity": "day", "start": "-51d", "timezone": "Europe/Berlin"},
            "days of Europe/Berlin before 2026-09-30T22:00:00Z .* granularity=total, or with timezone=UTC",
        ),
        (
            {"granularity": "auto", "start": "-51d", "timezone": "Asia/Kolkata"},
            "days of Asia/Kolkata .* granularity=total",
        ),
        ({"granularity": "total", "start": "-900d"}, "nothing"),
    ],
)
def test_a_granularity_that_is_no_longer_retained_is_refused_with_one_to_retry_with(
    parameters: dict[str, str], expected: str
) -> None:
    with pytest.raises(BadQuestion, match=expected) as error:
        question_of(**parameters)
    assert (error.value.status, error.value.parameter) == (422, "granularity")


def test_ranges_are_aligned_outwards() -> None:
    minute, hour, day = (question_of(start="-61m", granularity=g) for g in ("minute", "hour", "day"))
    assert (iso(minute.start_ms), iso(minute.end_ms)) == ("2026-11-20T12:37:00Z", "2026-11-20T13:39:00Z")
    assert (iso(hour.start_ms), iso(hour.end_ms)) == ("2026-11-20T12:00:00Z", "2026-11-20T14:00:00Z")
    assert (iso(day.start_ms), iso(day.end_ms)) == ("2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z")
    assert question_of(granularity="minute", start="-24h").grain == "minute"


@pytest.mark.parametrize(("start", "grain"), [("-24h", "minute"), ("-25h", "hour"), ("-30d", "hour"), ("-40d", "day")])
def test_granularity_auto_is_the_finest_that_is_retained_and_fits(start: str, grain: str) -> None:
    assert question_of(start=start, granularity="auto").grain == grain


@pytest.mark.parametrize(("date", "hours"), [("2026-10-25", 25), ("2026-11-20", 24)])
def test_a_local_day_may_have_25_hours(date: str, hours: int) -> None:
    question = parse_question(
        [("campaign_id", "7"), ("start", f"{date}T05:00:00Z"), ("end", f"{date}T06:00:00Z"), ("granularity", "day"), ("timezone", "Europe/Berlin")],
        NOW, Retention(24 * HOUR_MS, 60 * DAY_MS),
    )  # fmt: skip
    assert question.end_ms - question.start_ms == hours * HOUR_MS
    assert question.label(question.start_ms).startswith(f"{date}T00:00:00+0")
    assert question.bucket(question.end_ms - 1) == question.start_ms


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Australia/Adelaide"])
@pytest.mark.parametrize("start", ["-5h", "-24h"])
def test_half_hour_zones_are_answered_from_minutes_while_these_are_retained(zone: str, start: str) -> None:
    question = question_of(granularity="hour", start=start, timezone=zone)
    assert question.only_minutes
    assert question.start_ms % HOUR_MS == HOUR_MS // 2
    assert all(question.label(b)[14:19] == "00:00" for b in question.buckets())
    assert question.bucket(question.start_ms + HOUR_MS - 1) == question.start_ms
    assert not question_of(granularity="total", start="-5d", timezone=zone).only_minutes
    with pytest.raises(BadQuestion, match="whole number of hours") as error:
        question_of(granularity="hour", start="-25h", timezone=zone)
    assert error.value.status == 422


@pytest.mark.parametrize(
    ("zone", "first"), [("Asia/Kolkata", "19:00"), ("Asia/Kathmandu", "19:00"), ("America/St_Johns", "04:00")]
)
def test_without_minutes_an_hour_in_which_a_local_day_begins_counts_for_the_day_before(zone: str, first: str) -> None:
    question = question_of(granularity="day", start="-3d", timezone=zone, fill="zero")
    assert question.cuts_hours
    assert iso(question.start_ms)[11:16] == first
    assert question.start_ms % HOUR_MS == question.end_ms % HOUR_MS == 0
    buckets = question.buckets()
    assert [question.label(bucket)[11:19] for bucket in buckets] == ["00:00:00"] * 4
    assert question.bucket(question.start_ms) == buckets[0]
    # Minutes of such an hour go where the hour will go.
    assert {question.bucket(question.start_ms - 1 - n * MINUTE_MS + DAY_MS) for n in range(60)} == {buckets[0]}
    assert len(rows_of(question, {(bucket,): (1, 0, 0, 0, 0) for bucket in buckets[1:]})) == 4
    pieces = [Piece(EXACT_HOURS, question.start_ms, question.start_ms + DAY_MS, "r")]
    rows = build_rows(question, sums_of(question, {(b,): (1, 0, 0, 0, 0) for b in buckets[:2]}), Borders(), pieces)
    assert frame_of(question, rows)["finality"].to_list()[:2] == ["reconciled", "provisional"]
    today = question_of(granularity="day", start="-1m", timezone=zone)
    assert (today.only_minutes, today.cuts_hours) == (True, False)
