"""Parsing, planning and merging of questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query import answer, sums
from query.answer import Made, Page
from query.plan import COLD, EXACT_DAYS, EXACT_HOURS, HOT, WARM, Borders, Piece, plan
from query.request import RATIOS, BadQuestion, Held, Question, parse
from query.signing import Signer
from query.sums import NAMES, Sums

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


def coarsest(at: int, low: int, high: int, borders: Borders, whole_days: bool) -> str:
    """The tier that should serve what comes from `at` up to the next hour."""
    day, hour = at // DAY_MS * DAY_MS, at // HOUR_MS * HOUR_MS
    run = day in borders.runs
    if whole_days and low <= day and day + DAY_MS <= high:
        if run:
            return EXACT_DAYS
        if day + DAY_MS <= (borders.cold_ms or 0):
            return COLD
    if low <= hour and hour + HOUR_MS <= high:
        if run:
            return EXACT_HOURS
        lost = borders.hot_from_ms is None or hour < borders.hot_from_ms
        if hour + HOUR_MS <= max(borders.warm_ms or 0, (lost and borders.warm_closed_ms) or 0):
            return WARM
    return HOT


@given(st.integers(-5000, 2000), st.integers(1, 5000), _borders, st.booleans())
def test_pieces_tile_the_range_and_no_tier_serves_what_it_does_not_hold(
    start: int, length: int, borders: Borders, whole_days: bool
) -> None:
    low, high = _day + start * MINUTE_MS, _day + (start + length) * MINUTE_MS
    pieces = plan(low, high, borders, whole_days=whole_days)
    assert pieces[0].start_ms == low
    assert pieces[-1].end_ms == high
    assert all(a.end_ms == b.start_ms for a, b in pairwise(pieces))
    for edge in range(low - low % HOUR_MS, high, HOUR_MS):
        at = max(low, edge)
        assert [p.tier for p in pieces if p.start_ms <= at < p.end_ms] == [coarsest(at, low, high, borders, whole_days)]
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


Rows = dict[tuple[Any, ...], tuple[int, ...]]


def table(question: Question, rows: Rows, corrected: Sequence[int] = ()) -> Sums:
    """A tier's answer: (bucket, group…) → measures; the rows in `corrected` are."""
    keys, groups = list(rows), question.group_by
    numbers = [[NAMES[g].index(k[1 + n]) if g in NAMES else k[1 + n] for k in keys] for n, g in enumerate(groups)]
    measures = [[values[n] for values in rows.values()] for n in range(5)]
    return Sums(
        np.array([k[0] for k in keys], np.int64),
        tuple(np.array(g, np.int64) for g in numbers),
        tuple(np.array(m, object if max(m, default=0) >= 2**63 else np.int64) for m in measures),
        np.array([n in corrected for n in range(len(keys))], bool),
        np.zeros(len(keys), bool),
    )


def told(question: Question, rows: Rows) -> Made:
    return answer.rows(question, table(question, rows), Borders(), [])


def shown(question: Question, made: Made) -> pl.DataFrame:
    return Page(question, made, made.order).frame


def test_ratios_follow_the_sums_and_are_null_without_a_divisor() -> None:
    question = ask(granularity="total")

    def ratios(*values: int) -> tuple[Any, ...]:
        return shown(question, told(question, {(question.start_ms,): (*values, 0)})).select(RATIOS).row(0)

    assert ratios(1200, 31, 2, 15_400_000) == (0.0258, 0.0645, 496_774, 12_833_333)
    assert ratios(0, 0, 0, 0) == (None, None, None, None)
    assert ratios(1200, 31, 2, 2**90)[3] == (2**90 * 1000 + 600) // 1200
    wide = told(question, {(question.start_ms,): (1200, 31, 2, 2**90, 0)})
    assert json.loads(Page(question, wide, wide.order).json())[0]["spend_micros"] == 2**90
    assert ratios(80_000, 10, 0, 0)[0] == 0.0001  # 0.000125
    assert ratios(20_000, 7, 0, 0)[0] == 0.0004  # 0.00035: halves up, where a float would be just below


