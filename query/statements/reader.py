"""Which statement a month has: one that is still open, or the newest issue; and issuing the next one when it is due.

A month is due when it is over and all its days are reconciled. Its statement is then read from the rows of its runs, which never
change, and stored under a lease: of two routers that find it due, one issues it, and both answer with what is stored.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, day_start_ms, iso
from infra.errors import Unavailable, UserError
from ingest.partials import BILLED
from query.bad_question import BadQuestion
from query.finality import FINALITY
from query.parameters import collect_parameters, parse_id
from query.question import Question
from query.router import Answer
from query.runs import FINAL_BY_PARTITION, STORED_DAYS, PublishedRun, read_published_runs
from query.statements.contents import Contents, days_of, differences, make_contents, month_text
from query.statements.store import Issue, StatementStore

PARAMETERS = ("advertiser_id", "month", "issue", "format")
FORMATS = ("json", "csv")
_NO_LIMIT = 1 << 62
_ATTEMPTS, _PAUSE_S = 50, 0.1


@dataclass(frozen=True)
class StatementQuestion:
    """Whose statement, of which month (its first day), and which issue; None for the newest, or an open one."""

    advertiser: int
    month: dt.date
    issue: int | None
    format: str


def parse_statement_question(parameters: Sequence[tuple[str, str]], now_ms: int) -> StatementQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, PARAMETERS)
    for name in ("advertiser_id", "month"):
        if name not in values:
            raise BadQuestion(name, f"{name} is missing; a statement is of one advertiser and one month")
    text = values["month"]
    try:
        month = dt.date.fromisoformat(f"{text}-01" if len(text) == len("2026-11") and text.isascii() else "")
    except ValueError:
        raise BadQuestion("month", f"month must be like 2026-11, not {text[:40]!r}") from None
    if day_start_ms(month) > now_ms:
        raise BadQuestion("month", f"{text} has not begun yet")
    if month.year < 1970:
        raise BadQuestion("month", f"there are no statements of {text}")
    issue = parse_id("issue", values["issue"]) if "issue" in values else None
    format_ = values.get("format", "json")
    if format_ not in FORMATS:
        raise BadQuestion("format", f"format must be one of {', '.join(FORMATS)}, not {format_[:40]!r}")
    return StatementQuestion(parse_id("advertiser_id", values["advertiser_id"]), month, issue, format_)


@dataclass(frozen=True)
class Statement:
    """`issue` is None for one that is open. `waiting_for`: days that are not reconciled. `former`: the issue before."""

    contents: Contents
    issue: Issue | None = None
    former: Issue | None = None
    waiting_for: list[dt.date] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    answer_id: str | None = None
    """Of the answer about the total of the month; None where that is not the statement's."""

    @property
    def digest(self) -> str:
        """The one that was recorded when it was issued."""
        return self.issue.digest if self.issue else self.contents.digest

    def document(self) -> dict[str, Any]:
        """As it goes over HTTP."""
        issue, former = self.issue, self.former
        return self.contents.document() | {
            "status": "final" if issue else "open",
            "issue": issue.number if issue else None,
            "digest": self.digest,
            "answer_id": self.answer_id,
            "issued_at": iso(issue.issued_ms) if issue else None,
            "previous_issue": None
            if former is None
            else {"issue": former.number, "digest": former.digest, "issued_at": iso(former.issued_ms)},
            "differences": differences(former.contents, self.contents) if former else [],
            "waiting_for": [date.isoformat() for date in self.waiting_for],
            "warnings": self.warnings,
        }


class NoSuchIssue(Exception):
    """A month has no issue of this number."""


@dataclass(frozen=True)
class StatementNames:
    """What an advertiser and its campaigns are called."""

    advertiser: str
    campaigns: dict[int, str]


class Sources(Protocol):
    """What the reader needs of a router."""

    def ask(self, advertiser: int, start_ms: int, end_ms: int, granularity: str, group_by: str) -> Question:
        """A question about an advertiser, as a client would ask it. Raises BadQuestion."""

    def answer(self, question: Question) -> Answer:
        """Its answer."""

    def names(self, advertiser: int, campaigns: Sequence[int]) -> StatementNames:
        """As the directory has them; digits where it has none."""

    def lease(self) -> AbstractContextManager[int]:
        """The lease under which statements are issued, and its number. Raises UserError when it is taken."""


@dataclass(frozen=True)
class _Month:
    """The current runs of a month, by day, and the days that are not reconciled."""

    days: list[dt.date]
    runs: dict[dt.date, PublishedRun]
    waiting_for: list[dt.date]
    is_over: bool

    @property
    def is_due(self) -> bool:
        """Whether its statement can be issued."""
        return self.is_over and not self.waiting_for

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(sorted(run.run_id for run in self.runs.values()))

    def run_id(self, date: dt.date) -> str:
        return self.runs[date].run_id if date in self.runs else ""


