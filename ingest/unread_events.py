"""Finds the messages of one event among those of `ad-events` that ingest has not committed yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_stretches
from infra.settings import Settings
from ingest.committed_positions import read_positions
from ingest.dead_letters.letters import is_about

_SECONDS = 20.0


@dataclass(frozen=True)
class UnreadMessage:
    """A message that ingest will read; `offset` as events have it."""

    partition: int
    offset: int
    log_time_ms: int

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset."""
        return self.partition, self.offset


@dataclass
class UnreadSearch:
    """The messages that a search has found. `read` of the `waiting` messages were searched: fewer where time ran out."""

    found: list[UnreadMessage] = field(default_factory=list)
    read: int = 0
    waiting: int = 0


def find_unread(settings: Settings, event_id: str, seconds: float = _SECONDS) -> UnreadSearch:
    """Search what lies behind the committed positions of ingest. Raises Unavailable."""
    topic, search, admin = settings.topic(topics.EVENTS), UnreadSearch(), Admin(settings.kafka_connection)
    positions = read_positions(settings, admin)
    count = len(positions)
    if not count:
        return search
    bases = [0 if position is None else position.base for position in positions]
    starts, ends = admin.starts(topic, count), admin.ends(topic, count)
    stretches = {}
    for p, (position, start, end) in enumerate(zip(positions, starts, ends, strict=True)):
        first = start if position is None else max(start, position.log_offset)
        if first < end:
            stretches[p] = (first, end)
    search.waiting = sum(end - first for first, end in stretches.values())

    def take(message: Any) -> None:
        if is_about(event_id, message.key(), message.value()):
            p = message.partition()
            search.found.append(UnreadMessage(p, message.offset() + bases[p], message.timestamp()[1]))

    if stretches:
        reached = read_stretches(settings.kafka_connection, topic, stretches, take, seconds)
        search.read = sum(reached[p] - first for p, (first, _) in stretches.items())
    return search
