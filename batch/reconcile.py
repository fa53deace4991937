"""`adclick reconcile`, the command: which days may be recomputed, under which lease, and what is published or raises an alert.

Counting is done by `batch.spark_job` with the functions of `batch.recount`, the proof that no input is missing by
`batch.coverage`, comparison and publication by `batch.publish`.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import click

from batch import alerts, coverage, explain, publish
from batch.archived_rows import Archives
from batch.recount import UnbilledEvents
from batch.regions import Region, describe_lost_regions, join_proofs, read_regions
from infra import faults, migration, run_progress
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse, connector
from infra.clickhouse.ledger_causes import Cause
from infra.clickhouse.retention import PUBLISHED_DAYS, first_published_day
from infra.clock import DAY_MS, day_start_ms, iso, now_ms
from infra.errors import AdclickError, UsageError, UserError
from infra.file_store import FileStore
from infra.priority import BACKGROUND, give_way
from infra.redis.client import Redis
from ingest.archive.files import File

ALERT_EXIT = 3
_LEASE_S = 30


@dataclass(frozen=True)
class _Job:
    """What all days of a run have in common."""

    app: App
    client: ClickHouse
    master: str
    force: bool
    skip_empty: bool
    dry_run: bool
    closed_ms: int
    """Hours that end at or before this had closed in the stream when the job began."""
    began_s: int
    regions: Sequence[Region]
    fence: int = 0
    ends: Sequence[Sequence[int]] = ()
    """Of each region, the offsets of ad-events up to which its archive is complete."""
    reports: bool = True
    """Whether each day's result is printed."""

    @property
    def archives(self) -> list[str]:
        """Where the archive of each region is."""
        return [region.archive for region in self.regions]


@dataclass(frozen=True)
class DayResult:
    """What a run did with a day: `outcome` is published, counted (by a dry run), unchanged or empty."""

    outcome: str
    run_id: str = ""
    rows: int = 0
    alert: bool = False


class _Seconds(click.FloatRange):
    """The type of an option: seconds, finite and not negative."""

    def __init__(self) -> None:
        super().__init__(min=0, max=dt.timedelta(days=365).total_seconds())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


