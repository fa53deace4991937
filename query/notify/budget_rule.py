"""The rule of budgets: a campaign has nearly spent its budget, or all of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from query.budgets import NEARLY_SPENT
from query.notify.changes import Condition, RuleFindings

KIND = "budget"


@dataclass(frozen=True)
class BudgetFacts:
    """Rows as `query.budgets.read_budgets` has them, of budgets whose period is running, each with its advertiser. `is_complete`: whether
    all of their spending is known."""

    rows: tuple[tuple[int, dict[str, Any]], ...]
    is_complete: bool = True


def judge_budgets(facts: BudgetFacts, now_ms: int) -> RuleFindings:
    """One alert for a campaign and period of its budget: a warning from 90 % on, critical once it is spent."""
    conditions = [(row["state"], _condition(advertiser, row, now_ms)) for advertiser, row in facts.rows]
    # Spending that is not all known is at least so much. Budgets whose period is over are not among the rows.
    undecided = frozenset[str]() if facts.is_complete else frozenset(condition.id for _, condition in conditions)
    found = tuple(condition for state, condition in conditions if state != "on-track")
    return RuleFindings((KIND,), found, undecided=undecided)


def _condition(advertiser: int, row: dict[str, Any], now_ms: int) -> Condition:
    exhausted = row["state"] == "exhausted"
    spent, budget = row["spent_micros"], row["budget_micros"]
    share = "all" if exhausted else f"more than {NEARLY_SPENT:.0%}"
    detail = {
        name: row[name] for name in ("budget", "budget_micros", "spent_micros", "share", "start", "end", "last_hour_micros")
    }  # fmt: skip
    summary = (
        f"campaign {row['campaign_id']} ({row['name']}) has spent {share} of its {row['budget']} budget:"
        f" {spent:,} of {budget:,} micros"
    )
    severity = "critical" if exhausted else "warning"
    # What is read of a total budget may begin later each day: numbers of two years ago are dropped.
    occasion = row["start"] if row["budget"] == "daily" else row["budget"]
    return Condition(KIND, occasion, severity, now_ms, summary, detail, advertiser, row["campaign_id"])
