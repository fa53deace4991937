"""Runs whose rows came back with a backup: a restored table has another UUID, so they are taken for lost until they are attached to it.

A run was published with the SHA-256 of its hours, so rows that give the same digest are the rows that were published.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from batch import publish
from batch.move_tables import AMOUNTS, DIMENSIONS
from batch.publish import Tables
from infra.clickhouse.client import ClickHouse

_RUN = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class VoidRun:
    """A run that was published for tables which are gone."""

    date: dt.date
    run_id: str


def find_void(client: ClickHouse, tables: Tables, first: dt.date, last: dt.date) -> list[VoidRun]:
    """All runs of these days, current and former ones, that were published for other tables than the present ones. Raises Unavailable."""
    rows = client.rows(
        f"SELECT date, run_id FROM {client.database}.runs WHERE date BETWEEN {{first:Date}} AND {{last:Date}}"
        " AND NOT (hours_id = {hours:UUID} AND days_id = {days:UUID}) ORDER BY date, published_at",
        {"first": first, "last": last, "hours": tables.hours_id, "days": tables.days_id},
    )
    return [VoidRun(date, run_id) for date, run_id in rows]


def is_whole(client: ClickHouse, run_id: str) -> bool:
    """Whether the tables have the rows that a run was published with: hours by their digest, days by their sums. Raises Unavailable."""
    recorded = publish.recorded_digest(client, run_id)
    if not recorded or publish.export_digest(client, run_id) != recorded:
        return False
    columns, db = ", ".join((*DIMENSIONS, *(f"sum({m}) AS {m}" for m in AMOUNTS))), client.database
    differing = " OR ".join(f"{m} != 0" for m in AMOUNTS)
    negative = ", ".join((*DIMENSIONS, *(f"-toInt64({m}) AS {m}" for m in AMOUNTS)))
    signed = ", ".join((*DIMENSIONS, *(f"toInt64({m}) AS {m}" for m in AMOUNTS)))
    ((count,),) = client.rows(
        f"""SELECT count() FROM (
            SELECT day, {columns} FROM (
                SELECT toStartOfDay(time) AS day, {signed} FROM {db}.exact_hours FINAL WHERE run_id = {{run:String}}
                UNION ALL
                SELECT time AS day, {negative} FROM {db}.exact_days FINAL WHERE run_id = {{run:String}}
            ) GROUP BY day, {", ".join(DIMENSIONS)} HAVING {differing})""",
        {"run": run_id},
    )
    return not count


def attach(client: ClickHouse, run_ids: list[str], tables: Tables) -> None:
    """Let runs be about the present tables, as they were published: same run, same time, same rows. One server alone has this: on a
    cluster their days are recounted. Raises Unavailable, Denied."""
    assert all(map(_RUN.fullmatch, run_ids)), run_ids
    listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
    client.command(
        f"ALTER TABLE {client.database}.runs UPDATE hours_id = toUUID('{tables.hours_id}'), days_id = toUUID('{tables.days_id}')"
        f" WHERE run_id IN ({listed}) SETTINGS mutations_sync = 2"
    )
