"""Which nightly runs have read a message, whether they bill it, and in which statements that is."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass

from infra.clickhouse.client import ClickHouse
from infra.clock import date_of
from infra.file_store import Stored, folder_of
from ingest.archive import files as archive_files
from ingest.archive.files import File
from ingest.archive.search import ArchivedMessage
from query.runs import PublishedRun, read_published_runs
from query.statements.store import Issue, StatementStore
from query.trace.verdicts import NightVerdict, judge_night

# Where the name of a file begins in its address, wherever the archive was when it was read.
_ROOT = re.compile(r"event_date=\d{4}-\d\d-\d\d/")


@dataclass(frozen=True)
class RunOfMessage:
    """A published run of a message's day. `has_read`: whether the message was in the files that it read. `verdict`: what it made of it;
    None where it has not read it, or left its hour to the stream since that was open."""

    run: PublishedRun
    message: ArchivedMessage
    has_read: bool
    verdict: NightVerdict | None

    @property
    def bills(self) -> bool:
        """Whether the message is in its numbers."""
        return self.verdict is not None and self.verdict.counts


@dataclass(frozen=True)
class IssueOfMessage:
    """An issue of the statement of a message's advertiser and month. `run_id`: of the message's day in it. `bills`: whether that run bills
    the message."""

    issue: Issue
    message: ArchivedMessage
    run_id: str
    bills: bool
    is_newest: bool


class BillingReader:
    """Reads runs and statements of one id's messages. Every method may raise Unavailable."""

    def __init__(
        self, client: ClickHouse, archive: str, messages: Sequence[ArchivedMessage], rejected_ms: int | None
    ) -> None:
        """`archive`: its name in messages; `messages`: all of the id; `rejected_ms`: as for `judge_night`."""
        self._client, self._messages, self._rejected_ms = client, messages, rejected_ms
        self._root = f"{archive}/"
        self._store = StatementStore(client)
        self._runs = dict[dt.date, list[tuple[PublishedRun, list[ArchivedMessage]]]]()
        self._issues = dict[tuple[int, dt.date], list[Issue]]()

    def runs_of(self, message: ArchivedMessage) -> list[RunOfMessage]:
        """The runs of the message's day, the newest first."""
        date = date_of(message.time_ms)
        if date not in self._runs:
            runs = read_published_runs(self._client, date, date)
            self._runs[date] = [(run, self._read_by(run)) for run in runs]
        return [self._of_run(run, read, message) for run, read in self._runs[date]]

    def _of_run(self, run: PublishedRun, read: Sequence[ArchivedMessage], message: ArchivedMessage) -> RunOfMessage:
        has_read = message.place in {m.place for m in read}
        covers = run.covers_day or message.time_ms < run.open_from_ms
        verdict = judge_night(message, read, self._rejected_ms) if has_read and covers else None
        return RunOfMessage(run, message, has_read, verdict)

    def _read_by(self, run: PublishedRun) -> list[ArchivedMessage]:
        """The messages that were in the files that a run read: merged since, or not. Of a run of which no files are recorded, those below
        the offsets at which it began.

        A run of several regions has read files of other archives, under the same names: of those only the own archive's count.
        """
        root = self._root if run.facts.get("other_ends") else ""
        folders = sorted({folder_of(m.file) for m in self._messages if m.file})
        rows = self._client.rows(
            "SELECT count(), groupArrayIf(path, arrayExists(folder -> position(path, folder) > 0, {folders:Array(String)}))"
            f" FROM {self._client.database}.run_files FINAL WHERE run_id = {{run:String}} AND startsWith(path, {{root:String}})",
            {"run": run.run_id, "folders": [f"/{folder}/" for folder in folders], "root": root},
        )
        ((recorded, paths),) = rows
        if not recorded:
            ends = run.facts.get("ends", [])
            return [m for m in self._messages if m.partition < len(ends) and m.offset < ends[m.partition]]
        files = _files_of(paths, root)
        return [m for m in self._messages if m.file and any(_has(file, m) for file in files)]

    def issues_of(self, message: ArchivedMessage) -> list[IssueOfMessage]:
        """The issues of the statement that the message belongs to, the newest first."""
        date = date_of(message.time_ms)
        key = (message.advertiser_id, date.replace(day=1))
        if key not in self._issues:
            self._issues[key] = self._store.issues(*key)
        billing = {of_run.run.run_id for of_run in self.runs_of(message) if of_run.bills}
        issues = list[IssueOfMessage]()
        for issue in reversed(self._issues[key]):
            run_id = next((day.run_id for day in issue.contents.days if day.date == date), "")
            issues.append(IssueOfMessage(issue, message, run_id, run_id in billing, issue is self._issues[key][-1]))
        return issues


def _files_of(paths: Sequence[str], root: str) -> list[File]:
    """`root`: what names of the archive begin with; empty where it may have been elsewhere."""
    if root:
        names = [path.removeprefix(root) for path in paths if path.startswith(root)]
    else:
        names = [path[match.start() :] for path in paths if (match := _ROOT.search(path)) is not None]
    return archive_files.parse_names(Stored(name, 0, 0) for name in names)


def _has(file: File, message: ArchivedMessage) -> bool:
    same = file.folder == folder_of(message.file) and file.partition == message.partition
    return same and file.from_offset <= message.offset < file.to_offset
