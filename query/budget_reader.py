"""Budgets from a router: campaigns and their budgets from its directory, and what they have spent from its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clock import DAY_MS, iso
from query.budgets import Spending, read_budgets
from query.directory.entries import Campaign
from query.directory.snapshot import Search, Snapshot
from query.question import parse_question
from query.router import Router
from query.row_scope import RowScope


@dataclass(frozen=True)
class BudgetReading:
    """The document of an advertiser's budgets. `is_complete`: whether no part of any answer is missing or old."""

    document: dict[str, Any]
    rows_read: int
    is_complete: bool


def campaigns_with_budgets(snapshot: Snapshot, advertiser: int, scope: RowScope) -> list[Campaign]:
    """Those of an advertiser that may be seen, by name."""
    entries, _ = snapshot.search(Search("campaign", equal=(("advertiser_id", advertiser),)), scope)
    budgeted = [entry["id"] for entry in entries if entry["budget"] is not None]
    return [entry for entry in snapshot.entries("campaign", budgeted) if isinstance(entry, Campaign)]


def oldest_numbers_ms(router: Router, now_ms: int) -> int:
    """The first day of which a router has numbers."""
    return -(-(now_ms - router.retention.days_ms) // DAY_MS) * DAY_MS


def read_advertiser_budgets(
    router: Router, advertiser: int, campaigns: Sequence[Campaign], scope: RowScope, now_ms: int
) -> BudgetReading:
    """The budgets of an advertiser's campaigns, the most spent first. Raises Unavailable."""
    rows_read, is_complete = 0, True
    # Other advertisers may use the same ids.
    own = scope.within(RowScope(frozenset({advertiser})))

    def read(campaigns: Sequence[int], start_ms: int, end_ms: int) -> Spending:
        nonlocal rows_read, is_complete
        parameters = {
            "campaign_id": ",".join(map(str, campaigns)), "start": iso(start_ms), "end": iso(end_ms), "granularity": "total",
            "group_by": "campaign_id",
        }  # fmt: skip
        answer = router.answer(parse_question(list(parameters.items()), now_ms, router.retention, own))
        rows_read += answer.rows_read
        is_complete = is_complete and not answer.degraded
        micros = {row["campaign_id"]: int(row["spend_micros"]) for row in answer.page.frame.rows(named=True)}
        return Spending(micros, answer.finality, answer.watermark_ms, answer.warnings)

    document = read_budgets(campaigns, read, now_ms, oldest_numbers_ms(router, now_ms))
    return BudgetReading(document, rows_read, is_complete)
