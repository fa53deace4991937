"""Which dead letters were sent again: a mark for each, written in one transaction with the event.

So an event that was sent is marked, and one that is not marked was not sent, wherever the command ended. The marks are kept for as
long as the letters, which is for ever; the memory of ids in Redis, which drops copies, lasts for the dedup horizon alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.kafka.records import Record
from infra.settings import Settings
from infra.structs import decodable
from ingest.dead_letters.letters import Letter

_DIGEST_BYTES = 16


@decodable
class Mark(msgspec.Struct, frozen=True):
    """What was sent and when. `letter` is empty for an event that came from a file; `digest` is of the value sent."""

    letter: str
    letter_time_ms: int
    event_id: str
    digest: str
    sent_ms: int

    def record(self, settings: Settings) -> Record:
        """The mark as a message of `ad-events-dead-sent`, keyed by its letter, or by its event where it has none."""
        key = self.letter or f"event {self.event_id}"
        return Record(settings.topic(topics.SENT_LETTERS), msgspec.json.encode(self), key.encode())


def value_digest(value: bytes | None) -> str:
    """A hash of the value, by which a later letter with the same bytes is recognised."""
    return hashlib.blake2b(value or b"", digest_size=_DIGEST_BYTES).hexdigest()


class SentLetters:
    """All marks, found by letter and by event id."""

    def __init__(self, marks: Iterable[Mark] = ()) -> None:
        self._by_letter: dict[str, Mark] = {}
        self._by_event: dict[str, Mark] = {}
        for mark in marks:
            self.add(mark)

    @classmethod
    def read(cls, settings: Settings) -> SentLetters:
        """All marks there are now; none where nothing was ever sent again."""
        topic = settings.topic(topics.SENT_LETTERS)
        if topic not in Admin(settings.kafka_connection).partitions():
            return cls()
        return cls(
            filter(None, (_decoded(message.value()) for message in read_to_end(settings.kafka_connection, topic, 0)))
        )

    def add(self, mark: Mark) -> None:
        """Add a mark; it replaces earlier ones of the same letter or event."""
        self._by_letter[mark.letter] = mark
        self._by_event[mark.event_id] = mark

    def add_message(self, message: Any) -> None:
        """Add the mark that a message of `ad-events-dead-sent` has, if it has one."""
        mark = _decoded(message.value())
        if mark is not None:
            self.add(mark)

    def of_event(self, event_id: str | None) -> Mark | None:
        """The mark of an event with this id."""
        return None if event_id is None else self._by_event.get(event_id)

    def of_letter(self, letter: Letter, event_id: str | None, digest: str | None = None) -> Mark | None:
        """The mark of this letter, or of another one with the same event. `digest`: of its value, where it has not all of it.

        A later letter that holds just what was sent is no copy of it: it means that what was sent has been rejected in its turn.
        """
        mark = self._by_letter.get(letter.name)
        # Names begin again where the topic was made anew.
        if mark is not None and mark.letter_time_ms == letter.time_ms:
            return mark
        mark = self.of_event(event_id)
        if mark is None or (letter.time_ms > mark.sent_ms and mark.digest == (digest or value_digest(letter.value))):
            return None
        return mark


def _decoded(value: bytes | None) -> Mark | None:
    try:
        return msgspec.json.decode(value or b"", type=Mark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
