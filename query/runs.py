"""The nightly runs, as the batch package has published them in ClickHouse."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from typing import Any

from infra.clickhouse.borders import ids_query
from infra.clickhouse.client import ClickHouse
from infra.clock import iso

MOST_RUNS = 1000
STORED_DAYS = 731
"""Rows of days are dropped after 735 days (009_retention.sql), of the ledger never: what is left of an older day is no bill."""
FINAL_BY_PARTITION = " SETTINGS do_not_merge_across_partitions_select_final = 1"
"""At the end of a statement that reads exact rows with FINAL: all versions of one are in one partition."""
# What a Date of ClickHouse can be.
_FIRST, _LAST = dt.date(1970, 1, 1), dt.date(2149, 6, 6)


@dataclass(frozen=True)
class PublishedRun:
    """A run that was published, the day's current one or one that a later run took the place of.

    It holds for hours before `open_from_ms` (epoch ms), 0 for the whole day. `is_stored`: whether its exact rows are there: they are
    gone once the tables were made again. `facts`: what it counted, and its summary.
    """

    date: dt.date
    run_id: str
    published_ms: int
    is_current: bool
    is_stored: bool
    open_from_ms: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The SHA-256 of its canonical export; empty where none is recorded."""
        return str(self.facts.get("sha256", ""))

    @property
    def covers_day(self) -> bool:
        """Whether it holds for all of its day."""
        return self.open_from_ms == 0

    def document(self) -> dict[str, Any]:
        """As `/v1/reconciliations` shows it to admin keys."""
        known = {"date": self.date.isoformat(), "run_id": self.run_id, "published_at": iso(self.published_ms)}
        return known | {"current": self.is_current} | self.facts


def read_published_runs(
    client: ClickHouse, first: dt.date | None = None, last: dt.date | None = None, *, limit: int = MOST_RUNS
) -> list[PublishedRun]:
    """The runs of these days, or of all, newest first. Raises Unavailable."""
    db = client.database
    stored = f"({ids_query(client, ('exact_hours', 'exact_days'))})"
    rows = client.rows(
        "SELECT r.date, r.run_id, toUnixTimestamp64Milli(published_at), rows, copies, dimensions, drifted, alert, u.events,"
        f" open_from_ms, r.run_id IN (SELECT run_id FROM {db}.current_runs) AS is_current,"
        f" hours_id = {stored}['exact_hours'] AND days_id = {stored}['exact_days'] AS is_stored, summary"
        f" FROM {db}.runs AS r LEFT JOIN (SELECT run_id, events FROM {db}.unbilled FINAL) AS u USING (run_id)"
        " WHERE r.date BETWEEN {first:Date} AND {last:Date} ORDER BY published_at DESC LIMIT {limit:UInt32}",
        {
            "first": min(max(first or _FIRST, _FIRST), _LAST),
            "last": max(min(last or _LAST, _LAST), _FIRST),
            "limit": limit,
        },
    )
    return [_published_run(*row) for row in rows]


def _published_run(
    date: dt.date, run_id: str, published_ms: int, rows: int, copies: int, dimensions: int, drifted: int, alert: int,
    unbilled: int, open_from_ms: int, is_current: int, is_stored: int | None, summary: str,
) -> PublishedRun:  # fmt: skip
    facts = {
        "rows": rows, "copies": copies, "dimensions": dimensions, "drifted": drifted, "alert": bool(alert), "unbilled": unbilled,
        "open_from": iso(open_from_ms) if open_from_ms else None,
    } | json.loads(summary)  # fmt: skip
    return PublishedRun(date, run_id, int(published_ms), bool(is_current), bool(is_stored), int(open_from_ms), facts)


def read_runs(client: ClickHouse, limit: int = MOST_RUNS) -> list[dict[str, Any]]:
    """The published reconciliations, newest first. Raises Unavailable."""
    return [run.document() for run in read_published_runs(client, limit=limit)]


def read_last_run(client: ClickHouse) -> dict[str, Any] | None:
    """Date, id, alert and time of the newest reconciliation; None when there is none. Raises Unavailable."""
    runs = read_runs(client, limit=1)
    return {name: runs[0][name] for name in ("date", "run_id", "alert", "published_at")} if runs else None


@dataclass(frozen=True)
class CurrentRuns:
    """Of the current runs of all days: `alert_days`, whose run has an alert; `unbilled`: how many events arrived after their day's run;
    `newest_day`: the newest one that was reconciled as a whole, None before the first."""

    alert_days: list[str]
    unbilled: int
    newest_day: str | None


def read_current_runs(client: ClickHouse) -> CurrentRuns:
    """What the current runs leave open. Raises Unavailable."""
    db = client.database
    # Without the runs' long summaries: this is read often.
    ((days, unbilled, newest),) = client.rows(
        "SELECT arraySort(groupArrayIf(toString(r.date), r.alert != 0)), sum(u.events),"
        " toString(maxOrNullIf(r.date, r.open_from_ms = 0))"
        f" FROM {db}.current_runs AS c INNER JOIN {db}.runs AS r ON r.run_id = c.run_id"
        f" LEFT JOIN (SELECT run_id, events FROM {db}.unbilled FINAL) AS u ON u.run_id = c.run_id"
    )
    return CurrentRuns(list(days), int(unbilled), newest)
