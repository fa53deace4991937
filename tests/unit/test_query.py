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
from query.request import RATIOS, BadQuestion, Held, Question, parse, time_of
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
        ({"order": "--clicks"}, "order"),
        ({"order": "-"}, "order"),
        ({"start": "+1h"}, "start"),
        ({"start": "-999999d"}, "start"),
        ({"start": "2026-11-20T12:30:60Z"}, "start"),
        ({"start": "-0m", "end": "-0h"}, "end"),
        ({"filter": "country:"}, "filter"),
        ({"filter": "country:DE,"}, "filter"),
        ({"filter": "country:de"}, "filter"),
        ({"timezone": "right/Europe/Berlin"}, "timezone"),
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
    # Of such a day the first hours had closed when its run was forced.
    open_from_ms=st.dictionaries(st.integers(-4, 1), st.integers(0, 23)).map(
        lambda hours: {_day + d * DAY_MS: _day + d * DAY_MS + h * HOUR_MS for d, h in hours.items()}
    ),
)


def coarsest(at: int, low: int, high: int, borders: Borders, whole_days: bool) -> str:
    """The tier that should serve what comes from `at` up to the next hour."""
    day, hour = at // DAY_MS * DAY_MS, at // HOUR_MS * HOUR_MS
    run = day in borders.runs and at < borders.open_from_ms.get(day, day + DAY_MS)
    if whole_days and low <= day and day + DAY_MS <= high:
        if run and day not in borders.open_from_ms:
            return EXACT_DAYS
        none = day not in borders.runs or borders.open_from_ms.get(day) == day
        if none and day + DAY_MS <= (borders.cold_ms or 0):
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
            assert piece.end_ms <= borders.open_from_ms.get(days[0], piece.end_ms)
        for hour in range(piece.start_ms, piece.end_ms, HOUR_MS) if piece.tier == WARM else ():
            settled = borders.warm_ms is not None and hour + HOUR_MS <= borders.warm_ms
            closed = borders.warm_closed_ms is not None and hour + HOUR_MS <= borders.warm_closed_ms
            lost = borders.hot_from_ms is None or hour < borders.hot_from_ms
            assert settled or (closed and lost)
        if piece.tier == COLD:
            assert borders.cold_ms is not None
            assert piece.end_ms <= borders.cold_ms
            assert not any(d in borders.runs and borders.open_from_ms.get(d) != d for d in days)


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
    assert answer.weakest(empty, question, ahead, pieces[:2]) == "provisional", "a piece was not answered"
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


def test_empty_buckets_of_too_many_groups_are_refused_before_they_are_made() -> None:
    question = ask(granularity="minute", start="-24h", fill="zero", group_by="ad_id")
    rows: Rows = {(question.start_ms, ad): (1, 0, 0, 0, 0) for ad in range(20_000)}
    assert len(told(question, dict(list(rows.items())[:300]))) == 300 * 1_441
    with pytest.raises(BadQuestion, match="28,820,000 rows") as error:
        told(question, rows)
    assert (error.value.parameter, error.value.status) == ("fill", 400)


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


TWO_HOURS = {"campaign_id": "7", "start": "-2h", "end": "now", "group_by": "country", "limit": "2"}


