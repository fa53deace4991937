"""A source partition that a worker owns, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ingest.dedup.memory import PartitionMemory
from ingest.position import Position


@dataclass
class Partition:
    """A source partition that this worker owns. `position` only moves with a committed transaction."""

    position: Position
    memory: PartitionMemory
    active_at: float
    reads_from: int
    """Where reading began, as Kafka counts: beyond the position where a loss was accepted."""
    misdated: int = 0
    """Messages since the assignment whose timestamp cannot be true."""
    held_back: tuple[int, float] | None = None
    """The last stable offset where an open transaction ends reading, and since when (`time.monotonic`)."""

    @property
    def log_offset(self) -> int:
        """The next offset to read, as Kafka counts."""
        return max(self.position.log_offset, self.reads_from)

    def watch_transaction(self, stable_end: int, end: int, now_s: float) -> None:
        """Note since when an open transaction ends reading before the end of the log; `now_s` is of `time.monotonic`."""
        if stable_end >= end:
            self.held_back = None
        elif self.held_back is None or self.held_back[0] != stable_end:
            self.held_back = (stable_end, now_s)

    def report(self, end: int, now_s: float) -> dict[str, Any]:
        """For `status`."""
        found: dict[str, Any] = {
            "offset": self.position.offset, "watermark_ms": self.position.watermark, "misdated": self.misdated,
        }  # fmt: skip
        if self.held_back is not None:
            offset, since_s = self.held_back
            transaction = {"offset": offset, "messages": end - offset, "for_s": round(now_s - since_s, 1)}
            found["open_transaction"] = transaction
        return found
