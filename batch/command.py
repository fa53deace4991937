"""`adclick reconcile`: the nightly job for a day or a range of days."""

from __future__ import annotations

import datetime as dt
import tempfile
import threading
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from batch import coverage, publish
from infra import console, faults
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, iso, now_ms
from infra.console import App
from infra.errors import UsageError, UserError
from infra.redis import Redis

ALERT_EXIT = 3
_LEASE_S = 30


@console.command(
    "reconcile", "adclick reconcile --date 2026-11-20\nadclick reconcile --from 2026-11-01 --to 2026-11-07"
)
@click.option("--date", help="The day (UTC).")
@click.option("--from", "first", help="First day of a range.")
@click.option("--to", "last", help="Last day of a range.")
@click.option("--master", default="local[*]", show_default=True, help="Spark master.")
@click.option("--wait", default=120.0, show_default=True, help="Seconds to wait for the archive.")
@click.option("--force", is_flag=True, help="Also a day that is still open.")
def reconcile(
    app: App, date: str | None, first: str | None, last: str | None, master: str, wait: float, force: bool
) -> int:
    """Recompute days exactly from the archive, publish them, and explain every difference to the stream.

    Exit 0 when done, 3 when done with an alert, 1 when it failed. Running it twice changes nothing.
    """
    days = _days(date, first, last)
    settings = app.settings
    client = ClickHouse(settings.clickhouse, settings.database)
    for day in days:
        _check_open(client, day, force)
    with _lease(app):
        app.say(f"reconciling {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else ""))
        coverage.wait_for_archive(settings, wait, app.say)
        alerts = _run(app, client, days, master)
    return ALERT_EXIT if alerts else 0


def _days(date: str | None, first: str | None, last: str | None) -> list[dt.date]:
    if (date is None) == (first is None) or (first is None) != (last is None):
        raise UsageError("say which days: --date D, or --from D --to D")
    low, high = _date(date or first or ""), _date(date or last or "")
    if low > high:
        raise UsageError(f"--from {low} is after --to {high}")
    return [low + dt.timedelta(days=n) for n in range((high - low).days + 1)]


def _date(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"not a date: {text}", hint="like 2026-11-20") from None


def _check_open(client: ClickHouse, day: dt.date, force: bool) -> None:
    """Refuse a day that may still get events, unless forced; never a day to come."""
    end_ms = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp()) * 1000 + DAY_MS
    if end_ms - DAY_MS > now_ms():
        raise UserError(f"{day} has not begun yet")
    mark = client.rows(
        f"SELECT count(), min(w) FROM (SELECT max(watermark_ms) AS w FROM {client.database}.tier_borders WHERE tier = 'hours' GROUP BY shard)"
    )
    watermark = int(mark[0][1]) if mark[0][0] else None
    if not force and (watermark is None or watermark < end_ms):
        shown = f"the watermark is {iso(watermark)}" if watermark is not None else "there is no watermark yet"
        raise UserError(f"{day} is still open: {shown}", hint="wait until it is past the day's end, or --force")


def _lease(app: App) -> AbstractContextManager[Any]:
    return Redis(app.settings.redis).lease(
        f"{app.settings.key_prefix}reconcile", _LEASE_S, "another reconciliation is running"
    )


def _run(app: App, client: ClickHouse, days: list[dt.date], master: str) -> int:
    """Reconcile the days one after the other; returns how many raised an alert."""
    from batch import exact  # Spark takes seconds to load: not before everything else is known to be right

    root = Path(app.settings.archive)
    for day in days:
        if not exact.files_of(root, day):
            raise UserError(f"nothing is archived for {day}", hint=f"looked below {root}")
    alerts = 0
    with tempfile.TemporaryDirectory(prefix="adclick-spark-") as scratch:
        spark = exact.session(app.settings, master, Path(scratch))
        try:
            for day in days:
                alerts += _one(app, client, spark, root, day)
        finally:
            spark.stop()
    return alerts


def _one(app: App, client: ClickHouse, spark: Any, root: Path, day: dt.date) -> bool:
    from batch import exact

    began = time.monotonic()
    run_id = f"{day:%Y%m%d}-{uuid.uuid4().hex[:12]}"
    done = threading.Event()
    with app.progress(f"{day}", 1) as bar:
        tell = threading.Thread(
            target=exact.watch_progress,
            args=(spark, lambda n, total: bar.update(bar.tasks[0].id, completed=n, total=total), done),
            daemon=True,
        )
        tell.start()
        try:
            sums = exact.aggregate(exact.read(spark, root, day)).persist()
            found = exact.summarize(sums)
            if not found.rows:
                raise UserError(f"nothing is archived for {day}", hint=f"looked below {root}")
            current = publish.current_run(client, day)
            if current is not None and current[1] == found.digest:
                app.say(f"{day}: unchanged since run {current[0]}; nothing to do")
                return False
            exact.write(sums, app.settings.clickhouse, app.settings.database, run_id)
            sums.unpersist()
        finally:
            done.set()
            tell.join()
    comparison = publish.compare(client, day, run_id)
    faults.point("reconcile.compared")
    seconds = time.monotonic() - began
    publish.publish(client, day, run_id, found, comparison, seconds)
    _report(app, day, run_id, found, comparison, seconds)
    return comparison.alert


def _report(app: App, day: dt.date, run_id: str, found: Any, comparison: publish.Comparison, seconds: float) -> None:
    if app.json:
        app.data(
            {
                "date": day.isoformat(), "run_id": run_id, "rows": found.rows, "copies": found.copies,
                "dimensions": comparison.dimensions, "corrected": comparison.corrected, "drifted": comparison.drifted,
                "causes": comparison.causes, "alert": comparison.alert, "seconds": round(seconds, 1),
            }
        )  # fmt: skip
        return
    rows = [(cause, *sums.values()) for cause, sums in comparison.causes.items()]
    app.table(
        ["cause", "rows", "impressions", "clicks", "conversions", "spend_micros"],
        rows or [("none", 0, 0, 0, 0, 0)],
    )
    app.say(
        f"{day}: {found.rows:,} archived rows, {found.copies:,} copies; {comparison.dimensions:,} dimensions,"
        f" {comparison.corrected:,} corrected, {comparison.drifted:,} drifted by more than {publish.DRIFT:.1%};"
        f" run {run_id} published in {seconds:.1f} s"
    )
    if comparison.alert:
        app.say(
            f"ALERT: {comparison.corrected:,} of {comparison.dimensions:,} dimensions needed correction, or some without a cause"
        )
