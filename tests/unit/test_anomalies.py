"""Anomalies of campaigns: planted ones are told with their numbers, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infra.clock import DAY_MS, HOUR_MS, iso
from query.anomalies import AnomaliesQuestion, ClosedNumbers, Episode, find_anomalies, parse_anomalies_question
from query.bad_question import BadQuestion
from query.question import MEASURES, Retention
from query.row_scope import ALL_ROWS, RowScope
from query.sums import Sums

NOW = 20_000 * DAY_MS + 12 * HOUR_MS
RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
HOURS = 30 * 24
SPIKE, SILENT, DROP, SURGE, CALM, NEW = 1, 2, 3, 4, 5, 6


def parse(scope: RowScope = ALL_ROWS, /, **parameters: str) -> AnomaliesQuestion:
    return parse_anomalies_question(list(parameters.items()), NOW, RETENTION, scope)


def make_hours() -> dict[str, Any]:
    """Impressions, clicks and spend by hour and campaign, with the season of a day; the last hour is not over."""
    random = np.random.default_rng(5)
    hours = np.arange(HOURS)[:, None]
    mean = np.array([[3_000, 900, 20_000, 1_000, 5_000, 2_000]]) * (1 + 0.5 * np.sin(2 * np.pi * hours / 24))
    mean = mean * random.lognormal(0, 0.03, mean.shape)
    # It begins five days ago.
    mean[: HOURS - 120, NEW - 1] = 0
    rate = np.full(mean.shape, 0.03)
    rate[-30:-28, DROP - 1] = 0.005
    mean[-40, SURGE - 1] *= 12
    rate[-40, SURGE - 1] = 0.001
    mean[-10:-7, SILENT - 1] = 0
    impressions = random.poisson(mean)
    clicks = random.binomial(impressions, rate)
    spend = clicks * 500_000 + impressions * 2_000
    spend[-5, SPIKE - 1] *= 5
    return {"impressions": impressions, "clicks": clicks, "spend_micros": spend}


def at(hour: int) -> int:
    """The start of an hour, counted back from the end."""
    return parse(advertiser_id="3").numbers.start_ms + (HOURS + hour) * HOUR_MS


def as_sums(values: dict[str, Any], start_ms: int) -> Sums:
    """As the router has them: no rows of hours without events."""
    rows, columns = np.nonzero(values["impressions"])
    zeros = np.zeros(len(rows), np.int64)
    measures = tuple(values[name][rows, columns] if name in values else zeros for name in MEASURES)
    flags = np.zeros(len(rows), bool)
    return Sums(start_ms + rows * HOUR_MS, (columns + 1,), measures, flags, flags)


@pytest.fixture(scope="module")
def found() -> list[Episode]:
    question = parse(advertiser_id="3", since="-7d")
    return find_anomalies(question, ClosedNumbers(as_sums(make_hours(), question.numbers.start_ms), NOW))


def test_planted_anomalies_are_found_and_nothing_else_is_critical(found: list[Episode]) -> None:
    critical = {(e.campaign, e.kind): (e.start_ms, e.end_ms) for e in found if e.severity == "critical"}
    assert critical[SPIKE, "spend-spike"] == (at(-5), at(-4))
    assert critical[SILENT, "zero-impressions"] == (at(-10), at(-7))
    assert critical[DROP, "ctr-drop"][0] == at(-30)
    assert critical[SURGE, "surge-ctr-collapse"] == (at(-40), at(-39))
    assert {campaign for campaign, _ in critical} == {SPIKE, SILENT, DROP, SURGE}
    assert len(found) < 12


def test_an_episode_has_the_numbers_that_led_to_it(found: list[Episode]) -> None:
    (spike,) = [e for e in found if (e.campaign, e.kind) == (SPIKE, "spend-spike")]
    document = spike.document()
    assert (document["severity"], document["measure"], document["open"]) == ("critical", "spend_micros", False)
    assert document["value"] > 3 * document["expected"] > 0
    assert document["start"] == iso(spike.start_ms)
    assert [e.start_ms for e in found] == sorted((e.start_ms for e in found), reverse=True)


def test_hours_that_are_not_closed_say_nothing_and_the_last_closed_ones_are_open() -> None:
    question = parse(campaign_id="2")
    start, values = question.numbers.start_ms, make_hours()
    assert not find_anomalies(question, ClosedNumbers(as_sums(values, start), None))
    before = find_anomalies(question, ClosedNumbers(as_sums(values, start), at(-10)))
    assert "zero-impressions" not in {e.kind for e in before}
    during = [
        e
        for e in find_anomalies(question, ClosedNumbers(as_sums(values, start), at(-9)))
        if e.kind == "zero-impressions"
    ]
    assert [(e.start_ms, e.open) for e in during] == [(at(-10), True)]


def test_numbers_that_are_missing_are_no_anomaly() -> None:
    values, question = make_hours(), parse(advertiser_id="3", since="-7d")
    for matrix in values.values():
        matrix[-60:-50] = 0
    rows = as_sums(values, question.numbers.start_ms)
    silent = {e.campaign for e in find_anomalies(question, ClosedNumbers(rows, NOW)) if e.kind == "zero-impressions"}
    assert len(silent) > 3
    degraded = find_anomalies(question, ClosedNumbers(rows, NOW, [(at(-60), at(-50))]))
    assert {e.campaign for e in degraded if e.kind == "zero-impressions"} == {SILENT}
    assert {e.campaign for e in degraded if e.severity == "critical"} == {SPIKE, SILENT, DROP, SURGE}


def test_the_severity_and_the_time_of_a_question_count() -> None:
    values, start = make_hours(), parse(advertiser_id="3").numbers.start_ms
    critical = find_anomalies(parse(advertiser_id="3", severity="critical"), ClosedNumbers(as_sums(values, start), NOW))
    assert critical and {e.severity for e in critical} == {"critical"}
    recent = find_anomalies(parse(advertiser_id="3", since="-6h"), ClosedNumbers(as_sums(values, start), NOW))
    assert {e.campaign for e in recent if e.severity == "critical"} == {SPIKE}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({}, 400), ({"advertiser_id": "3", "campaign_id": "1"}, 400), ({"advertiser_id": "*"}, 400), ({"advertiser_id": "4"}, 403),
        ({"advertiser_id": "3", "granularity": "day"}, 400), ({"advertiser_id": "3", "severity": "low"}, 400),
        ({"advertiser_id": "3", "since": "now"}, 400), ({"advertiser_id": "3", "start": "-1d"}, 400),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(parameters: dict[str, str], status: int) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse(RowScope(frozenset({3})), **parameters)
    assert refusal.value.status == status
