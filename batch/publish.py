"""Compares a run with the stream, fills in its ledger, and makes it the day's current one. All in ClickHouse."""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa

from batch.archived_rows import PARTITIONS_APART, Archives
from batch.coverage import Proof
from batch.move_tables import AMOUNTS, DIMENSIONS
from batch.recount import Billed
from batch.spark_job import RunInput
from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.ledger_causes import Cause
from infra.clickhouse.retention import PUBLISHED_DAYS
from infra.clock import DAY_MS, HOUR_MS, day_start_ms
from infra.errors import LeaseLost
from ingest.archive.files import File
from ingest.partials import BILLED


@dataclass(frozen=True)
class Comparison:
    """How a day's run differs from the stream, over hours × all dimensions.

    `corrected`: dimensions with any difference, but for open hours and events of other regions. `drifted`: of these the ones off by more than the setting
    `drift_share`. `causes`: cause → what it moved (rows and sums of the measures).
    """

    dimensions: int
    corrected: int
    drifted: int
    causes: dict[str, dict[str, int]] = field(default_factory=dict)

    def alert(self, share: float) -> bool:
        """Whether more than a share of the dimensions needed correction, or something has no cause."""
        return self.corrected > share * max(1, self.dimensions) or Cause.UNEXPLAINED in self.causes


def read_watermark(client: ClickHouse, shards: int) -> int | None:
    """Windows that end at or before this (epoch ms) are in ClickHouse, of every shard; None while a shard has published none."""
    hours = borders.read_published(client, shards).tiers.get("hours")
    return hours.watermark_ms if hours else None


