"""Pages and their cursors."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl
import pytest

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query.page import cut_page
from query.question import BadQuestion, Question, parse_question
from query.row_scope import ALL_ROWS, RowScope
from query.signing import Signer
from tests.unit.questions import NOW, RETENTION, SIGNER, Totals, frame_of, question_of, rows_of


@pytest.mark.parametrize("order", ["", "time", "-time", "clicks", "-clicks", "ctr", "-ctr", "-country"])
def test_pages_add_up_to_all_rows_in_order(order: str) -> None:
    def question(cursor: str = "") -> Question:
        return question_of(granularity="hour", start="-24h", limit="4", order=order, cursor=cursor, group_by="country")

    whole = question()
    totals: Totals = {
        (whole.start_ms + n * HOUR_MS, c): (n % 3, n % 5, 0, 0, 0) for n in range(11) for c in ("DE", "US")
    }
    everything = rows_of(whole, totals)
    frames, cursor, pages = [], "", 0
    while pages == 0 or cursor:
        page, following = cut_page(question(cursor), everything, SIGNER)
        frames.append(page.frame)
        assert json.loads(page.json()) == json.loads(page.shown.write_json())
        cursor, pages = following or "", pages + 1
    assert pl.concat(frames).equals(frame_of(whole, everything))
    assert pages == 6


@pytest.mark.parametrize("order", ["", "-clicks"])
def test_a_cursor_skips_and_repeats_no_row_while_rows_come_and_go(order: str) -> None:
    def question(cursor: str = "") -> Question:
        return question_of(granularity="hour", start="-24h", limit="4", order=order, cursor=cursor)

    start = question().start_ms
    before: Totals = {(start + 2 * n * HOUR_MS,): (1, 100 - n, 0, 0, 0) for n in range(8)}
    first, cursor = cut_page(question(), rows_of(question(), before), SIGNER)
    removed = first.frame["_bucket"][-1]  # what the cursor points at
    after = {key: values for key, values in before.items() if key != (removed,)} | {
        (start + HOUR_MS,): (1, 200, 0, 0, 0)
    }
    second, _ = cut_page(question(cursor or ""), rows_of(question(), after), SIGNER)
    assert second.frame["_bucket"].to_list() == [start + 2 * n * HOUR_MS for n in range(4, 8)]


TWO_HOURS = {"campaign_id": "7", "start": "-2h", "end": "now", "group_by": "country", "limit": "2"}


@pytest.mark.parametrize("grain", ["minute", "hour", "day", "total", "auto"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_a_cursor_keeps_the_range_of_the_first_page(grain: str, zone: str) -> None:
    names = TWO_HOURS | {"granularity": grain, "timezone": zone}
    first = parse_question(list(names.items()), NOW, RETENTION, signer=SIGNER)
    one_each: Totals = {(first.buckets()[0], country): (1, 1, 0, 0, 0) for country in ("DE", "FR", "US")}
    page_one, cursor = cut_page(first, rows_of(first, one_each), SIGNER)
    assert cursor is not None
    for later_ms in (MINUTE_MS, 5 * HOUR_MS, *([20 * DAY_MS] if first.unit != "minute" else [])):
        second = parse_question([*names.items(), ("cursor", cursor)], NOW + later_ms, RETENTION, signer=SIGNER)
        assert (second.start_ms, second.end_ms, second.grain) == (first.start_ms, first.end_ms, first.grain)
        page_two, none = cut_page(second, rows_of(second, one_each), SIGNER)
        assert [*page_one.frame["country"], *page_two.frame["country"]] == ["DE", "FR", "US"]
        assert none is None


def _cursor_of(names: dict[str, str], scope: RowScope = ALL_ROWS) -> str:
    question = parse_question(list(names.items()), NOW, RETENTION, scope, SIGNER)
    rows: Totals = {(question.start_ms, country): (1, 1, 0, 0, 0) for country in ("DE", "FR", "US")}
    return cut_page(question, rows_of(question, rows), SIGNER)[1] or ""


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
def test_a_cursor_is_refused_for_another_range_and_once_its_minutes_are_not_retained(
    change: dict[str, str], later_ms: int, status: int
) -> None:
    names = TWO_HOURS | {"granularity": "total"}
    later = {name: value for name, value in (names | change).items() if value} | {"cursor": _cursor_of(names)}
    with pytest.raises(BadQuestion) as error:
        parse_question(list(later.items()), NOW + later_ms, RETENTION, signer=SIGNER)
    assert error.value.status == status
    assert error.value.parameter == ("cursor" if change.get("start") != "" else "start")


def test_a_cursor_is_accepted_for_the_same_range_written_differently() -> None:
    names = TWO_HOURS | {"granularity": "total"}
    words = {"start": iso(NOW - 2 * HOUR_MS), "end": iso(NOW), "cursor": _cursor_of(names)}
    parse_question(list((names | words).items()), NOW + MINUTE_MS, RETENTION, signer=SIGNER)


@pytest.mark.parametrize("narrowed", ["advertisers", "campaigns"])
@pytest.mark.parametrize(("first", "second"), [([7], [7, 6]), ([7, 6], [7]), (None, [7]), ([7], None), ([], [7])])
def test_a_cursor_is_refused_to_a_key_of_another_scope(
    first: list[int] | None, second: list[int] | None, narrowed: str
) -> None:
    if narrowed == "campaigns" and [] in (first, second):
        return  # which may not even name the campaign
    scopes = [RowScope(**{narrowed: None if ids is None else frozenset(ids)}) for ids in (first, second)]
    names = TWO_HOURS | {"granularity": "total"}
    later = [*names.items(), ("cursor", _cursor_of(names, scopes[0]))]
    question = parse_question(later, NOW, RETENTION, scopes[1], SIGNER)
    with pytest.raises(BadQuestion, match="cursor"):
        cut_page(question, rows_of(question, {}), SIGNER)


def test_a_cursor_of_a_thousand_campaigns_fits_into_a_url() -> None:
    campaigns = ",".join(str(2**63 - 1 - n) for n in range(1000))
    assert len(_cursor_of(TWO_HOURS | {"campaign_id": campaigns, "granularity": "total"})) < 500


def test_a_cursor_is_refused_for_another_question_or_key() -> None:
    question = question_of(granularity="hour", start="-24h", limit="1", advertiser_id="5", campaign_id="")
    rows = rows_of(question, {(question.start_ms + n * HOUR_MS,): (1, 1, 0, 0, 0) for n in range(3)})
    _, cursor = cut_page(question, rows, SIGNER)
    assert cursor is not None
    tampered = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    others = [
        replace(question, cursor=cursor, scope=RowScope(frozenset([5]))),
        replace(question, cursor=cursor, advertiser=6),
        replace(question, cursor=tampered),
        *(replace(question, cursor=cursor + more) for more in ("!", "=", "==", " ", "\n", "é", "\u202e", "\0", ".")),
        *(replace(question, cursor=c) for c in ("x", "eyJxIjoiIiwiayI6W119", "é", "====", Signer("other").sign({"q": "", "k": []}))),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(BadQuestion, match="cursor"):
            cut_page(other, rows, SIGNER)
