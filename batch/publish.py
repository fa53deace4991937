"""Compares a run with the stream, fills in its ledger, and makes it the day's current one. All in ClickHouse."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field

from batch.exact import DIMENSIONS, MEASURES, Input
from infra.clickhouse.client import ClickHouse

DRIFT = 0.001
ALERT_SHARE = 0.005


@dataclass(frozen=True)
class Comparison:
    """How a day's run differs from the stream, over hours × all dimensions.

    `corrected`: dimensions with any difference. `drifted`: those off by more than DRIFT. `causes`: cause → what it
    moved (rows and sums of the measures).
    """

    dimensions: int
    corrected: int
    drifted: int
    causes: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def alert(self) -> bool:
        """More dimensions than usual needed correction, or something has no cause."""
        return self.corrected > ALERT_SHARE * max(1, self.dimensions) or "unexplained" in self.causes


def current_run(client: ClickHouse, date: dt.date) -> tuple[str, str] | None:
    """(run id, input digest) of the day's current run."""
    rows = client.rows(
        f"SELECT run_id, input_digest FROM {client.database}.runs WHERE date = {{date:Date}} ORDER BY published_at DESC LIMIT 1",
        {"date": date},
    )
    return (rows[0][0], rows[0][1]) if rows else None


def compare(client: ClickHouse, date: dt.date, run_id: str) -> Comparison:
    """Complete the run's days and its ledger (what no cause explains), and sum up. Safe to repeat."""
    db, dims = client.database, ", ".join(DIMENSIONS)
    sums = ", ".join(f"sum({m})" for m in (*MEASURES, "late", "late_events"))
    client.command(
        f"INSERT INTO {db}.exact_days (time, {dims}, run_id, {', '.join((*MEASURES, 'late', 'late_events'))})"
        f" SELECT toStartOfDay(time), {dims}, run_id, {sums} FROM {db}.exact_hours FINAL"
        f" WHERE run_id = {{run:String}} GROUP BY 1, {dims}, run_id",
        {"run": run_id},
    )
    measures = ", ".join(f"sum({m}) AS {m}" for m in MEASURES)
    signed = ", ".join(f"toInt64({m}) AS {m}" for m in MEASURES)
    negative = ", ".join(f"-toInt64({m}) AS {m}" for m in MEASURES)
    parameters = {"run": run_id, "date": date}
    # exact − stream − causes: what is left has no explanation.
    left = f"""
        SELECT time, {dims}, {measures} FROM (
            SELECT time, {dims}, {signed} FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}
            UNION ALL
            SELECT time, {dims}, {negative} FROM {db}.stream_hours FINAL WHERE toDate(time) = {{date:Date}}
            UNION ALL
            SELECT time, {dims}, {negative} FROM {db}.ledger FINAL WHERE run_id = {{run:String}} AND cause != 'unexplained'
        ) GROUP BY time, {dims} HAVING {" OR ".join(f"{m} != 0" for m in MEASURES)}"""
    client.command(
        f"INSERT INTO {db}.ledger (time, {dims}, run_id, cause, {', '.join(MEASURES)})"
        f" SELECT time, {dims}, {{run:String}}, 'unexplained', {', '.join(MEASURES)} FROM ({left})",
        parameters,
    )
    total = int(
        client.rows(f"SELECT count() FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}", parameters)[0][0]
    )
    drift = " OR ".join(f"abs(l.{m}) > {DRIFT} * greatest(toInt64(e.{m}), 1)" for m in MEASURES)
    corrected, drifted = client.rows(
        f"""SELECT count(), countIf({drift}) FROM (
                SELECT time, {dims}, {measures} FROM {db}.ledger FINAL WHERE run_id = {{run:String}} GROUP BY time, {dims}) AS l
            LEFT JOIN (SELECT * FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}) AS e USING (time, {dims})""",
        parameters,
    )[0]
    causes = client.rows(
        f"SELECT cause, count(), {', '.join(f'sum({m})' for m in MEASURES)} FROM {db}.ledger FINAL"
        " WHERE run_id = {run:String} GROUP BY cause ORDER BY cause",
        parameters,
    )
    named = {row[0]: dict(zip(("rows", *MEASURES), map(int, row[1:]), strict=True)) for row in causes}
    return Comparison(total, int(corrected), int(drifted), named)


def publish(
    client: ClickHouse, date: dt.date, run_id: str, found: Input, comparison: Comparison, seconds: float
) -> None:
    """One inserted row makes the run the day's current one."""
    summary = json.dumps({"causes": comparison.causes, "seconds": round(seconds, 1), "corrected": comparison.corrected})
    client.command(
        f"INSERT INTO {client.database}.runs (date, run_id, published_at, input_digest, rows, copies, dimensions, drifted, alert, summary)"
        " VALUES ({date:Date}, {run:String}, now64(3), {digest:String}, {rows:UInt64}, {copies:UInt64},"
        " {dimensions:UInt64}, {drifted:UInt64}, {alert:UInt8}, {summary:String})",
        {
            "date": date, "run": run_id, "digest": found.digest, "rows": found.rows, "copies": found.copies,
            "dimensions": comparison.dimensions, "drifted": comparison.drifted, "alert": int(comparison.alert), "summary": summary,
        },
    )  # fmt: skip
