"""Top lists: which question a list is the answer to."""

from __future__ import annotations

import pytest

from infra.clock import DAY_MS, HOUR_MS
from query.bad_question import BadQuestion
from query.question import Question, Retention
from query.row_scope import ALL_ROWS, RowScope
from query.top import parse_top_question

NOON = 20_000 * DAY_MS + 12 * HOUR_MS
RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
ONE, TWO = RowScope(frozenset({3})), RowScope(frozenset({3, 4}))


def parse(scope: RowScope = ALL_ROWS, admin: bool = True, /, **parameters: str) -> Question:
    return parse_top_question(list(parameters.items()), NOON, RETENTION, scope, admin=admin)


def test_a_list_is_the_total_of_the_groups_that_have_most() -> None:
    question = parse(dimension="ad", by="spend_micros", range="3h", k="7", advertiser_id="3")
    assert (question.grain, question.start_ms, question.end_ms) == ("total", NOON - 3 * HOUR_MS, NOON)
    assert (question.advertiser, question.group_by, question.names) == (3, ("ad_id",), True)
    assert (question.top, question.by, question.order, question.descending, question.limit) == (
        7, "spend_micros", "spend_micros", True, 7,
    )  # fmt: skip
    usual = parse()
    assert (usual.group_by, usual.by, usual.top, usual.end_ms - usual.start_ms) == (
        ("campaign_id",),
        "clicks",
        50,
        HOUR_MS,
    )


def test_whose_list_it_is_follows_from_the_key() -> None:
    assert parse().advertiser is None
    assert parse(ONE, False).advertiser == 3
    assert parse(TWO, True).advertiser is None
    for scope, advertiser in ((TWO, None), (ALL_ROWS, None), (ONE, "4"), (ONE, "*")):
        with pytest.raises(BadQuestion) as refusal:
            parse(scope, False, **({} if advertiser is None else {"advertiser_id": advertiser}))
        assert refusal.value.status == (400 if advertiser is None else 403)


@pytest.mark.parametrize(
    "parameters",
    [
        {"dimension": "campaign_id"}, {"by": "ctr"}, {"range": "1w"}, {"range": "-1h"}, {"range": "0h"}, {"k": "0"}, {"k": "10001"},
        {"range": "99999d"}, {"granularity": "hour"},
    ],
)  # fmt: skip
def test_bad_lists_are_refused(parameters: dict[str, str]) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse(**parameters)
    assert refusal.value.status in (400, 422)