@pytest.mark.parametrize("grain", ["minute", "hour", "day", "total", "auto"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_a_cursor_keeps_the_range_that_its_first_page_settled_on(grain: str, zone: str) -> None:
    names = TWO_HOURS | {"granularity": grain, "timezone": zone}
    first = parse(list(names.items()), NOW, HELD, signer=SIGNER)
    one_each: Rows = {(first.buckets()[0], country): (1, 1, 0, 0, 0) for country in ("DE", "FR", "US")}
    page_one, cursor = answer.page(first, told(first, one_each), SIGNER)
    assert cursor is not None
    for later_ms in (MINUTE_MS, 5 * HOUR_MS, *([20 * DAY_MS] if first.unit != "minute" else [])):
        second = parse([*names.items(), ("cursor", cursor)], NOW + later_ms, HELD, signer=SIGNER)
        assert (second.start_ms, second.end_ms, second.grain) == (first.start_ms, first.end_ms, first.grain)
        page_two, none = answer.page(second, told(second, one_each), SIGNER)
        assert [*page_one.frame["country"], *page_two.frame["country"]] == ["DE", "FR", "US"]
        assert none is None


def _cursor_of(names: dict[str, str], scope: frozenset[int] | None = None) -> str:
    question = parse(list(names.items()), NOW, HELD, scope, SIGNER)
    rows: Rows = {(question.start_ms, country): (1, 1, 0, 0, 0) for country in ("DE", "FR", "US")}
    return answer.page(question, told(question, rows), SIGNER)[1] or ""


@pytest.mark.parametrize(
    ("change", "later_ms", "status"),
    [
        ({"start": "-3h"}, 0, 400),
        ({"end": "-1h"}, 0, 400),
        ({"granularity": "hour"}, 0, 400),
        ({"start": iso(NOW - 3 * HOUR_MS)}, 0, 400),
        ({"start": ""}, 0, 400),
        ({}, DAY_MS, 422),  # its minutes are gone
    ],
)
def test_a_cursor_is_refused_for_another_range_and_when_its_minutes_are_gone(
    change: dict[str, str], later_ms: int, status: int
) -> None:
    names = TWO_HOURS | {"granularity": "total"}
    later = {name: value for name, value in (names | change).items() if value} | {"cursor": _cursor_of(names)}
    with pytest.raises(BadQuestion) as error:
        parse(list(later.items()), NOW + later_ms, HELD, signer=SIGNER)
    assert error.value.status == status
    assert error.value.parameter == ("cursor" if change.get("start") != "" else "start")


def test_a_cursor_goes_on_where_the_same_range_is_written_in_other_words() -> None:
    names = TWO_HOURS | {"granularity": "total"}
    words = {"start": iso(NOW - 2 * HOUR_MS), "end": iso(NOW), "cursor": _cursor_of(names)}
    parse(list((names | words).items()), NOW + MINUTE_MS, HELD, signer=SIGNER)


@pytest.mark.parametrize(("first", "second"), [([5], [5, 6]), ([5, 6], [5]), (None, [5]), ([5], None), ([], [5])])
def test_a_cursor_is_refused_to_a_key_of_another_scope(first: list[int] | None, second: list[int] | None) -> None:
    scopes = [None if scope is None else frozenset(scope) for scope in (first, second)]
    names = TWO_HOURS | {"granularity": "total"}
    later = [*names.items(), ("cursor", _cursor_of(names, scopes[0]))]
    question = parse(later, NOW, HELD, scopes[1], SIGNER)
    with pytest.raises(BadQuestion, match="cursor"):
        answer.page(question, told(question, {}), SIGNER)


def test_a_cursor_of_a_thousand_campaigns_fits_into_an_address() -> None:
    campaigns = ",".join(str(2**63 - 1 - n) for n in range(1000))
    assert len(_cursor_of(TWO_HOURS | {"campaign_id": campaigns, "granularity": "total"})) < 500


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-20T12:00:00+00:00", "2026-11-20T12:00:00Z"),
        ("2026-11-20T12:00:00 00:00", "2026-11-20T12:00:00Z"),  # "+", as a query string has it
        ("2026-11-20T12:00:00 02:00", "2026-11-20T10:00:00Z"),
        ("2026-11-20 12:00:00Z", "2026-11-20T12:00:00Z"),
        ("2026-11-20 12:00:00 02:00", "2026-11-20T10:00:00Z"),
        ("2026-11-20t12:00:00z", "2026-11-20T12:00:00Z"),
        ("2026-11-20T12:00:00.5-01:00", "2026-11-20T13:00:00.500Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2017-01-01T00:59:60.7+01:00", "2017-01-01T00:00:00Z"),
        ("now", iso(NOW)),
        ("-0h", iso(NOW)),
        ("-90m", iso(NOW - 90 * MINUTE_MS)),
    ],
)
def test_a_time_may_be_written_as_rfc_3339_has_it(text: str, time: str) -> None:
    assert iso(time_of("start", {"start": text}, NOW)) == time


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2026-11-20", "write 2026-11-20T00:00:00Z"),
        ("2026-11-20T12:00:00", "offset"),
        ("2026-11-20T12:00Z", "RFC 3339"),
        (str(NOW), "write 2026-11-20T13:38:15.182Z"),
        (str(NOW // 1000), "write 2026-11-20T13:38:15Z"),
        ("1969-07-20T20:17:00Z", "between 1970-01-02"),
        ("-999999d", "between 1970-01-02"),
        ("2026-11-20T12:30:60Z", "RFC 3339"),
        ("２０２６-11-20T12:00:00Z", "RFC 3339"),
    ],
)
def test_a_time_that_is_not_understood_is_refused_with_how_to_write_it(text: str, hint: str) -> None:
    with pytest.raises(BadQuestion, match=hint):
        time_of("start", {"start": text}, NOW)


