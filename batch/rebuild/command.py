"""`adclick rebuild clickhouse|redis|stream`: the ways back of docs/recovery.md, each by one command that may be repeated."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Sequence
from typing import Any

import click

from batch import coverage
from batch.rebuild import estimates
from batch.rebuild.days import ATTACHED, REFUSED, STORED, DayRebuild, DayReport, RebuildPlan
from batch.rebuild.former_archive import FormerArchive
from batch.rebuild.ids import IdsWatch, PartitionIds, regroup
from batch.reconcile import ALERT_EXIT, exclusive_run, parse_date
from infra import migration
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse import schema
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.retention import PUBLISHED_DAYS, first_published_day
from infra.clock import now_ms
from infra.errors import AdclickError, UsageError, UserError
from infra.file_store import is_bucket
from infra.priority import BACKGROUND, give_way
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.published_status import read_reports

_POLL_S = 0.5
# Workers that look by themselves, as after a restart of Redis, are left to it.
_BY_ITSELF_S, _AFTER_REGROUP_S = 5.0, 60.0
_WAIT = click.option(
    "--wait",
    type=click.FloatRange(0, 7 * 86_400),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the workers.",
)
_MASTER = click.option("--master", default="local[*]", show_default=True, help="Spark master.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only list what it would do, and about how long that takes.")


@declare.group(
    "rebuild",
    "adclick rebuild clickhouse --dry-run\nadclick rebuild redis\nadclick rebuild stream --archive /data/former-archive",
)
def rebuild() -> None:
    """Make what a store has lost again from what is left: the ways back of docs/recovery.md.

    Each command may be interrupted and run again: it goes on where it was, and changes nothing that is there.
    """


# -- clickhouse -----------------------------------------------------------------------------------------------------


@declare.command(
    "clickhouse", "adclick rebuild clickhouse --dry-run\nadclick rebuild clickhouse --from 2026-11-01 --to 2026-11-30"
)
@click.option("--from", "first", help="First day (UTC); by default the first that is archived.")
@click.option("--to", "last", help="Last day; by default the last that is over.")
@_MASTER
@_WAIT
@_DRY_RUN
def rebuild_clickhouse(app: App, first: str | None, last: str | None, master: str, wait: float, dry_run: bool) -> int:
    """Make missing tables, and the exact numbers of each day that the archive has whole.

    Runs whose rows came back with a backup stay as they were published; other days are recounted. A day that is not whole is refused by
    name, and the others are done all the same. Exit 0 when all days are there, 3 when one raised an alert, 1 when one was refused.
    """
    low, high = (parse_date(text) if text else None for text in (first, last))
    if low and high and low > high:
        raise UsageError(f"--from {low} is after --to {high}")
    refuse_other_regions(app.settings)
    client, began = ClickHouse.of(app.settings), time.monotonic()
    if dry_run:
        missing = schema.missing_tables(client) + schema.pending(client)
        days = DayRebuild(app, client, low, high, has_tables=not missing)
        _print_plan(app, missing, days.plan(days.read_watermark()))
        return 0
    made = migration.migrate(app.settings).tables
    for name in made:
        app.say(f"made {name}")
    return _rebuild_days(app, DayRebuild(app, client, low, high), master, wait, began, {"made": made})


def refuse_other_regions(settings: Settings) -> None:
    """Raise UserError where days are billed with other regions: whether a day is whole is only looked up in the own archive."""
    if settings.other_regions.strip():
        raise UserError(
            "adclick rebuild clickhouse does not look into the archives of ADCLICK_OTHER_REGIONS",
            hint="adclick migrate makes the tables; use adclick reconcile --from --to, with --skip-empty",
        )


def _rebuild_days(
    app: App, days: DayRebuild, master: str, wait_s: float, began: float, document: dict[str, Any]
) -> int:
    give_way(BACKGROUND)  # and Spark, which inherits it
    with exclusive_run(app) as fence:
        plan = days.plan(days.wait_until_closed(wait_s))
        to_do = [day for day in plan.days if day.outcome == "recount"]
        app.say(_describe_plan(plan))
        ends = coverage.wait_for_archive(app.settings, wait_s, app.say) if to_do or plan.void else []
        done = list[DayReport]()

        def on_day(report: DayReport) -> None:
            done.append(report)
            if report.outcome not in (STORED, "empty"):
                app.say(f"[{len(done)}/{len(plan.days)}] {_line(report)}")

        reports = days.run(plan, fence, ends, master, on_day) if plan.days else []
    seconds = time.monotonic() - began
    if app.json:
        app.data(document | {"days": [report.document() for report in reports], "seconds": round(seconds, 1)})
    else:
        app.table(["day", "outcome", "rows", "run", "why"], [_row(report) for report in reports])
    refused = [report for report in reports if report.outcome == REFUSED]
    if refused:
        more = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise AdclickError(
            f"{len(refused)} of {len(reports)} days were not rebuilt: {refused[0].date}: {refused[0].why}{more}",
            hint=refused[0].hint,
        )
    app.say(f"{_counted(len(reports), 'day')} looked at, all that are over are there, in {estimates.shown(seconds)}")
    return ALERT_EXIT if any(report.alert for report in reports) else 0


def _describe_plan(plan: RebuildPlan) -> str:
    outcomes = [day.outcome for day in plan.days]
    parts = [f"{_counted(outcomes.count('recount'), 'day')} to recount", f"{outcomes.count(STORED)} there"]
    if plan.void:
        parts.append(f"{_counted(len(plan.void), 'run')} to compare with what came back")
    if refused := outcomes.count(REFUSED):
        parts.append(f"{refused} that cannot be")
    return f"{', '.join(parts)}; about {estimates.shown(plan.estimate_s)}"


def _print_plan(app: App, missing: Sequence[str], plan: RebuildPlan) -> None:
    if app.json:
        days = [report.document() for report in plan.days]
        app.data({"make": list(missing), "days": days, "compare": len(plan.void), "estimate_s": round(plan.estimate_s)})
        return
    app.table(["day", "to do", "rows, about", "run", "why"], [_row(report) for report in plan.days])
    if missing:
        app.say(f"{_counted(len(missing), 'table or file')} to make, such as {missing[0]}")
    app.say(_describe_plan(plan))


def _row(report: DayReport) -> tuple[str, str, str, str, str]:
    why = f"{report.why} ({report.hint})" if report.hint else report.why
    return report.date.isoformat(), report.outcome, f"{report.rows:,}" if report.rows else "", report.run_id, why


def _line(report: DayReport) -> str:
    by_run = (
        f" by run {report.run_id}" if report.outcome == ATTACHED else f": run {report.run_id}" if report.run_id else ""
    )
    why = f": {report.why}" if report.why else ""
    took = f" in {report.seconds:.1f} s" if report.seconds else ""
    return f"{report.date} {report.outcome}{by_run}{why}{took}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


# -- redis ----------------------------------------------------------------------------------------------------------


@declare.command("redis", "adclick rebuild redis --dry-run\nadclick rebuild redis --wait 1800")
@_WAIT
@_DRY_RUN
def rebuild_redis(app: App, wait: float, dry_run: bool) -> None:
    """Have the workers rebuild what Redis has lost now, and wait until they have: dedup ids, and the hot tier.

    Refused where ids are lost for good, since ad-events no longer has two dedup horizons.
    """
    settings, began = app.settings, time.monotonic()
    if not dry_run:
        migration.check_cluster(settings)
    with contextlib.closing(Redis(settings.redis_access)) as redis:
        watch = IdsWatch(settings, redis)
        partitions, silent = watch.read_partitions(), watch.silent_shards()
        _refuse_doubt(partitions)
        lost = [ids for ids in partitions if not ids.is_whole]
        estimate_s = max(
            estimates.ids_seconds(sum(ids.messages for ids in lost)), estimates.SHARDS_S if silent else 0.0
        )
        if dry_run or not (lost or silent):
            _report_redis(app, partitions, silent, estimate_s, dry_run=dry_run)
            return
        app.say(
            f"Redis lacks ids of {_counted(len(lost), 'partition')} and the hot tier of {_counted(len(silent), 'shard')};"
            f" about {estimates.shown(estimate_s)}"
        )
        partitions = _wait_for_redis(app, watch, lost, wait)
    _refuse_doubt(partitions)
    if app.json:
        app.data(
            {
                "partitions": [ids.document() for ids in partitions],
                "rebuilt": {"partitions": [ids.partition for ids in lost], "shards": silent},
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    app.say(
        f"Redis has all ids and every shard again, after {time.monotonic() - began:.0f} s; minutes that are older than the"
        " stream's state stay missing, their hours are in ClickHouse"
    )


def _refuse_doubt(partitions: Sequence[PartitionIds]) -> None:
    """Raise UserError where ids are lost for good."""
    doubtful = [ids for ids in partitions if ids.doubtful]
    if doubtful:
        named = ", ".join(str(ids.partition) for ids in doubtful)
        raise UserError(
            f"ids of partition {named} are lost for good: ad-events no longer has two dedup horizons of it",
            hint="workers go on without them by themselves; what may be a copy is dropped, and left to the nightly run",
        )


def _report_redis(
    app: App, partitions: Sequence[PartitionIds], silent: Sequence[int], estimate_s: float, *, dry_run: bool
) -> None:
    documents = [ids.document() for ids in partitions]
    if app.json:
        app.data({"partitions": documents, "silent_shards": list(silent), "estimate_s": round(estimate_s)})
    elif dry_run:
        rows = [(f"ids of partition {d['partition']}", d["outcome"], f"{d['messages']:,}") for d in documents]
        rows += [(f"hot tier of shard {shard}", "rebuild", "") for shard in silent]
        app.table(["of Redis", "to do", "messages to read"], rows)
    missing = silent or any(not ids.is_whole for ids in partitions)
    app.say(f"about {estimates.shown(estimate_s)}" if missing else "Redis lacks nothing; nothing to do")


def _are_whole(partitions: Sequence[PartitionIds]) -> bool:
    return all(ids.is_whole for ids in partitions)


def _wait_for_redis(app: App, watch: IdsWatch, lost: Sequence[PartitionIds], wait_s: float) -> list[PartitionIds]:
    """Wait until workers have rebuilt everything, and have them begin, unless they do so by themselves; returns the partitions as they are
    then. Raises AdclickError."""
    began, total = time.monotonic(), watch.count_left(lost)
    left, silent, moved_at, patience_s = total, watch.silent_shards(), began, _BY_ITSELF_S
    with app.progress("rebuilding ids", max(1, total)) as bar:
        # Their ids are loaded for it: only once there is nothing else to wait for.
        while left or silent or not _are_whole(partitions := watch.read_partitions()):
            now = time.monotonic()
            if now - began > wait_s:
                what = (
                    f"{left:,} messages to read again"
                    if left
                    else f"shards {', '.join(map(str, silent))} of the stream"
                )
                raise AdclickError(
                    f"after {wait_s:.0f} s Redis still lacks {what}",
                    hint="do ingest and stream workers run? adclick status; --wait gives them longer",
                )
            if now - moved_at > patience_s:
                app.say("having the ingest workers take their partitions anew")
                regroup(app.settings)
                moved_at, patience_s = time.monotonic(), _AFTER_REGROUP_S
            time.sleep(_POLL_S)
            before, left, silent = (left, silent), watch.count_left(lost), watch.silent_shards()
            if (left, silent) != before:
                moved_at = time.monotonic()
            bar.update(bar.tasks[0].id, completed=total - min(total, left))
    return partitions


# -- stream ---------------------------------------------------------------------------------------------------------


@declare.command(
    "stream",
    "adclick rebuild stream --archive /data/former-archive --dry-run\n"
    "ADCLICK_NAMESPACE=second_ adclick rebuild stream --archive s3://ads/former",
)
@click.option(
    "--archive",
    "former",
    required=True,
    help="The archive of the former installation: a folder, or s3://BUCKET/PREFIX.",
)
@_MASTER
@_WAIT
@_DRY_RUN
def rebuild_stream(app: App, former: str, master: str, wait: float, dry_run: bool) -> int:
    """Count an archive again in a new installation, after Kafka was lost: send it, wait for the watermark, recount its days.

    Refused in an installation that has these events, or has published their days. Exit codes are those of rebuild clickhouse.
    """
    if not former or (former.startswith("s3:") and not is_bucket(former)):
        raise UsageError(f"--archive {former!r} names no archive", hint="a folder, or s3://BUCKET/PREFIX")
    settings, began = app.settings, time.monotonic()
    migration.check_topics(settings)
    migration.check_tables(settings)
    client = ClickHouse.of(settings)
    with contextlib.closing(Redis(settings.redis_access)) as redis:
        archive = FormerArchive(settings, redis, former, first_day=first_published_day(now_ms()))
        if archive.days_left_out:
            app.say(
                f"{_counted(archive.days_left_out, 'day')} left out: published days are kept for {PUBLISHED_DAYS} days, and these are older"
            )
        begun = archive.was_begun()
        if not begun:
            coverage.wait_for_archive(settings, wait, app.say)
            archive.refuse_former_installation(client)
        left = archive.left()
        rows = {day: estimates.rows_of(archive.files[day]) for day in archive.files}
        parts = len(archive.windows)
        unsent = sum(rows.values()) * len(left) // parts
        estimate_s = estimates.replay_seconds(unsent) + estimates.recount_seconds([sum(rows.values())] * len(rows))
        if dry_run:
            _print_stream_plan(app, archive, f"{len(left)} of {parts}", rows, estimate_s)
            return 0
        if not read_reports(redis, settings.key_prefix).workers:
            raise UserError("no ingest worker runs", hint="start the workers of the new installation first")
        app.say(
            f"{len(left)} of {_counted(parts, 'part')} to send, about {unsent:,} events; about {estimates.shown(estimate_s)}"
        )
        if begun and left:
            app.say(
                "going on where it was interrupted: what was sent of a part is sent again, and its copies are dropped"
            )
        sent = archive.send(app, left, lambda n: app.say(f"part {n + 1} of {parts} is sent"))
    # Which days there are is read from the archive.
    coverage.wait_for_archive(settings, wait, app.say)
    if settings.other_regions.strip():
        if app.json:
            app.data(
                {"archive": archive.shown, "sent": sent, "days": [], "seconds": round(time.monotonic() - began, 1)}
            )
        app.say(
            f"all is sent, and no day is recounted: adclick reconcile --from {min(rows)} --to {max(rows)} --skip-empty bills"
            " the days with ADCLICK_OTHER_REGIONS"
        )
        return 0
    days = DayRebuild(app, client, None, None)
    return _rebuild_days(app, days, master, wait, began, {"archive": archive.shown, "sent": sent})


def _print_stream_plan(
    app: App, archive: FormerArchive, left: str, rows: dict[dt.date, int], estimate_s: float
) -> None:
    days = [{"date": day.isoformat(), "to_do": "recount", "rows": rows[day]} for day in sorted(rows)]
    if app.json:
        app.data({"archive": archive.shown, "parts_to_send": left, "days": days, "estimate_s": round(estimate_s)})
        return
    app.table(["day", "to do", "rows, about"], [(d["date"], d["to_do"], f"{d['rows']:,}") for d in days])
    app.say(f"{left} parts to send; about {estimates.shown(estimate_s)}")


for _command in (rebuild_clickhouse, rebuild_redis, rebuild_stream):
    rebuild.add_command(_command)
