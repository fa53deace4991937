"""Rebuilds the exact days in ClickHouse: which days there are, which of them are whole, and a recount of each of those.

One day after the other, so that memory and what is lost by an interruption are bounded by a day. A day whose run is stored is passed
over, so that the next run goes on where this one was interrupted, and a run without anything to do writes nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from batch import coverage, publish, recount
from batch.archived_rows import with_codes
from batch.coverage import describe_missing
from batch.publish import Tables
from batch.rebuild import estimates, holes, restored_runs
from batch.rebuild.holes import ArchiveGap, HoleDays
from batch.rebuild.restored_runs import VoidRun
from batch.reconcile import Recounter
from infra import faults
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.retention import first_published_day
from infra.clock import DAY_MS, date_of, day_start_ms, iso, now_ms
from infra.errors import Denied, UserError
from infra.file_store import FileStore, Stored
from infra.kafka import topics
from infra.redis.client import Redis
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.dead_letters import letters as dead_letters
from stream.hot.published_status import read_shards

REFUSED, OPEN, STORED, ATTACHED = "refused", "open", "stored", "attached"
_POLL_S = 0.5
# Files that are looked into at a time: a bucket takes some milliseconds for each.
_AT_ONCE = 16
_RESTORE = "restore the files from a copy, and run this again"


def _today() -> dt.date:
    return date_of(now_ms())


@dataclass(frozen=True)
class DayReport:
    """What became, or would become, of a day. `outcome`: recount (to be done), attached, stored, empty, published, unchanged, open
    (today, nothing to do yet) or refused; then `why` and `hint` say what is missing and what to do."""

    date: dt.date
    outcome: str
    run_id: str = ""
    rows: int = 0
    why: str = ""
    hint: str = ""
    alert: bool = False
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """As --json has it."""
        fields = {"date": self.date.isoformat(), "outcome": self.outcome, "run_id": self.run_id, "rows": self.rows}
        return fields | {"why": self.why, "hint": self.hint, "alert": self.alert, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True)
class RebuildPlan:
    """`days`: each with what is to be done; `void`: runs that may be attached; `estimate_s`: how long all of it takes, about."""

    days: list[DayReport]
    void: list[VoidRun]
    estimate_s: float
    watermark_ms: int | None


class DayRebuild:
    """The rebuild of one range of days. Every method may raise Unavailable."""

    def __init__(
        self, app: App, client: ClickHouse, first: dt.date | None, last: dt.date | None, *, has_tables: bool = True
    ) -> None:
        """`first`, `last`: the range; None where it is that of the archive and of the runs that were published. Without tables nothing is
        known of what ClickHouse has: then there is but a plan."""
        self._app, self._client, self._first, self._last = app, client, first, last
        self._has_tables = has_tables
        self._store = FileStore(app.settings.archive)
        self._folders = {archive_files.folder_date(name): name for name in archive_files.day_folders(self._store)}

    def wait_until_closed(self, wait_s: float) -> int | None:
        """Wait until the watermark of hours has passed the newest day of the range that is over; returns the watermark as it is then."""
        yesterday = _today() - dt.timedelta(1)
        last = min(self._last or yesterday, yesterday)
        deadline, announced = time.monotonic() + wait_s, False
        while True:
            watermark_ms = self.read_watermark()
            is_closed = watermark_ms is not None and watermark_ms >= day_start_ms(last) + DAY_MS
            if is_closed or time.monotonic() > deadline or not self._folders:
                return watermark_ms
            if not announced:
                self._app.say(f"waiting until {last} has ended by the watermark")
                announced = True
            time.sleep(_POLL_S)

    def read_watermark(self) -> int | None:
        """Windows that end at or before this are in ClickHouse, or, while there are no tables, have closed in the stream."""
        settings = self._app.settings
        if self._has_tables:
            return publish.read_watermark(self._client, settings.block_partitions)
        with contextlib.closing(Redis(settings.redis_access)) as redis:
            shards = read_shards(redis, settings.key_prefix, settings.block_partitions)
        closed = [shard.closed_ms for shard in shards if shard.closed_ms is not None]
        return min(closed) if len(closed) == len(shards) else None

    def plan(self, watermark_ms: int | None) -> RebuildPlan:
        """What is to be done, day by day, and what cannot. Changes nothing."""
        files = self._files()
        gaps = self._archive_gaps(files)
        archived_days = self._archived_days(files)
        runs = publish.current_runs(self._client) if self._has_tables else {}
        days = self._days(archived_days | runs.keys(), gaps)
        if not days:
            return RebuildPlan([], [], 0.0, watermark_ms)
        tables = publish.exact_tables(self._client) if self._has_tables else Tables("", "")
        may_attach = tables.hours_id and not self._app.settings.clickhouse_cluster
        void = restored_runs.find_void(self._client, tables, days[0], days[-1]) if may_attach else []
        reports = [self._plan_day(day, runs.get(day), watermark_ms, tables, gaps, files, archived_days) for day in days]
        rows_by_folder = estimates.rows_by_day(files)
        reports = [replace(day, rows=rows_by_folder[day.date]) if day.outcome == "recount" else day for day in reports]
        # Each run reads all that came since the day before its own.
        sizes = [
            sum(rows for folder, rows in rows_by_folder.items() if folder >= day.date - dt.timedelta(1))
            for day in reports
            if day.outcome == "recount"
        ]
        return RebuildPlan(
            reports, void, estimates.recount_seconds(sizes) + estimates.attach_seconds(len(void)), watermark_ms
        )

    def run(
        self, plan: RebuildPlan, fence: int, ends: Sequence[int], master: str, on_day: Callable[[DayReport], None]
    ) -> list[DayReport]:
        """Carry out a plan, under the lease of runs; `on_day` is called with each report once its day is done."""
        attached = self.attach(plan.void)
        reports = list[DayReport]()
        bases = coverage.read_source(self._app.settings).bases
        hole_days = HoleDays(self._app.settings, bases)
        with Recounter(self._app, self._client, master, fence, plan.watermark_ms or 0) as recounter:
            for day in plan.days:
                if attached and (run_id := self._whole_run(day.date)) in attached:
                    report = DayReport(day.date, ATTACHED, run_id)
                elif day.outcome == "recount":
                    report = self._recount(recounter, hole_days, day.date, ends)
                    faults.point("rebuild.day")
                else:
                    report = day
                reports.append(report)
                on_day(report)
        return reports

    # -- a plan ---------------------------------------------------------------------------------------------

    def _days(self, known_days: set[dt.date], gaps: Sequence[ArchiveGap]) -> list[dt.date]:
        """The days of the range that are archived, were published, or may lack files; never one that has not begun."""
        days = known_days | {
            gap.first + dt.timedelta(n) for gap in gaps for n in range((gap.last - gap.first).days + 1)
        }
        if self._first and self._last:
            days |= {self._first + dt.timedelta(n) for n in range((self._last - self._first).days + 1)}
        first, last = (
            max(self._first or dt.date.min, first_published_day(now_ms())),
            min(self._last or dt.date.max, _today()),
        )
        return sorted(day for day in days if first <= day <= last)

    def _archived_days(self, files: Sequence[File]) -> set[dt.date]:
        """The days that events of the archive are of: an event that came too late lies where it arrived."""
        days = set[dt.date]()
        with self._app.progress("looking into the archive", len(files)) as bar, ThreadPoolExecutor(_AT_ONCE) as pool:
            for of_file in pool.map(lambda file: archive_files.days_of(self._store, file), files):
                days |= of_file
                bar.advance(bar.tasks[0].id, 1)
        return days

    def _files(self) -> list[File]:
        return [
            file
            for folder in self._folders.values()
            for file in archive_files.current_files(archive_files.parse_names(self._store.files(folder)))
        ]

    def _archive_gaps(self, files: Sequence[File]) -> list[ArchiveGap]:
        settings = self._app.settings
        gaps = holes.find_archive_gaps(files, coverage.read_source(settings).starts)
        if not gaps:
            return []
        topic, letters = settings.topic(topics.EVENTS), dead_letters.read_letters(settings)
        sources = (letter.source for letter in letters)
        return holes.without_rejected(gaps, ((s.partition, s.offset) for s in sources if s and s.topic == topic))

    def _plan_day(
        self, day: dt.date, current: tuple[str, str, int] | None, watermark_ms: int | None, tables: Tables,
        gaps: Sequence[ArchiveGap], files: Sequence[File], archived_days: set[dt.date],
    ) -> DayReport:  # fmt: skip
        if current and current[2] == 0 and publish.is_stored(self._client, current[0], tables):
            if unbilled := self._unbilled(current[0]):
                return DayReport(day, "recount", why=f"{unbilled:,} events came after run {current[0]}")
            return DayReport(day, STORED, current[0])
        end_ms = day_start_ms(day) + DAY_MS
        if watermark_ms is None or watermark_ms < end_ms:
            return self._open_day(day, watermark_ms)
        if of_day := [gap for gap in gaps if gap.may_be_of(day)]:
            count = sum(gap.stretch.to_offset - gap.stretch.from_offset for gap in of_day)
            shown = ", ".join(str(gap.stretch) for gap in of_day[:3]) + (", …" if len(of_day) > 3 else "")
            return DayReport(
                day, REFUSED, hint=f"{_RESTORE}; or, if all of them were rejected, adclick reconcile --date {day}",
                why=f"no file of the archive has {count:,} messages, and ad-events no longer has them: {shown}",
            )  # fmt: skip
        if current and (lost := self._lost_files(current[0], files)):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            return DayReport(
                day, REFUSED, why=f"the archive lacks {lost[0]}{more}, which run {current[0]} read", hint=_RESTORE
            )
        if day not in archived_days:
            if current:
                why = f"nothing is archived of it any more, and the rows of run {current[0]} are lost"
                return DayReport(day, REFUSED, why=why, hint=_RESTORE)
            return DayReport(day, "empty")
        return DayReport(day, "recount")

    def _open_day(self, day: dt.date, watermark_ms: int | None) -> DayReport:
        begins_now = day_start_ms(day) + DAY_MS > now_ms()
        if begins_now and self._last is None:
            return DayReport(day, OPEN, why="it is not over: the stream answers, and the nightly run counts it")
        if watermark_ms is None:
            why = "there is no watermark: not every shard of the stream has written hours since the tables were made"
            return DayReport(day, REFUSED, why=why, hint="start the stream workers, and run this again")
        why, hint = f"still open: the watermark is {iso(watermark_ms)}", "run this again once it is past the day's end"
        return DayReport(day, REFUSED, why=why, hint=hint)

    def _unbilled(self, run_id: str) -> int:
        db = self._client.database
        ((events,),) = self._client.rows(
            f"SELECT sum(events) FROM {db}.unbilled FINAL WHERE run_id = {{run:String}}", {"run": run_id}
        )
        return int(events)

    def _lost_files(self, run_id: str, files: Sequence[File]) -> list[str]:
        """The files that a run of this archive read and that neither are there nor are part of a merged one."""
        rows = self._client.rows(
            f"SELECT path, bytes FROM {self._client.database}.run_files FINAL WHERE run_id = {{run:String}}",
            {"run": run_id},
        )
        root = f"{self._store.shown}/"
        stored = [Stored(path.removeprefix(root), int(size), 0) for path, size in rows if path.startswith(root)]
        present = dict[tuple[str, int], list[File]]()
        for file in files:
            present.setdefault((file.folder, file.partition), []).append(file)
        return [
            read.name
            for read in archive_files.parse_names(stored)
            if not any(
                f.name == read.name or f.stands_for(read) for f in present.get((read.folder, read.partition), ())
            )
        ]

    # -- its execution --------------------------------------------------------------------------------------

    def attach(self, void: Sequence[VoidRun]) -> set[str]:
        """Attach the runs whose rows are whole; returns their ids."""
        if not void:
            return set()
        whole = list[str]()
        with self._app.progress("comparing restored runs with their digests", len(void)) as bar:
            for run in void:
                if restored_runs.is_whole(self._client, run.run_id):
                    whole.append(run.run_id)
                bar.advance(bar.tasks[0].id, 1)
        if not whole:
            return set()
        # Before they count again: a run that was restated since must not be taken for the day's bill.
        self._record_unbilled({run.date for run in void if run.run_id in whole})
        try:
            restored_runs.attach(self._client, whole, publish.exact_tables(self._client))
        except Denied as error:
            self._app.say(f"restored runs cannot be attached, and are recounted: {error}")
            return set()
        faults.point("rebuild.attached")
        self._app.say(f"{len(whole)} of {len(void)} runs are whole, as they were published")
        return set(whole)

    def _record_unbilled(self, days: set[dt.date]) -> None:
        """Record how many events were archived since the current runs of these days: a day may have been restated since the backup."""
        billed = publish.read_billed_offsets(self._client, max(days) + dt.timedelta(1))
        billed = {ms: ends for ms, ends in billed.items() if ends and date_of(ms) in days}
        files = [
            file
            for file in self._files()
            if archive_files.folder_date(file.folder) >= min(days) - dt.timedelta(1)
            and any(file.to_offset > ends.get(file.partition, 0) for ends in billed.values())
        ]
        counts, before_ms = Counter[int](), day_start_ms(max(days)) + DAY_MS
        with self._app.progress("looking for events since the backup", len(files)) as bar:
            for file in files:
                columns = ("partition", "offset", "time_ms", "decision")
                rows = with_codes(archive_files.read_columns(self._store, file.name, columns))
                counts.update(recount.count_unbilled(rows, billed, before_ms).late)
                bar.advance(bar.tasks[0].id, 1)
        publish.record_unbilled(self._client, counts)

    def _whole_run(self, day: dt.date) -> str:
        """The current run of a day, where it holds for all of the day and of what is archived of it; else empty."""
        current = publish.current_run(self._client, day)
        return current[0] if current and current[2] == 0 and not self._unbilled(current[0]) else ""

    def _recount(self, recounter: Recounter, hole_days: HoleDays, day: dt.date, ends: Sequence[int]) -> DayReport:
        began = time.monotonic()
        files = archive_files.files_around(self._store, day)
        if not files:
            return DayReport(day, "empty")
        try:
            proof = coverage.prove(self._app.settings, files, day, ends)
            missing = [hole for hole in proof.missing if hole_days.may_be_of(hole, day)]
            if missing:
                return DayReport(day, REFUSED, why=describe_missing(missing), hint=_RESTORE)
            result = recounter.recount(day, replace(proof, missing=[]))
        except UserError as error:
            return DayReport(day, REFUSED, why=error.message, hint=error.hint)
        return DayReport(
            day, result.outcome, result.run_id, result.rows, alert=result.alert, seconds=time.monotonic() - began
        )
