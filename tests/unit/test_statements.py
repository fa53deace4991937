"""What a statement says: sums that agree, a digest of the very bytes, differences that lead from one issue to the next."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.partials import BILLED
from query.bad_question import BadQuestion
from query.statements.contents import Contents, days_of, differences, make_contents
from query.statements.reader import parse_statement_question

MONTH = dt.date(2024, 2, 1)
NOW_MS = 1_795_000_000_000
_numbers = st.lists(st.integers(0, 2**70), min_size=len(BILLED), max_size=len(BILLED))
_cells = st.lists(st.tuples(st.sampled_from(days_of(MONTH)), st.integers(0, 3), _numbers), max_size=20)
_names = st.dictionaries(st.integers(0, 3), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))


def _contents(cells: list[tuple[dt.date, int, list[int]]], names: dict[int, str]) -> Contents:
    days = [(date, "reconciled", f"run-{date}") for date in days_of(MONTH)]
    return make_contents(3, "Drei", MONTH, "EUR", days, cells, names)


@settings(max_examples=40)
@given(_cells, _names)
def test_days_and_campaigns_add_up_to_the_same_total_in_json_and_csv(
    cells: list[tuple[dt.date, int, list[int]]], names: dict[int, str]
) -> None:
    contents = _contents(cells, names)
    total = [sum(numbers[i] for _, _, numbers in cells) for i in range(len(BILLED))]
    assert contents.total == total
    assert [sum(c.amounts[i] for c in contents.campaigns) for i in range(len(BILLED))] == total
    document = contents.document()
    assert document["digest"] == hashlib.sha256(contents.csv).hexdigest()
    rows = list(csv.DictReader(io.StringIO(contents.csv.decode(), newline="")))
    assert [row["line"] for row in rows] == ["day"] * 29 + ["campaign"] * len(contents.campaigns) + ["total"]
    assert [[int(row[m]) for m in BILLED] for row in rows if row["line"] == "total"] == [total]
    assert [row["name"] for row in rows if row["line"] == "campaign"] == [c["name"] for c in document["campaigns"]]
    # As it is stored and read again.
    assert msgspec.json.decode(msgspec.json.encode(contents), type=Contents).csv == contents.csv


@settings(max_examples=40)
@given(_cells, _cells, _names)
def test_differences_lead_from_one_issue_to_the_next(
    before: list[tuple[dt.date, int, list[int]]], after: list[tuple[dt.date, int, list[int]]], names: dict[int, str]
) -> None:
    former, present = _contents(before, {}), _contents(after, names)
    changes = differences(former, present)
    for key in ("date", "campaign_id"):
        moved = [c for c in changes if key in c]
        assert [
            f + sum(c["to"][m] - c["from"][m] for c in moved) for f, m in zip(former.total, BILLED, strict=True)
        ] == present.total
        assert all(c["from"] != c["to"] for c in moved)
    assert former.has_numbers_of(present) == (not changes)


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"month": "2026-11"}, "advertiser_id"),
        ({"advertiser_id": "3"}, "month"),
        ({"advertiser_id": "3", "month": "2026-13"}, "month"),
        ({"advertiser_id": "3", "month": "2026-1"}, "month"),
        ({"advertiser_id": "3", "month": "202611"}, "month"),
        ({"advertiser_id": "3", "month": "２０２６-11"}, "month"),
        ({"advertiser_id": "3", "month": "2027-01"}, "month"),
        ({"advertiser_id": "3", "month": "0001-01"}, "month"),
        ({"advertiser_id": "x", "month": "2026-10"}, "advertiser_id"),
        ({"advertiser_id": "3", "month": "2026-10", "format": "pdf"}, "format"),
        ({"advertiser_id": "3", "month": "2026-10", "issue": "-1"}, "issue"),
        ({"advertiser_id": "3", "month": "2026-10", "timezone": "Europe/Berlin"}, "timezone"),
    ],
)
def test_a_wrong_question_names_its_parameter(parameters: dict[str, str], wrong: str) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse_statement_question(list(parameters.items()), NOW_MS)
    assert refusal.value.parameter == wrong