class StatementReader:
    """Thread-safe. Every method may raise Unavailable."""

    def __init__(
        self, client: ClickHouse, sources: Sources, currency: str, shards: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._client, self._sources, self._currency, self._shards = client, sources, currency, shards
        self._store, self._pause = StatementStore(client), pause

    def read(self, question: StatementQuestion, now_ms: int) -> Statement:
        """The statement as of now. Raises BadQuestion, NoSuchIssue."""
        statement = self._read(question, now_ms)
        return replace(statement, answer_id=self._identify_total(statement.contents))

    def due_runs(self, month: dt.date, now_ms: int) -> tuple[str, ...]:
        """The runs that statements of a month would be issued from now; none while it is not due."""
        read = self._read_month(month, now_ms)
        return read.run_ids if read.is_due else ()

    def billed_advertisers(self, runs: Sequence[str], month: dt.date) -> list[int]:
        """The advertisers that have rows in some runs of a month."""
        rows = self._client.rows(
            f"SELECT DISTINCT advertiser_id FROM {self._client.database}.exact_days WHERE run_id IN {{runs:Array(String)}}"
            " AND toDate(time) BETWEEN {first:Date} AND {last:Date} ORDER BY advertiser_id",
            {"runs": list(runs), "first": month, "last": days_of(month)[-1]},
        )
        return [int(advertiser) for (advertiser,) in rows]

    def issue_due(self, advertiser: int, month: dt.date, now_ms: int) -> None:
        """Issue the statement of a month that is due, as a request for it would; nothing where the newest issue stands."""
        self._read(StatementQuestion(advertiser, month, None, FORMATS[0]), now_ms)

    def _identify_total(self, contents: Contents) -> str | None:
        try:
            question = self._sources.ask(contents.advertiser_id, *_range_of(contents.month), "total", "")
            answer = self._sources.answer(question)
        except (BadQuestion, Unavailable):
            return None
        totals = [list(row) for row in answer.page.frame.select(BILLED).iter_rows()] or [[0] * len(BILLED)]
        return answer.id if totals == [contents.total] else None

    def _read(self, question: StatementQuestion, now_ms: int) -> Statement:
        advertiser = question.advertiser
        issues = self._store.issues(advertiser, question.month)
        if question.issue is not None:
            issues = [issue for issue in issues if issue.number <= question.issue]
            if not issues or issues[-1].number != question.issue:
                raise NoSuchIssue
            return _of_issues(issues)
        if day_start_ms(question.month) < now_ms - STORED_DAYS * DAY_MS:
            if not issues:
                raise BadQuestion(
                    "month",
                    f"{month_text(question.month)} is no longer retained, and no statement of it was issued",
                    422,
                    "not-held",
                )
            return _of_issues(issues)
        month = self._read_month(question.month, now_ms)
        if not month.is_due:
            # What was issued stands, also while a day of it is to be reconciled anew.
            return _of_issues(issues, month.waiting_for) if issues else self._open(advertiser, month)
        if not self._is_new(advertiser, month, issues):
            return _of_issues(issues)
        return _of_issues(self._issue(question, month.run_ids, now_ms))

    def _is_new(self, advertiser: int, month: _Month, issues: Sequence[Issue]) -> bool:
        """Whether a month that is due has other numbers than its newest issue."""
        if not issues:
            return True
        newest = issues[-1]
        return newest.runs != month.run_ids and not newest.contents.has_numbers_of(self._read_exact(advertiser, month))

    def _read_month(self, first: dt.date, now_ms: int) -> _Month:
        days = days_of(first)
        current = [run for run in read_published_runs(self._client, days[0], days[-1], limit=100_000) if run.is_current]
        runs = {run.date: run for run in current if run.covers_day and run.is_stored}
        begun = [date for date in days if day_start_ms(date) <= now_ms]
        missing = [date for date in begun if date not in runs]
        empty = self._find_empty_days(missing) if missing else set()
        is_over = now_ms >= day_start_ms(days[-1]) + DAY_MS
        return _Month(begun, runs, [date for date in missing if date not in empty], is_over)

    def _find_empty_days(self, dates: Sequence[dt.date]) -> set[dt.date]:
        """Days on which nothing was counted, and which nightly runs passed over: a later one is reconciled."""
        db = self._client.database
        ((last,),) = self._client.rows(f"SELECT max(date) FROM {db}.current_runs")
        days = borders.read_published(self._client, self._shards).tiers.get("days")
        if days is None:
            return set()
        passed = [
            d
            for d in dates
            if d < last and days.from_ms <= day_start_ms(d) and day_start_ms(d) + DAY_MS <= days.border_ms
        ]
        if not passed:
            return set()
        rows = self._client.rows(
            f"SELECT DISTINCT toDate(time) FROM {db}.stream_days WHERE toDate(time) IN {{dates:Array(Date)}}"
            f" UNION DISTINCT SELECT date FROM {db}.runs WHERE date IN {{dates:Array(Date)}}",
            {"dates": passed},
        )
        return set(passed) - {date for (date,) in rows}

    def _read_exact(self, advertiser: int, month: _Month) -> Contents:
        """From the rows of the month's runs: the same whenever it is read."""
        sums = ", ".join(f"sum(toInt128({m}))" for m in BILLED)
        rows = self._client.rows(
            f"SELECT toDate(time), campaign_id, {sums} FROM {self._client.database}.exact_days FINAL"
            " WHERE run_id IN {runs:Array(String)} AND toDate(time) BETWEEN {first:Date} AND {last:Date}"
            f" AND advertiser_id = {{advertiser:UInt64}} GROUP BY 1, 2 ORDER BY 1, 2{FINAL_BY_PARTITION}",
            {"runs": list(month.run_ids), "first": month.days[0], "last": month.days[-1], "advertiser": advertiser},
        )
        cells = [(date, int(campaign), [int(n) for n in numbers]) for date, campaign, *numbers in rows]
        days = [(date, "reconciled", month.run_id(date)) for date in month.days]
        return self._contents(advertiser, month, days, cells)

    def _open(self, advertiser: int, month: _Month) -> Statement:
        """From the answer to the same question as anybody would ask: days of the month so far, by campaign."""
        question = self._sources.ask(advertiser, *_range_of(month.days[0]), "day", "campaign_id")
        answer = self._sources.answer(replace(question, limit=_NO_LIMIT))
        cells, finality = list[tuple[dt.date, int, list[int]]](), dict[dt.date, str]()
        for row in answer.page.frame.select("time", "campaign_id", *BILLED, "finality").iter_rows():
            date = dt.date.fromisoformat(row[0][:10])
            cells.append((date, row[1], list(row[2:-1])))
            finality[date] = min(finality.get(date, FINALITY[-1]), row[-1], key=FINALITY.index)
        days = [
            (date, finality.get(date) or _finality_without_rows(date, month, answer), month.run_id(date))
            for date in month.days
        ]
        contents = self._contents(advertiser, month, days, cells)
        return Statement(contents, waiting_for=month.waiting_for, warnings=answer.warnings)

    def _contents(
        self, advertiser: int, month: _Month, days: list[tuple[dt.date, str, str]], cells: list[tuple[dt.date, int, list[int]]]
    ) -> Contents:  # fmt: skip
        names = self._sources.names(advertiser, sorted({campaign for _, campaign, _ in cells}))
        return make_contents(advertiser, names.advertiser, month.days[0], self._currency, days, cells, names.campaigns)

    def _issue(self, question: StatementQuestion, runs: tuple[str, ...], now_ms: int) -> list[Issue]:
        """Issue a statement of these runs, or wait until another router has done so; returns all issues."""
        for _ in range(_ATTEMPTS):
            try:
                with self._sources.lease() as fence:
                    return self._issue_with(fence, question, now_ms)
            except UserError:
                self._pause(_PAUSE_S)
                issues = self._store.issues(question.advertiser, question.month)
                if issues and issues[-1].runs == runs:
                    return issues
        raise Unavailable("another router is issuing statements", backend="redis")

    def _issue_with(self, fence: int, question: StatementQuestion, now_ms: int) -> list[Issue]:
        """All is read again now that the lease is held: what was read before may be older than what another router has issued."""
        advertiser = question.advertiser
        issues, month = self._store.issues(advertiser, question.month), self._read_month(question.month, now_ms)
        if month.is_due and self._is_new(advertiser, month, issues):
            contents = self._read_exact(advertiser, month)
            number = issues[-1].number + 1 if issues else 1
            self._store.add(Issue(number, contents.digest, now_ms, fence, month.run_ids, contents))
            issues = self._store.issues(advertiser, question.month)
        if not issues:
            raise Unavailable("a day of the month is being reconciled again", backend="clickhouse")
        return issues


def _range_of(month: dt.date) -> tuple[int, int]:
    return day_start_ms(month), day_start_ms(days_of(month)[-1]) + DAY_MS


def _of_issues(issues: Sequence[Issue], waiting_for: Sequence[dt.date] = ()) -> Statement:
    former = issues[-2] if len(issues) > 1 else None
    warnings = [
        f"{month_text(date)}-{date:%d} is to be reconciled again; this issue stands until then" for date in waiting_for
    ]
    return Statement(issues[-1].contents, issues[-1], former, list(waiting_for), warnings)


def _finality_without_rows(date: dt.date, month: _Month, answer: Answer) -> str:
    if date in month.runs:
        return "reconciled"
    closed = answer.watermark_ms is not None and day_start_ms(date) + DAY_MS <= answer.watermark_ms
    return "closed" if closed else "provisional"
