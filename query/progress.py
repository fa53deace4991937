"""Whether the pipeline moves: what has stood still for a minute though there is something to do.

A process that hangs answers its probes, and one that is halted keeps what it published. So this goes by positions alone: offsets that the
groups of ingest and of the archive have committed, and the newest output of ingest that each shard of the stream shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from infra.errors import AdclickError
from infra.kafka import topics
from infra.kafka.stalls import PATIENCE_S, StallWatch, has_message
from infra.settings import Settings

Offsets = Mapping[str, Sequence[tuple[int, int]]]
"""Topic → position and last stable offset of each partition."""


class ProgressWatch:
    """Compares each look with those before; the first one can tell nothing. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        patience_s: float = PATIENCE_S,
        confirm_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        has_message: Callable[[str, int, int], bool] | None = None,
    ) -> None:
        """`has_message(topic, partition, offset)`: whether any message is there or later; where offsets end in markers of transactions, a
        position stays below the end."""
        of_topic = has_message or partial(_has_message, settings)
        self._lock = threading.Lock()
        self._topics = {
            settings.topic(name): StallWatch(
                partial(of_topic, settings.topic(name)), patience_s=patience_s, confirm_s=confirm_s, clock=clock
            )
            for name in (topics.EVENTS, topics.ARCHIVE)
        }
        # Each transaction of ingest reaches each shard, so whatever is newer than what a shard shows is something to do.
        self._shards = StallWatch(lambda _shard, _ms: True, patience_s=patience_s, confirm_s=confirm_s, clock=clock)

    def look(self, offsets: Offsets, shown_ms: Sequence[int | None], sent_ms: int) -> list[str]:
        """What stands still, in words. `shown_ms`: when ingest sent what each shard shows; `sent_ms`: when it last sent anything."""
        with self._lock:
            stalled = list[str]()
            for topic, partitions in offsets.items():
                positions = {p: position for p, (position, _) in enumerate(partitions)}
                ends = {p: end for p, (_, end) in enumerate(partitions)}
                stalled += [
                    f"{topic}/{p}: nothing is read from offset {positions[p]} on, and messages are there"
                    for p in _stalled(self._topics[topic], positions, ends)
                ]
            shards = {shard: ms for shard, ms in enumerate(shown_ms) if ms is not None}
            stalled += [
                f"stream shard {shard} shows nothing new, and ingest has sent more"
                for shard in _stalled(self._shards, shards, dict.fromkeys(shards, sent_ms))
            ]
            return stalled


def _stalled(watch: StallWatch, positions: Mapping[int, int], ends: Mapping[int, int]) -> list[int]:
    try:
        return watch.stalled(positions, ends)
    except AdclickError:  # Kafka is away: the status names it
        watch.begin_anew()
        return []


def _has_message(settings: Settings, topic: str, partition: int, offset: int) -> bool:
    return has_message(settings.kafka_connection, topic, partition, offset)