def open_from(date: dt.date, closed_ms: int) -> int:
    """From when on (epoch ms) the stream still answers for a day of which hours up to `closed_ms` had closed; 0 for a closed day."""
    start_ms = day_start_ms(date)
    return 0 if closed_ms >= start_ms + DAY_MS else max(start_ms, closed_ms // HOUR_MS * HOUR_MS)


@dataclass(frozen=True)
class Tables:
    """The UUIDs of the tables that exact rows are written to: what a run published is about these."""

    hours_id: str
    days_id: str


def exact_tables(client: ClickHouse) -> Tables:
    """The exact tables as they are now: to be read before anything is written to them."""
    return Tables(borders.table_id(client, "exact_hours"), borders.table_id(client, "exact_days"))


def is_stored(client: ClickHouse, run_id: str, tables: Tables) -> bool:
    """Whether a run was published for these tables: rows of one whose tables were made again are gone."""
    rows = client.rows(
        f"SELECT count() FROM {client.database}.runs"
        " WHERE run_id = {run:String} AND hours_id = {hours:UUID} AND days_id = {days:UUID}",
        {"run": run_id, "hours": tables.hours_id, "days": tables.days_id},
    )
    return bool(rows[0][0])


def current_run(client: ClickHouse, date: dt.date) -> tuple[str, str, int] | None:
    """(run id, input digest, from when on the day was open) of the day's current run; see `open_from`."""
    rows = client.rows(
        f"SELECT run_id, input_digest, open_from_ms FROM {client.database}.current_runs WHERE date = {{date:Date}}",
        {"date": date},
    )
    return (rows[0][0], rows[0][1], int(rows[0][2])) if rows else None


def current_runs(client: ClickHouse) -> dict[dt.date, tuple[str, str, int]]:
    """`current_run` of each day that has one."""
    rows = client.rows(f"SELECT date, run_id, input_digest, open_from_ms FROM {client.database}.current_runs")
    return {date: (run_id, digest, int(open_from_ms)) for date, run_id, digest, open_from_ms in rows}


def export_digest(client: ClickHouse, run_id: str, table: str = "exact_hours") -> str:
    """The SHA-256 of a run's canonical export: its hours as tab-separated lines, by time and dimensions."""
    columns = ", ".join(("time", *DIMENSIONS, *BILLED, "late", "late_events"))
    keys = ", ".join(("time", *DIMENSIONS))
    return client.sha256(
        f"SELECT {columns} FROM {client.database}.{table} FINAL WHERE run_id = {{run:String}} ORDER BY {keys}",
        {"run": run_id},
    )


def recorded_digest(client: ClickHouse, run_id: str) -> str:
    """The `export_digest` that a run was published with; empty where none is recorded."""
    rows = client.rows(f"SELECT summary FROM {client.database}.runs WHERE run_id = {{run:String}}", {"run": run_id})
    return str(json.loads(rows[0][0]).get("sha256", "")) if rows else ""


def read_billed_offsets(client: ClickHouse, before: dt.date, others: Sequence[str] = ()) -> Billed:
    """Of each earlier day that was reconciled, up to where its current run has read; empty for runs of releases that did not record it.
    `others`: the names of other regions, in the order of their numbers."""
    rows = client.rows(
        f"SELECT toUInt64(toUnixTimestamp(toDateTime(c.date, 'UTC'))), r.summary FROM {client.database}.current_runs AS c"
        f" INNER JOIN {client.database}.runs AS r ON r.run_id = c.run_id WHERE c.date < {{before:Date}}"
        f" ORDER BY c.date DESC LIMIT {PUBLISHED_DAYS}",
        {"before": before},
    )
    billed = dict[int, dict[int, int]]()
    for seconds, summary in rows:
        run = json.loads(summary)
        regions = [run.get("ends", []), *(run.get("other_ends", {}).get(name, []) for name in others)]
        offsets = {n * PARTITIONS_APART + p: end for n, ends in enumerate(regions) for p, end in enumerate(ends)}
        billed[int(seconds) * 1000] = offsets if regions[0] else {}
    return billed


def read_billed_regions(client: ClickHouse, date: dt.date) -> tuple[str, list[str]]:
    """The day's current run, and the names of the other regions whose events it bills; empty where there is none."""
    rows = client.rows(
        f"SELECT r.run_id, r.summary FROM {client.database}.current_runs AS c"
        f" INNER JOIN {client.database}.runs AS r ON r.run_id = c.run_id WHERE c.date = {{date:Date}} LIMIT 1",
        {"date": date},
    )
    return (rows[0][0], sorted(json.loads(rows[0][1]).get("other_ends", {}))) if rows else ("", [])


def record_unbilled(client: ClickHouse, unbilled: Mapping[int, int]) -> None:
    """Record how many events the current runs of earlier days lack."""
    for day_ms, events in unbilled.items():
        date = dt.datetime.fromtimestamp(day_ms / 1000, dt.UTC).date()
        client.command(
            f"INSERT INTO {client.database}.unbilled SELECT run_id, date, {{events:UInt64}}, now64(3)"
            f" FROM {client.database}.current_runs WHERE date = {{date:Date}}",
            {"events": events, "date": date},
        )


def record_files(client: ClickHouse, run_id: str, archives: Archives, files: Sequence[File]) -> None:
    """Record which files the run read, with their sizes and the SHA-256 of their bytes. Safe to repeat."""
    columns = dict[str, list[Any]](path=[], bytes=[], sha256=[])
    for file in files:
        store, name, _ = archives.locate(file.reference)
        columns["path"].append(store.address(name))
        columns["bytes"].append(file.stored.bytes)
        columns["sha256"].append(store.sha256(name))
    client.insert("run_files", pa.table({**columns, "run_id": [run_id] * len(files)}))


def compare(
    client: ClickHouse, date: dt.date, run_id: str, drift_share: float, closed_ms: int, began_s: int
) -> Comparison:
    """Complete the run's days and its ledger, and sum up. Safe to repeat.

    What no cause explains is `unexplained`. It is `open` where the stream had not closed the hour before the run began
    (`closed_ms`), or corrected the row since (`began_s`, epoch seconds): then the two counted different events.
    """
    db, dims = client.database, ", ".join(DIMENSIONS)
    sums = ", ".join(f"sum({m})" for m in AMOUNTS)
    client.command(
        f"INSERT INTO {db}.exact_days (time, {dims}, run_id, {', '.join(AMOUNTS)})"
        f" SELECT toStartOfDay(time), {dims}, run_id, {sums} FROM {db}.exact_hours FINAL"
        f" WHERE run_id = {{run:String}} GROUP BY 1, {dims}, run_id",
        {"run": run_id},
    )
    measures = ", ".join(f"sum({m}) AS {m}" for m in BILLED)
    signed = ", ".join(f"toInt64({m}) AS {m}" for m in BILLED)
    negative = ", ".join(f"-toInt64({m}) AS {m}" for m in BILLED)
    parameters = {"run": run_id, "date": date, "closed": closed_ms // 1000, "began": began_s}
    # exact − stream − causes: what is left has no explanation.
    left = f"""
        SELECT time, {dims}, {measures} FROM (
            SELECT time, {dims}, {signed} FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}
            UNION ALL
            SELECT time, {dims}, {negative} FROM {db}.stream_hours FINAL WHERE toDate(time) = {{date:Date}}
            UNION ALL
            SELECT time, {dims}, {negative} FROM {db}.ledger FINAL WHERE run_id = {{run:String}} AND cause NOT IN ('{Cause.OPEN}', '{Cause.UNEXPLAINED}')
        ) GROUP BY time, {dims} HAVING {" OR ".join(f"{m} != 0" for m in BILLED)}"""
    cause = f"""if(toUnixTimestamp(time) + 3600 > {{closed:UInt64}} OR (time, {dims}) IN (
            SELECT time, {dims} FROM {db}.stream_hours FINAL
            WHERE toDate(time) = {{date:Date}} AND toUnixTimestamp(changed_at) >= {{began:UInt64}}), '{Cause.OPEN}', '{Cause.UNEXPLAINED}')"""
    client.command(
        f"INSERT INTO {db}.ledger (time, {dims}, run_id, cause, {', '.join(BILLED)})"
        f" SELECT time, {dims}, {{run:String}}, {cause}, {', '.join(BILLED)} FROM ({left})",
        parameters,
    )
    total = int(
        client.rows(f"SELECT count() FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}", parameters)[0][0]
    )
    drift = " OR ".join(f"abs(l.{m}) > {drift_share} * greatest(toInt64(e.{m}), 1)" for m in BILLED)
    corrected, drifted = client.rows(
        f"""SELECT count(), countIf({drift}) FROM (
                SELECT time, {dims}, {measures} FROM {db}.ledger FINAL
                WHERE run_id = {{run:String}} AND cause NOT IN ('{Cause.OPEN}', '{Cause.OTHER_REGION}') GROUP BY time, {dims}) AS l
            LEFT JOIN (SELECT * FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}) AS e USING (time, {dims})""",
        parameters,
    )[0]
    causes = client.rows(
        f"SELECT cause, count(), {', '.join(f'sum({m})' for m in BILLED)} FROM {db}.ledger FINAL"
        " WHERE run_id = {run:String} GROUP BY cause ORDER BY cause",
        parameters,
    )
    named = {row[0]: dict(zip(("rows", *BILLED), map(int, row[1:]), strict=True)) for row in causes}
    return Comparison(total, int(corrected), int(drifted), named)


def publish(
    client: ClickHouse,
    date: dt.date,
    run_id: str,
    fence: int,
    run_input: RunInput,
    comparison: Comparison,
    proof: Proof,
    seconds: float,
    alert: bool,
    open_from_ms: int = 0,
    *,
    tables: Tables,
) -> None:
    """One inserted row makes the run the day's current one, or that of its hours before `open_from_ms`. Raises LeaseLost when a later holder of the lease has published."""
    summary = json.dumps(
        {
            "causes": comparison.causes, "seconds": round(seconds, 1), "corrected": comparison.corrected,
            "sha256": export_digest(client, run_id), "input": [str(stretch) for stretch in proof.looked_at], "missing": [str(hole) for hole in proof.missing],
            "set_aside": [str(stretch) for stretch in proof.set_aside],
            "ends": list(proof.ends), "other_ends": dict(proof.other_ends), "sums": run_input.sums,
            "versions": {name: metadata.version(name) for name in ("adclick", "pyspark", "polars")} | {"python": platform.python_version()},
        }
    )  # fmt: skip
    client.command(
        f"INSERT INTO {client.database}.runs (date, run_id, published_at, input_digest, rows, copies, dimensions, drifted, alert, summary, fence, open_from_ms, hours_id, days_id)"
        " SELECT {date:Date}, {run:String}, now64(3), {digest:String}, {rows:UInt64}, {copies:UInt64},"
        " {dimensions:UInt64}, {drifted:UInt64}, {alert:UInt8}, {summary:String}, {fence:UInt64}, {open_from:UInt64}, {hours_id:UUID}, {days_id:UUID}"
        f" WHERE (SELECT max(fence) FROM {client.database}.runs WHERE date = {{date:Date}}) <= {{fence:UInt64}}",
        {
            "date": date, "run": run_id, "digest": run_input.digest, "rows": run_input.rows, "copies": run_input.copies,
            "dimensions": comparison.dimensions, "drifted": comparison.drifted, "alert": int(alert), "summary": summary,
            "fence": fence, "open_from": open_from_ms, "hours_id": tables.hours_id, "days_id": tables.days_id,
        },
    )  # fmt: skip
    current = current_run(client, date)
    if current is None or current[0] != run_id:
        raise LeaseLost(f"another run of {date} was published meanwhile, by the next holder of the lease")
