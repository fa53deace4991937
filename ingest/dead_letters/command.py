"""`adclick dead-letters`: look at rejected events, mend them, send them again."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable
from typing import Any

import click

from infra.cli import declare
from infra.cli.app import App
from infra.clock import iso, now_ms
from infra.errors import UsageError, UserError
from ingest import events, poison
from ingest.dead_letters import letters as dead_letters
from ingest.dead_letters.edit import parse_edits
from ingest.dead_letters.letters import Letter
from ingest.dead_letters.replay import Plan, plan_letters, plan_lines, send_plan
from ingest.dead_letters.sent import Mark, SentLetters
from ingest.dead_letters.set_aside import set_aside
from ingest.decoding import json_fields
from ingest.events import Reason
from ingest.replay.inputs import open_input

_SHOWN_BYTES, _SHOWN_DETAIL = 60, 40
_COLUMNS = ("name", "reason", "detail", "source", "sent", "value")


@declare.command(
    "dead-letters",
    "adclick dead-letters list --reason bad-value\nadclick dead-letters show 0/17\n"
    "adclick dead-letters replay 0/17 --edit country=DE\n"
    "adclick dead-letters replay --field country --edit country=ZZ\n"
    "adclick dead-letters set-aside 3/17-20",
)
@click.argument("action", type=click.Choice(["list", "show", "replay", "set-aside"]))
@click.argument("names", nargs=-1)
@click.option("--reason", type=click.Choice([str(r) for r in Reason]), help="Only letters with this reason.")
@click.option("--detail", help="Only letters whose detail contains this text.")
@click.option(
    "--field", "at_fault", type=click.Choice(events.FIELDS), help="Only letters where this field was at fault."
)
@click.option("--edit", "edits", multiple=True, metavar="FIELD=VALUE", help="Set a field, where it was at fault.")
@click.option("--from", "source", metavar="FILE", help="Send the events of this NDJSON file instead (- for a pipe).")
@click.option("--again", is_flag=True, help="Also what was sent before: it counts twice beyond the dedup horizon.")
def dead_letters_command(
    app: App, action: str, names: tuple[str, ...], reason: str | None, detail: str | None, at_fault: str | None,
    edits: tuple[str, ...], source: str | None, again: bool,
) -> None:  # fmt: skip
    """Look at rejected events, and send them again once mended.

    `list` shows them all, `show` one with its bytes, `replay` sends the named ones, or those picked by --reason, --detail
    and --field. An edit touches only letters where that field was at fault. What would be rejected again is left out, and so is
    what was sent before. Too-late events are refused: the nightly job has them already. `set-aside` makes dead letters of what
    partitions of ad-events stop before, as `adclick status` names it: messages that no worker can process.
    """
    picked = reason is not None or detail is not None or at_fault is not None
    if action != "replay" and (edits or source is not None or again):
        raise UsageError("--edit, --from and --again are for replay")
    if action == "set-aside":
        _set_aside(app, names, picked=picked)
        return
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

    chosen = filter(
        matches, dead_letters.read_named(app.settings, names) if names else dead_letters.read_letters(app.settings)
    )
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


def _set_aside(app: App, names: tuple[str, ...], *, picked: bool) -> None:
    if picked or not names:
        raise UsageError("say which, as adclick status names it: adclick dead-letters set-aside 3/17-20")
    for name in names:
        if poison.place_of(name) is None:
            raise UsageError(
                f"no name of messages: {name}", hint="PARTITION/OFFSET or PARTITION/FROM-TO, as adclick status has it"
            )
    letters = dict[str, str]()
    for name in names:
        letters[name] = set_aside(app.settings, name)
        if not app.json:
            app.say(f"{name} is set aside as dead letter {letters[name]}; its partition goes on")
    if app.json:
        app.data({"set_aside": letters})


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
        letters_plan = plan_letters(letters, edits, sent, now_ms(), again=again)
        if named and letters_plan.first_left:
            raise UserError(letters_plan.first_left, hint="nothing was sent")
        if letters_plan.ids_set > 1:
            raise UserError(
                f"--edit event_id would give {letters_plan.ids_set:,} events one id, and they would count as one",
                hint="name one letter",
            )
        return letters_plan

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
    _report(app, send_plan(app.settings, plan_from))


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