@declare.command(
    "reconcile",
    "adclick reconcile --date 2026-11-20\nadclick reconcile --from 2026-11-01 --to 2026-11-07\n"
    "adclick reconcile --explain 7 --date 2026-11-20",
)
@click.option("--date", help="The day (UTC).")
@click.option("--from", "first", help="First day of a range.")
@click.option("--to", "last", help="Last day of a range.")
@click.option("--master", default="local[*]", show_default=True, help="Spark master.")
@click.option("--wait", type=_Seconds(), default=120.0, show_default=True, help="Seconds to wait for the archive.")
@click.option(
    "--force",
    is_flag=True,
    help="Also a day that is still open, whose input has holes, or that loses a region; the run says so.",
)
@click.option("--skip-empty", is_flag=True, help="Pass over days of which nothing is archived.")
@click.option("--dry-run", is_flag=True, help="Recount and compare, but publish nothing.")
@click.option("--explain", "campaign", type=click.IntRange(0), help="Only explain this campaign's bill.")
def reconcile(
    app: App, date: str | None, first: str | None, last: str | None, master: str, wait: float, force: bool,
    skip_empty: bool, dry_run: bool, campaign: int | None,
) -> int:  # fmt: skip
    """Recompute days exactly from the archive, publish them, and explain every difference to the stream.

    Exit 0 when done, 3 when done with an alert, 1 when it failed. Running it twice changes nothing.
    """
    days = _days(date, first, last)
    settings = app.settings
    migration.check_tables(settings)
    client = ClickHouse.of(settings)
    if campaign is not None:
        for day in days:
            explain.print_bill(app, client, campaign, day)
        return 0
    regions = read_regions(settings)
    watermarks = [region.read_watermark() for region in regions]
    for region, watermark_ms in zip(regions, watermarks, strict=True):
        with region.named():
            for day in days:
                _check_closed(day, watermark_ms, force)
    job = _Job(app, client, master, force, skip_empty, dry_run, watermarks[0] or 0, now_ms() // 1000, regions)
    give_way(BACKGROUND)  # and Spark, which inherits it
    with exclusive_run(app) as fence:
        app.say(f"reconciling {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else ""))
        ends = [region.wait_for_archive(wait, app.say, force=force) for region in regions]
        raised = _run(replace(job, fence=fence, ends=ends), days)
    return ALERT_EXIT if raised else 0


def _days(date: str | None, first: str | None, last: str | None) -> list[dt.date]:
    if (date is None) == (first is None) or (first is None) != (last is None):
        raise UsageError("say which days: --date D, or --from D --to D")
    low, high = parse_date(date or first or ""), parse_date(date or last or "")
    if low > high:
        raise UsageError(f"--from {low} is after --to {high}")
    return [low + dt.timedelta(days=n) for n in range((high - low).days + 1)]


def parse_date(text: str) -> dt.date:
    """A day as it is given. Raises UsageError."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"not a date: {text}", hint="like 2026-11-20") from None


def _check_closed(day: dt.date, watermark_ms: int | None, force: bool) -> None:
    """Refuse a day that may still get events, unless forced; never accept one that has not begun."""
    start_ms = day_start_ms(day)
    if start_ms > now_ms():
        raise UserError(f"{day} has not begun yet")
    if day < (first := first_published_day(now_ms())):
        raise UserError(
            f"{day} can no longer be billed: published days are deleted after {PUBLISHED_DAYS} days",
            hint=f"the first day that stays is {first}",
        )
    if not force and (watermark_ms is None or watermark_ms < start_ms + DAY_MS):
        shown = f"the watermark is {iso(watermark_ms)}" if watermark_ms is not None else "there is no watermark yet"
        raise UserError(f"{day} is still open: {shown}", hint="wait until it is past the day's end, or --force")


@contextmanager
def exclusive_run(app: App) -> Iterator[int]:
    """Hold the lease of runs, and publish that one is at work; yields the lease's number. Raises UserError while another run has it."""
    redis, prefix = Redis(app.settings.redis_access), app.settings.key_prefix
    with redis.lease(run_progress.lease_key(prefix), _LEASE_S, "another reconciliation is running") as fence:
        run_progress.publish_progress(redis, prefix, step="waiting for the archive", at_ms=now_ms())
        try:
            yield fence
        finally:
            run_progress.end_progress(redis, prefix)


class Recounter:
    """Recounts days one by one, of this region alone, under a lease that its caller holds. A context manager: Spark is started for the first day, and ends with it."""

    def __init__(self, app: App, client: ClickHouse, master: str, fence: int, closed_ms: int) -> None:
        """`closed_ms`: the watermark of hours."""
        self._job = _Job(
            app, client, master, force=False, skip_empty=True, dry_run=False, closed_ms=closed_ms, began_s=now_ms() // 1000,
            regions=[Region(0, "", app.settings)], fence=fence, reports=False,
        )  # fmt: skip
        self._session = ExitStack()
        self._spark: Any = None

    def __enter__(self) -> Recounter:
        return self

    def __exit__(self, *_error: object) -> None:
        self._session.close()

    def recount(self, day: dt.date, proof: coverage.Proof) -> DayResult:
        """Recount a day, and publish it unless it is unchanged. Raises UserError for a file that cannot be read, and what stops a run."""
        from batch import spark_job

        _refuse_lost_regions(self._job, day)
        if self._spark is None:
            self._spark = self._session.enter_context(spark_job.open_session(self._job.app.settings, self._job.master))
        with spark_job.explained():
            return _one(self._job, self._spark, day, proof)


def _run(job: _Job, days: list[dt.date]) -> int:
    """Reconcile the days one after the other; returns how many raised an alert."""
    from batch import spark_job  # Spark takes seconds to load: not before everything else is known to be right

    for day in days:
        _refuse_lost_regions(job, day)
    files = {day: [file for region in job.regions for file in region.files_around(day)] for day in days}
    for day in [day for day, day_files in files.items() if not day_files]:
        del files[day]
        shown = ", ".join(FileStore(archive).shown for archive in job.archives)
        _pass_over(job, day, f"looked below {shown}")
    if not files:
        return 0
    proofs = {day: _prove(job, day_files, day) for day, day_files in files.items()}
    with spark_job.open_session(job.app.settings, job.master) as spark:
        return sum(_one(job, spark, day, proof).alert for day, proof in proofs.items())


def _pass_over(job: _Job, day: object, hint: str) -> None:
    """Raises UserError, unless days without events are to be passed over."""
    if not job.skip_empty:
        raise UserError(f"nothing is archived for {day}", hint=hint)
    job.app.say(f"{day}: nothing is archived; passed over")


def _refuse_lost_regions(job: _Job, day: dt.date) -> None:
    """Raise UserError where the day's bill would lose the events of a region, unless forced."""
    run_id, billed = publish.read_billed_regions(job.client, day)
    lost = describe_lost_regions(job.regions, day, run_id, billed)
    if not lost:
        return
    if not job.force:
        raise UserError(
            f"{lost}; nothing was published",
            hint="name its file in ADCLICK_OTHER_REGIONS again, under this name, or adclick reconcile --force bills the day without it",
        )
    job.app.say(f"ALERT: {lost}")


def _prove(job: _Job, files: Sequence[File], day: dt.date) -> coverage.Proof:
    """What shows that nothing is missing. Raises UserError when something is, unless forced."""
    proofs = [region.prove(files, day, ends) for region, ends in zip(job.regions, job.ends, strict=True)]
    proof = join_proofs(job.regions, proofs)
    if proof.missing:
        missing = coverage.describe_missing(proof.missing)
        if not job.force:
            raise UserError(f"{day}: {missing}", hint="nothing was published; restore the files, or --force")
        job.app.say(f"ALERT: {day}: {missing}")
    return proof


def _one(job: _Job, spark: Any, day: dt.date, proof: coverage.Proof) -> DayResult:
    """Reconcile a day."""
    from batch import spark_job

    app, client, settings, began = job.app, job.client, job.app.settings, time.monotonic()
    run_id = f"{day:%Y%m%d}-{uuid.uuid4().hex[:12]}"
    faults.point("reconcile.proved")
    with _progress(app, spark, f"{day}: counting"):
        moves, run_input = spark_job.recount_day(
            spark,
            job.archives,
            proof.files,
            day,
            proof.rejected,
            publish.read_billed_offsets(client, day, [region.name for region in job.regions[1:]]),
        )
    faults.point("reconcile.counted")
    late = _alert_unbilled(job, run_input.unbilled)
    if not run_input.rows:
        _pass_over(job, day, f"looked into {len(proof.files)} files")
        return DayResult("empty")
    current, tables = publish.current_run(client, day), publish.exact_tables(client)
    open_from_ms = publish.open_from(day, job.closed_ms)
    unchanged = current is not None and current[1:] == (run_input.digest, open_from_ms)
    if current is not None and unchanged and publish.is_stored(client, current[0], tables):
        app.say(f"{day}: unchanged since run {current[0]}; nothing to do")
        return DayResult("unchanged", current[0], run_input.rows, late)
    connect = connector(settings)
    with _progress(app, spark, f"{day}: writing"):
        spark_job.write_moves(moves, connect, run_id)
        spark_job.write_users(spark, job.archives, proof.files, day, connect, run_id)
        if settings.reach == "on":
            _write_reach(job, spark, day, proof, run_id)
        publish.record_files(client, run_id, Archives(job.archives), proof.files)
    faults.point("reconcile.written")
    comparison = publish.compare(client, day, run_id, settings.drift_share, job.closed_ms, job.began_s)
    faults.point("reconcile.compared")
    seconds = time.monotonic() - began
    alert = comparison.alert(settings.alert_share) or bool(proof.missing or proof.set_aside)
    if alert:  # before it shows: an alert may come twice, but not be lost
        summary = _summary_of_run(comparison, proof)
        app.say(f"ALERT: {day}: {summary}")
        alerts.send(app, {"date": day, "run_id": run_id, "alert": summary, "causes": comparison.causes})
    if not job.dry_run:
        publish.publish(
            client, day, run_id, job.fence, run_input, comparison, proof, seconds, alert, open_from_ms, tables=tables
        )
        faults.point("reconcile.published")
    if job.reports:
        _report(app, day, run_id, run_input, comparison, seconds, published=not job.dry_run)
    if open_from_ms:
        app.say(
            f"{day} is still open: from {iso(open_from_ms)} on, the stream answers until the day is reconciled again"
        )
    return DayResult("counted" if job.dry_run else "published", run_id, run_input.rows, alert or late)


def _write_reach(job: _Job, spark: Any, day: dt.date, proof: coverage.Proof, run_id: str) -> None:
    """Write the users of a day. Nothing is billed by them, so an error is printed, and the day goes on: users stay the stream's."""
    from batch import reach, spark_job

    settings = job.app.settings
    try:
        with spark_job.explained():
            reach.write_reach(spark, job.archives, proof.files, day, connector(settings), run_id)
    except (AdclickError, OSError) as error:
        job.app.say(f"{day}: users were not counted anew, those of the stream stay: {error}")


def _alert_unbilled(job: _Job, unbilled: UnbilledEvents) -> bool:
    """Print which earlier days have events that no bill has, and alert those that their runs lack; returns whether there are any."""
    if not job.dry_run:
        publish.record_unbilled(job.client, unbilled.late)
    for day_ms, events in unbilled.never.items():
        date = iso(day_ms)[:10]
        job.app.say(
            f"{date}: {events:,} events are archived, and it was never reconciled: adclick reconcile --date {date}"
        )
    for day_ms, events in unbilled.late.items():
        summary = f"{iso(day_ms)[:10]}: {events:,} events arrived after its reconciliation: reconcile it again"
        job.app.say(f"ALERT: {summary}")
        alerts.send(job.app, {"date": iso(day_ms)[:10], "alert": summary, "unbilled": events})
    return bool(unbilled.late)


@contextmanager
def _progress(app: App, spark: Any, doing: str) -> Iterator[None]:
    from batch import spark_job

    done, redis, prefix = threading.Event(), Redis(app.settings.redis_access), app.settings.key_prefix
    date, _, step = doing.partition(": ")
    run_progress.publish_progress(redis, prefix, date=date, step=step, at_ms=now_ms())
    shown = (-1, -1)
    with app.progress(doing, 1) as bar:

        def show_tasks(finished: int, total: int) -> None:
            nonlocal shown
            bar.update(bar.tasks[0].id, completed=finished, total=total)
            if shown != (finished, total):
                shown = finished, total
                run_progress.publish_progress(
                    redis, prefix, date=date, step=step, tasks_done=finished, tasks=total, at_ms=now_ms()
                )

        watcher = threading.Thread(target=spark_job.watch_progress, args=(spark, show_tasks, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _summary_of_run(comparison: publish.Comparison, proof: coverage.Proof) -> str:
    summary = f"{comparison.corrected:,} of {comparison.dimensions:,} dimensions needed correction"
    if Cause.UNEXPLAINED in comparison.causes:
        summary += f", {comparison.causes[Cause.UNEXPLAINED]['rows']:,} of them without a cause"
    if proof.missing:
        summary += f"; {coverage.describe_missing(proof.missing)}"
    return f"{summary}; {coverage.describe_set_aside(proof.set_aside)}" if proof.set_aside else summary


def _report(
    app: App,
    day: dt.date,
    run_id: str,
    run_input: Any,
    comparison: publish.Comparison,
    seconds: float,
    *,
    published: bool,
) -> None:
    if app.json:
        app.data(
            {
                "date": day.isoformat(), "run_id": run_id, "rows": run_input.rows, "copies": run_input.copies,
                "dimensions": comparison.dimensions, "corrected": comparison.corrected, "drifted": comparison.drifted,
                "causes": comparison.causes, "alert": comparison.alert(app.settings.alert_share), "seconds": round(seconds, 1),
            }
        )  # fmt: skip
        return
    rows = [(cause, *sums.values()) for cause, sums in comparison.causes.items()]
    app.table(
        ["cause", "rows", "impressions", "clicks", "conversions", "spend_micros"],
        rows or [("none", 0, 0, 0, 0, 0)],
    )
    app.say(
        f"{day}: {run_input.rows:,} archived rows, {run_input.copies:,} copies; {comparison.dimensions:,} dimensions,"
        f" {comparison.corrected:,} corrected, {comparison.drifted:,} drifted by more than {app.settings.drift_share:.1%};"
        f" run {run_id} {'published' if published else 'not published'} in {seconds:.1f} s"
    )
