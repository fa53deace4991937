"""Messages of our topics as people read them: the header by name, rows with their names and moments."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from infra.clock import iso
from infra.errors import UserError
from infra.kafka import topics
from infra.settings import Settings
from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.events import COUNTRIES, DEVICES
from ingest.partials import Partials
from stream import chunks

_PLACE = re.compile(r"([\w.-]+)/([0-9]{1,6})(?:/([0-9]{1,18}))?", re.ASCII)


# Smaller numbers are durations or counts, not moments.
_FIRST_MOMENT_MS = 10**11


_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Content:
    """What a message says: `summary` in a line, `header` with what it accounts for, and its first rows by column name."""

    summary: str
    header: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """A partition of one of our topics, or a message of it. `name` is the topic's name without the namespace."""

    name: str
    topic: str
    partition: int
    offset: int | None

    @property
    def label(self) -> str:
        """As error messages and logs write it."""
        return f"{self.topic}/{self.partition}"


def parse_place(text: str, settings: Settings) -> Place:
    """TOPIC/PARTITION or TOPIC/PARTITION/OFFSET, the topic with or without the namespace. Raises UserError."""
    parts = _PLACE.fullmatch(text)
    if parts is None:
        raise UserError(
            f"not TOPIC/PARTITION or TOPIC/PARTITION/OFFSET: {text}", hint="like ad-blocks/0 or ad-blocks/0/17"
        )
    partitions = {topic.name: topic.partitions for topic in topics.wanted(settings)}
    topic = parts[1] if parts[1] in partitions else settings.topic(parts[1])
    if topic not in partitions:
        raise UserError(f"{parts[1]} is no topic of this installation", hint="one of " + ", ".join(partitions))
    if int(parts[2]) >= partitions[topic]:
        raise UserError(f"{topic} has partitions 0 to {partitions[topic] - 1}, not {parts[2]}")
    name = topic.removeprefix(settings.namespace)
    return Place(name, topic, int(parts[2]), None if parts[3] is None else int(parts[3]))


def content_of(place: Place, message: Any, row_limit: int) -> Content:
    """A message of any of our topics. Raises CorruptLog where it is no block and no chunk of a version that is known."""
    if message.value() is None:
        return Content("tombstone: this key is deleted", {}, [])
    read = _READERS.get(place.name, _read_text)
    return read(f"{place.label}/{message.offset()}", message, row_limit)


def _read_block(where: str, message: Any, row_limit: int) -> Content:
    rows, header = blocks.decode_block(message.value(), where)
    return Content(
        f"{rows.num_rows:,} rows, {_ranges(header)}", _plain(header), _partials(Partials.of_arrow(rows), row_limit)
    )


def _read_archived(where: str, message: Any, row_limit: int) -> Content:
    rows, header = blocks.decode_block(message.value(), where)
    events = archive_schema.stored_rows(
        archive_schema.decode_archived(rows).slice(0, row_limit), header.ranges[0].partition
    )
    return Content(f"{rows.num_rows:,} events, {_ranges(header)}", _plain(header), _readable(events.to_pylist()))


def _read_chunk(where: str, message: Any, row_limit: int) -> Content:
    rows, header = chunks.decode(message.value(), where)
    closed = "no watermark yet" if header.closing.closed_ms is None else f"closed until {iso(header.closing.closed_ms)}"
    summary = (
        f"{'base' if header.base else 'chunk'} {header.sequence} of shard {header.shard}, part {header.part + 1} of {header.parts}, {len(rows):,} rows,"
        f" input [{header.from_offset}, {header.to_offset}), {closed}"
    )
    return Content(summary, _plain(header), _partials(rows, row_limit))


def _read_text(where: str, message: Any, row_limit: int) -> Content:
    headers = {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in message.headers() or []}
    text = message.value().decode("utf-8", "backslashreplace")
    reason = f"{headers['reason']}: " if "reason" in headers else ""
    return Content(f"{reason}{text}"[:_SHOWN_CHARACTERS], headers, [{"value": text}] if row_limit else [])


_READERS: dict[str, Callable[[str, Any, int], Content]] = {
    topics.BLOCKS: _read_block,
    topics.ARCHIVE: _read_archived,
    **dict.fromkeys((topics.MINUTES, topics.HOURS, topics.CAMPAIGN_TOTALS), _read_chunk),
    **dict.fromkeys((topics.MINUTE_STATE, topics.HOUR_STATE, topics.DAY_STATE, topics.CAMPAIGN_STATE), _read_chunk),
}


def _ranges(header: blocks.BlockHeader) -> str:
    ranges = ", ".join(f"{r.partition}/[{r.from_offset}, {r.to_offset})" for r in header.ranges)
    return f"part {header.part + 1} of {header.parts}, source {ranges or 'none'}"


def _partials(rows: Partials, row_limit: int) -> list[dict[str, Any]]:
    """The first rows, with countries and devices by name."""
    names = {"country": COUNTRIES, "device": DEVICES}
    shown = rows.take(slice(0, row_limit)).arrow().to_pylist()
    return _readable([{k: names[k][v] if k in names else v for k, v in row.items()} for row in shown])


def _plain(header: Any) -> dict[str, Any]:
    return {k: _moments(k, v) for k, v in msgspec.to_builtins(header, str_keys=True).items()}


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: _moments(k, v) for k, v in row.items()} for row in rows]


def _moments(name: str, value: Any) -> Any:
    """Moments in epoch ms as RFC 3339, also within."""
    if isinstance(value, dict):
        return {k: _moments(k, v) for k, v in value.items()}
    is_moment = name.endswith("_ms") and isinstance(value, int) and value >= _FIRST_MOMENT_MS
    return iso(value) if is_moment else value
