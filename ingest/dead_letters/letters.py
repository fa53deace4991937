"""The dead-letter topic as letters, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.errors import OffsetOutOfRange, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.client import BEGINNING
from infra.kafka.consumers import offset_at, read_stretches, read_to_end
from infra.settings import Settings
from ingest import poison
from ingest.dead_letters import edit
from ingest.decoding import json_fields
from ingest.events import Reason

_SECONDS = 300.0
_NAME = re.compile(r"([0-9]{1,9})/([0-9]{1,18})", re.ASCII)
_COUNT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_SOURCE = re.compile(r"(.+)/([0-9]{1,9})/([0-9]{1,18})", re.DOTALL | re.ASCII)


@dataclass(frozen=True)
class SourceMessage:
    """The message of ad-events that a letter is about."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Letter:
    """One message of ad-events-dead, from any producer: any value, any headers, or none.

    `name` is how commands refer to it: its place in the topic.
    """

    name: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]
    time_ms: int

    @property
    def source(self) -> SourceMessage | None:
        """Where the event came from; None where the letter has no readable `source` header."""
        parts = _SOURCE.fullmatch(self.headers.get("source", ""))
        return SourceMessage(parts[1], int(parts[2]), int(parts[3])) if parts else None

    @property
    def batch_messages(self) -> int | None:
        """How many offsets the record batch has that the letter stands for; None where it stands for one message."""
        text = self.headers.get(poison.MESSAGES, "")
        return int(text) if _COUNT.fullmatch(text) else None

    @property
    def field_at_fault(self) -> str | None:
        """The field that the event was rejected for; None where the whole of it was at fault."""
        return edit.field_at_fault(self.headers.get("reason"), self.headers.get("detail"))


def read_letters(settings: Settings, since_ms: int | None = None) -> Iterator[Letter]:
    """All dead letters there are now, or those written since a moment."""
    topic = settings.topic(topics.DEAD_LETTERS)
    for partition in range(settings.event_partitions):
        first = BEGINNING if since_ms is None else offset_at(settings.kafka_connection, topic, partition, since_ms)
        for message in read_to_end(settings.kafka_connection, topic, partition, first):
            yield letter_of(partition, message)


@dataclass
class LettersSearch:
    """The letters about an event. `read` of the `waiting` letters were searched: fewer where time ran out.

    `set_aside`: how many messages of ad-events other letters stand for, each a record batch that nobody can read.
    """

    letters: list[Letter] = field(default_factory=list)
    set_aside: int = 0
    read: int = 0
    waiting: int = 0


def find_letters(
    settings: Settings, event_id: str, since_ms: int, advance: Callable[[], object], seconds: float = _SECONDS
) -> LettersSearch:
    """The letters about an event that were written since a moment. `advance` is called for each that is read. Raises Unavailable."""
    topic, admin, search = settings.topic(topics.DEAD_LETTERS), Admin(settings.kafka_connection), LettersSearch()
    count = min(settings.event_partitions, admin.partitions().get(topic, 0))
    if not count:
        return search
    ends = admin.ends(topic, count)
    firsts = [offset_at(settings.kafka_connection, topic, p, since_ms) for p in range(count)]
    stretches = {p: (first, end) for p, (first, end) in enumerate(zip(firsts, ends, strict=True)) if first < end}
    search.waiting = sum(end - first for first, end in stretches.values())

    def take(message: Any) -> None:
        advance()
        letter = letter_of(message.partition(), message)
        if is_about(event_id, letter.key, letter.value):
            search.letters.append(letter)
        elif letter.headers.get("reason") == Reason.UNREADABLE:
            search.set_aside += letter.batch_messages or 0

    if stretches:
        reached = read_stretches(settings.kafka_connection, topic, stretches, take, seconds)
        search.read = sum(reached[p] - first for p, (first, _) in stretches.items())
    search.letters.sort(key=lambda letter: letter.time_ms)
    return search


def is_about(event_id: str, key: bytes | None, value: bytes | None) -> bool:
    """Whether a message, valid or not, is about the event of this id: it is its key, or the id in its value, however that is written. Of a
    value that has no readable id, whether the id in quotes is anywhere in it."""
    encoded = event_id.encode("utf-8", "surrogateescape")
    if key == encoded:
        return True
    if value is None or not (encoded in value or b"\\" in value):
        return False
    written, _ = json_fields.read_id_and_time(value)
    return written == event_id or (written is None and b'"%b"' % encoded in value)


def read_named(settings: Settings, names: Sequence[str]) -> Iterator[Letter]:
    """The letters of these names. Raises UserError when there is none of a name."""
    wanted: dict[int, dict[int, str]] = {}
    for name in names:
        parts = _NAME.fullmatch(name)
        if parts is None or int(parts[1]) >= settings.event_partitions:
            raise _no_such(name)
        wanted.setdefault(int(parts[1]), {})[int(parts[2])] = name
    for partition, by_offset in wanted.items():
        left = dict(by_offset)
        topic = settings.topic(topics.DEAD_LETTERS)
        try:
            for message in read_to_end(settings.kafka_connection, topic, partition, min(left)):
                if left.pop(message.offset(), None):
                    yield letter_of(partition, message)
                if not left:
                    break
        except OffsetOutOfRange as error:
            raise _no_such(left[min(left)]) from error
        if left:
            raise _no_such(left[min(left)])


def _no_such(name: str) -> UserError:
    return UserError(f"no such dead letter: {name}", hint="adclick dead-letters list names them")


def letter_of(partition: int, message: Any) -> Letter:
    """The letter that a message of this partition of the dead-letter topic is."""
    try:
        headers = {name: (text or b"").decode("utf-8", "backslashreplace") for name, text in message.headers() or []}
    except (SystemError, UnicodeDecodeError):
        # What the client raises where a header's name is no UTF-8; it has no way to skip it.
        headers = {}
    return Letter(f"{partition}/{message.offset()}", message.key(), message.value(), headers, message.timestamp()[1])
