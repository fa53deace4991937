"""Parameters of a request to a question."""

from __future__ import annotations

import pytest

from infra.clock import MINUTE_MS, iso
from query.question import BadQuestion, parse_question
from query.row_scope import RowScope
from query.times import parse_time
from tests.unit.questions import NOW, RETENTION, question_of


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
        question_of(**parameters)
    assert error.value.parameter == wrong
    assert error.value.status == 400


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
def test_a_time_may_be_any_of_rfc_3339(text: str, time: str) -> None:
    assert iso(parse_time("start", {"start": text}, NOW)) == time


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
def test_an_invalid_time_is_refused_with_the_accepted_forms(text: str, hint: str) -> None:
    with pytest.raises(BadQuestion, match=hint):
        parse_time("start", {"start": text}, NOW)


@pytest.mark.parametrize("name", ["start", "end", "granularity", "limit", "group_by", "timezone", "campaign_id", "fill", "order", "cursor"])  # fmt: skip
def test_a_parameter_given_twice_is_refused(name: str) -> None:
    twice = [("campaign_id", "7"), ("start", "-1h"), ("end", "now"), (name, "1"), (name, "1")]
    with pytest.raises(BadQuestion, match=f"{name} is given twice"):
        parse_question(twice, NOW, RETENTION)


@pytest.mark.parametrize("name", ["start", "end", "granularity", "limit", "timezone", "campaign_id", "fill", "filter"])
def test_a_parameter_without_a_value_is_refused(name: str) -> None:
    names = {"campaign_id": "7", "start": "-1h", "end": "now"} | {name: ""}
    with pytest.raises(BadQuestion) as error:
        parse_question(list(names.items()), NOW, RETENTION)
    assert error.value.parameter == name


def test_equivalent_questions_are_equal() -> None:
    first = parse_question([("campaign_id", "8,7,8"), ("start", "-1h"), ("end", "now"), ("filter", "country:US,DE,US"), ("filter", "ad_id:3,02")], NOW, RETENTION)  # fmt: skip
    second = parse_question([("campaign_id", "7,8"), ("start", "-1h"), ("end", "now"), ("filter", "ad_id:2,3"), ("filter", "country:DE,US")], NOW, RETENTION)  # fmt: skip
    assert first == second


def test_only_an_admin_may_ask_for_all_advertisers() -> None:
    everything = [("advertiser_id", "*"), ("start", "-1h"), ("end", "now")]
    question = parse_question(everything, NOW, RETENTION, admin=True)
    assert (question.campaigns, question.advertiser) == ((), None)
    with pytest.raises(BadQuestion, match="admin key") as error:
        parse_question(everything, NOW, RETENTION)
    assert (error.value.status, error.value.parameter) == (403, "advertiser_id")


def test_a_key_may_only_ask_for_its_advertisers() -> None:
    times = [("start", "-1h"), ("end", "now")]
    with pytest.raises(BadQuestion) as error:
        parse_question([*times, ("advertiser_id", "6")], NOW, RETENTION, RowScope(frozenset([5])))
    assert error.value.status == 403
    assert parse_question([*times, ("campaign_id", "6")], NOW, RETENTION, RowScope(frozenset([5]))).scope == RowScope(
        frozenset([5])
    )


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ([("campaign_id", "7")], False),
        ([("campaign_id", "7,8")], True),
        ([("advertiser_id", "5")], False),
        ([("advertiser_id", "5"), ("filter", "campaign_id:7")], False),
        ([("advertiser_id", "5"), ("filter", "campaign_id:7,8")], True),
    ],
)
def test_a_key_of_some_campaigns_may_name_no_other(parameters: list[tuple[str, str]], refused: bool) -> None:
    scope, times = RowScope(campaigns=frozenset([7, 9])), [("start", "-1h"), ("end", "now")]
    if not refused:
        assert parse_question([*times, *parameters], NOW, RETENTION, scope).scope == scope
        return
    with pytest.raises(BadQuestion, match="may not see campaign 8") as error:
        parse_question([*times, *parameters], NOW, RETENTION, scope)
    assert (error.value.status, error.value.kind) == (403, "forbidden")
