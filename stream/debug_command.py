"""`adclick debug`: messages of our topics as text or JSON, and the fault points that tests use. Reads only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from infra import faults
from infra.cli import declare
from infra.cli.app import App
from infra.clock import iso
from infra.errors import UserError
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.settings import Settings
from stream.readable_messages import Place, content_of, parse_place

# -- reading -----------------------------------------------------------------------------------------------------------


def newest_messages(settings: Settings, place: Place, count: int) -> list[Any]:
    """The last messages of a partition that are committed, the oldest first."""
    start, end = _bounds(settings, place)
    reach, newest = 4 * count, deque[Any](maxlen=count)
    while start < end:
        first = max(start, end - reach)
        # Markers of transactions and what compaction removed take offsets, too: look further back.
        newest = deque(read_to_end(settings.kafka_connection, place.topic, place.partition, first), maxlen=count)
        if len(newest) == count or first == start:
            break
        reach *= 10
    return list(newest)


def read_message(settings: Settings, place: Place) -> Any:
    """The message at the place's offset. Raises UserError where there is none."""
    start, end = _bounds(settings, place)
    assert place.offset is not None
    if not start <= place.offset < end:
        retained = f"retains offsets {start} to {end - 1}" if start < end else "is empty"
        raise UserError(f"{place.label} has no offset {place.offset}: it {retained}")
    for message in read_to_end(settings.kafka_connection, place.topic, place.partition, place.offset):
        if message.offset() == place.offset:
            return message
        raise UserError(
            f"{place.label}/{place.offset} is no message: a transaction's marker, or it was aborted or compacted away",
            hint=f"the next message is {place.label}/{message.offset()}",
        )
    raise UserError(f"{place.label}/{place.offset} is no message: a transaction's marker, and no message follows")


def _bounds(settings: Settings, place: Place) -> tuple[int, int]:
    admin = Admin(settings.kafka_connection)
    if place.topic not in admin.partitions():
        raise UserError(f"there is no topic {place.topic}", hint="adclick migrate makes it")
    count = place.partition + 1
    return admin.starts(place.topic, count)[-1], admin.ends(place.topic, count)[-1]


# -- the command -------------------------------------------------------------------------------------------------------


@declare.group(
    "debug", "adclick debug read ad-blocks/0\nadclick debug read ad-minute-state/0/17\nadclick debug fault-points"
)
def debug() -> None:
    """Look into topics, for people who work on adclick. Reads only, and joins no consumer group."""


@declare.command("read", "adclick debug read ad-blocks/0\nadclick debug read ad-minute-state/0/17 --rows 5")
@click.argument("place")
@click.option("--last", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Of a partition: messages.")
@click.option("--rows", type=click.IntRange(0), default=20, show_default=True, help="Of a message: rows, at most.")
def read(app: App, place: str, last: int, rows: int) -> None:
    """List the newest messages of TOPIC/PARTITION, or show one, TOPIC/PARTITION/OFFSET: its header and rows.

    Blocks (ad-blocks), archived events (ad-archive) and chunks (ad-minutes, ad-hours, ad-…-state) are decoded; moments
    are shown as RFC 3339, countries and devices by name. Other topics are shown as text.
    """
    settings = app.settings
    where = parse_place(place, settings)
    if where.offset is None:
        _list_messages(app, where, newest_messages(settings, where, last))
        return
    message = read_message(settings, where)
    content = content_of(where, message, rows)
    if app.json:
        app.data(_description(message) | {"summary": content.summary, "header": content.header, "rows": content.rows})
        return
    fields = [*_description(message).items(), ("summary", content.summary), *_flat(content.header)]
    app.table(["", ""], [(name, value) for name, value in fields if value is not None])
    if content.rows:
        columns = list(content.rows[0])
        app.table(columns, [[row[c] for c in columns] for row in content.rows])


def _list_messages(app: App, place: Place, messages: list[Any]) -> None:
    entries = [_description(m) | {"summary": content_of(place, m, 0).summary} for m in messages]
    if app.json:
        app.data(entries)
        return
    columns = ["offset", "time", "key", "bytes", "summary"]
    app.table(columns, [[entry[c] for c in columns] for entry in entries])


def _description(message: Any) -> dict[str, Any]:
    key = message.key()
    return {
        "offset": message.offset(),
        "time": iso(message.timestamp()[1]) if message.timestamp()[1] > 0 else None,
        "key": None if key is None else key.decode("utf-8", "backslashreplace"),
        "bytes": len(message.value() or b""),
    }


def _flat(header: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in header.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@declare.command("fault-points", "adclick debug fault-points\nADCLICK_FAULT=kill@ingest.recorded:2 adclick ingest")
def fault_points(app: App) -> None:
    """List the places where ADCLICK_FAULT can end (kill@), halt (stop@) or deceive (lose@) a process, for tests.

    `:N` waits for the N-th time that the place is passed.
    """
    if app.json:
        app.data(faults.POINTS)
        return
    app.table(["fault point", "passed"], list(faults.POINTS.items()))


for _command in (read, fault_points):
    debug.add_command(_command)
