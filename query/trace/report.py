"""What a trace says: one sentence, tables for people, and a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from infra.cli.app import App
from infra.cli.output import printable
from infra.clock import date_of, iso
from ingest.archive.search import ArchivedMessage
from ingest.dead_letters.letters import Letter
from ingest.dedup.recorded_ids import RecordedId
from query.finality import CLOSED, FINALITY, RECONCILED
from query.statements.contents import month_text
from query.trace.billing import IssueOfMessage, RunOfMessage
from query.trace.gather import ARCHIVE, BILLING, TracedEvent
from query.trace.verdicts import COPY, COUNTED, explain_decision
from query.trace.windows import WindowOfMessage


@dataclass(frozen=True)
class Fate:
    """What has become of one message. Copies have neither windows nor bills."""

    message: ArchivedMessage
    windows: list[WindowOfMessage] = field(default_factory=list)
    runs: list[RunOfMessage] = field(default_factory=list)
    issues: list[IssueOfMessage] = field(default_factory=list)

    @property
    def current_run(self) -> RunOfMessage | None:
        """The day's current run; None where the day is not reconciled."""
        return next((run for run in self.runs if run.run.is_current), None)

    def describe_bill(self) -> str:
        """Whether it is billed, and by which run."""
        date, current = date_of(self.message.time_ms), self.current_run
        if current is None:
            return f"{date} is not reconciled yet"
        if not current.has_read:
            return f"archived after run {current.run.run_id} had read the archive: adclick reconcile --date {date} counts it"
        if current.verdict is None:
            return f"its hour was open in run {current.run.run_id}: the stream's number stands until the next run of {date}"
        if not current.bills:
            return f"not billed by run {current.run.run_id} ({current.verdict.cause or 'another message of its id is'})"
        cause = f" ({current.verdict.cause})" if current.verdict.cause else ""
        return f"billed by run {current.run.run_id}{cause}"

    @property
    def missing_from(self) -> list[WindowOfMessage]:
        """Closed windows that ought to count the message, and have no event like it."""
        run, counted = self.current_run, self.message.decision == COUNTED
        billed = run is not None and run.bills
        return [
            window
            for window in self.windows
            if window.events == 0
            and not window.warnings
            and (billed if window.state == FINALITY[RECONCILED] else counted and window.state in FINALITY[CLOSED:])
        ]

    def describe_statement(self) -> str:
        """In which issue of the statement it is; empty for none."""
        billed = next((issue for issue in self.issues if issue.bills), None)
        if billed is None:
            return ""
        month = month_text(billed.issue.contents.month)
        newer = "" if billed.is_newest else ", which a newer one has replaced"
        return f"in issue {billed.issue.number} of the statement of {month} for advertiser {self.message.advertiser_id}{newer}"


