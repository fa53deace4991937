"""A question and what it is compared with: planned as one, and equal to sums over the events themselves."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.settings import Settings
from query import formats, sums
from query.circuit import Guard
from query.plan import COLD, EXACT_DAYS, Borders, Piece
from query.question import BadQuestion, Question, Retention, parse_question
from query.router import Answer, Router
from query.row_scope import RowScope
from query.sums import NAMES, Sums
from query.tier_cache import TierCache
from query.tiers.clickhouse import StoredTiers
from query.tiers.redis import HotTier
from query.tiers.span import Span
from tests.unit.fakes import Clock, FakeRedis

RETENTION = Retention(DAY_MS, 30 * DAY_MS)
COUNTRIES = ("DE", "US")
Event = tuple[int, str, int]
"""(minute, country, n): an event of n impressions and 2n + 1 µ."""


class Events(StoredTiers):
    """All tiers over one list of events. Each refuses a piece that is finer than it stores, or that it no longer has."""

    def __init__(self, events: list[Event], watermark_ms: int, minutes_from_ms: int) -> None:
        self.events, self.watermark_ms, self.minutes_from_ms = events, watermark_ms, minutes_from_ms

    def borders(self) -> bytes:
        settled = (self.watermark_ms - HOUR_MS) // HOUR_MS * HOUR_MS
        days = settled // DAY_MS * DAY_MS
        return msgspec.json.encode(
            Borders(warm_ms=settled, warm_closed_ms=self.watermark_ms // HOUR_MS * HOUR_MS, cold_ms=days,
                    watermark_ms=self.watermark_ms, runs={days - DAY_MS: "run"})
        )  # fmt: skip

    def read(self, question: Question, pieces: Sequence[Piece]) -> list[tuple[Sums, int]]:
        return [self._read(question, piece) for piece in pieces]

    def _read(self, question: Question, piece: Piece) -> tuple[Sums, int]:
        unit = DAY_MS if piece.tier in (COLD, EXACT_DAYS) else HOUR_MS
        assert piece.start_ms % unit == piece.end_ms % unit == 0
        return self.sums(question, piece.start_ms, piece.end_ms), 1

    def sums(self, question: Question, start_ms: int, end_ms: int) -> Sums:
        events = [e for e in self.events if start_ms <= e[0] < end_ms]
        numbers = np.array([n for *_, n in events], np.int64)
        groups = (np.array([NAMES["country"].index(c) for _, c, _ in events], np.int64),) if question.group_by else ()
        flags = np.zeros(len(events), bool)
        measures = (numbers, numbers, numbers * 0, 2 * numbers + 1, numbers * 0, numbers * 0)
        return sums.sum_equal_keys(Sums(np.array([question.bucket(e[0]) for e in events], np.int64), groups, measures, flags, flags))  # fmt: skip


class Minutes(HotTier):
    def __init__(self, events: Events) -> None:
        super().__init__(FakeRedis(), "", 1)
        self._events = events

    def seen(self) -> Span:
        mark = self._events.watermark_ms
        return Span([mark], [mark], [self._events.minutes_from_ms], [mark])

    def read(self, question: Question, start_ms: int, end_ms: int) -> tuple[Sums, int, Span]:
        assert start_ms >= self._events.minutes_from_ms
        return self._events.sums(question, start_ms, end_ms), 1, self.seen()


class World:
    """A router at a moment, and the events that have happened until then."""

    def __init__(self, now_ms: int, events: list[Event]) -> None:
        self.now_ms, self.events = now_ms, [e for e in events if e[0] <= now_ms]
        self.watermark_ms = now_ms - 5_000
        tiers = Events(self.events, self.watermark_ms, (now_ms - 25 * HOUR_MS) // HOUR_MS * HOUR_MS)
        cache = TierCache(FakeRedis(), Guard("redis"), "", Clock(now_ms / 1000))
        self.router = Router(Settings.model_validate({}), hot=Minutes(tiers), stored=tiers, cache=cache)

    def ask(self, **parameters: str) -> Answer:
        named = {"campaign_id": "7", "end": "now"} | parameters
        return self.router.answer(
            parse_question(list(named.items()), self.now_ms, RETENTION, signer=self.router.signer)
        )

    def document(self, **parameters: str) -> dict[str, Any]:
        answer = self.ask(**parameters)
        document: dict[str, Any] = msgspec.json.decode(
            formats.encode_document(answer, formats.encode_rows(answer, "json"), "USD")
        )
        return document

    def impressions(self, start: dt.datetime, end: dt.datetime, country: str = "") -> int:
        low, high = start.timestamp() * 1000, end.timestamp() * 1000
        return sum(n for at, c, n in self.events if low <= at < high and country in ("", c))


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[misc, arg-type]


def ms(time: dt.datetime) -> int:
    return int(time.timestamp() * 1000)


def every_hour(start: dt.datetime, days: int) -> list[Event]:
    return [
        (ms(start) + hour * HOUR_MS + hour * 7 % 60 * MINUTE_MS, COUNTRIES[hour % 2], 1 + hour * hour % 11)
        for hour in range(days * 24)
    ]


# -- which range -------------------------------------------------------------------------------------------------


def compared(now: dt.datetime, **parameters: str) -> tuple[str, str]:
    named = {"campaign_id": "7", "end": "now", "compare": "previous"} | parameters
    compare = parse_question(list(named.items()), ms(now), RETENTION).compare
    assert compare is not None
    return compare.earlier.label(compare.earlier.start_ms), compare.earlier.label(compare.earlier.end_ms)


NOON = utc(2026, 11, 29, 12, 30, 20)


@pytest.mark.parametrize(
    ("parameters", "start", "end"),
    [
        ({"start": "-24h", "granularity": "hour"}, "2026-11-27T11:00:00Z", "2026-11-28T12:00:00Z"),
        ({"start": "-1h", "granularity": "minute"}, "2026-11-29T10:29:00Z", "2026-11-29T11:30:00Z"),
        ({"start": "-7d", "granularity": "day"}, "2026-11-14T00:00:00Z", "2026-11-22T00:00:00Z"),
        ({"start": "-24h", "granularity": "hour", "compare": "week"}, "2026-11-21T12:00:00Z", "2026-11-22T13:00:00Z"),
        # Today so far: yesterday, not the hours before midnight.
        ({"start": "2026-11-29T00:00:00Z", "granularity": "hour"}, "2026-11-28T00:00:00Z", "2026-11-28T13:00:00Z"),
        ({"start": "2026-11-27T00:00:00Z", "granularity": "total"}, "2026-11-24T00:00:00Z", "2026-11-26T13:00:00Z"),
        # Minutes of the day before yesterday are gone: it begins at an hour, and is as long.
        ({"start": "-24h", "granularity": "total"}, "2026-11-27T12:00:00Z", "2026-11-28T12:01:00Z"),
        # Calendar months, however long.
        ({"start": "2026-10-01T00:00:00Z", "end": "2026-11-01T00:00:00Z", "granularity": "day"}, "2026-09-01T00:00:00Z", "2026-10-01T00:00:00Z"),
        ({"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z", "granularity": "total"}, "2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        # A local day with a local day: the 25th of October has 25 hours in Berlin.
        (
            {"start": "2026-10-25T22:00:00Z", "end": "2026-10-26T23:00:00Z", "granularity": "hour", "timezone": "Europe/Berlin"},
            "2026-10-24T23:00:00+02:00", "2026-10-25T23:00:00+01:00",
        ),
        (
            {"start": "2026-10-25T23:00:00Z", "end": "2026-10-26T23:00:00Z", "granularity": "hour", "timezone": "Europe/Berlin"},
            "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00",
        ),
        (
            {"start": "2026-10-25T23:00:00Z", "end": "2026-10-27T23:00:00Z", "granularity": "day", "timezone": "Europe/Berlin", "compare": "week"},
            "2026-10-19T00:00:00+02:00", "2026-10-21T00:00:00+02:00",
        ),
        # Without a grain, the finest one that is retained in both ranges.
        ({"start": "-12h"}, "2026-11-28T12:29:00Z", "2026-11-29T00:30:00Z"),
        ({"start": "-20h"}, "2026-11-27T19:00:00Z", "2026-11-28T16:00:00Z"),
    ],
)  # fmt: skip
def test_a_range_is_compared_with(parameters: dict[str, str], start: str, end: str) -> None:
    october = parameters["start"].startswith("2026-10-25")
    assert compared(utc(2026, 10, 28) if october else NOON, **parameters) == (start, end)


@pytest.mark.parametrize(
    ("parameters", "advice"),
    [
        ({"start": "-20h", "granularity": "minute"}, "retry with granularity=hour or day, or without compare"),
        ({"start": "-1h", "granularity": "minute", "compare": "week"}, "granularity=hour or day"),
        ({"start": "-40d", "granularity": "day", "timezone": "Europe/Berlin"}, "retry without compare"),
        ({"start": "-500d", "granularity": "day"}, "retry without compare"),
    ],
)
def test_an_earlier_range_that_is_no_longer_retained_is_refused(parameters: dict[str, str], advice: str) -> None:
    with pytest.raises(BadQuestion, match=advice) as error:
        compared(NOON, **parameters)
    assert (error.value.parameter, error.value.status) == ("compare", 422)


# -- which numbers -----------------------------------------------------------------------------------------------


def test_an_unfinished_day_is_compared_with_the_same_part_of_the_day_before() -> None:
    world = World(ms(NOON), every_hour(utc(2026, 11, 10), 20))
    for grain in ("day", "total"):
        body = world.document(
            start="2026-11-29T00:00:00Z",
            end="2026-11-30T00:00:00Z",
            granularity=grain,
            compare="previous",
            totals="true",
        )
        expected = world.impressions(utc(2026, 11, 28), utc(2026, 11, 28, 12, 30))
        assert [row["previous_impressions"] for row in [*body["data"], body["totals"]]] == [expected] * 2
        assert body["comparison"] == {
            "kind": "previous",
            "start": "2026-11-28T00:00:00Z",
            "end": "2026-11-28T12:30:00Z",
            "whole_end": "2026-11-29T00:00:00Z",
            "counted_until": "2026-11-29T12:30:00Z",
        }
        assert body["warnings"] == []
    # Minutes of a week ago are gone.
    body = world.document(start="2026-11-29T00:00:00Z", granularity="day", compare="week")
    assert body["data"][0]["previous_impressions"] == world.impressions(utc(2026, 11, 22), utc(2026, 11, 22, 12))
    assert body["warnings"] == [
        "the range compared with ends at 2026-11-22T12:00:00Z, since nothing finer is retained there any more; this one is counted "
        "until 2026-11-29T12:30:00Z"
    ]


def test_buckets_that_have_not_begun_are_compared_with_nothing() -> None:
    world = World(ms(NOON), every_hour(utc(2026, 11, 10), 20))
    body = world.document(
        start="2026-11-29T00:00:00Z", end="2026-11-30T00:00:00Z", granularity="hour", compare="previous", fill="zero"
    )
    assert [row["previous_impressions"] is None for row in body["data"]] == [False] * 13 + [True] * 11
    assert [row["change_impressions"] is None for row in body["data"][:12]] == [False] * 12
    assert body["data"][12]["previous_impressions"] == world.impressions(
        utc(2026, 11, 28, 12), utc(2026, 11, 28, 12, 30)
    )


def test_groups_and_buckets_of_one_side_have_zeros_on_the_other() -> None:
    now = utc(2026, 11, 20, 9, 59, 30)
    world = World(ms(now), [(ms(utc(2026, 11, 20, 8)), "DE", 4), (ms(utc(2026, 11, 20, 6)), "US", 5)])
    body = world.document(
        start=iso(ms(utc(2026, 11, 20, 7))), end=iso(ms(utc(2026, 11, 20, 9))), granularity="hour", group_by="country",
        compare="previous", totals="true",
    )  # fmt: skip
    rows = [
        (r["time"], r["country"], r["impressions"], r["previous_impressions"], r["change_impressions"])
        for r in body["data"]
    ]
    assert rows == [("2026-11-20T08:00:00Z", "DE", 4, 0, None), ("2026-11-20T08:00:00Z", "US", 0, 5, -1.0)]
    totals = body["totals"]
    assert (totals["impressions"], totals["previous_impressions"], totals["change_impressions"]) == (4, 5, -0.2)
    # 9 µ for 4 clicks, after 11 µ for 5: from the sums, not from the rounded costs of 2 µ each.
    assert (totals["cpc_micros"], totals["previous_cpc_micros"], totals["change_cpc_micros"]) == (2, 2, 0.0227)
    assert (totals["ctr"], totals["change_ctr"], totals["change_conversions"], totals["change_cvr"]) == (
        1.0,
        0.0,
        None,
        None,
    )


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
CHANGES = (utc(2026, 11, 20), utc(2026, 11, 3), utc(2026, 10, 27), utc(2026, 10, 6), utc(2026, 4, 2), utc(2027, 3, 2))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ZONES), st.sampled_from(CHANGES), st.integers(0, 1440), st.integers(1, 4), st.integers(0, 3),
    st.sampled_from(["previous", "week"]), st.sampled_from(["hour", "day", "total"]), st.booleans(),
    st.lists(st.tuples(st.integers(0, 20 * 1440), st.sampled_from(COUNTRIES), st.integers(0, 9)), max_size=40),
)  # fmt: skip
def test_days_are_compared_with_days_by_the_local_clock(
    zone: str, noon: dt.datetime, minute: int, days: int, ago: int, kind: str, grain: str, grouped: bool,
    sampled: list[tuple[int, str, int]],
) -> None:  # fmt: skip
    local = zoneinfo.ZoneInfo(zone)
    now = noon + dt.timedelta(minutes=minute, seconds=20)
    events = [(ms(noon) + DAY_MS - back * MINUTE_MS, country, n) for back, country, n in sampled]
    world = World(ms(now), events)

    def midnight(days_ago: int) -> dt.datetime:
        date = now.astimezone(local).date() - dt.timedelta(days=days_ago)
        return dt.datetime(date.year, date.month, date.day, tzinfo=local)

    back = 7 if kind == "week" else days
    first, end = midnight(ago + days - 1), midnight(ago - 1)
    if first.day == 1 and end.day == 1:
        return
    parameters = {
        "start": iso(ms(first)),
        "end": iso(ms(end)),
        "granularity": grain,
        "timezone": zone,
        "totals": "true",
    }
    if grouped:
        parameters["group_by"] = "country"
    try:
        body = world.document(**parameters, compare=kind)
    except BadQuestion as error:
        assert (error.status, zone in ("Australia/Lord_Howe", "Asia/Kolkata")) == (422, True)
        return
    alone = world.document(**parameters)
    # What is compared does not change what is shown.
    shown = {(r["time"], r.get("country")): r for r in body["data"]}
    for row in alone["data"]:
        assert row.items() <= shown[row["time"], row.get("country")].items()
    assert alone["totals"].items() <= body["totals"].items()
    if zone in ("Australia/Lord_Howe", "Asia/Kolkata"):
        return  # cut at whole hours of UTC once minutes are gone
    elapsed = {
        d: dt.timedelta(milliseconds=min(max(0, world.watermark_ms // MINUTE_MS * MINUTE_MS - ms(midnight(d))), ms(midnight(d - 1)) - ms(midnight(d))))
        for d in range(ago, ago + days)
    }  # fmt: skip
    whole = {d: ms(midnight(d - 1)) <= world.watermark_ms for d in elapsed}
    expected: dict[str, int] = defaultdict(int)
    retained_minutes = (ms(now) - 25 * HOUR_MS) // HOUR_MS * HOUR_MS
    for d in elapsed:
        start_ms, end_ms = ms(midnight(d + back)), ms(midnight(d + back - 1))
        if not whole[d]:
            end_ms = min(end_ms, start_ms + int(elapsed[d].total_seconds() * 1000))
            if end_ms // HOUR_MS * HOUR_MS < retained_minutes:
                end_ms = end_ms // HOUR_MS * HOUR_MS
        for at, country, n in world.events:
            if start_ms <= at < end_ms:
                expected[country] += n
    assert body["totals"]["previous_impressions"] in (sum(expected.values()), None)
    if body["totals"]["previous_impressions"] is None:
        assert sum(expected.values()) == 0
    if grain in ("day", "total"):
        by_country: dict[str, int] = defaultdict(int)
        for row in body["data"]:
            by_country[row.get("country", "")] += row["previous_impressions"] or 0
        wanted = expected if grouped else {"": sum(expected.values())}
        assert {c: n for c, n in by_country.items() if n} == {c: n for c, n in wanted.items() if n}


# -- totals and ids ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * 1440), st.sampled_from(COUNTRIES), st.integers(0, 2**62)), max_size=30),
    st.sampled_from(["minute", "hour", "day"]), st.sampled_from(["", "country"]), st.integers(1, 40),
)  # fmt: skip
def test_totals_are_the_sum_of_all_pages_and_the_total_of_the_range(
    sampled: list[tuple[int, str, int]], grain: str, group_by: str, limit: int
) -> None:
    world = World(ms(NOON), [(ms(NOON) - back * MINUTE_MS, country, n // 2) for back, country, n in sampled])
    start = {"minute": "-3h", "hour": "-20h", "day": "2026-11-27T00:00:00Z"}[grain]
    parameters = {"start": start, "granularity": grain, "group_by": group_by, "limit": str(limit), "totals": "true"}
    pages = [world.document(**parameters)]
    while pages[-1]["next_cursor"]:
        pages.append(world.document(**parameters, cursor=pages[-1]["next_cursor"]))
    question = world.ask(**parameters).question
    range_ = {"start": iso(question.start_ms), "end": iso(question.end_ms)}
    total = world.document(**range_, granularity="total")["data"]
    for page in pages:
        totals, answer_id = page["totals"], page["answer_id"]
        assert answer_id == pages[0]["answer_id"]
        for measure in ("impressions", "clicks", "spend_micros"):
            assert totals[measure] == sum(row[measure] for p in pages for row in p["data"])
        for row in total:
            assert totals == {name: value for name, value in row.items() if name != "time"}


def test_an_answer_id_names_question_and_numbers_not_how_they_are_shown() -> None:
    world = World(ms(NOON), every_hour(utc(2026, 11, 10), 20))
    base = {"start": "-24h", "granularity": "hour", "group_by": "country"}

    def id_in(world: World, parameters: dict[str, str]) -> str:
        return world.ask(**(base | parameters)).id

    same = [
        {"order": "-clicks"}, {"limit": "3"}, {"fill": "zero"}, {"totals": "true"}, {"start": iso(ms(NOON) - DAY_MS)},
        {"end": iso(ms(NOON))}, {"timezone": "GMT"},
    ]  # fmt: skip
    other = [
        {"granularity": "day"}, {"group_by": ""}, {"filter": "country:DE"}, {"campaign_id": "8"}, {"start": "-23h"},
        {"compare": "previous"}, {"timezone": "Europe/Berlin"},
    ]  # fmt: skip
    assert {id_in(world, parameters) for parameters in same} == {id_in(world, {})}
    ids = [id_in(world, parameters) for parameters in [{}, *other]]
    assert len(set(ids)) == len(ids)
    one_more = World(ms(NOON), [*world.events, (ms(NOON) - HOUR_MS, "DE", 1)])
    world = World(ms(NOON), [*world.events, (ms(NOON) - 10 * MINUTE_MS, "US", 3)])
    later = World(ms(NOON) + 31 * MINUTE_MS, world.events)
    assert id_in(one_more, {}) != id_in(world, {})
    range_ = {"start": "2026-11-28T12:00:00Z", "end": "2026-11-29T13:00:00Z"}
    assert id_in(later, range_) != id_in(world, range_), "an hour has closed meanwhile"
    tenant = replace(world.ask(**base).question, scope=RowScope(frozenset({3})))
    assert world.router.answer(tenant).id == id_in(world, {}), "by whichever key"


def test_a_cursor_keeps_what_the_first_page_is_compared_with() -> None:
    world = World(ms(NOON), every_hour(utc(2026, 11, 10), 20))
    parameters = {"start": "2026-11-29T00:00:00Z", "granularity": "hour", "compare": "previous", "limit": "2"}
    first = world.document(**parameters)
    assert first["comparison"]["start"] == "2026-11-28T00:00:00Z"
    later = World(ms(NOON) + 33 * MINUTE_MS, world.events)
    later.router.signer = world.router.signer
    second = later.document(**parameters, cursor=first["next_cursor"])
    assert second["comparison"]["start"] == "2026-11-28T00:00:00Z"
    for other in ({"compare": "week"}, {"compare": ""}):
        named = {name: value for name, value in (parameters | other).items() if value}
        with pytest.raises(BadQuestion, match="another question"):
            later.document(**named, cursor=first["next_cursor"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * 1440), st.sampled_from(("DE", "US", "FR", "AT")), st.integers(0, 4)), max_size=30),
    st.sampled_from(["minute", "hour", "day", "total"]), st.sampled_from(["impressions", "spend_micros"]), st.integers(1, 5),
    st.booleans(), st.integers(1, 50),
)  # fmt: skip
def test_the_largest_groups_are_those_of_all_tiers(
    sampled: list[tuple[int, str, int]], grain: str, by: str, top: int, compare: bool, limit: int
) -> None:
    world = World(ms(NOON), [(ms(NOON) - back * MINUTE_MS, country, n) for back, country, n in sampled])
    start = "2026-11-29T10:00:00Z" if grain == "minute" else "2026-11-28T00:00:00Z"
    parameters = {"start": start, "granularity": grain, "group_by": "country", "totals": "true"}
    parameters |= {"compare": "previous"} if compare else {}
    everything = world.document(**parameters)
    totals: dict[str, int] = defaultdict(int)
    for row in everything["data"]:
        totals[row["country"]] += row[by]
    largest = sorted(totals, key=lambda country: (-totals[country], country))[:top]
    pages = [world.document(**parameters, top=str(top), by=by, limit=str(limit))]
    while pages[-1]["next_cursor"]:
        pages.append(
            world.document(**parameters, top=str(top), by=by, limit=str(limit), cursor=pages[-1]["next_cursor"])
        )
    assert [r for page in pages for r in page["data"]] == [r for r in everything["data"] if r["country"] in largest]
    assert all(page["totals"] == everything["totals"] for page in pages)
    assert (pages[0]["answer_id"] == everything["answer_id"]) is False


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"top": "3"}, "top"),
        ({"top": "0", "group_by": "country"}, "top"),
        ({"top": "-3", "group_by": "country"}, "top"),
        ({"by": "clicks", "group_by": "country"}, "by"),
        ({"top": "3", "by": "ctr", "group_by": "country"}, "by"),
        ({"totals": "yes"}, "totals"),
        ({"compare": "year"}, "compare"),
        ({"order": "change_clicks"}, "order"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, str], wrong: str) -> None:
    with pytest.raises(BadQuestion) as error:
        World(ms(NOON), []).ask(start="-1h", **parameters)
    assert (error.value.parameter, error.value.status) == (wrong, 400)