@pytest.mark.parametrize("name", ["start", "end", "granularity", "limit", "group_by", "timezone", "campaign_id", "fill", "order", "cursor"])  # fmt: skip
def test_a_parameter_given_twice_is_refused(name: str) -> None:
    twice = [("campaign_id", "7"), ("start", "-1h"), ("end", "now"), (name, "1"), (name, "1")]
    with pytest.raises(BadQuestion, match=f"{name} is given twice"):
        parse(twice, NOW, HELD)


@pytest.mark.parametrize("name", ["start", "end", "granularity", "limit", "timezone", "campaign_id", "fill", "filter"])
def test_a_parameter_without_a_value_is_refused(name: str) -> None:
    names = {"campaign_id": "7", "start": "-1h", "end": "now"} | {name: ""}
    with pytest.raises(BadQuestion) as error:
        parse(list(names.items()), NOW, HELD)
    assert error.value.parameter == name


def test_questions_that_say_the_same_are_the_same() -> None:
    one = parse([("campaign_id", "8,7,8"), ("start", "-1h"), ("end", "now"), ("filter", "country:US,DE,US"), ("filter", "ad_id:3,02")], NOW, HELD)  # fmt: skip
    two = parse([("campaign_id", "7,8"), ("start", "-1h"), ("end", "now"), ("filter", "ad_id:2,3"), ("filter", "country:DE,US")], NOW, HELD)  # fmt: skip
    assert one == two


def test_a_total_may_end_in_a_far_year() -> None:
    question = ask(granularity="total", start="-1h", end="2199-12-31T00:00:00Z")
    pieces = plan(question.start_ms, question.end_ms, Borders(warm_ms=NOW - 2 * HOUR_MS), whole_days=True)
    assert pieces == [Piece(HOT, question.start_ms, question.end_ms)]


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
@pytest.mark.parametrize("start", ["-5h", "-24h"])
def test_zones_of_half_hours_are_served_from_minutes_where_they_are_held(zone: str, start: str) -> None:
    question = ask(granularity="hour", start=start, timezone=zone)
    assert question.only_minutes
    assert question.start_ms % HOUR_MS == HOUR_MS // 2
    assert all(question.label(b)[14:19] == "00:00" for b in question.buckets())
    assert question.bucket(question.start_ms + HOUR_MS - 1) == question.start_ms
    assert not ask(granularity="total", start="-5d", timezone=zone).only_minutes
    with pytest.raises(BadQuestion, match="whole number of hours") as error:
        ask(granularity="hour", start="-25h", timezone=zone)
    assert error.value.status == 422


@pytest.mark.parametrize(
    ("zone", "first"), [("Asia/Kolkata", "19:00"), ("Asia/Kathmandu", "19:00"), ("America/St_Johns", "04:00")]
)
def test_an_hour_in_which_a_local_day_begins_counts_for_the_day_before_once_its_minutes_are_gone(
    zone: str, first: str
) -> None:
    question = ask(granularity="day", start="-3d", timezone=zone, fill="zero")
    assert question.cuts_hours
    assert iso(question.start_ms)[11:16] == first
    assert question.start_ms % HOUR_MS == question.end_ms % HOUR_MS == 0
    buckets = question.buckets()
    assert [question.label(bucket)[11:19] for bucket in buckets] == ["00:00:00"] * 4
    assert question.bucket(question.start_ms) == buckets[0]
    # Minutes of such an hour go where the hour will go.
    assert {question.bucket(question.start_ms - 1 - n * MINUTE_MS + DAY_MS) for n in range(60)} == {buckets[0]}
    assert len(told(question, {(bucket,): (1, 0, 0, 0, 0) for bucket in buckets[1:]})) == 4
    pieces = [Piece(EXACT_HOURS, question.start_ms, question.start_ms + DAY_MS, "r")]
    made = answer.rows(question, table(question, {(b,): (1, 0, 0, 0, 0) for b in buckets[:2]}), Borders(), pieces)
    assert shown(question, made)["finality"].to_list()[:2] == ["reconciled", "provisional"]
    today = ask(granularity="day", start="-1m", timezone=zone)
    assert (today.only_minutes, today.cuts_hours) == (True, False)


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