@dataclass(frozen=True)
class TraceReport:
    """A trace with the fate of each message."""

    traced: TracedEvent
    fates: list[Fate]

    @property
    def verdict(self) -> str:
        """One word: `counted`, `left-to-the-run`, `copy`, `recorded`, `unread`, `rejected` or `not-found`."""
        decisions = {fate.message.decision for fate in self.fates}
        if COUNTED in decisions:
            return "counted"
        if decisions - {COPY}:
            return "left-to-the-run"
        if decisions:
            return "copy"
        if self.traced.pending:
            return "recorded"
        if self.traced.unread.found:
            return "unread"
        return "rejected" if self.traced.letters.letters else "not-found"

    @property
    def summary(self) -> str:
        """The answer, as a sentence."""
        if self.verdict == "counted":
            return self._describe_messages("counted by the stream")
        if self.verdict == "left-to-the-run":
            (first, *_) = [fate for fate in self.fates if fate.message.decision != COPY]
            return self._describe_messages(explain_decision(first.message))
        if self.verdict == "copy":
            return (
                f"only copies were found ({explain_decision(self.fates[0].message)}); look further back for the first"
            )
        if self.verdict == "recorded":
            return self._describe_recorded(self.traced.pending[0])
        if self.verdict == "unread":
            unread = self.traced.unread.found[0]
            return f"waiting in ad-events as {unread.partition}/{unread.offset}: ingest has not read it yet"
        if self.verdict == "rejected":
            headers = self.traced.letters.letters[-1].headers
            return f"rejected, never counted: {headers.get('reason', 'no reason given')}, {headers.get('detail', '')}"
        return "not found"

    def _describe_recorded(self, recorded: RecordedId) -> str:
        """About an id that only Redis has."""
        read = f"read by ingest as {recorded.partition}/{recorded.offset}"
        if ARCHIVE in self.traced.problems:
            return f"{read}; the archive, which has the decision on it, could not be searched"
        archived_to = self.traced.topic.archived_to
        if recorded.partition < len(archived_to) and recorded.offset < archived_to[recorded.partition]:
            return f"{read} and archived, but no file has it: was it removed from the archive?"
        return f"{read}, and not committed or archived yet"

    def _describe_messages(self, decided: str) -> str:
        # The message that a run bills, else the first that is no copy.
        fates = [fate for fate in self.fates if fate.message.decision != COPY]
        fate = next((f for f in fates if f.current_run is not None and f.current_run.bills), fates[0])
        copies = len(self.fates) - len(fates)
        parts = [decided, f"{copies} {'copy' if copies == 1 else 'copies'} dropped" if copies else ""]
        parts += [f"{len(fates)} messages of this id are no copies for the stream" if len(fates) > 1 else ""]
        if BILLING not in self.traced.problems:
            parts += [fate.describe_bill(), fate.describe_statement()]
        return "; ".join(filter(None, parts))

    # -- for programs -----------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """As JSON."""
        traced = self.traced
        return {
            "event_id": traced.event_id, "verdict": self.verdict, "summary": self.summary,
            "messages": [_message_document(fate, knows_bills=BILLING not in traced.problems) for fate in self.fates],
            "dead_letters": [self._letter_document(letter) for letter in traced.letters.letters],
            "recorded": [
                {"message": f"{r.partition}/{r.offset}", "arrived_from": iso(r.from_ms), "arrived_to": iso(r.to_ms)}
                for r in traced.recorded.found
            ],
            "unread": [
                {"message": f"{u.partition}/{u.offset}", "arrived": iso(u.log_time_ms)} for u in traced.unread.found
            ],
            "searched": self.searched(), "problems": traced.problems,
        }  # fmt: skip

    def _letter_document(self, letter: Letter) -> dict[str, Any]:
        mark = self.traced.sent.of_letter(letter, self.traced.event_id)
        known = {name: letter.headers.get(name) for name in ("reason", "detail", "source")}
        return {"name": letter.name, "time_ms": letter.time_ms, **known, "sent_ms": mark.sent_ms if mark else None}

    def searched(self) -> dict[str, Any]:
        """What was searched in each place."""
        traced = self.traced
        since_ms = traced.recorded.since_ms
        return {
            "archive": traced.archive, "from": iso(traced.range.start_ms),
            "to": None if traced.range.end_ms is None else iso(traced.range.end_ms),
            "files": traced.files.files, "archived_events": traced.files.rows, "ad_archive_messages": traced.topic.read,
            "dead_letters": traced.letters.read, "dedup_ids_since": None if since_ms is None else iso(since_ms),
            "unread_messages": traced.unread.read,
        }  # fmt: skip

    def describe_search(self) -> str:
        """Where the event was looked for, and how far back."""
        s = self.searched()
        ids = f"dedup ids since {s['dedup_ids_since']}" if s["dedup_ids_since"] else "no dedup ids"
        return (
            f"{s['archived_events']:,} archived events in {s['files']:,} files of {self.traced.range},"
            f" {s['ad_archive_messages']:,} messages of ad-archive, {s['dead_letters']:,} dead letters since {s['from']},"
            f" {ids}, {s['unread_messages']:,} messages that ingest has not read"
        )

    # -- for people -------------------------------------------------------------------------------------------------

    def print(self, app: App) -> None:
        """Print tables, each with rows only where there are some."""
        click.echo(printable(f"{self.traced.event_id}: {self.summary}"))
        self._table(
            app,
            ["message", "arrived", "decision", "why"],
            [
                (_place(f.message), iso(f.message.log_time_ms), f.message.decision, explain_decision(f.message))
                for f in self.fates
            ],
        )
        facts = {_facts(f.message): None for f in self.fates}
        self._table(
            app,
            ["event", "time", "campaign", "ad", "advertiser", "publisher", "country", "device", "cost_micros"],
            facts,
        )
        letters = [self._letter_document(letter) for letter in self.traced.letters.letters]
        self._table(
            app,
            ["dead letter", "reason", "detail", "source", "sent again"],
            [(x["name"], x["reason"], x["detail"], x["source"], "yes" if x["sent_ms"] else "") for x in letters],
        )
        self._table(
            app,
            ["message", "window", "start", "state", "events like it", "read from"],
            [
                (
                    _place(f.message),
                    w.grain,
                    iso(w.start_ms),
                    w.state,
                    "" if w.events is None else f"{w.events:,}",
                    ", ".join(w.tiers),
                )
                for f in self.fates
                for w in f.windows
            ],
        )
        self._table(
            app,
            ["message", "run", "published", "current", "bills it", "cause"],
            [
                (
                    _place(f.message),
                    r.run.run_id,
                    iso(r.run.published_ms),
                    _yes(r.run.is_current),
                    _bills(r),
                    r.verdict.cause if r.verdict else "",
                )
                for f in self.fates
                for r in f.runs
            ],
        )
        self._table(
            app,
            ["message", "statement", "issue", "issued", "run of the day", "has it"],
            [
                (
                    _place(f.message),
                    month_text(i.issue.contents.month),
                    i.issue.number,
                    iso(i.issue.issued_ms),
                    i.run_id,
                    _yes(i.bills),
                )
                for f in self.fates
                for i in f.issues
            ],
        )
        for fate in self.fates:
            for window in fate.missing_from:
                app.say(
                    f"note: the {window.grain} {iso(window.start_ms)} is {window.state}, and has no event like {_place(fate.message)}; if it stays so"
                    f" in a minute, adclick audit --date {date_of(fate.message.time_ms)} says where it is missing"
                )
        for warning in dict.fromkeys(w for f in self.fates for window in f.windows for w in window.warnings):
            app.say(f"note: {warning}")
        app.say(f"searched: {self.describe_search()}")

    @staticmethod
    def _table(app: App, columns: Sequence[str], rows: Any) -> None:
        rows = list(rows)
        if rows:
            click.echo()
            app.table(columns, rows)


