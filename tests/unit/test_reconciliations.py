"""Questions about reconciled days, and what follows from a bill."""

from __future__ import annotations

import datetime as dt

import pytest

from ingest.partials import BILLED
from query.bad_question import BadQuestion
from query.reconciliations import Bill, causes_document, parse_causes_question, parse_runs_question
from query.row_scope import ALL_ROWS, RowScope
from query.runs import PublishedRun

TODAY = dt.date(2026, 11, 29)
_NOTHING = dict.fromkeys(BILLED, 0)


def test_without_a_range_the_last_three_months_are_listed() -> None:
    assert parse_runs_question([], TODAY, ALL_ROWS)[:2] == (dt.date(2026, 8, 30), TODAY)
    first, last, subject = parse_runs_question(
        [("from", "2026-11-01"), ("campaign_id", "7,8")], TODAY, RowScope(frozenset({3}))
    )
    assert (first, last) == (dt.date(2026, 11, 1), TODAY)
    assert (subject.campaigns, subject.advertiser, subject.scope) == ((7, 8), None, RowScope(frozenset({3})))


@pytest.mark.parametrize(
    ("parameters", "wrong", "status"),
    [
        ({"from": "2026-11-30"}, "to", 400),
        ({"from": "20261101"}, "from", 400),
        ({"from": "2026-02-29"}, "from", 400),
        ({"from": "2025-01-01"}, "from", 400),
        ({"to": "0001-01-01"}, "", 0),
        ({"to": "9999-12-31"}, "", 0),
        ({"since": "2026-11-01"}, "since", 400),
        ({"advertiser_id": "4"}, "advertiser_id", 403),
        ({"advertiser_id": "3", "campaign_id": "7"}, "campaign_id", 400),
    ],
)
def test_a_wrong_question_about_runs_names_its_parameter(parameters: dict[str, str], wrong: str, status: int) -> None:
    if not wrong:
        parse_runs_question(list(parameters.items()), TODAY, RowScope(frozenset({3})))
        return
    with pytest.raises(BadQuestion) as refusal:
        parse_runs_question(list(parameters.items()), TODAY, RowScope(frozenset({3})))
    assert (refusal.value.parameter, refusal.value.status) == (wrong, status)


@pytest.mark.parametrize(
    "date", ["", "2026-11-31", "2026-11-1", "20261101", "2026-W48-1", "２０２６-11-01", "x" * 5000]
)
def test_a_wrong_day_is_refused(date: str) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse_causes_question(date, [], ALL_ROWS)
    assert refusal.value.parameter == "date"
    assert len(refusal.value.detail) < 200


def test_a_bill_beyond_64_bits_is_exact_and_its_causes_are_in_the_documented_order() -> None:
    large = 2**70 + 1
    causes = {
        "unexplained": _NOTHING | {"clicks": -1},
        "a-cause-of-a-later-version": _NOTHING | {"clicks": 2},
        "late": _NOTHING | {"spend_micros": 1},
    }
    bill = Bill(_NOTHING | {"spend_micros": large, "clicks": 4}, causes)
    document = causes_document(PublishedRun(TODAY, "run", 1_500, True, True, 0), bill)
    assert document["shown"] == _NOTHING | {"spend_micros": 2**70, "clicks": 3}
    assert [cause["cause"] for cause in document["causes"]] == ["late", "unexplained", "a-cause-of-a-later-version"]
    assert (document["drift"], document["published_at"]) == (0.25, "1970-01-01T00:00:01.500Z")
    # Cancelling causes leave no drift; nothing billed is off by all that was shown.
    assert Bill(_NOTHING | {"clicks": 9}, {"late": _NOTHING | {"clicks": 0}}).drift == 0
    assert Bill(_NOTHING, {"late": _NOTHING | {"clicks": -5}}).drift == 5
    assert Bill(_NOTHING | {"clicks": 9}, {"other-region": _NOTHING | {"clicks": 9}}).drift == 0
