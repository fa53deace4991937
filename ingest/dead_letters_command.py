"""`adclick dead-letters`: look at rejected events, mend them, send them again."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from infra import console, migration, topics
from infra.clock import iso, now_ms
from infra.console import App
from infra.errors import Aborted, Fenced, SessionLost, UsageError, UserError
from infra.kafka import TransactionalProducer
from infra.records import Record
from infra.settings import Settings
from ingest import dead_letters, events, json_fields
from ingest.dead_letters import Letter
from ingest.events import Reason, Rejection
from ingest.inputs import open_input
from ingest.mending import Mended, mend, parse_edits
from ingest.sent_letters import Mark, SentLetters, digest

_SHOWN_BYTES, _SHOWN_DETAIL = 60, 40
_COLUMNS = ("name", "reason", "detail", "source", "sent", "value")
_TOO_LATE = "too-late: the nightly reconciliation counts it"
# What one transaction takes.
_EVENTS, _BYTES = 500, 4 << 20
_ATTEMPTS = 5


@dataclass
class Plan:
    """What a replay sends, with the mark of each, and what it leaves: how many letters by why, and those sent before."""

    sends: list[tuple[bytes, Mark]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    first_left: str = ""
    sent_before: list[Mark] = field(default_factory=list)
    ids_set: int = 0
    """How many letters were given an id by an edit: more than one would make one event of several."""

    def leave(self, name: str, why: str) -> None:
        """Note a letter that cannot be sent."""
        self.left[why] += 1
        self.first_left = self.first_left or f"{name} would be rejected again: {why}"


def plan_letters(
    letters: Iterable[Letter], edits: dict[str, Any], sent: SentLetters, moment_ms: int, *, again: bool
) -> Plan:
    """Mend letters and leave out those that would be rejected again, and events that were sent before, unless `again`."""
    plan, planned = Plan(), SentLetters()
    for letter in letters:
        if letter.headers.get("reason") == Reason.TOO_LATE:
            plan.leave(letter.name, _TOO_LATE)
            continue
        outcome = mend(letter.value, letter.field_at_fault, edits, moment_ms)
        event_id = outcome.event_id if isinstance(outcome, Mended) else json_fields.valid_id(letter.value)
        mark = None if again else sent.of_letter(letter, event_id)
        if mark is None and isinstance(outcome, Mended):
            plan.ids_set += "event_id" in outcome.fields
            mark = planned.of_event(event_id)
        if mark is not None:
            plan.sent_before.append(mark)
        elif isinstance(outcome, Rejection):
            plan.leave(letter.name, f"{outcome.reason} {outcome.detail}")
        else:
            new = Mark(letter.name, letter.time_ms, outcome.event_id, digest(outcome.value), moment_ms)
            planned.add(new)
            plan.sends.append((outcome.value, new))
    return plan


def plan_lines(shown: str, lines: Iterable[bytes], sent: SentLetters, moment_ms: int, *, again: bool) -> Plan:
    """Events of a file. Raises UserError where one of them would be rejected again."""
    plan, planned = Plan(), SentLetters()
    for number, line in enumerate(lines, 1):
        verdict = events.judge(line, moment_ms)
        if isinstance(verdict, Rejection):
            raise UserError(
                f"event {number} of {shown} would be rejected again: {verdict.reason} {verdict.detail}",
                hint="mend it; nothing was sent",
            )
        mark = planned.of_event(verdict.event_id) or (None if again else sent.of_event(verdict.event_id))
        if mark is not None:
            plan.sent_before.append(mark)
            continue
        new = Mark("", 0, verdict.event_id, digest(line), moment_ms)
        planned.add(new)
        plan.sends.append((line, new))
    return plan


@console.command(
    "dead-letters",
    "adclick dead-letters list --reason bad-value\nadclick dead-letters show 0/17\n"
    "adclick dead-letters replay 0/17 --edit country=DE\n"
    "adclick dead-letters replay --field country --edit country=ZZ",
)
@click.argument("action", type=click.Choice(["list", "show", "replay"]))
@click.argument("names", nargs=-1)
@click.option("--reason", type=click.Choice([str(r) for r in Reason]), help="Only letters with this reason.")
@click.option("--detail", help="Only letters whose detail contains this text.")
@click.option(
    "--field", "at_fault", type=click.Choice(events.FIELDS), help="Only letters where this field was at fault."
)
@click.option("--edit", "edits", multiple=True, metavar="FIELD=VALUE", help="Set a field, where it was at fault.")
@click.option("--from", "source", metavar="FILE", help="Send the events of this NDJSON file instead (- for a pipe).")
@click.option("--again", is_flag=True, help="Also what was sent before: it counts twice beyond the dedup horizon.")
def command(
    app: App, action: str, names: tuple[str, ...], reason: str | None, detail: str | None, at_fault: str | None,
    edits: tuple[str, ...], source: str | None, again: bool,
) -> None:  # fmt: skip
    """Look at rejected events, and send them again once mended.

    `list` shows them all, `show` one with its bytes, `replay` sends the named ones, or those picked by --reason, --detail
    and --field. An edit touches only letters where that field was at fault. What would be rejected again is left out, and so is
    what was sent before. Too-late events are refused: the nightly job has them already.
    """
    picked = reason is not None or detail is not None or at_fault is not None
    if action != "replay" and (edits or source is not None or again):
        raise UsageError("--edit, --from and --again are for replay")
    if source is not None:
        if names or picked or edits:
            raise UsageError(
                "--from sends what is in the file, as it is: without names, --reason, --detail, --field, --edit"
            )
        _replay_file(app, source, again=again)
        return

    def matches(letter: Letter) -> bool:
        return (
            reason in (None, letter.headers.get("reason"))
            and (detail is None or detail in letter.headers.get("detail", ""))
            and at_fault in (None, letter.field_at_fault)
        )

    chosen = filter(matches, dead_letters.read_named(app.settings, names) if names else dead_letters.read(app.settings))
    if action == "list":
        _list(app, chosen)
    elif action == "show":
        if not names:
            raise UsageError("say which: adclick dead-letters show 0/17")
        for letter in chosen:
            app.data(_summary(letter, None) | _content(letter.value))
    else:
        if not names and not picked:
            raise UsageError(
                "say which letters to send again: their names, --reason, --detail, --field, or --from FILE"
            )
        if reason == Reason.TOO_LATE:
            raise UserError("too-late events would be too late again", hint="the nightly reconciliation counts them")
        _replay(app, chosen, parse_edits(edits), named=bool(names), again=again)


def _summary(letter: Letter, mark: Mark | None) -> dict[str, Any]:
    known = {name: letter.headers.get(name) for name in ("reason", "detail", "source", "stage")}
    other = {name: text for name, text in letter.headers.items() if name not in known}
    return (
        {"name": letter.name, "time": _time(letter.time_ms), **known, "sent": _time(mark.sent_ms) if mark else None}
        | ({"headers": other} if other else {})
    )  # fmt: skip


def _time(ms: int) -> str:
    try:
        return iso(ms)
    except (ValueError, OverflowError, OSError):
        # A producer may stamp its messages as it likes.
        return f"{ms} ms"


def _content(value: bytes | None) -> dict[str, Any]:
    if value is None:
        return {"value": None}
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value": value.decode("utf-8", "backslashreplace"), "value_base64": base64.b64encode(value).decode()}


def _list(app: App, letters: Iterable[Letter]) -> None:
    sent = SentLetters.read(app.settings)
    summaries, rows = list[dict[str, Any]](), list[tuple[str | None, ...]]()
    for letter in letters:
        summary = _summary(letter, sent.of_letter(letter, json_fields.valid_id(letter.value)))
        if app.json:
            summaries.append(summary)
            continue
        shown = (letter.value or b"")[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
        detail = (summary["detail"] or "")[:_SHOWN_DETAIL]
        rows.append((letter.name, summary["reason"], detail, summary["source"], summary["sent"], shown))
    if app.json:
        app.data(summaries)
    else:
        app.table(_COLUMNS, rows)


def _replay(app: App, letters: Iterable[Letter], edits: dict[str, Any], *, named: bool, again: bool) -> None:
    def plan(sent: SentLetters) -> Plan:
        made = plan_letters(letters, edits, sent, now_ms(), again=again)
        if named and made.first_left:
            raise UserError(made.first_left, hint="nothing was sent")
        if made.ids_set > 1:
            raise UserError(
                f"--edit event_id would give {made.ids_set:,} events one id, and they would count as one",
                hint="name one letter",
            )
        return made

    _send(app, plan)


def _replay_file(app: App, name: str, *, again: bool) -> None:
    source, stop = open_input(name), threading.Event()
    lines = [line for part in source.lines(stop) for line in part]
    if source.too_long:
        raise UserError(
            f"{source.shown}: line {source.too_long[0]} is longer than Kafka takes", hint="nothing was sent"
        )
    if not lines:
        raise UserError(f"no events in {source.shown}", hint="nothing was sent")
    _send(app, lambda sent: plan_lines(source.shown, lines, sent, now_ms(), again=again))


def _send(app: App, plan_from: Callable[[SentLetters], Plan]) -> None:
    """Plan with the marks there are, and send. One command at a time: a later one fences this one, and knows what it sent."""
    settings = app.settings
    migration.check_topics(settings)
    producer = TransactionalProducer(settings.kafka, f"{settings.key_prefix}dead-letters", "dead-letters")
    producer.open()
    plan = plan_from(SentLetters.read(settings))
    done = 0
    for part in _parts(plan.sends):
        _write(producer, settings, part, f"{done:,} of {len(plan.sends):,} events were sent")
        done += len(part)
    _report(app, plan)


def _parts(sends: Sequence[tuple[bytes, Mark]]) -> Iterator[list[tuple[bytes, Mark]]]:
    part, size = list[tuple[bytes, Mark]](), 0
    for value, mark in sends:
        if part and (len(part) == _EVENTS or size + len(value) > _BYTES):
            yield part
            part, size = [], 0
        part.append((value, mark))
        size += len(value)
    if part:
        yield part


def _write(
    producer: TransactionalProducer, settings: Settings, part: Sequence[tuple[bytes, Mark]], so_far: str
) -> None:
    """Events and their marks in one transaction. Raises UserError."""
    topic = settings.topic(topics.EVENTS)
    records = list[Record]()
    for value, mark in part:
        records += [Record(topic, value, json_fields.key_of(mark.event_id)), mark.record(settings)]
    hint = "run it again: what was sent is marked"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            producer.write(records)
            return
        except Aborted as error:
            if attempt == _ATTEMPTS:
                raise UserError(f"{so_far}: {error.message}", hint=hint) from error
            time.sleep(attempt)
        except Fenced as error:
            raise UserError(f"{so_far}: another dead-letters replay has taken over", hint=hint) from error
        except SessionLost as error:
            raise UserError(f"{so_far}, and perhaps the next {len(part):,}: {error.message}", hint=hint) from error


def _report(app: App, plan: Plan) -> None:
    sent, before = len(plan.sends), len(plan.sent_before)
    if app.json:
        app.data({"sent": sent, "sent_before": before, "left": dict(plan.left)})
    else:
        app.say(f"{sent:,} {'event' if sent == 1 else 'events'} sent again")
        if before:
            app.say(f"{before:,} left out: their events were sent before (--again sends them once more)")
        for why, count in plan.left.most_common():
            app.say(f"{count:,} left out, which would be rejected again: {why}")
    if plan.left and not sent and not before:
        raise UserError("none of the letters can be sent", hint="--edit FIELD=VALUE mends a field that is at fault")