def test_a_ratio_is_the_float_nearest_to_its_four_decimals() -> None:
    question = ask(granularity="minute", start="-24h")
    hundredths: Rows = {(question.start_ms + n * MINUTE_MS,): (10_000, n, 0, 0, 0) for n in range(1_440)}
    assert shown(question, told(question, hundredths))["ctr"].to_list() == [n / 10_000 for n in range(1_440)]


def test_finality_is_that_of_the_weakest() -> None:
    question = ask(granularity="hour", start="2026-11-20T00:00:00Z", end="2026-11-20T04:00:00Z")
    hours = [question.start_ms + n * HOUR_MS for n in range(4)]
    borders = Borders(watermark_ms=hours[3] + 1)
    pieces = [
        Piece(EXACT_HOURS, hours[0], hours[1], "r"),
        Piece(WARM, hours[1], hours[3]),
        Piece(HOT, hours[3], question.end_ms),
    ]
    found = table(question, {(h,): (1, 0, 0, 0, 0) for h in hours}, corrected=[2])
    made = answer.rows(question, found, borders, pieces)
    assert shown(question, made)["finality"].to_list() == ["reconciled", "closed", "corrected", "provisional"]
    assert answer.weakest(made, question, borders, pieces) == "provisional"
    empty = answer.rows(question, table(question, {}), borders, pieces)
    assert answer.weakest(empty, question, borders, pieces) == "provisional"
    ahead = replace(borders, hot_watermark_ms=question.end_ms)
    shown_by_redis = shown(question, answer.rows(question, found, ahead, pieces))["finality"].to_list()
    assert shown_by_redis == ["reconciled", "closed", "corrected", "closed"]
    assert answer.weakest(empty, question, ahead, pieces) == "closed"
    behind = replace(borders, watermark_ms=question.end_ms, hot_watermark_ms=hours[3])
    assert shown(question, answer.rows(question, found, behind, pieces))["finality"].to_list()[3] == "provisional"
    assert answer.weakest(empty, question, behind, pieces) == "provisional"
    first = table(question, {(h,): (1, 0, 0, 0, 0) for h in hours[:3]}, corrected=[2])
    assert answer.weakest(answer.rows(question, first, borders, pieces), question, borders, pieces) == "closed"


