"""Time ranges of dashboards are answered in every zone, at every second of the day."""

from __future__ import annotations

import calendar
import datetime as dt
import re
import zoneinfo
from functools import cache
from importlib import resources

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.settings import Settings
from query import zones
from query.question import Question, Retention, parse_question
from stream.hot.writer import KEPT_BEYOND_MS

DEFAULTS = Settings.model_validate({})
HELD = Retention(DEFAULTS.hot_hours * HOUR_MS, DEFAULTS.warm_days * DAY_MS)
_zone = st.sampled_from(sorted(zones.names()))
_second = st.integers(1_704_067_200, 2_145_916_800)  # 2024 to 2038
# For a client whose clock is a little behind, or whose question took a moment.
_delay_ms = st.integers(0, 20_000)


def ms(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)


def presets(now_ms: int, zone: zoneinfo.ZoneInfo) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """name → (start, end, grains), by the calendar of the standard library."""
    today = dt.datetime.fromtimestamp(now_ms / 1000, zone).date()
    month = today.replace(day=1)
    former = (month - dt.timedelta(days=1)).replace(day=1)

    def midnight(date: dt.date) -> str:
        return dt.datetime(date.year, date.month, date.day, tzinfo=zone).isoformat()

    now, days = iso(now_ms), ("total", "day", "auto")
    return {
        "last hour": ("-1h", "now", ("minute", "hour", *days)),
        "last hour, by the client's clock": (iso(now_ms - HOUR_MS), now, ("minute", "hour", *days)),
        "last 24 hours": ("-24h", "now", ("minute", "hour", *days)),
        "last 24 hours, by the client's clock": (iso(now_ms - DAY_MS), now, ("minute", "hour", *days)),
        "a day": ("-1d", "now", ("minute", "hour", *days)),
        "today": (midnight(today), now, days),
        "yesterday": (midnight(today - dt.timedelta(days=1)), midnight(today), days),
        "last 7 days": ("-7d", "now", days),
        "last 30 days": ("-30d", "now", days),
        "last 30 days, by the client's clock": (iso(now_ms - 30 * DAY_MS), now, days),
        "last 30 dates": (midnight(today - dt.timedelta(days=30)), now, days),
        "month to date": (midnight(month), now, days),
        "last month": (midnight(former), midnight(month), days),
    }


def ask(start: str, end: str, grain: str, zone: str, now_ms: int) -> Question:
    names = {"campaign_id": "7", "start": start, "end": end, "granularity": grain, "timezone": zone}
    return parse_question(list(names.items()), now_ms, HELD)


def _is_empty(start: str, end: str) -> bool:
    """Whether it is midnight: then today has not begun."""
    return (
        "-" not in (start[0], end[0])
        and end != "now"
        and dt.datetime.fromisoformat(start) >= dt.datetime.fromisoformat(end)
    )


@given(_second, _zone, _delay_ms)
@settings(max_examples=200)
@example(1_795_181_895, "Asia/Kolkata", 0)
@example(1_795_181_895, "Europe/Berlin", 0)
@example(1_743_292_800, "Europe/Berlin", 0)  # the day after summer time began
@example(1_793_490_300, "Australia/Lord_Howe", 5)
@example(1_835_308_799, "Pacific/Kiritimati", 19_999)  # the last second of a month of 31 days
def test_every_preset_is_answered_in_every_zone_at_every_second(second: int, name: str, delay_ms: int) -> None:
    asked_ms = second * 1000 + 123
    now_ms = asked_ms + delay_ms
    stored_from_ms = {
        "minute": now_ms - HELD.minutes_ms - KEPT_BEYOND_MS,
        "hour": now_ms - _stored_days("stream_hours") * DAY_MS,
        "day": now_ms - _stored_days("stream_days") * DAY_MS,
    }
    for start, end, grains in presets(asked_ms, zoneinfo.ZoneInfo(name)).values():
        for grain in grains if not _is_empty(start, end) else ():
            question = ask(start, end, grain, name, now_ms)
            # What it reads is still there, with half an hour to spare.
            assert question.start_ms - question.start_ms % HOUR_MS >= stored_from_ms[question.unit] - 30 * MINUTE_MS


