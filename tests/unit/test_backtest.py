"""What a policy would have sent is what the stream's alerting says of the same numbers."""

from __future__ import annotations

import pytest

from infra.clock import DAY_MS, HOUR_MS
from query.anomalies import ClosedNumbers
from query.backtest import BacktestQuestion, backtest, backtest_document, parse_backtest_question
from query.bad_question import BadQuestion
from query.question import Retention
from query.row_scope import ALL_ROWS
from stream.insights.alerting import AlertPolicy
from tests.unit.test_anomalies import DROP, NOW, SILENT, SPIKE, SURGE, as_sums, at, make_hours

RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
USUAL = AlertPolicy()


def parse(**parameters: str) -> BacktestQuestion:
    given = {"advertiser_id": "3", "granularity": "hour", "since": "-7d"} | parameters
    return parse_backtest_question(list(given.items()), NOW, RETENTION, ALL_ROWS, USUAL)


def numbers(question: BacktestQuestion) -> ClosedNumbers:
    return ClosedNumbers(as_sums(make_hours(), question.anomalies.numbers.start_ms), NOW)


def test_the_planted_anomalies_are_the_alerts() -> None:
    question = parse()
    alerts = backtest(question, numbers(question))
    opened = {(a.campaign_id, a.kind): (a.opened_ms, a.state) for a in alerts if a.severity == "critical"}
    assert opened[SPIKE, "spend-spike"] == (at(-5), "closed")
    assert opened[SILENT, "zero-impressions"] == (at(-10), "closed")
    assert {campaign for campaign, _ in opened} == {SPIKE, SILENT, DROP, SURGE}
    document = backtest_document(question, numbers(question), alerts)
    assert document["alerts"] == len(alerts) == sum(document["by_kind"].values())
    assert document["a_campaign_and_month"] == pytest.approx(
        len(alerts) / (document["campaigns"] * (NOW - (NOW - 7 * DAY_MS)) / (30 * DAY_MS)), rel=0.05
    )


def test_a_milder_policy_sends_more_and_a_cap_less() -> None:
    strict, mild, capped = parse(), parse(severity="warning", cooldown_s="0"), parse(alerts_a_day="1", cooldown_s="0")
    counts = [len(backtest(question, numbers(question))) for question in (strict, mild, capped)]
    assert counts[1] >= counts[0] >= 4
    assert counts[2] <= counts[1]


def test_alerts_before_the_range_are_left_out() -> None:
    question = parse(since="-6h")
    assert {(a.campaign_id, a.kind) for a in backtest(question, numbers(question))} == {(SPIKE, "spend-spike")}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"cooldown_s": "-1"}, "cooldown_s"),
        ({"cooldown_s": "1e3"}, "cooldown_s"),
        ({"alerts_a_day": "0"}, "alerts_a_day"),
        ({"alerts_a_day": "9" * 5_000}, "alerts_a_day"),
        ({"severity": "bad"}, "severity"),
        ({"granularity": "day"}, "granularity"),
        ({"campaign_id": "7"}, "advertiser_id"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: dict[str, str], name: str) -> None:
    with pytest.raises(BadQuestion) as raised:
        parse(**parameters)
    assert raised.value.parameter == name
