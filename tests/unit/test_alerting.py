"""Alerts from unusual minutes: opened once, worsened, closed, withdrawn; capped, cooled down, and one when all are silent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clickhouse.alerts import Alert
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from stream.insights.alerting import ALL_SILENT, Alerting, AlertPolicy
from stream.insights.outbox import versions_to_write
from stream.insights.rules import Finding
from stream.insights.watch import Watch

START = 1_795_132_800_000
KEY = (7, 3)
MILD, STRONG = (Finding("spend-spike", "spend_micros", d, 4_000.0 * d, 1_000.0) for d in (3.5, 9.0))
NONE = Finding("zero-impressions", "impressions", -9.0, 0.0, 400.0)


def told(alerting: Alerting, minutes: Sequence[Sequence[Finding]], start_ms: int = START) -> list[Alert]:
    """What is said of the findings of a campaign, minute by minute."""
    alerts = list[Alert]()
    for number, findings in enumerate(minutes):
        alerts += alerting.take(start_ms + number * MINUTE_MS, [(KEY, finding) for finding in findings], 1)
    return alerts


def steps(alerts: Sequence[Alert]) -> list[tuple[str, int, str]]:
    return [(alert.state, alert.version, alert.severity) for alert in alerts]


def test_an_episode_is_one_alert_that_opens_worsens_and_closes() -> None:
    alerting = Alerting(AlertPolicy("warning"))
    alerts = told(alerting, [[MILD], [], [STRONG], [STRONG], *([[]] * 6)])
    assert steps(alerts) == [("open", 1, "warning"), ("open", 2, "critical"), ("closed", 3, "critical")]
    assert len({alert.id for alert in alerts}) == 1
    last = alerts[-1]
    assert (last.opened_ms, last.ended_ms) == (START, START + 4 * MINUTE_MS)
    assert (last.campaign_id, last.advertiser_id) == KEY
    assert last.detail == {"measure": "spend_micros", "value": 36_000, "expected": 1_000, "deviations": 9.0}
    assert last.summary == "Campaign 7: it spent USD 0.04 in a minute, where USD 0.00 is usual"


def test_what_is_less_severe_than_the_policy_wants_opens_nothing() -> None:
    assert told(Alerting(AlertPolicy("critical")), [[MILD], []] * 5) == []


def test_some_warnings_in_a_row_count_as_a_critical_minute() -> None:
    other = NONE._replace(deviations=-3.5)
    assert told(Alerting(AlertPolicy()), [[MILD], [MILD], [], [MILD], [other], [MILD], []]) == []
    assert steps(told(Alerting(AlertPolicy()), [[other], [other], []])) == [("open", 1, "warning")]
    assert steps(told(Alerting(AlertPolicy()), [[MILD], [MILD], [MILD], []])) == [("open", 1, "warning")]


def test_the_next_alert_of_a_kind_waits_for_the_cooldown() -> None:
    quiet: list[list[Finding]] = [[]] * 10
    alerting = Alerting(AlertPolicy(cooldown_ms=30 * MINUTE_MS))
    alerts = told(alerting, [[STRONG], *quiet, [STRONG], *quiet, *quiet, [STRONG]])
    assert [alert.opened_ms for alert in alerts if alert.version == 1] == [START, START + 32 * MINUTE_MS]


def test_a_campaign_has_so_many_alerts_a_day_at_most() -> None:
    alerting = Alerting(AlertPolicy(cooldown_ms=0, daily_cap=3))
    alerts = told(alerting, [[STRONG], *([[]] * 5)] * 10, START)
    assert sum(alert.version == 1 for alert in alerts) == 3
    assert sum(alert.version == 1 for alert in told(alerting, [[STRONG]], START + DAY_MS)) == 1


def test_an_alert_of_which_late_events_leave_nothing_is_withdrawn() -> None:
    alerting = Alerting(AlertPolicy())
    (opened,) = told(alerting, [[NONE], [NONE]])
    assert list(alerting.correct(START, KEY, 380.0, 4.0, 9_000.0)) == []
    (withdrawn,) = alerting.correct(START + MINUTE_MS, KEY, 410.0, 4.0, 9_000.0)
    assert (withdrawn.id, withdrawn.version, withdrawn.state) == (opened.id, 2, "withdrawn")
    assert told(alerting, [[]] * 10, START + 2 * MINUTE_MS) == []


def test_late_clicks_withdraw_a_collapse_of_the_click_rate() -> None:
    collapse = Finding("surge-ctr-collapse", "impressions", 9.0, 4_000.0, 400.0, click_rate=0.05)
    for clicks, states in ((10.0, []), (190.0, ["withdrawn"])):
        alerting = Alerting(AlertPolicy())
        told(alerting, [[collapse]])
        assert [a.state for a in alerting.correct(START, KEY, 4_000.0, clicks, 9_000.0)] == states


def test_late_events_open_an_alert_that_is_over_unless_there_is_one_nearby() -> None:
    alerting, late = Alerting(AlertPolicy(cooldown_ms=5 * MINUTE_MS)), START + 2 * MINUTE_MS
    told(alerting, [[]] * 20)
    assert list(alerting.add_late(late, KEY, MILD)) == list(alerting.add_late(late, KEY, NONE)) == []
    alerts = list(alerting.add_late(late, KEY, STRONG))
    for minute in range(7):
        alerts += alerting.add_late(late + minute * MINUTE_MS, KEY, STRONG)
    alerts += told(alerting, [[]] * 2, START + 20 * MINUTE_MS)
    assert [(a.state, a.opened_ms, a.ended_ms) for a in alerts] == [
        ("open", late, 0),
        ("open", late + 6 * MINUTE_MS, 0),
        ("closed", late, late + MINUTE_MS),
        ("closed", late + 6 * MINUTE_MS, late + 7 * MINUTE_MS),
    ]
    # What later events take away again.
    assert [a.state for a in alerting.correct(late, KEY, 400.0, 4.0, 1_000.0)] == ["withdrawn"]


def test_an_alert_keeps_what_can_no_longer_be_corrected() -> None:
    alerting = Alerting(AlertPolicy())
    told(alerting, [[NONE]] * 90)
    for minute in range(90):
        assert list(alerting.correct(START + minute * MINUTE_MS, KEY, 400.0, 4.0, 9_000.0)) == []


def test_when_all_campaigns_are_silent_at_once_the_operator_gets_one_alert() -> None:
    alerting, campaigns = Alerting(AlertPolicy(), all_campaigns=True), range(30_000)
    alerts = list[Alert]()
    for minute in range(3):
        alerts += alerting.take(START + minute * MINUTE_MS, [((c, 1), NONE) for c in campaigns], len(campaigns))
    assert [(a.kind, a.advertiser_id, a.version) for a in alerts] == [(ALL_SILENT, 0, 1)]
    alerts = told(alerting, [[]] * 10, START + 3 * MINUTE_MS)
    assert [(a.kind, a.state, a.ended_ms) for a in alerts] == [(ALL_SILENT, "closed", START + 3 * MINUTE_MS)]


@given(st.lists(st.sampled_from([[], [], [MILD], [STRONG], [NONE], [NONE, STRONG]]), max_size=120), st.data())
def test_alerts_are_the_same_wherever_the_state_was_stored_and_each_version_comes_once(
    minutes: list[list[Finding]], data: st.DataObject
) -> None:
    policy = AlertPolicy("warning", cooldown_ms=10 * MINUTE_MS, daily_cap=4)
    whole = told(Alerting(policy), minutes)
    cut = data.draw(st.integers(0, len(minutes)))
    before = Alerting(policy)
    parts = told(before, minutes[:cut])
    parts += told(Alerting(policy, before.encode()), minutes[cut:], START + cut * MINUTE_MS)
    assert parts == whole
    for id_ in {alert.id for alert in whole}:
        own = [alert for alert in whole if alert.id == id_]
        assert [alert.version for alert in own] == list(range(1, len(own) + 1))
        assert [alert.state for alert in own[:-1]] == ["open"] * (len(own) - 1)


def minutes_of(campaigns: int, minutes: int, seed: int = 1) -> np.ndarray:
    """(minute, measure, campaign): impressions, clicks and spend of steady campaigns."""
    random = np.random.default_rng(seed)
    impressions = random.poisson(400, (minutes, campaigns))
    clicks = random.binomial(impressions, 0.05)
    return np.stack([impressions, clicks, impressions * 1_000], axis=1).astype(np.float64)


def test_a_watch_goes_on_from_what_it_has_stored() -> None:
    numbers = minutes_of(5, 400)
    numbers[300, 0, 2] = numbers[300, 1, 2] = 0
    numbers[350, 2, 1] *= 9
    ids = np.arange(5), np.full(5, 3)

    def findings(watch: Watch, of: range) -> list[tuple[int, tuple[int, int], Finding]]:
        watch.rows_of(*ids)
        return [(n, key, f) for n in of for key, f in watch.take(START + n * MINUTE_MS, *numbers[n])]

    whole = findings(Watch(120), range(400))
    first, second = Watch(120), Watch(120)
    parts = findings(first, range(310))
    second.decode(first.encode())
    assert parts + findings(second, range(310, 400)) == whole
    assert {(n, key[0], f.kind) for n, key, f in whole if f.severity == "critical"} == {
        (300, 2, "zero-impressions"),
        (350, 1, "spend-spike"),
    }


def test_a_campaign_that_is_forgotten_leaves_the_others_what_they_were() -> None:
    numbers, watch, without = minutes_of(2, 300), Watch(120), Watch(120)
    numbers[200, 2, 1] *= 9
    once = np.array([[1.0], [0.0], [5.0]])
    watch.rows_of(np.array([9, 1, 2]), np.array([3, 3, 3]))
    without.rows_of(np.array([1, 2]), np.array([3, 3]))
    for n in range(300):
        own = np.hstack([once * (n == 0), numbers[n]]) if n < 150 else numbers[n]
        assert list(watch.take(START + n * MINUTE_MS, *own)) == list(without.take(START + n * MINUTE_MS, *numbers[n]))
        if n == 149:
            watch.forget(START + n * MINUTE_MS - HOUR_MS)
            assert len(watch) == 2
    assert watch.rows_of(np.array([2, 9]), np.array([3, 3])).tolist() == [1, 2]


@pytest.mark.parametrize("state", [b"", b"x", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_the_state_of_another_version_is_refused_as_such(state: bytes) -> None:
    with pytest.raises(ValueError, match="not the state of a watch"):
        Watch(120).decode(state)
    with pytest.raises(ValueError, match="not the state of alerting"):
        Alerting(AlertPolicy(), state or b"[]")


def test_a_backtest_speaks_of_campaigns_alone() -> None:
    findings = [((campaign, 1), NONE) for campaign in range(40)]
    assert {alert.kind for alert in Alerting(AlertPolicy()).take(START, findings, 40)} == {"zero-impressions"}


def said_by(alerts: Sequence[Alert]) -> dict[str, Alert]:
    return {alert.id: alert for alert in alerts}


def test_what_was_said_is_not_said_again_and_what_differs_is_the_next_version() -> None:
    opened, worse, closed = told(Alerting(AlertPolicy("warning")), [[MILD], [STRONG], *([[]] * 6)])
    for said, minutes, expected in (
        # The same versions, some of which were written.
        ([opened], [[MILD], [STRONG]], [("open", 2, "critical")]),
        ([opened, worse], [[MILD], [STRONG]], []),
        ([opened, worse, closed], [[MILD], [STRONG], *([[]] * 6)], []),
        # Late events have made the second minute a usual one.
        ([opened, worse], [[MILD], [], *([[]] * 6)], [("closed", 3, "warning")]),
        # It was told to be over, and goes on.
        ([opened, worse, closed], [[MILD], [STRONG]], [("open", 4, "critical")]),
    ):
        alerting = Alerting(AlertPolicy("warning"))
        again = told(alerting, minutes)
        left = versions_to_write(again, said_by(said), alerting, START, known_ms=START)
        assert steps(left) == expected
        rest = told(alerting, [[]] * 10, START + 10 * MINUTE_MS)
        assert all(alert.version > (left or said)[-1].version for alert in rest)


def test_an_open_alert_that_nothing_leads_to_any_more_is_withdrawn_or_ends_where_nothing_is_known() -> None:
    (opened,) = told(Alerting(AlertPolicy()), [[STRONG]])
    # An alert from before the checkpoint that is not in it was opened by late events.
    for known_ms, state in ((START, "withdrawn"), (START + MINUTE_MS, "closed"), (None, "closed")):
        (end,) = versions_to_write([], said_by([opened]), Alerting(AlertPolicy()), START + HOUR_MS, known_ms=known_ms)
        assert (end.id, end.version, end.state, end.ended_ms) == (opened.id, 2, state, START + HOUR_MS)


def test_an_alert_of_the_checkpoint_that_was_told_to_be_over_is_told_to_go_on() -> None:
    alerting = Alerting(AlertPolicy())
    opened, closed = told(alerting, [[STRONG], *([[]] * 6)])
    going_on = Alerting(AlertPolicy())
    told(going_on, [[STRONG]])
    (again,) = versions_to_write([], said_by([opened, closed]), going_on, START, known_ms=START)
    assert (again.state, again.version) == ("open", 3)


def test_ids_that_are_made_up_are_not_watched_and_those_that_were_active_last_are_kept() -> None:
    watch = Watch(120)
    ids = np.arange(10)
    assert watch.rows_of(ids, ids, np.array([1, 0] * 5)).tolist() == [0, -1, 1, -1, 2, -1, 3, -1, 4, -1]
    for minute in range(5):
        own = np.zeros(5)
        own[minute] = 100.0
        list(watch.take(START + minute * MINUTE_MS, own, own * 0, own))
    watch.forget(START - DAY_MS, most=3)
    assert [watch.key_of(row)[0] for row in range(len(watch))] == [4, 6, 8]
    watch.forget(START - DAY_MS, unlearned_before_ms=START + 4 * MINUTE_MS)
    assert [watch.key_of(row)[0] for row in range(len(watch))] == [8]


@pytest.mark.parametrize("clicks_a_minute", [0.002, 0.02, 0.2, 2.0])
def test_rare_and_uneven_clicks_are_no_spike(clicks_a_minute: float) -> None:
    random, minutes, campaigns = np.random.default_rng(7), 3_000, 20
    clicks = random.poisson(clicks_a_minute, (minutes, campaigns))
    spend = np.array([[random.exponential(900_000, n).sum() for n in row] for row in clicks])
    impressions = random.poisson(20, clicks.shape).astype(np.float64)
    watch, alerting, alerts = Watch(120), Alerting(AlertPolicy()), list[Alert]()
    watch.rows_of(np.arange(campaigns), np.zeros(campaigns, np.int64))
    for n in range(minutes):
        at_ms = START + n * MINUTE_MS
        alerts += alerting.take(
            at_ms, watch.take(at_ms, impressions[n], clicks[n].astype(np.float64), spend[n] + 300), 0
        )
    # Forty days of campaigns.
    assert sum(alert.version == 1 for alert in alerts) <= 1


def test_a_price_that_rises_is_a_spike_though_clicks_are_few() -> None:
    random, watch, alerting, alerts = np.random.default_rng(7), Watch(120), Alerting(AlertPolicy()), list[Alert]()
    watch.rows_of(np.array([7]), np.array([3]))
    for n in range(1_000):
        clicks = random.poisson(3, 1).astype(np.float64)
        price = 500_000 * (8 if 900 <= n < 915 else 1)
        at_ms = START + n * MINUTE_MS
        alerts += alerting.take(at_ms, watch.take(at_ms, clicks * 50, clicks, clicks * price), 0)
    opened = [(alert.kind, (alert.opened_ms - START) // MINUTE_MS) for alert in alerts if alert.version == 1]
    assert len(opened) == 1
    assert opened[0][0] == "spend-spike"
    assert 900 <= opened[0][1] < 905
