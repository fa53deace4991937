"""Reconciled days as bills: what was billed, what the stream had shown before, and which causes make the difference.

shown + the sum of all causes = billed, in each measure, for all rows that are asked for: the ledger has each difference of a run,
by all dimensions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.ledger_causes import Cause
from infra.clock import DAY_MS, day_start_ms, iso
from ingest.partials import BILLED
from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_date, parse_visible_subject
from query.row_scope import ALL_ROWS, RowScope
from query.runs import FINAL_BY_PARTITION, MOST_RUNS, STORED_DAYS, PublishedRun, read_published_runs
from query.tiers.clickhouse import row_conditions

RUNS_PARAMETERS = ("from", "to", "campaign_id", "advertiser_id")
CAUSES_PARAMETERS = ("campaign_id", "advertiser_id")
USUAL_DAYS, MOST_DAYS = 92, 366
MOST_FILES = 1_000

LATE = {"late_events": "events", "late_clicks": "clicks"}
"""Sums of exact rows, and what they are called in `counted_late`."""

Amounts = dict[str, int]


@dataclass(frozen=True)
class Subject:
    """Whose rows: of which campaigns (none: all), of which advertiser, and within what the key may see."""

    campaigns: tuple[int, ...] = ()
    advertiser: int | None = None
    scope: RowScope = ALL_ROWS


@dataclass(frozen=True)
class Bill:
    """What a run has billed, and by how much each cause changes what the stream had shown."""

    billed: Amounts
    causes: dict[str, Amounts] = field(default_factory=dict)
    counted_late: Amounts = field(default_factory=lambda: dict.fromkeys(LATE.values(), 0))
    """Of what is billed: the events that came after their minute had closed, by an hour at most, and the clicks among them. The stream
    has counted them, so no cause has them."""

    @property
    def shown(self) -> Amounts:
        """What the stream had counted when the run was compared with it."""
        return {m: self.billed[m] - sum(amounts[m] for amounts in self.causes.values()) for m in BILLED}

    @property
    def drift(self) -> float:
        """By how much the stream was off: the largest of the measures' differences, as a share of what is billed. What was sent to another
        region is none: this one's stream never had it."""
        elsewhere = self.causes.get(Cause.OTHER_REGION, dict.fromkeys(BILLED, 0))
        off = {m: self.billed[m] - self.shown[m] - elsewhere[m] for m in BILLED}
        return round(max(abs(off[m]) / max(1, self.billed[m]) for m in BILLED), 6)


def parse_subject(values: dict[str, str], scope: RowScope) -> Subject:
    """Raises BadQuestion, with 403 for an advertiser or campaign that the key may not see."""
    return Subject(*parse_visible_subject(values, scope), scope)


def parse_runs_question(
    parameters: Sequence[tuple[str, str]], today: dt.date, scope: RowScope
) -> tuple[dt.date, dt.date, Subject]:
    """First and last day, and whose rows. Without `from` and `to`: the last USUAL_DAYS. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, RUNS_PARAMETERS)
    last = parse_date("to", values["to"]) if "to" in values else today
    usual = dt.date.fromordinal(max(1, last.toordinal() - USUAL_DAYS + 1))
    first = parse_date("from", values["from"]) if "from" in values else usual
    if first > last:
        raise BadQuestion("to", f"to ({last}) must not be before from ({first})")
    if (last - first).days >= MOST_DAYS:
        raise BadQuestion("from", f"from {first} to {last} are more than {MOST_DAYS} days; ask for fewer")
    return first, last, parse_subject(values, scope)


def parse_causes_question(
    date_text: str, parameters: Sequence[tuple[str, str]], scope: RowScope
) -> tuple[dt.date, Subject]:
    """The day, and whose rows. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, CAUSES_PARAMETERS)
    return parse_date("date", date_text), parse_subject(values, scope)


