"""`adclick dead-letters`: look at rejected events, mend them, send them again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infra import console, topics
from infra.clock import iso
from infra.console import App
from infra.errors import UsageError, UserError
from infra.kafka import BEGINNING, EventProducer, offset_at, read_to_end
from infra.settings import Settings
from ingest import events
from ingest.events import Reason

_SHOWN_BYTES = 60


_SOURCE = re.compile(r"(.+)/([0-9]{1,9})/([0-9]{1,18})", re.DOTALL | re.ASCII)


@dataclass(frozen=True)
class Source:
    """The message of ad-events that a letter is about."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Letter:
    """One message of ad-events-dead, by whomever it was written: any value, any headers, or none.

    `name` is how commands refer to it: its place in the topic.
    """

    name: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]
    time_ms: int

    @property
    def source(self) -> Source | None:
        """Where the event came from; None in a letter that does not tell."""
        parts = _SOURCE.fullmatch(self.headers.get("source", ""))
        return Source(parts[1], int(parts[2]), int(parts[3])) if parts else None


def read(settings: Settings, since_ms: int | None = None) -> Iterator[Letter]:
    """All dead letters there are now, or those written since a moment."""
    topic = settings.topic(topics.DEAD_LETTERS)
    for partition in range(settings.event_partitions):
        first = BEGINNING if since_ms is None else offset_at(settings.kafka, topic, partition, since_ms)
        for message in read_to_end(settings.kafka, topic, partition, first):
            yield letter_of(partition, message)


def letter_of(partition: int, message: Any) -> Letter:
    """The letter that a message of this partition of the dead-letter topic is."""
    try:
        headers = {name: (text or b"").decode("utf-8", "backslashreplace") for name, text in message.headers() or []}
    except (SystemError, UnicodeDecodeError):
        # What the client raises where a header's name is no UTF-8; it has no way to skip it.
        headers = {}
    return Letter(f"{partition}/{message.offset()}", message.key(), message.value(), headers, message.timestamp()[1])


def edited(value: bytes | None, edits: list[tuple[str, Any]]) -> bytes | None:
    """The event with fields set; what is no JSON object cannot be edited. Raises UserError."""
    if not edits:
        return value
    try:
        event = json.loads(value or b"")
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise UserError(
            "this letter is no JSON object, so no field of it can be edited",
            hint="mend it in a file, and replay --from that",
        )
    return json.dumps(event | dict(edits), separators=(",", ":"), ensure_ascii=False).encode()


def _parse_edit(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or name not in events.FIELDS:
        raise UsageError(f"--edit is FIELD=VALUE with a field of the event, not {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@console.command(
    "dead-letters",
    "adclick dead-letters list\nadclick dead-letters show 0/17\nadclick dead-letters replay 0/17 --edit country=DE",
)
@click.argument("action", type=click.Choice(["list", "show", "replay"]))
@click.argument("names", nargs=-1)
@click.option("--reason", help="Only letters with this reason.")
@click.option("--edit", "edits", multiple=True, metavar="FIELD=VALUE", help="Set a field before sending again.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Send the events of this NDJSON file instead.")
def dead_letters(
    app: App, action: str, names: tuple[str, ...], reason: str | None, edits: tuple[str, ...], source: Path | None
) -> None:
    """Look at rejected events, and send them again once mended.

    `list` shows them all, `show` one with its bytes, `replay` sends the named ones (or all with --reason) again.
    Too-late events are refused: the nightly job has them already.
    """
    if action == "replay" and source is not None:
        _send_file(app, source)
        return
    letters = [
        x for x in read(app.settings) if (not names or x.name in names) and reason in (None, x.headers.get("reason"))
    ]
    missing = set(names) - {x.name for x in letters}
    if missing:
        raise UserError(f"no such dead letter: {sorted(missing)[0]}", hint="adclick dead-letters list names them")
    if action == "list":
        _list(app, letters)
    elif action == "show":
        if not names:
            raise UsageError("say which: adclick dead-letters show 0/17")
        for letter in letters:
            app.data(
                _told(letter)
                | {"value": None if letter.value is None else letter.value.decode("utf-8", "backslashreplace")}
            )
    else:
        if not names and reason is None:
            raise UsageError("say which letters to send again: their names, --reason, or --from FILE")
        _send(app, letters, [_parse_edit(e) for e in edits])


def _told(letter: Letter) -> dict[str, Any]:
    return {"name": letter.name, "time": iso(letter.time_ms), **letter.headers}


def _list(app: App, letters: list[Letter]) -> None:
    if app.json:
        app.data([_told(x) for x in letters])
        return
    rows = [
        (
            x.name,
            x.headers.get("reason"),
            x.headers.get("detail", "")[:40],
            x.headers.get("source"),
            (x.value or b"")[:_SHOWN_BYTES].decode("utf-8", "replace"),
        )
        for x in letters
    ]
    app.table(["name", "reason", "detail", "source", "value"], rows)


def _send(app: App, letters: list[Letter], edits: list[tuple[str, Any]]) -> None:
    for letter in letters:
        if letter.headers.get("reason") == Reason.TOO_LATE:
            raise UserError(
                f"{letter.name} is too-late: it would be too late again", hint="the nightly reconciliation counts it"
            )
    values = [edited(x.value, edits) for x in letters]
    keys = [_key_of(v) or x.key for v, x in zip(values, letters, strict=True)]
    _produce(app, keys, values)


def _key_of(value: bytes | None) -> bytes | None:
    """The id of a mended event is its key, as a producer would have it."""
    try:
        found = json.loads(value or b"")
    except ValueError:
        return None
    name = found.get("event_id") if isinstance(found, dict) else None
    return name.encode() if isinstance(name, str) else None


def _send_file(app: App, source: Path) -> None:
    try:
        lines = [line for line in source.read_bytes().split(b"\n") if line.strip()]
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    _produce(app, [_key_of(line) for line in lines], list(lines))


def _produce(app: App, keys: list[bytes | None], values: list[bytes | None]) -> None:
    producer = EventProducer(app.settings.kafka)
    producer.send(app.settings.topic(topics.EVENTS), keys, values)
    if producer.flush(60.0) or producer.failed:
        raise UserError(
            f"{len(values) - producer.acknowledged} events were not acknowledged", hint="try again: copies are dropped"
        )
    app.say(f"{len(values)} events sent again")
