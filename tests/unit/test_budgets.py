"""Budgets: what they are for, what is spent of them, and when the rest is gone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pytest

from infra.clock import DAY_MS, HOUR_MS, iso
from query.bad_question import BadQuestion
from query.budgets import Spending, parse_budgets_question, period_of, read_budgets
from query.directory.entries import Campaign
from query.row_scope import RowScope

NOON = 20_000 * DAY_MS + 12 * HOUR_MS
OLDEST = NOON - 731 * DAY_MS
DAY = dt.date(1970, 1, 1) + dt.timedelta(days=20_000)


def campaign(id_: int, budget: str | None, micros: int = 1_000_000, **fields: object) -> Campaign:
    amount = None if budget is None else micros
    return Campaign(id_, f"campaign {id_}", 3, budget=budget, budget_micros=amount, **fields)  # type: ignore[arg-type]


class Router:
    """Spending by (campaign, hour), summed as the router does it."""

    def __init__(self, spent: dict[tuple[int, int], int]) -> None:
        self.spent, self.ranges = spent, list[tuple[tuple[int, ...], int, int]]()

    def __call__(self, campaigns: Sequence[int], start_ms: int, end_ms: int) -> Spending:
        self.ranges.append((tuple(campaigns), start_ms, end_ms))
        micros = dict.fromkeys(campaigns, 0)
        for (number, at_ms), amount in self.spent.items():
            if number in micros and start_ms <= at_ms < end_ms:
                micros[number] += amount
        return Spending(micros, "provisional" if end_ms == NOON else "closed", NOON, ["of this question"])


def test_a_daily_budget_is_of_the_local_day_and_a_total_one_of_all_its_days() -> None:
    berlin = campaign(1, "daily", timezone="Europe/Berlin")
    start, end = period_of(berlin, NOON, OLDEST)
    assert end == start + DAY_MS
    assert start in (NOON - 13 * HOUR_MS, NOON - 14 * HOUR_MS)
    total = campaign(2, "total", start=DAY - dt.timedelta(days=9), end=DAY)
    assert period_of(total, NOON, OLDEST) == (NOON - 12 * HOUR_MS - 9 * DAY_MS, NOON + 12 * HOUR_MS)
    assert period_of(campaign(3, "total"), NOON, OLDEST) == (OLDEST, None)
    # A day on which clocks are set has 23 hours.
    spring = int(dt.datetime(2026, 3, 29, 12, tzinfo=dt.UTC).timestamp() * 1000)
    start, end = period_of(berlin, spring, OLDEST)
    assert end is not None and end - start == 23 * HOUR_MS


def test_rows_tell_share_pace_and_when_the_rest_is_gone() -> None:
    morning, last_hour, yesterday = NOON - 6 * HOUR_MS, NOON - HOUR_MS, NOON - DAY_MS
    router = Router(
        {
            (1, morning): 600_000, (1, last_hour): 100_000, (1, yesterday): 5_000_000,
            (2, morning): 950_000, (4, morning): 1_000_001, (5, yesterday): 3, (6, last_hour): 1,
        }
    )  # fmt: skip
    campaigns = [
        campaign(1, "daily"), campaign(2, "daily"), campaign(3, None), campaign(4, "daily"),
        campaign(5, "total", 12, start=DAY - dt.timedelta(days=1), end=DAY + dt.timedelta(days=1)),
        campaign(6, "total", 0), campaign(7, "total", start=DAY + dt.timedelta(days=5)),
    ]  # fmt: skip
    document = read_budgets(campaigns, router, NOON, OLDEST)
    rows = {row["campaign_id"]: row for row in document["data"]}
    assert [row["campaign_id"] for row in document["data"]] == [4, 2, 1, 5, 6, 7]
    assert {n: row["state"] for n, row in rows.items()} == {
        1: "on-track", 2: "nearly-spent", 4: "exhausted", 5: "on-track", 6: "exhausted", 7: "on-track",
    }  # fmt: skip
    assert {n: row["share"] for n, row in rows.items()} == {1: 0.7, 2: 0.95, 4: 1.0, 5: 0.25, 6: None, 7: 0}
    # Seven tenths at noon; a quarter halfway through three days.
    assert (rows[1]["pace"], rows[5]["pace"], rows[6]["pace"], rows[7]["pace"]) == (1.4, 0.5, None, None)
    assert rows[1]["exhausted_at"] == iso(NOON + 3 * HOUR_MS)
    assert [rows[n]["exhausted_at"] for n in (2, 4, 5, 6, 7)] == [None] * 5
    assert (document["finality"], document["watermark"]) == ("provisional", iso(NOON))
    assert document["warnings"] == ["of this question"]
    # One question for the days of a zone, one for all others, one for the last hour.
    assert [ids for ids, *_ in router.ranges] == [(5, 6), (1, 2, 4), (1, 2, 4, 5, 6)]


def test_what_would_last_beyond_the_end_is_not_forecast() -> None:
    router = Router({(1, NOON - HOUR_MS): 1_000, (2, NOON - HOUR_MS): 1})
    rows = read_budgets([campaign(1, "daily"), campaign(2, "total", 10**15)], router, NOON, OLDEST)["data"]
    assert [row["exhausted_at"] for row in rows] == [None, None]
    assert read_budgets([], router, NOON, OLDEST)["data"] == []


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ([], 400), ([("advertiser_id", "*")], 400), ([("advertiser_id", "9")], 403), ([("advertiser_id", "3"), ("limit", "0")], 400),
        ([("advertiser_id", "3"), ("advertiser", "3")], 400),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(parameters: list[tuple[str, str]], status: int) -> None:
    with pytest.raises(BadQuestion) as refusal:
        parse_budgets_question(parameters, RowScope(frozenset({3})))
    assert refusal.value.status == status
