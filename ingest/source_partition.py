"""A source partition that a worker owns: its position, its dedup ids, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ingest.blocks import SourceRange
from ingest.dedup.mirror import PartitionMirror
from ingest.poison import Poison
from ingest.position import Position


@dataclass
class SourcePartition:
    """`position` only moves with a committed transaction. Moments are of `time.monotonic`."""

    number: int
    position: Position
    mirror: PartitionMirror
    active_at_s: float
    """When messages of it, other than canaries, were committed last, or it was assigned."""
    reads_from: int
    """Where reading began, as Kafka counts: beyond the position where a loss was accepted."""
    misdated: int = 0
    """Messages since the assignment whose timestamp cannot be true."""
    open_transaction: tuple[int, float] | None = None
    """The last stable offset where an open transaction ends reading, and since when."""
    poison: Poison | None = None
    """What it stops before."""

    @property
    def log_offset(self) -> int:
        """The next offset to read, as Kafka counts."""
        return max(self.position.log_offset, self.reads_from)

    def is_silent(self, log_end: int, now_s: float, silent_after_ms: int, after: Position | None = None) -> bool:
        """Whether it is at its end, and either without any valid event so far or without a message for a while. Canaries are no messages
        here. `after`: the position behind canaries that have just come, where these are all that has.

        What lies behind an open transaction is not the end: it may be of any minute that is still open. `log_end` is negative
        before it is known.
        """
        log_offset = self.log_offset if after is None else max(after.log_offset, self.reads_from)
        if log_end < 0 or log_offset < log_end:
            return False
        return self.position.watermark is None or (now_s - self.active_at_s) * 1000 >= silent_after_ms

    def idle_range(self, silent: bool) -> SourceRange:
        """What a transaction without messages of this partition accounts for."""
        at = self.position
        return SourceRange(self.number, at.offset, at.offset, at.watermark, silent, at.canary_ms)

    def range_to(self, after: Position, silent: bool = False) -> SourceRange:
        """What a transaction accounts for that takes the partition to a new position. `silent`: it was silent before, and only canaries
        have come."""
        return SourceRange(self.number, self.position.offset, after.offset, after.watermark, silent, after.canary_ms)

    def watch_transaction(self, stable_end: int, end: int, now_s: float) -> None:
        """Remember since when an open transaction ends reading before the end of the log."""
        if stable_end >= end:
            self.open_transaction = None
        elif self.open_transaction is None or self.open_transaction[0] != stable_end:
            self.open_transaction = (stable_end, now_s)

    def report(self, end: int, now_s: float) -> dict[str, Any]:
        """The partition's part of the worker's status; `end` is that of its log."""
        fields: dict[str, Any] = {
            "offset": self.position.offset, "watermark_ms": self.position.watermark, "misdated": self.misdated,
        }  # fmt: skip
        if self.open_transaction is not None:
            offset, since_s = self.open_transaction
            fields["open_transaction"] = {
                "offset": offset, "messages": end - offset, "for_s": round(now_s - since_s, 1),
            }  # fmt: skip
        if self.poison is not None:
            fields["poison"] = self.poison.report()
        return fields
