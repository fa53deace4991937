"""What rules look at, read from the stores. Every function may raise Unavailable."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from infra import faults
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.ledger_causes import Cause
from infra.clock import DAY_MS, HOUR_MS, iso
from query.budget_reader import campaigns_with_budgets, oldest_numbers_ms, read_advertiser_budgets
from query.budgets import period_of
from query.directory.editor import DirectoryEditor
from query.directory.entries import Campaign, Entry
from query.directory.snapshot import Snapshot
from query.notify.bill_rules import SHOWN_FOR_MS, IssueFacts, RunFacts
from query.notify.budget_rule import BudgetFacts
from query.router import Router
from query.row_scope import ALL_ROWS
from query.statements.reader import StatementReader

# The most campaigns that a question may name.
_CAMPAIGNS = 1_000
_USUAL_DAYS = 7


def read_budget_facts(router: Router, now_ms: int) -> BudgetFacts:
    """The budgets of all advertisers whose period is running."""
    snapshot, oldest_ms = router.directory.newest(), oldest_numbers_ms(router, now_ms)
    rows, is_complete = list[tuple[int, dict[str, object]]](), True
    for advertiser in _budgeted_advertisers(snapshot):
        campaigns = campaigns_with_budgets(snapshot, advertiser, ALL_ROWS)
        running = [campaign for campaign in campaigns if _is_running(campaign, now_ms, oldest_ms)]
        for first in range(0, len(running), _CAMPAIGNS):
            part = running[first : first + _CAMPAIGNS]
            reading = read_advertiser_budgets(router, advertiser, part, ALL_ROWS, now_ms)
            rows += [(advertiser, row) for row in reading.document["data"]]
            is_complete = is_complete and reading.is_complete
    return BudgetFacts(tuple(rows), is_complete)


def _budgeted_advertisers(snapshot: Snapshot) -> list[int]:
    frame = snapshot.labelled("campaign", ["advertiser_id", "budget"]).drop_nulls("budget")
    advertisers: list[int] = frame["advertiser_id"].unique().sort().to_list()
    return advertisers


def _is_running(campaign: Campaign, now_ms: int, oldest_ms: int) -> bool:
    start_ms, end_ms = period_of(campaign, now_ms, oldest_ms)
    return start_ms < now_ms and (end_ms is None or now_ms < end_ms)


def pause_campaigns(editor: DirectoryEditor, snapshot: Snapshot, ids: Sequence[int], actor: str) -> list[int]:
    """Set the status of these campaigns to paused where it is active; returns those that were changed."""
    active = [c for c in snapshot.entries("campaign", ids) if isinstance(c, Campaign) and c.status == "active"]
    paused = list[Entry]()
    for c in active:
        paused.append(
            Campaign(c.id, c.name, c.advertiser_id, c.timezone, "paused", c.start, c.end, c.budget, c.budget_micros)
        )
    if paused:
        editor.put(paused, actor)
        faults.point("notify.paused")
    return [entry.id for entry in paused]


def read_run_facts(client: ClickHouse) -> list[RunFacts]:
    """The current runs with an alert, or with events that were found later."""
    db = client.database
    rows = client.rows(
        "SELECT r.date, r.run_id, r.alert, JSONHas(r.summary, 'causes', {cause:String}), r.dimensions, r.drifted, u.events"
        f" FROM {db}.current_runs AS c INNER JOIN {db}.runs AS r ON r.run_id = c.run_id"
        f" LEFT JOIN (SELECT run_id, events FROM {db}.unbilled FINAL) AS u ON u.run_id = c.run_id"
        " WHERE r.alert != 0 OR u.events > 0 ORDER BY r.date",
        {"cause": Cause.UNEXPLAINED.value},
    )
    return [
        RunFacts(date, run_id, bool(alert), bool(unexplained), int(dimensions), int(drifted), int(unbilled))
        for date, run_id, alert, unexplained, dimensions, drifted, unbilled in rows
    ]


def read_issue_facts(client: ClickHouse, now_ms: int) -> list[IssueFacts]:
    """The statements that were issued in the last days."""
    rows = client.rows(
        "SELECT advertiser_id, month, issue, digest, toUnixTimestamp64Milli(issued_at)"
        f" FROM {client.database}.statements WHERE issued_at >= fromUnixTimestamp64Milli({{since:Int64}})"
        " ORDER BY advertiser_id, month, issue, fence DESC, issued_at LIMIT 1 BY advertiser_id, month, issue",
        {"since": now_ms - SHOWN_FOR_MS},
    )
    return [IssueFacts(int(a), month, int(number), digest, int(issued)) for a, month, number, digest, issued in rows]


def read_usual_events(client: ClickHouse, now_ms: int) -> float:
    """How many events an hour are usual at this time of the day: the median of this hour on the last seven days, or on as many as
    there are; 0 where there is none."""
    hour_ms = now_ms // HOUR_MS * HOUR_MS
    hours = [hour_ms - day * DAY_MS for day in range(1, _USUAL_DAYS + 1)]
    table = f"{client.database}.stream_hours"
    rows = client.rows(
        f"SELECT toUnixTimestamp(time), sum(impressions + clicks + conversions) FROM {table} FINAL"
        " WHERE toUnixTimestamp(time) IN {hours:Array(UInt32)} GROUP BY time",
        {"hours": [hour // 1000 for hour in hours]},
    )
    first = client.rows(
        f"SELECT count(), toUnixTimestamp(min(time)) FROM {table} WHERE time >= toDateTime({{since:UInt32}})",
        {"since": hours[-1] // 1000},
    )
    ((count, first_s),) = first
    counts = {int(seconds) * 1000: int(events) for seconds, events in rows}
    known = sorted(counts.get(hour, 0) for hour in hours if count and hour >= int(first_s) * 1000)
    return float(known[len(known) // 2]) if known else 0.0


class StatementIssuer:
    """Issues statements once they are due, so that nobody has to ask for them. Remembers what it has looked at."""

    def __init__(self, client: ClickHouse, reader: StatementReader) -> None:
        self._client, self._reader = client, reader
        self._done: dict[dt.date, tuple[str, ...]] = {}

    def issue(self, now_ms: int) -> None:
        """Those of the last month, and of earlier ones of which a day was reconciled lately."""
        for month in self._months(now_ms):
            runs = self._reader.due_runs(month, now_ms)
            if not runs or self._done.get(month) == runs:
                continue
            for advertiser in self._reader.billed_advertisers(runs, month):
                self._reader.issue_due(advertiser, month, now_ms)
            self._done[month] = runs

    def _months(self, now_ms: int) -> list[dt.date]:
        this = dt.date.fromisoformat(iso(now_ms)[:10]).replace(day=1)
        rows = self._client.rows(
            f"SELECT DISTINCT toStartOfMonth(date) FROM {self._client.database}.runs"
            " WHERE published_at >= fromUnixTimestamp64Milli({since:Int64}) ORDER BY 1",
            {"since": now_ms - SHOWN_FOR_MS},
        )
        months = {month for (month,) in rows} | {(this - dt.timedelta(days=1)).replace(day=1)}
        return sorted(month for month in months if month < this)
