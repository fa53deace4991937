"""Sending dead letters again: what is sent and what is left is planned first; events and their marks are written in one transaction.

Used by the command and by the router.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra import migration
from infra.clock import iso
from infra.errors import Aborted, Fenced, SessionLost, UserError
from infra.kafka import topics
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings
from ingest import events
from ingest.dead_letters.edit import Mended, mend
from ingest.dead_letters.letters import Letter
from ingest.dead_letters.sent import Mark, SentLetters, value_digest
from ingest.decoding import json_fields
from ingest.events import Reason, Rejection

_TOO_LATE = "too-late: the nightly reconciliation counts it"
_BATCH = "unreadable: its value is a whole record batch; have the producer send its events again"
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
    refused: list[tuple[str, str]] = field(default_factory=list)
    """The letters that are not sent, each with why."""
    ids_set: int = 0
    """How many letters were given an id by an edit: more than one would make one event of several."""

    def leave_sent(self, name: str, mark: Mark) -> None:
        """Leave out what was sent before."""
        self.sent_before.append(mark)
        self.refused.append((name, f"it was sent before, at {iso(mark.sent_ms)}"))

    def leave(self, name: str, why: str) -> None:
        """Count a letter that is not sent, by the reason, and keep the first one for the message."""
        self.left[why] += 1
        self.refused.append((name, why))
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
        if letter.batch_messages is not None:
            plan.leave(letter.name, _BATCH)
            continue
        outcome = mend(letter.value, letter.field_at_fault, edits, moment_ms)
        event_id = outcome.event_id if isinstance(outcome, Mended) else json_fields.valid_id(letter.value)
        mark = None if again else sent.of_letter(letter, event_id)
        if mark is None and isinstance(outcome, Mended):
            plan.ids_set += "event_id" in outcome.fields
            mark = planned.of_event(event_id)
        if mark is not None:
            plan.leave_sent(letter.name, mark)
        elif isinstance(outcome, Rejection):
            plan.leave(letter.name, f"{outcome.reason} {outcome.detail}")
        else:
            new = Mark(letter.name, letter.time_ms, outcome.event_id, value_digest(outcome.value), moment_ms)
            planned.add(new)
            plan.sends.append((outcome.value, new))
    return plan


def plan_lines(shown: str, lines: Iterable[bytes], sent: SentLetters, moment_ms: int, *, again: bool) -> Plan:
    """Events of a file. Raises UserError where one of them would be rejected again."""
    plan, planned = Plan(), SentLetters()
    for number, line in enumerate(lines, 1):
        verdict = events.judge_message(line, moment_ms)
        if isinstance(verdict, Rejection):
            raise UserError(
                f"event {number} of {shown} would be rejected again: {verdict.reason} {verdict.detail}",
                hint="mend it; nothing was sent",
            )
        mark = planned.of_event(verdict.event_id) or (None if again else sent.of_event(verdict.event_id))
        if mark is not None:
            plan.sent_before.append(mark)
            continue
        new = Mark("", 0, verdict.event_id, value_digest(line), moment_ms)
        planned.add(new)
        plan.sends.append((line, new))
    return plan


def plan_value(letter: Letter, value: bytes, sent: SentLetters, moment_ms: int, *, again: bool) -> Plan:
    """A letter whose whole value was written anew."""
    plan = Plan()
    verdict = events.judge_message(value, moment_ms)
    if letter.headers.get("reason") == Reason.TOO_LATE:
        plan.leave(letter.name, _TOO_LATE)
    elif isinstance(verdict, Rejection):
        plan.leave(letter.name, f"{verdict.reason} {verdict.detail}")
    elif (mark := None if again else sent.of_letter(letter, verdict.event_id)) is not None:
        plan.leave_sent(letter.name, mark)
    else:
        plan.sends.append((value, Mark(letter.name, letter.time_ms, verdict.event_id, value_digest(value), moment_ms)))
    return plan


def send_plan(settings: Settings, plan_from: Callable[[SentLetters], Plan]) -> Plan:
    """Plan with the marks there are, and send. One at a time: a later one fences this one, and knows what it sent. Raises UserError."""
    migration.check_topics(settings)
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.key_prefix}dead-letters", "dead-letters")
    producer.open()
    plan = plan_from(SentLetters.read(settings))
    done = 0
    for part in _parts(plan.sends):
        _write(producer, settings, part, f"{done:,} of {len(plan.sends):,} events were sent")
        done += len(part)
    return plan


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
