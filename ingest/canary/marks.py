"""Which offsets of ad-events are canaries: marks in ad-canaries, written by ingest in the transaction that passes over them.

The nightly run proves that no message is missing. A canary is neither archived nor a dead letter, so without its mark each of them
would have to be read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from infra.clock import HOUR_MS
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import offset_at, read_to_end
from infra.kafka.records import Record
from infra.settings import Settings
from infra.structs import decodable

# After a long outage a batch may hold very many canaries, and a message may have a megabyte.
_OFFSETS_PER_MARK = 10_000
# Marks have the time of ingest's clock, the messages that they are about that of the broker's.
_CLOCKS_MS = HOUR_MS


@decodable
class CanaryMark(msgspec.Struct, frozen=True):
    """Canaries of one partition; offsets as events have them."""

    partition: int
    offsets: list[int]


def mark_records(topic: str, partition: int, offsets: Sequence[int]) -> Iterator[Record]:
    """The marks of the canaries that a batch has of a partition. `topic`: the real name of ad-canaries."""
    for first in range(0, len(offsets), _OFFSETS_PER_MARK):
        mark = CanaryMark(partition, list(offsets[first : first + _OFFSETS_PER_MARK]))
        yield Record(topic, msgspec.json.encode(mark), partition=partition)


def read_marks(settings: Settings, since_ms: int) -> Iterator[CanaryMark]:
    """The marks of all canaries that were appended to ad-events since a moment, and of some before it. Raises Unavailable."""
    topic, kafka = settings.topic(topics.CANARIES), settings.kafka_connection
    count = min(settings.event_partitions, Admin(kafka).partitions().get(topic, 0))
    for partition in range(count):
        first = offset_at(kafka, topic, partition, max(0, since_ms - _CLOCKS_MS))
        for message in read_to_end(kafka, topic, partition, first):
            try:
                yield msgspec.json.decode(message.value() or b"", type=CanaryMark)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # another producer's: its canaries are read again
