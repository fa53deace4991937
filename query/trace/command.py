"""`adclick trace`: what has become of one event, from its arrival to the bill."""

from __future__ import annotations

import datetime as dt
from functools import partial

import click
import msgspec

from infra.cli import declare
from infra.cli.app import App
from infra.cli.output import printable
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, day_start_ms, now_ms
from infra.errors import AdclickError, UsageError, UserError
from infra.settings import Settings
from query.bad_question import BadQuestion
from query.parameters import parse_date
from query.router import Router
from query.times import parse_time
from query.trace.billing import BillingReader
from query.trace.gather import BILLING, WINDOWS, SearchRange, TracedEvent, find_event
from query.trace.report import Fate, TraceReport
from query.trace.verdicts import COPY
from query.trace.windows import UNKNOWN, read_windows

_USUAL_DAYS = 3
# More messages of one id that are no copies are no accident; the first ones say what there is to say.
_MOST_FATES = 20


@declare.command(
    "trace",
    "adclick trace 9f1c\nadclick trace 9f1c --date 2026-11-20\nadclick trace 9f1c --since -12h --json",
)
@click.argument("event_id")
@click.option("--date", metavar="DAY", help="Search the day (UTC) of the event, or of its arrival if it was too late.")
@click.option(
    "--since", help="Search from then on: a day, RFC 3339, or like -12h.  [default: the day before yesterday]"
)
def trace(app: App, event_id: str, date: str | None, since: str | None) -> None:
    """Follow one event: when it came, what was decided and why, and where it is counted and billed.

    It looks into the archive and what waits for it, dead letters, dedup ids, the stored windows, nightly runs and statements.
    An id that begins with a hyphen comes after --; one in double quotes is read as JSON, for characters that cannot be typed.

    Exit 0 when it was found, 1 when it was not, or when a place could not be searched.
    """
    event_id = parse_id(event_id)
    range_ = parse_range(date, since, now_ms())
    traced = find_event(app.settings, event_id, range_, app.progress)
    report = TraceReport(traced, _read_fates(app.settings, traced))
    if app.json:
        app.data(report.document())
    elif traced.is_found:
        report.print(app)
    problems = traced.describe_problems()
    if not traced.is_found and problems:
        text = f"{printable(event_id)} was not found, and not all was searched: {problems}"
        raise AdclickError(text, hint=app.stack_hint())
    if not traced.is_found:
        raise UserError(
            f"{printable(event_id)} was not found in {report.describe_search()}",
            hint="--since or --date searches other days; see adclick trace --help",
        )
    if problems:
        raise AdclickError(f"the answer may lack something: {problems}")


def parse_id(text: str) -> str:
    """An event's id as it is given; in double quotes as JSON. Raises UsageError."""
    event_id = text
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            event_id = msgspec.json.decode(text, type=str)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise UsageError(f"{printable(text)} is no JSON string: {error}") from error
    if not event_id:
        raise UsageError("the event's id is empty")
    return event_id


def parse_range(date: str | None, since: str | None, now: int) -> SearchRange:
    """The hours to search: those of a day, from a moment on, or of the last days. Raises UsageError."""
    if date is not None and since is not None:
        raise UsageError("--date and --since exclude each other")
    try:
        if date is not None:
            start_ms = day_start_ms(parse_date("--date", date))
            return SearchRange(start_ms, start_ms + DAY_MS)
        if since is None:
            return SearchRange(now // DAY_MS * DAY_MS - (_USUAL_DAYS - 1) * DAY_MS)
        return SearchRange(_parse_since(since, now))
    except BadQuestion as error:
        raise UsageError(error.detail) from error


def _parse_since(text: str, now: int) -> int:
    try:
        return day_start_ms(dt.date.fromisoformat(text))
    except ValueError:
        return parse_time("--since", {"--since": text}, now)


def _read_fates(settings: Settings, traced: TracedEvent) -> list[Fate]:
    """The fate of each message, as far as stores answer."""
    others = [m for m in traced.messages if m.decision != COPY][:_MOST_FATES]
    if not others:
        return [Fate(m) for m in traced.messages]
    router, now = Router(settings), now_ms()
    billing = BillingReader(ClickHouse.of(settings), traced.archive, traced.messages, traced.rejected_ms)
    fates = {m.place: Fate(m) for m in traced.messages}
    for message in others:
        fate = fates[message.place]
        fate.windows.extend(traced.attempt(WINDOWS, partial(read_windows, router, message, now), []))
        fate.runs.extend(traced.attempt(BILLING, partial(billing.runs_of, message), []))
        fate.issues.extend(traced.attempt(BILLING, partial(billing.issues_of, message), []))
        unknown = [w for w in fate.windows if w.state == UNKNOWN]
        if unknown:
            traced.problems.setdefault(WINDOWS, unknown[0].warnings[0])
    return list(fates.values())
