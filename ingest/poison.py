"""What stops one source partition while the others go on: a record batch that cannot be read, or a message that the worker fails on.

A worker that ended because of it would take its other partitions along, and so would the next owner. It holds the partition instead,
right before the poison, and reports it. Nothing is passed over until an operator sets it aside (`adclick dead-letters set-aside`): then one
transaction moves the position behind it and writes its bytes to ad-events-dead. A worker that gets the partition anew tries again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import AdclickError
from infra.kafka.record_batches import CorruptBatch, Records
from infra.kafka.records import Record
from ingest.events import Reason

MOST_LETTER_BYTES = 15 << 20
"""Of a dead letter's value: ad-events-dead takes 16 MiB, and an event has 64 KiB at most. What is longer is cut off there."""
MESSAGES = "messages"
"""The header of a letter that stands for a whole record batch: how many offsets that has."""
_NAME = re.compile(r"([0-9]{1,9})/([0-9]{1,18})(?:-([0-9]{1,18}))?")
Messages = Mapping[int, list[Records]]
"""By partition, in offset order."""


@dataclass(frozen=True)
class Poison:
    """Offsets [first, last] of a partition, as Kafka counts, and why they cannot be processed. `value`: of the message, or the bytes of the
    record batch where `is_batch`."""

    partition: int
    first: int
    last: int
    why: str
    value: bytes | None
    key: bytes | None = None
    is_batch: bool = False

    @property
    def name(self) -> str:
        """How an operator names it."""
        return f"{self.partition}/{self.first}" + (f"-{self.last}" if self.last > self.first else "")

    def report(self) -> dict[str, Any]:
        """Its part of a worker's status."""
        return {"name": self.name, "why": self.why}

    def records(self) -> Records:
        """No message, and the position behind the poison."""
        return Records.none(self.last + 1)

    def letter(self, topic: str, source: str, base: int, partition: int, stage: str) -> Record:
        """The dead letter that it becomes, for a partition of `topic`. `source`: the topic of the poison; `base`: by how much offsets of
        events exceed Kafka's."""
        place = f"{source}/{self.partition}/{self.first + base}"
        more = ((MESSAGES, str(self.last + 1 - self.first).encode()),) if self.is_batch else ()
        return dead_letter(
            topic, partition, self.value, self.key, reason=Reason.UNREADABLE, detail=self.why, source=place, stage=stage,
            more=more,
        )  # fmt: skip


def dead_letter(
    topic: str, partition: int, value: bytes | None, key: bytes | None, *, reason: Reason, detail: str, source: str,
    stage: str, more: tuple[tuple[str, bytes], ...] = (),
) -> Record:  # fmt: skip
    """The record of a dead letter. `source`: TOPIC/PARTITION/OFFSET of the message; `more`: other headers."""
    headers = (
        ("reason", reason.value.encode()),
        ("detail", detail.encode("utf-8", "replace")),
        ("source", source.encode()),
        ("stage", stage.encode()),
        *more,
    )
    # Compressed it was small enough for its topic; as a letter it would not be.
    return Record(topic, value and value[:MOST_LETTER_BYTES], key, partition, headers)


def place_of(name: str) -> tuple[int, int] | None:
    """Partition and first offset of poison, by its name; None for what is no such name."""
    parts = _NAME.fullmatch(name)
    if parts is None or int(parts[3] or parts[2]) < int(parts[2]):
        return None
    return int(parts[1]), int(parts[2])


def approval_key(prefix: str, name: str) -> str:
    """The key of Redis by which an operator has the owner of the partition set poison aside."""
    return f"{prefix}ingest:set-aside:{name}"


def poison_of_batch(partition: int, position: int, batch: CorruptBatch) -> Poison:
    """A record batch that cannot be read, of which messages from `position` on were not processed."""
    why = f"the record batch {batch.message} ({batch.hint})"
    return Poison(partition, position, batch.next_offset - 1, why, batch.raw[:MOST_LETTER_BYTES], is_batch=True)


def split_at_poison(messages: Messages, process: Callable[[Messages], object]) -> tuple[Messages, list[Poison]]:
    """Find the first message of each partition that `process` fails on, whatever comes with it: the messages before those, and the
    poison. None is found where it fails without any message, or only on several partitions together."""
    before, poison = dict[int, list[Records]](), list[Poison]()
    for p, parts in messages.items():
        count = sum(len(records.offsets) for records in parts)
        error = _failure(process, {p: parts})
        if error is None or not count or _failure(process, {p: _first(parts, 0)}) is not None:
            before[p] = parts
            continue
        works, fails = 0, count
        while fails - works > 1:
            middle = (works + fails) // 2
            if (failure := _failure(process, {p: _first(parts, middle)})) is None:
                works = middle
            else:
                fails, error = middle, failure
        before[p] = _first(parts, works)
        records, row = _at(parts, works)
        offset, why = int(records.offsets[row]), f"{type(error).__name__}: {error}"
        poison.append(Poison(p, offset, offset, why, records.values[row], records.keys[row]))
    return before, poison


def _failure(process: Callable[[Messages], object], messages: Messages) -> Exception | None:
    """What `process` raises, unless it is one of our own errors, which says nothing about messages, or memory is short."""
    try:
        process(messages)
    except (AdclickError, MemoryError):
        raise
    except Exception as error:
        return error
    return None


def _first(parts: list[Records], count: int) -> list[Records]:
    """The first `count` messages; of 0 one part without any, which has the position."""
    taken = list[Records]()
    for records in parts:
        if count < len(records.offsets):
            return [*taken, records.split(count)[0]]
        taken.append(records)
        count -= len(records.offsets)
    return taken


def _at(parts: list[Records], number: int) -> tuple[Records, int]:
    """The part that has the message of this number, and its row there."""
    for records in parts:
        if number < len(records.offsets):
            return records, number
        number -= len(records.offsets)
    raise IndexError(number)
