"""When a stage flushes. Pure: how much time has passed comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_WAITING_ROWS = 1_000_000
"""Rows that may wait for their flush before the agent stops taking more."""
# Input without rows (heartbeats) needs no transaction of its own; now and then it moves the fence on.
_HEARTBEATS = 200


@dataclass(frozen=True)
class Waiting:
    """What a flush would make durable."""

    rows: int
    corrects: bool
    """Whether some of the rows may change windows that are shown as closed."""
    crosses_end: bool
    """Whether the closing watermark has crossed the end of a window."""
    messages: int
    behind_ms: int
    """How old the newest block was when it was read."""
    is_ingest_behind: bool = False
    """Whether more events were waiting for ingest when it wrote that block."""
    has_canary: bool = False
    """Whether a canary has come since the last flush."""


class FlushPolicy(Protocol):
    """Decides on the flushes of a stage.

    A flush costs some milliseconds however little is in it. So a worker makes only so many a second, and the more partitions it owns,
    the longer each of them waits for its next one.
    """

    @property
    def looks_at_clock(self) -> bool:
        """Whether silence may move the closing watermark on."""

    def is_due(self, waiting: Waiting, now_s: float, since_s: float, partitions: int) -> bool:
        """Whether to flush now, so long after the last flush began. `now_s`: by a clock that all partitions share; `partitions`: how many of
        the stage the worker owns."""


@dataclass(frozen=True)
class Fresh:
    """Minutes: readers wait for them, so they are flushed as soon as asked. While catching up none is fresh, and fewer and
    larger flushes cost less."""

    flushes_per_s: int = 64
    longest_wait_s: float = 1.0
    behind_ms: int = 1_000
    behind_wait_s: float = 2.0
    behind_flushes_per_s: int = 2
    behind_rows: int = 4_000_000
    """That may wait in all partitions that the worker owns; each has its share, and a sixteenth at most."""
    canary_wait_s: float = 10.0
    """Of a canary that comes alone. The tier is told of it without a flush, too; but the next stage is not."""
    looks_at_clock: bool = True

    def is_due(self, waiting: Waiting, now_s: float, since_s: float, partitions: int) -> bool:
        """Whether to flush now, so long after the last flush began. `now_s`: by a clock that all partitions share; `partitions`: how many of
        the stage the worker owns."""
        if waiting.is_ingest_behind or waiting.behind_ms > self.behind_ms:
            wait_s = max(self.behind_wait_s, partitions / self.behind_flushes_per_s)
            if since_s < wait_s and waiting.rows < self.behind_rows // max(partitions, 16):
                return False
        elif since_s < min(self.longest_wait_s, (partitions - 1) / self.flushes_per_s):
            return False
        return _has_reason(waiting) or (waiting.has_canary and since_s >= self.canary_wait_s)


@dataclass(frozen=True)
class Patient:
    """Hours and days, which are shown at their close: the longer their flushes wait, the more rows meet in one. Readers wait for
    the end of a window, and for corrections of closed ones.

    The partitions of a worker flush in rounds: what they write to ClickHouse at the same time is one insert.
    """

    wait_s: float = 10.0
    correcting_wait_s: float = 1.5
    flushes_per_s: int = 4
    shift: float = 0.0
    """Of rounds, as a part of their length: stages of one worker take turns by it."""
    most_rows: int = MAX_WAITING_ROWS // 2
    looks_at_clock: bool = False

    def is_due(self, waiting: Waiting, now_s: float, since_s: float, partitions: int) -> bool:
        """Whether to flush now, so long after the last flush began. `now_s`: by a clock that all partitions share; `partitions`: how many of
        the stage the worker owns."""
        wait_s = max(self.correcting_wait_s if waiting.corrects else self.wait_s, partitions / self.flushes_per_s)
        has_round_begun = since_s > (now_s + self.shift * wait_s) % wait_s
        if not has_round_begun and waiting.rows < self.most_rows:
            return waiting.crosses_end
        return _has_reason(waiting) or waiting.has_canary


def _has_reason(waiting: Waiting) -> bool:
    return waiting.rows > 0 or waiting.crosses_end or waiting.messages > _HEARTBEATS
