"""Rules of alerts: facts in, alerts out; and that only what has changed is written."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clickhouse.alerts import Alert
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from query.budgets import Spending, read_budgets
from query.directory.entries import Campaign
from query.notify.bill_rules import IssueFacts, RunFacts, judge_runs, judge_statements, judge_webhooks
from query.notify.budget_rule import BudgetFacts, judge_budgets
from query.notify.changes import Condition, RuleFindings, find_changes
from query.notify.pipeline_rules import (
    PipelineFacts,
    PipelineWatch,
    judge_dead_letters,
    judge_detector,
    judge_overload,
    judge_silence,
    judge_workers,
)
from query.status import UNKNOWN_STATUS
from query.webhooks.webhooks import Webhook

NOW = 1_796_000_000_000


class Table:
    """The alerts that were written, as the outbox reads them."""

    def __init__(self) -> None:
        self.newest: dict[str, Alert] = {}

    def apply(self, *verdicts: RuleFindings, now_ms: int = NOW) -> list[tuple[str, str, int]]:
        """Write the changes; returns (state, severity, version) of each."""
        changes = find_changes(self.newest, verdicts, now_ms)
        for change in changes:
            former = self.newest.get(change.id)
            assert change.version == (1 if former is None else former.version + 1)
        self.newest |= {change.id: change for change in changes}
        return [(change.state, change.severity, change.version) for change in changes]

    def open(self, kind: str) -> list[Alert]:
        """The open ones of a kind."""
        return [alert for alert in self.newest.values() if alert.kind == kind and alert.state == "open"]


def budgets(spent: int, *, budget: str = "daily", amount: int = 1_000, now_ms: int = NOW) -> BudgetFacts:
    """Of one campaign, as the router's answers have it."""
    campaign = Campaign(7, "Summer", 3, budget=budget, budget_micros=amount)

    def read(campaigns: Any, start_ms: int, end_ms: int) -> Spending:
        return Spending({7: spent}, "closed", NOW, [])

    document = read_budgets([campaign], read, now_ms, NOW // DAY_MS * DAY_MS - 700 * DAY_MS)
    return BudgetFacts(tuple((3, row) for row in document["data"]))


def test_a_budget_warns_beyond_ninety_percent_worsens_when_spent_and_closes_with_its_day() -> None:
    table = Table()
    assert table.apply(judge_budgets(budgets(900), NOW)) == []
    assert table.apply(judge_budgets(budgets(901), NOW)) == [("open", "warning", 1)]
    assert table.apply(judge_budgets(budgets(950), NOW)) == []
    assert table.apply(judge_budgets(budgets(1_000), NOW)) == [("open", "critical", 2)]
    assert table.apply(judge_budgets(budgets(990), NOW)) == []  # it never gets better but by ending
    (alert,) = table.open("budget")
    assert (alert.advertiser_id, alert.campaign_id, alert.detail["spent_micros"]) == (3, 7, 1_000)
    assert "campaign 7 (Summer) has spent all" in alert.summary
    tomorrow = NOW + DAY_MS
    assert table.apply(judge_budgets(budgets(10, now_ms=tomorrow), tomorrow), now_ms=tomorrow) == [
        ("closed", "critical", 3)
    ]
    # The next day has an alert of its own.
    assert table.apply(judge_budgets(budgets(910, now_ms=tomorrow), tomorrow), now_ms=tomorrow) == [
        ("open", "warning", 1)
    ]
    assert len(table.newest) == 2


def test_a_budget_that_is_raised_closes_its_alert_which_opens_again_when_that_is_spent_too() -> None:
    table = Table()
    assert table.apply(judge_budgets(budgets(1_000), NOW)) == [("open", "critical", 1)]
    assert table.apply(judge_budgets(budgets(1_000, amount=5_000), NOW)) == [("closed", "critical", 2)]
    assert table.apply(judge_budgets(budgets(4_900, amount=5_000), NOW)) == [("open", "warning", 3)]
    assert len(table.newest) == 1


def test_a_total_budget_has_one_alert_however_far_back_numbers_reach() -> None:
    table = Table()
    for day in range(3):
        now_ms = NOW + day * DAY_MS
        table.apply(judge_budgets(budgets(1_000, budget="total", now_ms=now_ms), now_ms))
    assert [alert.version for alert in table.newest.values()] == [1]


def test_spending_that_is_not_all_known_closes_nothing() -> None:
    table = Table()
    table.apply(judge_budgets(budgets(1_000), NOW))
    partly_known = BudgetFacts(budgets(10).rows, is_complete=False)
    assert table.apply(judge_budgets(partly_known, NOW)) == []
    # That a period is over is known all the same.
    tomorrow = BudgetFacts(budgets(10, now_ms=NOW + DAY_MS).rows, is_complete=False)
    assert table.apply(judge_budgets(tomorrow, NOW)) == [("closed", "critical", 2)]


# -- the pipeline ------------------------------------------------------------------------------------------------------


def test_overload_raises_an_alert_after_a_minute_and_worsens_when_events_are_shed() -> None:
    table = Table()

    def judge(level: str | None, since_ms: int, now_ms: int) -> list[tuple[str, str, int]]:
        verdict = judge_overload(PipelineFacts(level=level, level_since_ms=since_ms), table.open("overload"), now_ms)
        return table.apply(verdict, now_ms=now_ms)

    assert judge("elevated", NOW, NOW + MINUTE_MS) == []
    assert judge("elevated", NOW, NOW + MINUTE_MS + 1) == [("open", "warning", 1)]
    assert judge("sampling", NOW, NOW + 2 * MINUTE_MS) == [("open", "critical", 2)]
    # A worker that takes over sees the level as new; the alert is the same.
    assert judge("sampling", NOW + 3 * MINUTE_MS, NOW + 3 * MINUTE_MS) == []
    assert judge(None, 0, NOW + 4 * MINUTE_MS) == []
    assert judge("normal", NOW + 5 * MINUTE_MS, NOW + 5 * MINUTE_MS) == [("closed", "critical", 3)]
    assert judge("elevated", NOW + HOUR_MS, NOW + 2 * HOUR_MS) == [("open", "warning", 1)]


@pytest.mark.parametrize(
    ("messages", "rejected", "raised"),
    [(1_000, 10, False), (1_000, 11, True), (100, 9, False), (10, 10, True), (0, 0, False), (None, None, False)],
)
def test_dead_letters_raise_an_alert_beyond_their_share(
    messages: int | None, rejected: int | None, raised: bool
) -> None:
    verdict = judge_dead_letters(PipelineFacts(messages=messages, rejected=rejected), [], 0.01, NOW)
    assert bool(verdict.conditions) == raised
    assert verdict.is_complete == (messages is not None)


def test_silence_raises_one_alert_where_events_are_usual_and_ends_with_the_next_event() -> None:
    table = Table()

    def judge(arrived: int | None, since_ms: int, usual: float, now_ms: int = NOW) -> list[tuple[str, str, int]]:
        facts = PipelineFacts(arrived=arrived, arrived_since_ms=since_ms)
        return table.apply(judge_silence(facts, table.open("silence"), 15 * MINUTE_MS, usual, now_ms), now_ms=now_ms)

    assert judge(500, NOW - 14 * MINUTE_MS, 10_000) == []
    assert judge(500, NOW - 20 * MINUTE_MS, 20) == []  # five events would have come: that is chance
    assert judge(500, NOW - 20 * MINUTE_MS, 10_000) == [("open", "critical", 1)]
    # What is usual is not looked up any more, and a worker that takes over has not seen it begin.
    assert judge(500, NOW, 0) == []
    assert judge(None, 0, 0) == []
    assert judge(501, NOW, 0) == [("closed", "critical", 2)]


def test_each_worker_that_stops_with_an_error_has_an_alert_until_it_runs() -> None:
    table = Table()

    def judge(stopped: dict[str, str] | None, now_ms: int) -> list[tuple[str, str, int]]:
        rule = judge_workers(PipelineFacts(stopped=stopped), table.open("worker-stopped"), now_ms)
        return table.apply(rule, now_ms=now_ms)

    assert judge({"0": "hole"}, NOW) == [("open", "critical", 1)]
    assert judge({"0": "hole", "1": "hole"}, NOW + 1) == [("open", "critical", 1)]
    assert judge(None, NOW + 2) == []
    assert judge({"1": "hole"}, NOW + 3) == [("closed", "critical", 2)]
    assert [alert.detail["worker"] for alert in table.open("worker-stopped")] == ["1"]


def test_a_detector_that_stops_has_an_alert_until_it_works() -> None:
    table = Table()

    def judge(stopped: str | None, now_ms: int) -> list[tuple[str, str, int]]:
        facts = PipelineFacts(stopped_detector=stopped)
        return table.apply(judge_detector(facts, table.open("detector-stopped"), now_ms), now_ms=now_ms)

    assert judge("hole", NOW) == [("open", "critical", 1)]
    assert judge(None, NOW + 1) == []
    assert judge("hole", NOW + 2) == []
    assert judge("", NOW + 3) == [("closed", "critical", 2)]


def status(**more: Any) -> dict[str, Any]:
    """Of a pipeline, with some parts of it."""
    return UNKNOWN_STATUS | {"problems": {}} | more


def report(worker: str, messages: int, rejected: int, started_ms: int = NOW - DAY_MS) -> dict[str, Any]:
    """An ingest worker's."""
    return {"worker": worker, "started_ms": started_ms, "counts": {"messages": messages, "rejected": rejected}}


def test_the_watch_counts_over_minutes_also_when_a_worker_starts_anew() -> None:
    watch = PipelineWatch()
    assert watch.observe(status(ingest_workers=[report("a", 100, 1)]), NOW).messages is None
    facts = watch.observe(status(ingest_workers=[report("a", 300, 4), report("b", 50, 2, NOW + 1)]), NOW + MINUTE_MS)
    assert (facts.messages, facts.rejected) == (250, 5)
    facts = watch.observe(status(ingest_workers=[report("a", 30, 3)]), NOW + 2 * MINUTE_MS)
    assert (facts.messages, facts.rejected) == (30, 3)
    # Of a minute long ago nothing is counted any more.
    facts = watch.observe(status(ingest_workers=[report("a", 40, 3)]), NOW + HOUR_MS)
    assert (facts.messages, facts.rejected) == (10, 0)


def test_what_workers_did_before_redis_was_away_is_not_counted_when_it_is_back() -> None:
    watch, away = PipelineWatch(), status(problems={"redis": "away"})
    assert watch.observe(away, NOW).messages is None
    assert watch.observe(status(ingest_workers=[report("a", 9_000, 900)]), NOW + MINUTE_MS).messages is None
    assert watch.observe(away, NOW + 2 * MINUTE_MS).messages is None
    facts = watch.observe(status(ingest_workers=[report("a", 9_100, 901)]), NOW + 3 * MINUTE_MS)
    assert (facts.messages, facts.rejected) == (100, 1)
    # However long Redis was away, the sample before is the base.
    for minute in range(4, 20):
        watch.observe(away, NOW + minute * MINUTE_MS)
    facts = watch.observe(status(ingest_workers=[report("a", 9_200, 902)]), NOW + 20 * MINUTE_MS)
    assert (facts.messages, facts.rejected) == (100, 1)


@pytest.mark.parametrize(
    ("started_ms", "counted"),
    [(NOW + 1, (9_100, 901)), (NOW - 1, (100, 1)), (0, (100, 1))],
    ids=["it is new", "its report had expired", "its report is of the version before"],
)
def test_of_a_worker_that_appears_only_a_new_one_counts_from_its_start(
    started_ms: int, counted: tuple[int, int]
) -> None:
    watch = PipelineWatch()
    watch.observe(status(), NOW)
    watch.observe(status(ingest_workers=[report("a", 9_000, 900, started_ms)]), NOW + MINUTE_MS)
    facts = watch.observe(status(ingest_workers=[report("a", 9_100, 901, started_ms)]), NOW + 2 * MINUTE_MS)
    assert (facts.messages, facts.rejected) == counted


def test_a_worker_that_started_anew_and_has_done_more_since_counts_from_0() -> None:
    watch = PipelineWatch()
    watch.observe(status(ingest_workers=[report("a", 100, 1)]), NOW)
    facts = watch.observe(status(ingest_workers=[report("a", 150, 30, NOW + 1)]), NOW + MINUTE_MS)
    assert (facts.messages, facts.rejected) == (150, 30)


def test_the_watch_says_since_when_a_level_is_not_normal_and_nothing_has_come() -> None:
    watch = PipelineWatch()
    first = watch.observe(status(level="elevated", arrived_events=5), NOW)
    assert (first.level_since_ms, first.arrived_since_ms) == (NOW, NOW)
    then = watch.observe(status(level="sampling", arrived_events=5), NOW + 1)
    assert (then.level_since_ms, then.arrived_since_ms) == (NOW, NOW)
    away = watch.observe(status(), NOW + 2)
    assert (away.level, away.arrived) == (None, None)
    assert watch.observe(status(level="normal", arrived_events=6), NOW + 3).arrived_since_ms == NOW + 3
    assert watch.observe(status(level="elevated", arrived_events=6), NOW + 4).level_since_ms == NOW + 4
    assert watch.observe(status(problems={"redis": "away"}), NOW + 5).stopped is None


# -- bills and webhooks ------------------------------------------------------------------------------------------------

DAY = dt.date(2026, 11, 20)


def test_a_run_with_an_alert_and_events_that_came_after_it_are_told_until_the_next_run() -> None:
    table = Table()
    run = RunFacts(DAY, "run-1", True, False, 100, 2, 0)
    assert table.apply(judge_runs([run])) == [("open", "warning", 1)]
    unexplained = RunFacts(DAY, "run-2", True, True, 100, 2, 17)
    assert table.apply(judge_runs([unexplained])) == [("open", "critical", 2), ("open", "warning", 1)]
    assert table.apply(judge_runs([])) == [("closed", "critical", 3), ("closed", "warning", 2)]


def test_each_issue_of_a_statement_is_told_for_a_week() -> None:
    table = Table()
    issues = [
        IssueFacts(3, DAY.replace(day=1), 1, "aa", NOW),
        IssueFacts(3, DAY.replace(day=1), 2, "bb", NOW + HOUR_MS),
    ]
    assert table.apply(judge_statements(issues[:1], NOW)) == [("open", "warning", 1)]
    assert table.apply(judge_statements(issues, NOW)) == [("open", "warning", 1)]
    assert {alert.kind for alert in table.newest.values()} == {"statement-ready", "statement-restated"}
    assert {alert.advertiser_id for alert in table.newest.values()} == {3}
    week = NOW + 7 * DAY_MS
    assert table.apply(judge_statements(issues, week), now_ms=week) == [("closed", "warning", 2)]


def test_a_webhook_that_was_disabled_is_told_to_the_operator_until_it_is_enabled() -> None:
    table = Table()
    webhook = Webhook(
        "wh_1", 3, "https://a.example/", "", [], "standard", "s", "", 0, False, "answered 500", 1, 1, False, 2
    )
    assert table.apply(judge_webhooks([webhook], NOW)) == [("open", "warning", 1)]
    (alert,) = table.newest.values()
    assert (alert.advertiser_id, alert.detail["advertiser_id"]) == (0, 3)
    by_hand = msgspec.structs.replace(webhook, disabled_why="")
    assert table.apply(judge_webhooks([by_hand], NOW)) == [("closed", "warning", 2)]


# -- changes -----------------------------------------------------------------------------------------------------------

CONDITIONS = st.builds(
    Condition, st.sampled_from("ab"), st.sampled_from(["1", "2", "3"]), st.sampled_from(["warning", "critical"]),
    st.integers(0, 10), st.just("text"), advertiser_id=st.integers(0, 2), campaign_id=st.integers(0, 2),
)  # fmt: skip
VERDICTS = st.lists(
    st.builds(
        lambda kind, conditions, is_complete: RuleFindings(
            (kind,), tuple(c for c in conditions if c.kind == kind), is_complete
        ),
        st.sampled_from("ab"), st.lists(CONDITIONS, max_size=6), st.booleans(),
    ),
    max_size=3,
)  # fmt: skip


@given(st.lists(VERDICTS, max_size=6))
def test_the_same_facts_twice_write_nothing(rounds: list[list[RuleFindings]]) -> None:
    table = Table()
    for number, verdicts in enumerate(rounds):
        table.apply(*verdicts, now_ms=number)
        assert table.apply(*verdicts, now_ms=number + 1) == []


@given(st.lists(VERDICTS, max_size=6))
def test_after_a_round_exactly_what_holds_or_is_not_known_is_open(rounds: list[list[RuleFindings]]) -> None:
    table = Table()
    for number, verdicts in enumerate(rounds):
        before = {id_ for id_, alert in table.newest.items() if alert.state == "open"}
        table.apply(*verdicts, now_ms=number)
        holds = {condition.id for verdict in verdicts for condition in verdict.conditions}
        judged = {kind for verdict in verdicts if verdict.is_complete for kind in verdict.kinds}
        unknown = {id_ for id_ in before if table.newest[id_].kind not in judged}
        assert {id_ for id_, alert in table.newest.items() if alert.state == "open"} == holds | unknown
        for alert in table.newest.values():
            assert (alert.ended_ms == 0) or alert.state == "closed"


def test_the_period_of_a_daily_budget_is_part_of_its_detail() -> None:
    (condition,) = judge_budgets(budgets(1_000), NOW).conditions
    assert condition.detail["start"] == iso(NOW // DAY_MS * DAY_MS)
