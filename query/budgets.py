"""Budgets: what a campaign has spent of its own, how fast, and when the rest will be gone.

A daily budget is that of the campaign's local day, a total one that of all its days. What is spent is what the router answers; the
forecast goes on with the spend of the last hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.clock import DAY_MS, HOUR_MS, iso
from query import zones
from query.bad_question import BadQuestion
from query.directory.entries import Campaign
from query.finality import FINALITY
from query.parameters import collect_parameters, parse_id, parse_limit
from query.ratios import round_half_up
from query.row_scope import RowScope

NEARLY_SPENT = 0.9
"""The share of a budget from which on it is nearly spent."""
STATES = ("on-track", "nearly-spent", "exhausted")
_MAX_CAMPAIGNS = 1_000
_DECIMALS = 10_000


@dataclass(frozen=True)
class BudgetsQuestion:
    """Whose budgets, and how many campaigns at most."""

    advertiser: int
    limit: int
    scope: RowScope


@dataclass(frozen=True)
class Spending:
    """What campaigns have spent in a range, in micros, by id; and how final that is."""

    micros: dict[int, int]
    finality: str
    watermark_ms: int | None
    warnings: list[str]


class ReadSpending(Protocol):
    """Asks the router."""

    def __call__(self, campaigns: Sequence[int], start_ms: int, end_ms: int) -> Spending:
        """The spending of an advertiser's campaigns. Raises Unavailable."""


def parse_budgets_question(parameters: Sequence[tuple[str, str]], scope: RowScope) -> BudgetsQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, ("advertiser_id", "limit"))
    if "advertiser_id" not in values:
        raise BadQuestion("advertiser_id", "advertiser_id is missing: budgets are listed for one advertiser")
    advertiser = parse_id("advertiser_id", values["advertiser_id"])
    scope.refuse_foreign(advertiser)
    return BudgetsQuestion(advertiser, min(parse_limit(values), _MAX_CAMPAIGNS), scope)


def period_of(campaign: Campaign, now_ms: int, oldest_ms: int) -> tuple[int, int | None]:
    """[start, end) of what the campaign's budget is for, in epoch ms: its local day, or all its days. `oldest_ms`: where the numbers of a
    campaign without a first day begin. The end is None for one without a last day."""
    zone = zones.zone_named(campaign.timezone)
    if campaign.budget == "daily":
        start_ms = zones.day_start(now_ms, zone)
        return start_ms, zones.day_end(start_ms, zone)
    start_ms = oldest_ms if campaign.start is None else zones.day_of(campaign.start.toordinal(), zone)
    end = None if campaign.end is None else zones.day_of(campaign.end.toordinal() + 1, zone)
    return max(start_ms, oldest_ms), end


def read_budgets(campaigns: Iterable[Campaign], read: ReadSpending, now_ms: int, oldest_ms: int) -> dict[str, Any]:
    """The document of an advertiser's campaigns that have a budget."""
    periods = {c: period_of(c, now_ms, oldest_ms) for c in campaigns if c.budget is not None}
    running = {c: period for c, period in periods.items() if period[0] < now_ms}
    # Days of one zone begin together. A campaign spends nothing before its first day, so all others are read from the earliest on.
    starts = {c: start for c, (start, _) in running.items() if c.budget == "daily"}
    first_ms = min((start for c, (start, _) in running.items() if c not in starts), default=now_ms)
    starts |= {c: first_ms for c in running if c not in starts}
    answers = [
        read([c.id for c, at in starts.items() if at == start], start, now_ms) for start in sorted({*starts.values()})
    ]
    spent = {number: micros for answer in answers for number, micros in answer.micros.items()}
    recent = read([c.id for c in running], now_ms - HOUR_MS, now_ms) if running else Spending({}, FINALITY[0], None, [])
    data = [
        _row(campaign, period, spent.get(campaign.id, 0), recent.micros.get(campaign.id, 0), now_ms)
        for campaign, period in periods.items()
    ]
    data.sort(key=lambda row: (-(row["share"] or 0), row["campaign_id"]))
    watermarks = [answer.watermark_ms for answer in answers if answer.watermark_ms is not None]
    warnings = [warning for answer in [*answers, recent] for warning in answer.warnings]
    return {
        "data": data,
        "rows": len(data),
        "finality": min((answer.finality for answer in answers), key=FINALITY.index, default=FINALITY[0]),
        "watermark": iso(min(watermarks)) if watermarks else None,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _row(campaign: Campaign, period: tuple[int, int | None], spent: int, last_hour: int, now_ms: int) -> dict[str, Any]:
    start_ms, end_ms = period
    budget = campaign.budget_micros or 0
    return {
        "campaign_id": campaign.id,
        "name": campaign.name,
        "status": campaign.status,
        "budget": campaign.budget,
        "budget_micros": budget,
        "timezone": campaign.timezone,
        "start": iso(start_ms),
        "end": None if end_ms is None else iso(end_ms),
        "spent_micros": spent,
        "share": _rounded(spent, budget),
        "pace": None if end_ms is None else _pace(spent, budget, start_ms, end_ms, now_ms),
        "last_hour_micros": last_hour,
        "exhausted_at": _exhausted_at(budget - spent, last_hour, now_ms, end_ms),
        "state": _state(spent, budget),
    }


def _state(spent: int, budget: int) -> str:
    if spent >= budget:
        return "exhausted"
    return "nearly-spent" if spent > NEARLY_SPENT * budget else "on-track"


def _pace(spent: int, budget: int, start_ms: int, end_ms: int, now_ms: int) -> float | None:
    """What is spent, beside what would be were it spent evenly over the period: 1 is on time, 2 twice as fast."""
    elapsed_ms = min(now_ms, end_ms) - start_ms
    return None if elapsed_ms <= 0 else _rounded(spent * (end_ms - start_ms), budget * elapsed_ms)


def _exhausted_at(left: int, last_hour: int, now_ms: int, end_ms: int | None) -> str | None:
    """When the rest is spent if every hour is like the last one; None where that is not before the end, or two years from now."""
    if left <= 0 or last_hour <= 0:
        return None
    at_ms = now_ms + left * HOUR_MS // last_hour
    latest_ms = now_ms + 731 * DAY_MS if end_ms is None else end_ms
    return iso(at_ms // 1000 * 1000) if at_ms < latest_ms else None


def _rounded(part: int, whole: int) -> float | None:
    """part / whole to four decimals, halves up; None where the whole is 0."""
    return None if whole <= 0 else int(round_half_up(part * _DECIMALS, whole)) / _DECIMALS
