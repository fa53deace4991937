"""Parsing, planning and merging of questions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query import answer
from query.answer import Sums, Table
from query.plan import COLD, EXACT_DAYS, EXACT_HOURS, HOT, WARM, Borders, Piece, plan
from query.request import BadQuestion, Held, Question, parse

NOW = 1_795_181_895_182  # 2026-11-20T13:38:15.182Z
HELD = Held(24 * HOUR_MS, 30 * DAY_MS)


def ask(**parameters: str) -> Question:
    base = {"campaign_id": "7", "start": "-1h", "end": "now"} | parameters
    return parse([(k, v) for k, v in base.items() if v], NOW, HELD)


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"campaign_id": ""}, "campaign_id"),
        ({"campaign_id": "x"}, "campaign_id"),
        ({"campaign_id": "-1"}, "campaign_id"),
        ({"campaign_id": "9223372036854775808"}, "campaign_id"),
        ({"campaign_id": ",".join(map(str, range(1001)))}, "campaign_id"),
        ({"advertiser_id": "3"}, "campaign_id"),
        ({"start": ""}, "start"),
        ({"start": "yesterday"}, "start"),
        ({"start": "2026-11-20T00:00:00"}, "start"),
        ({"start": "0001-01-01T00:00:00Z"}, "start"),
        ({"end": "9999-01-01T00:00:00Z"}, "end"),
        ({"start": "now", "end": "-1h"}, "end"),
        ({"granularity": "week"}, "granularity"),
        ({"group_by": "color"}, "group_by"),
        ({"filter": "country"}, "filter"),
        ({"filter": "country:XX"}, "filter"),
        ({"filter": "ad_id:'; DROP TABLE x"}, "filter"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"timezone": "Asia/Kolkata"}, "timezone"),
        ({"fill": "one"}, "fill"),
        ({"order": "color"}, "order"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"granularty": "hour"}, "granularty"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, str], wrong: str) -> None:
    with pytest.raises(BadQuestion) as error:
        ask(**parameters)
    assert error.value.parameter == wrong
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("parameters", "would"),
    [
        ({"granularity": "minute", "start": "-25h"}, "hour or day"),
        ({"granularity": "hour", "start": "-31d"}, "day"),
        ({"granularity": "day", "start": "-31d", "timezone": "Europe/Berlin"}, "nothing"),
        ({"granularity": "total", "start": "-900d"}, "nothing"),
    ],
)
def test_a_grain_that_is_no_longer_held_is_refused_with_what_would_do(parameters: dict[str, str], would: str) -> None:
    with pytest.raises(BadQuestion, match=would) as error:
        ask(**parameters)
    assert (error.value.status, error.value.parameter) == (422, "granularity")


def test_ranges_are_aligned_outwards() -> None:
    minute, hour, day = (ask(start="-61m", granularity=g) for g in ("minute", "hour", "day"))
    assert (iso(minute.start_ms), iso(minute.end_ms)) == ("2026-11-20T12:37:00Z", "2026-11-20T13:39:00Z")
    assert (iso(hour.start_ms), iso(hour.end_ms)) == ("2026-11-20T12:00:00Z", "2026-11-20T14:00:00Z")
    assert (iso(day.start_ms), iso(day.end_ms)) == ("2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z")
    assert ask(granularity="minute", start="-24h").grain == "minute"


@pytest.mark.parametrize(("start", "grain"), [("-24h", "minute"), ("-25h", "hour"), ("-30d", "hour"), ("-40d", "day")])
def test_auto_is_the_finest_that_is_held_and_fits(start: str, grain: str) -> None:
    assert ask(start=start, granularity="auto").grain == grain


@pytest.mark.parametrize(("date", "hours"), [("2026-10-25", 25), ("2026-11-20", 24)])
def test_days_of_another_zone_have_their_own_length(date: str, hours: int) -> None:
    found = parse(
        [("campaign_id", "7"), ("start", f"{date}T05:00:00Z"), ("end", f"{date}T06:00:00Z"), ("granularity", "day"), ("timezone", "Europe/Berlin")],
        NOW, Held(24 * HOUR_MS, 60 * DAY_MS),
    )  # fmt: skip
    assert found.end_ms - found.start_ms == hours * HOUR_MS
    assert found.label(found.start_ms).startswith(f"{date}T00:00:00+0")
    assert found.bucket(found.end_ms - 1) == found.start_ms


_day = NOW // DAY_MS * DAY_MS
_borders = st.builds(
    Borders,
    warm_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    warm_closed_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    hot_from_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    cold_ms=st.one_of(st.none(), st.integers(-4, 1).map(lambda d: _day + d * DAY_MS)),
    watermark_ms=st.none(),
    runs=st.sets(st.integers(-4, 1)).map(lambda days: {_day + d * DAY_MS: f"run{d}" for d in days}),
)


@given(st.integers(-5000, 2000), st.integers(1, 5000), _borders, st.booleans())
def test_pieces_tile_the_range_and_no_tier_serves_what_it_does_not_hold(
    start: int, length: int, borders: Borders, whole_days: bool
) -> None:
    low, high = _day + start * MINUTE_MS, _day + (start + length) * MINUTE_MS
    pieces = plan(low, high, borders, whole_days=whole_days)
    assert pieces[0].start_ms == low
    assert pieces[-1].end_ms == high
    assert all(a.end_ms == b.start_ms for a, b in pairwise(pieces))
    for piece in pieces:
        grain = {HOT: MINUTE_MS, WARM: HOUR_MS, EXACT_HOURS: HOUR_MS, COLD: DAY_MS, EXACT_DAYS: DAY_MS}[piece.tier]
        assert piece.start_ms % grain == 0
        assert piece.end_ms % grain == 0
        days = range(piece.start_ms // DAY_MS * DAY_MS, piece.end_ms, DAY_MS)
        if piece.tier in (EXACT_HOURS, EXACT_DAYS):
            assert [borders.runs[d] for d in days] == [piece.run]
        for hour in range(piece.start_ms, piece.end_ms, HOUR_MS) if piece.tier == WARM else ():
            settled = borders.warm_ms is not None and hour + HOUR_MS <= borders.warm_ms
            closed = borders.warm_closed_ms is not None and hour + HOUR_MS <= borders.warm_closed_ms
            lost = borders.hot_from_ms is None or hour < borders.hot_from_ms
            assert settled or (closed and lost)
        if piece.tier == COLD:
            assert borders.cold_ms is not None
            assert piece.end_ms <= borders.cold_ms
            assert not any(d in borders.runs for d in days)


def sums(*values: int, corrected: bool = False) -> Sums:
    made = Sums()
    made.add(values, corrected=corrected, sampled=False)
    return made


def test_ratios_follow_the_sums_and_are_null_without_a_divisor() -> None:
    values = {"impressions": 1200, "clicks": 31, "conversions": 2, "spend_micros": 15_400_000}
    assert answer.ratios(values) == {"ctr": 0.0258, "cvr": 0.0645, "cpc_micros": 496_774, "cpm_micros": 12_833_333}
    nothing = dict.fromkeys(values, 0)
    assert set(answer.ratios(nothing).values()) == {None}
    assert answer.ratios(values | {"spend_micros": 2**90})["cpm_micros"] == (2**90 * 1000 + 600) // 1200


def test_finality_is_that_of_the_weakest() -> None:
    question = ask(granularity="hour", start="2026-11-20T00:00:00Z", end="2026-11-20T04:00:00Z")
    hours = [question.start_ms + n * HOUR_MS for n in range(4)]
    borders = Borders(watermark_ms=hours[3] + 1)
    pieces = [
        Piece(EXACT_HOURS, hours[0], hours[1], "r"),
        Piece(WARM, hours[1], hours[3]),
        Piece(HOT, hours[3], question.end_ms),
    ]
    table: Table = {(h,): sums(1, 0, 0, 0, 0, corrected=n == 2) for n, h in enumerate(hours)}
    made = answer.rows(question, table, borders, pieces)
    assert [r["finality"] for r in made] == ["reconciled", "closed", "corrected", "provisional"]
    assert answer.weakest(made, question, borders, pieces) == "provisional"
    assert answer.weakest(made[:3], question, borders, pieces) == "closed"
    assert answer.weakest([], question, borders, pieces) == "provisional"


def test_fill_adds_the_empty_buckets() -> None:
    question = ask(granularity="minute", start="-5m", fill="zero")
    made = answer.rows(question, {}, Borders(), [])
    assert len(made) == 6
    assert {r["impressions"] for r in made} == {0}
    grouped = ask(granularity="minute", start="-5m", fill="zero", group_by="country")
    assert len(answer.rows(grouped, {(grouped.start_ms, "DE"): sums(1, 0, 0, 0, 0)}, Borders(), [])) == 6


@pytest.mark.parametrize("order", ["", "time", "-time", "clicks", "-clicks", "-ctr"])
def test_pages_are_the_whole_in_order(order: str) -> None:
    def question(cursor: str = "") -> Question:
        return ask(granularity="hour", start="-24h", limit="4", order=order, cursor=cursor, group_by="country")

    whole = question()
    table: Table = {
        (whole.start_ms + n * HOUR_MS, c): sums(n % 3, n % 5, 0, 0, 0) for n in range(11) for c in ("DE", "US")
    }
    everything = answer.rows(whole, table, Borders(), [])
    walked, cursor, asked = [], "", 0
    while asked == 0 or cursor:
        part, following = answer.page(question(cursor), everything)
        walked += part
        cursor, asked = following or "", asked + 1
    assert walked == everything
    assert asked == 6


@pytest.mark.parametrize("cursor", ["x", "eyJxIjoiIiwiayI6W119", "é"])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    question = ask(granularity="hour", cursor=cursor)
    with pytest.raises(BadQuestion, match="cursor"):
        answer.page(question, answer.rows(question, {}, Borders(), []))
