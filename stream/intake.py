"""The input of one partition of a stage: checks that it is complete, and gathers its rows until a flush takes them.

Used by the input's thread only. `take` hands a flush all that it needs, as a value; `settle` gets back where the log stands when
the flush has ended. Pure: no threads, no clock, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from infra.errors import CorruptLog
from ingest import blocks, partials
from ingest.blocks import BlockHeader
from ingest.canary.arrivals import Canaries
from ingest.partials import WINDOW, Partials
from stream.chunks import ChunkHeader
from stream.closing import Closing, Upstream
from stream.flush_policy import Waiting


@dataclass(frozen=True)
class Applied:
    """The input since the flush before: its rows, and how far it reaches."""

    rows: tuple[Partials, ...]
    closing: Closing
    to_offset: int
    upstream: dict[int, Upstream]
    sent_ms: int


@dataclass(frozen=True)
class Durable:
    """Where the log of a partition stands."""

    next_message: int = 0
    closing: Closing = Closing()  # noqa: RUF009 - frozen
    upstream: dict[int, Upstream] = field(default_factory=dict)
    sent_ms: int = 0
    """When the newest block was sent that the log contains; 0 for none since a recovery."""
    returned_rows: int = 0
    """Rows of a flush that did not happen, which the next one takes along."""


class Intake:
    """Input of one partition from where the log stands."""

    def __init__(self, grain_ms: int, source_partitions: int, durable: Durable, *, shards: int = 1) -> None:
        """`grain_ms` is the stage's window; `shards`: how many of the stage before write to this partition."""
        self._grain_ms, self._sources, self._shards = grain_ms, source_partitions, shards
        self.next_message = durable.next_message
        """Offset of the next input message: the fence."""
        self.closing = durable.closing
        self.newest_sent_ms = 0
        """When the newest block applied was sent."""
        self._behind_ms, self._is_ingest_behind = 0, False
        """How old that block was when it was read. What merely waits for its flush gets no older."""
        self._durable = durable
        self._upstream = durable.upstream
        self._parts: dict[int, int] = {}
        """Shard → the part that comes next, of messages that lack parts."""
        self._flushing = self._has_canary = False
        self._rows: list[Partials] = []
        self._row_count = 0
        self._oldest_ms: int | None = None

    def apply_block(self, offset: int, rows: Partials, header: BlockHeader, where: str, now_ms: int = 0) -> None:
        """Take a block of partials (minute stage) that was read at `now_ms`. Raises CorruptLog when its ranges do not tile."""
        self._check_part(0, header, where)
        if header.part == 0:
            for r in header.ranges:
                known = self.closing.sources.get(r.partition)
                blocks.check_tiles(known.next_offset if known else None, r, where)
                self._has_canary |= r.canary_ms != (known.canary_ms if known else 0)
        self._add(rows)
        self.newest_sent_ms = max(self.newest_sent_ms, header.sent_at_ms)
        self._behind_ms, self._is_ingest_behind = now_ms - self.newest_sent_ms, header.is_behind
        if header.part == header.parts - 1:
            self.closing = self.closing.see(header.ranges, self._sources)
        self.next_message = offset + 1

    def apply_chunk(self, offset: int, rows: Partials, header: ChunkHeader, where: str) -> None:
        """Take a chunk of the stage before; those of several shards may come between each other's parts. Raises CorruptLog when the range
        does not tile with those of its shard."""
        self._check_part(header.shard, header, where)
        known = self._upstream.get(header.shard)
        if header.part == 0 and known is not None and header.from_offset != known.next_offset:
            raise CorruptLog(
                f"{where}: chunk of shard {header.shard} begins at {header.from_offset}, expected {known.next_offset}"
            )
        self._add(rows)
        if header.part == header.parts - 1:
            reached = Upstream(header.to_offset, header.closing.closed_ms, header.dropped_ms)
            self._upstream = {**self._upstream, header.shard: reached}
            closing = header.closing if self._shards == 1 else Closing.over(self._upstream, self._shards)
            self._has_canary |= closing.canaries() != self.closing.canaries()
            self.closing = closing
        self.next_message = offset + 1

    def _check_part(self, shard: int, header: BlockHeader | ChunkHeader, where: str) -> None:
        expected = self._parts.pop(shard, 0)
        if header.part != expected:
            raise CorruptLog(f"{where}: part {header.part} of a message in parts, expected part {expected}")
        if header.part + 1 < header.parts:
            self._parts[shard] = header.part + 1

    def _add(self, rows: Partials) -> None:
        if not len(rows):
            return
        self._rows.append(rows.only((*partials.KEYS, *partials.SUMS)))
        self._row_count += len(rows)
        oldest_ms = int(rows[WINDOW].min()) // self._grain_ms * self._grain_ms
        self._oldest_ms = oldest_ms if self._oldest_ms is None else min(self._oldest_ms, oldest_ms)

    @property
    def waiting_rows(self) -> int:
        """Rows that no flush has taken, or that came back from one."""
        return self._row_count + self._durable.returned_rows

    @property
    def may_flush(self) -> bool:
        """Whether no flush runs, and no message lacks parts."""
        return not self._flushing and not self._parts

    def tick(self, now_ms: int) -> None:
        """Let silence move the closing watermark on (the minute stage, which alone looks at the clock)."""
        self.closing = self.closing.tick(self._sources, now_ms)

    def waiting(self) -> Waiting:
        """What a flush would make durable."""
        before_ms, after_ms = self._durable.closing.closed_ms, self.closing.closed_ms
        return Waiting(
            rows=self.waiting_rows,
            corrects=self._durable.returned_rows > 0 or self._is_closed(self._oldest_ms, before_ms),
            crosses_end=after_ms is not None
            and (before_ms is None or before_ms // self._grain_ms != after_ms // self._grain_ms),
            messages=self.next_message - self._durable.next_message,
            behind_ms=self._behind_ms,
            is_ingest_behind=self._is_ingest_behind,
            has_canary=self._has_canary,
        )

    def _is_closed(self, start_ms: int | None, closed_ms: int | None) -> bool:
        return start_ms is not None and closed_ms is not None and start_ms + self._grain_ms <= closed_ms

    def take(self) -> Applied:
        """Hand what has come since the last flush to the next one. One flush at a time."""
        assert self.may_flush
        applied = Applied(tuple(self._rows), self.closing, self.next_message, self._upstream, self.newest_sent_ms)
        self._rows, self._row_count, self._oldest_ms, self._flushing = [], 0, None, True
        self._has_canary = False
        self._durable = replace(self._durable, returned_rows=0)
        return applied

    def settle(self, durable: Durable) -> None:
        """A flush has ended: with this in the log, and what did not get there returned."""
        self._durable, self._flushing = durable, False

    @property
    def shown_sent_ms(self) -> int:
        """When the newest block was sent that has no row left to be made durable; 0 before the first since a recovery."""
        return self._durable.sent_ms if self._flushing or self.waiting_rows else self.newest_sent_ms

    @property
    def shown_canaries(self) -> Canaries:
        """The last canaries that have no row before them left to be made durable."""
        shown = self._durable.closing if self._flushing or self.waiting_rows else self.closing
        return shown.canaries()