class BillReader:
    """Reads from ClickHouse. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def runs(self, first: dt.date, last: dt.date) -> list[PublishedRun]:
        """The runs of these days, newest first, MOST_RUNS at most."""
        return read_published_runs(self._client, first, last, limit=MOST_RUNS)

    def current_run(self, date: dt.date) -> PublishedRun | None:
        """The current run of a day; None when it has not been reconciled."""
        return next((run for run in self.runs(date, date) if run.is_current and run.date == date), None)

    def bills(self, runs: Sequence[PublishedRun], subject: Subject, now_ms: int) -> dict[str, Bill]:
        """The bill of each run, by its id; none for runs whose exact rows are no longer stored."""
        oldest_ms = now_ms - STORED_DAYS * DAY_MS
        stored = [run for run in runs if run.is_stored and day_start_ms(run.date) >= oldest_ms]
        if not stored:
            return {}
        db, sums = self._client.database, ", ".join(f"sum(toInt128({m}))" for m in BILLED)
        late, none = ", ".join(f"sum(toInt128({m}))" for m in LATE), ", ".join("toInt128(0)" for _ in LATE)
        conditions, parameters = row_conditions(subject.campaigns, subject.advertiser, subject.scope)
        visible = "".join(f" AND {condition}" for condition in conditions)
        first, last = min(run.date for run in stored), max(run.date for run in stored)
        during = "time >= toDateTime({first:Date}, 'UTC') AND time < toDateTime({last:Date}, 'UTC') + INTERVAL 1 DAY"
        whole, partly = [r for r in stored if r.covers_day], [r for r in stored if not r.covers_day]
        # Hours of a day that was still open are billed up to where its run holds.
        covered = "toUnixTimestamp(time) < transform(run_id, {partly:Array(String)}, {borders:Array(UInt32)}, toUInt32(4294967295))"
        parameters |= {
            "first": first, "last": last, "whole": [r.run_id for r in whole], "partly": [r.run_id for r in partly] or [""],
            "borders": [r.open_from_ms // 1000 for r in partly] or [0],
        }  # fmt: skip
        parts = [
            f"SELECT run_id, '', {sums}, {late} FROM {db}.exact_days FINAL"
            f" WHERE run_id IN {{whole:Array(String)}} AND {during}{visible} GROUP BY run_id",
            f"SELECT run_id, toString(cause), {sums}, {none} FROM {db}.ledger FINAL"
            f" WHERE (run_id IN {{whole:Array(String)}} OR run_id IN {{partly:Array(String)}}) AND {during} AND {covered}{visible}"
            " GROUP BY run_id, cause",
        ]
        if partly:
            parts.append(
                f"SELECT run_id, '', {sums}, {late} FROM {db}.exact_hours FINAL"
                f" WHERE run_id IN {{partly:Array(String)}} AND {during} AND {covered}{visible} GROUP BY run_id"
            )
        bills = {run.run_id: Bill(dict.fromkeys(BILLED, 0), {}) for run in stored}
        for run_id, cause, *numbers in self._client.rows(" UNION ALL ".join(parts) + FINAL_BY_PARTITION, parameters):
            amounts = dict(zip(BILLED, map(int, numbers[: len(BILLED)]), strict=True))
            if cause:
                bills[run_id].causes[cause] = amounts
            else:
                bills[run_id].billed.update(amounts)
                bills[run_id].counted_late.update(zip(LATE.values(), map(int, numbers[len(BILLED) :]), strict=True))
        return bills

    def files(self, run_id: str) -> tuple[int, list[dict[str, Any]]]:
        """How many files of the archive a run has read, and the first MOST_FILES of them."""
        table, parameters = f"{self._client.database}.run_files", {"run": run_id, "limit": MOST_FILES}
        rows = self._client.rows(
            f"SELECT path, bytes, sha256, count() OVER () FROM {table} FINAL WHERE run_id = {{run:String}}"
            " ORDER BY path LIMIT {limit:UInt32}",
            parameters,
        )
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, size, sha256, _ in rows]
        return (int(rows[0][3]) if rows else 0), files


def run_document(run: PublishedRun, bill: Bill | None, *, admin: bool) -> dict[str, Any]:
    """A run as `/v1/reconciliations` lists it; for a tenant without its counts, which are those of all tenants."""
    document = run.document()
    if not admin:
        document = {name: document[name] for name in ("date", "run_id", "published_at", "current", "open_from")}
    numbers = {"drift": bill.drift, "shown": bill.shown, "billed": bill.billed} if bill else None
    return document | (numbers or dict.fromkeys(("drift", "shown", "billed")))


def causes_document(run: PublishedRun, bill: Bill) -> dict[str, Any]:
    """A day's bill as it goes over HTTP, with its causes in the order of the documentation."""
    known = [str(cause) for cause in Cause]
    names = sorted(bill.causes, key=lambda name: (known.index(name) if name in known else len(known), name))
    return {
        "date": run.date.isoformat(),
        "run_id": run.run_id,
        "digest": run.digest,
        "published_at": iso(run.published_ms),
        "open_from": iso(run.open_from_ms) if run.open_from_ms else None,
        "shown": bill.shown,
        "billed": bill.billed,
        "drift": bill.drift,
        "counted_late": bill.counted_late,
        "causes": [{"cause": name} | bill.causes[name] for name in names],
    }
