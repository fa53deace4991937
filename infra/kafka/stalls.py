"""Notices that messages are there and nothing takes them: a client that hangs looks like one that has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from infra.kafka.connection import Connection
from infra.kafka.consumers import read_to_end

PATIENCE_S = 45.0
"""How long a partition may stand still before it is looked at."""
# And how long with a message: what was there until then may have been markers of transactions alone.
_CONFIRM_S = 10.0


def has_message(kafka: Connection, topic: str, partition: int, offset: int) -> bool:
    """Whether any committed message is at or after an offset: what follows may be markers of transactions alone. Raises Unavailable."""
    return next(iter(read_to_end(kafka, topic, partition, offset)), None) is not None


class StallWatch:
    """Watches how far the partitions of a topic were read. Not thread-safe."""

    def __init__(
        self,
        has_message: Callable[[int, int], bool],
        patience_s: float = PATIENCE_S,
        confirm_s: float = _CONFIRM_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`has_message(partition, offset)`: see above. `confirm_s`: for how long a message that was seen must have been left alone: it may
        have come a moment before."""
        self._has_message, self._patience_s, self._confirm_s, self._clock = has_message, patience_s, confirm_s, clock
        self._since: dict[int, tuple[int, float]] = {}
        """Partition → where it stands, and since when something may be there to read."""
        self._empty: dict[int, tuple[int, int]] = {}
        """Partition → offsets between which there is no message."""
        self._left_alone: dict[int, tuple[int, float]] = {}
        """Partition → where it stands, and when a message was first seen there."""

    def begin_anew(self) -> None:
        """Forget since when partitions stand still, as after a broker was away."""
        self._since.clear()
        self._left_alone.clear()

    def stalled(self, positions: Mapping[int, int], ends: Mapping[int, int]) -> list[int]:
        """The partitions that have stood still for long though there is a message to read. `positions`: the next offset of each, of all that
        are read; `ends`: the last stable offsets. Raises Unavailable."""
        now = self._clock()
        former, self._since = self._since, {}
        return [
            p for p, position in positions.items() if self._is_stalled(p, position, ends.get(p, position), former, now)
        ]

    def _is_stalled(
        self, partition: int, position: int, end: int, former: Mapping[int, tuple[int, float]], now: float
    ) -> bool:
        stood_at, since = former.get(partition, (None, now))
        nothing_there = position >= end or self._empty.get(partition) == (position, end)
        self._since[partition] = (position, now if nothing_there or stood_at != position else since)
        if nothing_there or now - self._since[partition][1] < self._patience_s:
            return False
        if not self._has_message(partition, position):
            self._empty[partition] = position, end
            return False
        left_alone_at, seen_at = self._left_alone.get(partition, (None, now))
        if left_alone_at != position:
            seen_at = now
            self._left_alone[partition] = position, now
        return now - seen_at >= self._confirm_s