@pytest.mark.parametrize("grain", ["hour", "day", "total"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_an_answer_without_rows_has_the_columns_of_one_with_rows(grain: str, zone: str) -> None:
    question = ask(granularity=grain, start="-24h", timezone=zone)
    pieces = [Piece(EXACT_HOURS, question.start_ms, question.end_ms, "r")]
    made = answer.rows(question, table(question, {}), Borders(watermark_ms=NOW), pieces)
    one = answer.rows(question, table(question, {(question.start_ms,): (1, 0, 0, 0, 0)}), Borders(), pieces)
    assert shown(question, made).schema == shown(question, one).schema
    assert len(made) == 0
    assert answer.weakest(made, question, Borders(), pieces) == "reconciled"


def test_fill_adds_the_empty_buckets() -> None:
    question = ask(granularity="minute", start="-5m", fill="zero")
    made = told(question, {})
    assert len(made) == 6
    assert set(shown(question, made)["impressions"]) == {0}
    grouped = ask(granularity="minute", start="-5m", fill="zero", group_by="country")
    assert len(told(grouped, {(grouped.start_ms, "DE"): (1, 0, 0, 0, 0)})) == 6


SIGNER = Signer("secret")


@pytest.mark.parametrize("order", ["", "time", "-time", "clicks", "-clicks", "ctr", "-ctr", "-country"])
def test_pages_are_the_whole_in_order(order: str) -> None:
    def question(cursor: str = "") -> Question:
        return ask(granularity="hour", start="-24h", limit="4", order=order, cursor=cursor, group_by="country")

    whole = question()
    held: Rows = {(whole.start_ms + n * HOUR_MS, c): (n % 3, n % 5, 0, 0, 0) for n in range(11) for c in ("DE", "US")}
    everything = told(whole, held)
    walked, cursor, asked = [], "", 0
    while asked == 0 or cursor:
        part, following = answer.page(question(cursor), everything, SIGNER)
        walked.append(part.frame)
        assert json.loads(part.json()) == json.loads(part.shown.write_json())
        cursor, asked = following or "", asked + 1
    assert pl.concat(walked).equals(shown(whole, everything))
    assert asked == 6


@pytest.mark.parametrize("order", ["", "-clicks"])
def test_a_cursor_stays_right_while_rows_come_and_go(order: str) -> None:
    def question(cursor: str = "") -> Question:
        return ask(granularity="hour", start="-24h", limit="4", order=order, cursor=cursor)

    start = question().start_ms
    before: Rows = {(start + 2 * n * HOUR_MS,): (1, 100 - n, 0, 0, 0) for n in range(8)}
    first, cursor = answer.page(question(), told(question(), before), SIGNER)
    gone = first.frame["_bucket"][-1]  # what the cursor points at
    after = {key: values for key, values in before.items() if key != (gone,)} | {(start + HOUR_MS,): (1, 200, 0, 0, 0)}
    second, _ = answer.page(question(cursor or ""), told(question(), after), SIGNER)
    assert second.frame["_bucket"].to_list() == [start + 2 * n * HOUR_MS for n in range(4, 8)]


def test_a_cursor_belongs_to_its_question_and_its_key() -> None:
    question = ask(granularity="hour", start="-24h", limit="1", advertiser_id="5", campaign_id="")
    found = told(question, {(question.start_ms + n * HOUR_MS,): (1, 1, 0, 0, 0) for n in range(3)})
    _, cursor = answer.page(question, found, SIGNER)
    assert cursor is not None
    tampered = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    others = [
        replace(question, cursor=cursor, scope=frozenset([5])),
        replace(question, cursor=cursor, advertiser=6),
        replace(question, cursor=tampered),
        *(replace(question, cursor=c) for c in ("x", "eyJxIjoiIiwiayI6W119", "é", "====", Signer("other").sign({"q": "", "k": []}))),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(BadQuestion, match="cursor"):
            answer.page(other, found, SIGNER)


def test_a_key_may_only_ask_for_its_advertisers() -> None:
    given = [("start", "-1h"), ("end", "now")]
    with pytest.raises(BadQuestion) as error:
        parse([*given, ("advertiser_id", "6")], NOW, HELD, frozenset([5]))
    assert error.value.status == 403
    assert parse([*given, ("campaign_id", "6")], NOW, HELD, frozenset([5])).scope == frozenset([5])


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Australia/Adelaide"])
def test_zones_of_half_hours_are_served_from_minutes_where_they_are_held(zone: str) -> None:
    question = ask(granularity="hour", start="-5h", timezone=zone)
    assert question.only_minutes
    assert question.start_ms % HOUR_MS == HOUR_MS // 2
    assert all(question.label(b)[14:19] == "00:00" for b in question.buckets())
    assert question.bucket(question.start_ms + HOUR_MS - 1) == question.start_ms
    assert not ask(granularity="total", start="-5d", timezone=zone).only_minutes
    with pytest.raises(BadQuestion, match="whole number of hours") as error:
        ask(granularity="hour", start="-25h", timezone=zone)
    assert error.value.status == 422


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2**63 - 1), st.booleans()), max_size=30))
def test_sums_are_those_of_python_however_large(rows: list[tuple[int, int, int, bool]]) -> None:
    question = ask(granularity="total", group_by="country")
    columns = list(zip(*rows, strict=True)) or [()] * 4
    amounts = np.array(columns[2], np.int64)
    flags = np.array(columns[3], bool)
    one = Sums(np.array(columns[0], np.int64), (np.array(columns[1], np.int64),), (amounts,) * 5, flags, flags)
    found = sums.merged(question, [one, sums.of_bytes(sums.as_bytes(one, 7))[0]])
    wanted: dict[tuple[int, int], tuple[int, bool]] = {}
    for bucket, group, amount, flag in rows:
        total, any_ = wanted.get((bucket, group), (0, False))
        wanted[bucket, group] = (total + 2 * amount, any_ or flag)
    assert sums.of_bytes(sums.as_bytes(found, 7))[1] == 7
    again = sums.of_bytes(sums.as_bytes(found, 7))[0]
    assert {
        (b, g): (int(m), bool(c))
        for b, g, m, c in zip(again.buckets, again.groups[0], again.measures[3], again.corrected, strict=True)
    } == wanted