def _message_document(fate: Fate, *, knows_bills: bool) -> dict[str, Any]:
    m = fate.message
    facts = ("event_type", "campaign_id", "ad_id", "advertiser_id", "publisher_id", "country", "device", "cost_micros")
    current = fate.current_run
    return {
        "message": _place(m), "arrived": iso(m.log_time_ms), "event_time": iso(m.time_ms),
        **{name: getattr(m, name) for name in facts},
        "decision": m.decision, "why": explain_decision(m), "weight": m.weight,
        "copy_of": None if m.copy_of is None else f"{m.partition}/{m.copy_of}", "file": m.file or None,
        "windows": [
            {"granularity": w.grain, "start": iso(w.start_ms), "end": iso(w.end_ms), "state": w.state, "events": w.events,
             "tiers": w.tiers, "warnings": w.warnings, "missing": w in fate.missing_from}
            for w in fate.windows
        ],
        "bill": fate.describe_bill() if fate.windows and knows_bills else None,
        "billed": None if current is None or current.verdict is None else current.bills,
        "runs": [
            {"run_id": r.run.run_id, "date": r.run.date, "published_at": iso(r.run.published_ms), "current": r.run.is_current,
             "read": r.has_read, "bills": r.bills, "moved": r.verdict.moved if r.verdict else None,
             "cause": (r.verdict.cause or None) if r.verdict else None}
            for r in fate.runs
        ],
        "statements": [
            {"month": month_text(i.issue.contents.month), "issue": i.issue.number, "digest": i.issue.digest,
             "run_id": i.run_id or None, "has_it": i.bills, "newest": i.is_newest}
            for i in fate.issues
        ],
    }  # fmt: skip


def _place(message: ArchivedMessage) -> str:
    return f"{message.partition}/{message.offset}"


def _facts(m: ArchivedMessage) -> tuple[object, ...]:
    return (
        m.event_type,
        iso(m.time_ms),
        m.campaign_id,
        m.ad_id,
        m.advertiser_id,
        m.publisher_id,
        m.country,
        m.device,
        m.cost_micros,
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _bills(run: RunOfMessage) -> str:
    if run.verdict is None:
        return "its hour was open" if run.has_read else "archived later"
    return _yes(run.bills)