@given(_second, _zone, st.data())
def test_days_are_those_of_the_calendar_and_every_hour_is_in_one(second: int, name: str, data: st.DataObject) -> None:
    now_ms, zone = second * 1000, zoneinfo.ZoneInfo(name)
    ranges = [(start, end) for start, end, _ in presets(now_ms, zone).values() if not _is_empty(start, end)]
    start, end = data.draw(st.sampled_from(ranges))
    question = ask(start, end, "day", name, now_ms)
    edges = [
        now_ms if text == "now" else now_ms - int(text[1:-1]) * {"h": HOUR_MS, "d": DAY_MS}[text[-1]] if text[0] == "-"
        else ms(dt.datetime.fromisoformat(text))
        for text in (start, end)
    ]  # fmt: skip
    first, last = (
        dt.datetime.fromtimestamp(at / 1000, dt.UTC).astimezone(zone).date() for at in (edges[0], edges[1] - 1)
    )
    labels = [dt.datetime.fromisoformat(question.label(bucket).replace("Z", "+00:00")) for bucket in question.buckets()]
    assert [label.date() for label in labels] == [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]
    buckets = [question.bucket(hour) for hour in range(question.start_ms, question.end_ms, HOUR_MS)]
    assert buckets == sorted(buckets)
    assert set(buckets) == set(question.buckets())


@cache
def _stored_days(table: str) -> int:
    """After how many days ClickHouse drops rows of a table, by the newest of the files that say so."""
    folder = resources.files("infra.clickhouse")
    texts = [file.read_text() for file in sorted(folder.iterdir(), key=lambda f: f.name) if file.name.endswith(".sql")]
    statements = [s for text in texts for s in text.split(";\n") if re.search(rf"\b{table}\b", s) and "TTL" in s]
    return int(re.findall(r"INTERVAL (\d+) DAY(?! TO)", statements[-1])[-1])


@given(_second, _zone)
def test_a_total_is_the_same_in_every_zone(second: int, name: str) -> None:
    now_ms, zone = second * 1000, zoneinfo.ZoneInfo(name)
    for start, end, _ in presets(now_ms, zone).values():
        if not _is_empty(start, end):
            local, utc = (ask(start, end, "total", zone_, now_ms) for zone_ in (name, "UTC"))
            assert (local.start_ms, local.end_ms, local.unit) == (utc.start_ms, utc.end_ms, utc.unit)


def test_the_bill_of_last_month_begins_and_ends_with_the_month_in_the_customers_zone() -> None:
    for day in range(1, 31):
        # On the last day it is December in Berlin already, and still November where the bill is asked for.
        now_ms = ms(dt.datetime(2026, 11, day, 23, 59, 59, tzinfo=dt.UTC))
        bill = ask("2026-10-01T00:00:00+02:00", "2026-11-01T00:00:00+01:00", "total", "Europe/Berlin", now_ms)
        assert (iso(bill.start_ms), iso(bill.end_ms)) == ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z")
        days = ask("2026-10-01T00:00:00+02:00", "2026-11-01T00:00:00+01:00", "day", "Europe/Berlin", now_ms)
        assert (days.start_ms, days.end_ms, len(days.buckets())) == (bill.start_ms, bill.end_ms, 31)


@pytest.mark.parametrize("zone", ["GMT", "Etc/GMT", "Zulu", "Africa/Abidjan", "Atlantic/Reykjavik"])
def test_days_of_a_zone_equal_to_utc_are_retained_as_long_as_those_of_utc(zone: str) -> None:
    question = ask("-700d", "now", "day", zone, 1_795_181_895_182)
    assert question.utc_days
    assert question.start_ms == ask("-700d", "now", "day", "UTC", 1_795_181_895_182).start_ms


@pytest.mark.parametrize("month", range(1, 13))
def test_two_months_never_reach_further_back_than_hours_are_stored(month: int) -> None:
    days = [calendar.monthrange(2027, month)[1], calendar.monthrange(2027, 12 if month == 1 else month - 1)[1]]
    assert sum(days) + 4 <= _stored_days("stream_hours")
