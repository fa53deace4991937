"""Producers of a rehearsal: they remember when what they sent was acknowledged, so that it can be sent again to another region."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from infra.settings import Settings
from ingest.synthetic.generator import SyntheticEvents

_SLICE = 250


@dataclass(frozen=True)
class Acknowledged:
    """Lines [first, stop) were acknowledged by `acknowledged_ms`."""

    first: int
    stop: int
    acknowledged_ms: int


class Producers:
    """Send the events of a rehearsal in their order, slice by slice, and remember each slice."""

    def __init__(self, events: SyntheticEvents) -> None:
        self._events = events
        self._keys = [None if key is None else key.encode() for key in events.keys.to_list()]
        self._lines = events.lines.to_list()
        self.sent = 0
        """How many lines have been sent at least once."""
        self.log = list[Acknowledged]()

    @property
    def count(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    def send_to(self, settings: Settings, stop: int) -> None:
        """Send lines up to `stop`, and wait for each slice."""
        producer, topic = EventProducer(settings.kafka_connection), settings.topic(topics.EVENTS)
        for first in range(self.sent, stop, _SLICE):
            self._send(producer, topic, range(first, min(stop, first + _SLICE)))
        self.sent = stop

    def send_again(self, settings: Settings, since_ms: int) -> int:
        """Send again what was acknowledged from a moment on, in its order; returns how many lines."""
        producer, topic = EventProducer(settings.kafka_connection), settings.topic(topics.EVENTS)
        again = [part for part in self.log if part.acknowledged_ms >= since_ms]
        for part in again:
            self._send(producer, topic, range(part.first, part.stop))
        return sum(part.stop - part.first for part in again)

    def send_split(self, regions: Iterable[Settings]) -> None:
        """Send all lines, each to one region in turn, so that copies of an event meet in neither."""
        outlets = [(EventProducer(settings.kafka_connection), settings.topic(topics.EVENTS)) for settings in regions]
        for first in range(0, self.count, _SLICE):
            for n, (producer, topic) in enumerate(outlets):
                self._send(producer, topic, range(first + n, min(self.count, first + _SLICE), len(outlets)))
        self.sent = self.count

    def _send(self, producer: EventProducer, topic: str, lines: range) -> None:
        producer.send(topic, [self._keys[n] for n in lines], [self._lines[n] for n in lines])
        assert producer.flush(60) == 0
        if lines.step == 1:
            self.log.append(Acknowledged(lines.start, lines.stop, now_ms()))
