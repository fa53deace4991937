"""The state of one input partition of a stage. Pure: blocks and chunks in, flushes out, no Kafka, no clock.

apply_…  folds an input message into the delta, after checking that its ranges tile
begin_flush  takes away what was applied since the last one
flushing  folds that to the delta, and says what must be written
commit / abort  what becomes of it

All but `flushing`, `commit` and `abort` is called from one thread, the input's; these from the flush's. A field is written by one of
the two. They meet in `_taken`, which the input's thread sets and the flush's clears once all else is in place, and in `_returned`
the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from infra.clock import MINUTE_MS
from infra.errors import CorruptLog
from ingest import blocks, partials
from ingest.blocks import BlockHeader
from ingest.partials import WINDOW, Partials
from stream import chunks
from stream.chunks import CHANGED, ChunkHeader
from stream.held import MERGE_PIECES, Window, by_window
from stream.windows import Closing

# A state log is rewritten when what came since the last base outweighs the base: amortised, each row twice.
# Four million loose rows are 30 MB to read at a recovery.
_COMPACT_ROWS = 4_000_000
# Open minutes gather what flushes bring, and are merged once they have closed.
_PIECES_OF_A_MINUTE = 1_000


@dataclass(frozen=True)
class Flush:
    """What a flush writes. `delta` goes to the next stage; `state` with the keys in `tombstones` to the log."""

    header: ChunkHeader
    delta: Partials
    state: Partials
    state_header: ChunkHeader
    tombstones: list[bytes]
    dropped: list[int]
    sent_ms: int


@dataclass(frozen=True)
class _Taken:
    """What was applied since the flush before, and how far that reaches."""

    pending: list[Partials]
    closing: Closing
    to_offset: int
    upstream_next: int | None
    sent_ms: int


@dataclass(frozen=True)
class Changes:
    """What became durable with a flush, for the sinks."""

    sequence: int
    closed_ms: int | None
    settled_ms: int
    """No event can change windows any more that end at or before this."""
    delta: Partials
    newly_closed: list[int]
    corrected: list[int]
    open: list[int]


class StageState:
    """State of a stage for one input partition. `grain_ms` is the stage's window."""

    def __init__(self, grain_ms: int, source_partitions: int) -> None:
        self.grain_ms, self._sources = grain_ms, source_partitions
        self.next_message = 0
        """Offset of the next input message: the fence."""
        self.closing = Closing()
        self.windows: dict[int, Window] = {}
        self.dropped_ms = 0
        """Windows that end at or before this are gone; what still comes for them is counted in `too_old`."""
        self.too_old = 0
        self.newest_sent_ms = 0
        """When the newest block applied was sent."""
        self._durable_sent_ms = 0
        self._sequence = 0
        self._durable_next = 0
        self._durable_closing = Closing()
        self._upstream_next: int | None = None
        self._pending: list[Partials] = []
        self._pending_rows = 0
        self._pending_corrects = False
        self._returned: Partials | None = None
        """The delta of a flush that did not happen: part of the next one."""
        self._part = 0
        self._log: dict[bytes, int] = {}
        """Keys alive in the state log → the end of the newest window in them."""
        self._base_rows = self._loose_rows = 0
        self._tombstones: list[bytes] = []
        self._taken: _Taken | None = None
        self._flushing: Flush | None = None

    # -- input ----------------------------------------------------------------------------------------------

    def apply_block(self, offset: int, rows: Partials, header: BlockHeader, where: str) -> None:
        """Fold a block of partials (minute stage). Raises CorruptLog when its ranges do not tile."""
        self._check_part(header.part, where)
        if header.part == 0:
            for r in header.ranges:
                known = self.closing.sources.get(r.partition)
                blocks.check_tiles(known.next_offset if known else None, r, where)
        self._take(rows)
        self.newest_sent_ms = max(self.newest_sent_ms, header.sent_at_ms)
        if header.part == header.parts - 1:
            self.closing = self.closing.see(header.ranges, self._sources)
        self._part = (header.part + 1) % header.parts
        self.next_message = offset + 1

    def apply_chunk(self, offset: int, rows: Partials, header: ChunkHeader, where: str) -> None:
        """Fold a chunk of the stage before. Raises CorruptLog when its range does not tile."""
        self._check_part(header.part, where)
        if header.part == 0 and self._upstream_next is not None and header.from_offset != self._upstream_next:
            raise CorruptLog(f"{where}: chunk begins at {header.from_offset}, expected {self._upstream_next}")
        self._take(rows)
        if header.part == header.parts - 1:
            self._upstream_next = header.to_offset
            self.closing = header.closing
        self._part = (header.part + 1) % header.parts
        self.next_message = offset + 1

    def _check_part(self, part: int, where: str) -> None:
        if part != self._part:
            raise CorruptLog(f"{where}: part {part} of a message in parts, expected part {self._part}")

    def _take(self, rows: Partials) -> None:
        if not len(rows):
            return
        rows = rows.only((*partials.KEYS, *partials.SUMS))
        self._pending.append(rows)
        self._pending_rows += len(rows)
        oldest = int(rows[WINDOW].min()) // self.grain_ms * self.grain_ms
        self._pending_corrects |= self._is_closed(oldest, self._durable_closing.closed_ms)

    @property
    def pending_rows(self) -> int:
        """Rows applied but not yet being flushed."""
        returned = self._returned
        return self._pending_rows + (0 if returned is None else len(returned))

    @property
    def corrects(self) -> bool:
        """Whether pending rows may change windows that are shown as closed."""
        return self._pending_corrects or self._returned is not None

    # -- flush ----------------------------------------------------------------------------------------------

    def flush_due(self, now_ms: int, *, clock: bool, patient: bool = False) -> bool:
        """Whether there is anything to make durable: rows, or a closing watermark that crossed a window's end.

        With `clock`, silence may move the watermark on first (the minute stage, which alone looks at the clock). `patient`: rows
        may wait for more, but not the end of an hour or a day.
        """
        if self._part or self._taken is not None:
            return False
        if clock:
            self.closing = self.closing.tick(self._sources, now_ms)
        before, after = self._durable_closing.closed_ms, self.closing.closed_ms
        crossed = after is not None and (before is None or before // self.grain_ms != after // self.grain_ms)
        if patient:
            return crossed and not clock
        if self._pending or self._returned is not None or crossed:
            return True
        # Input without rows (heartbeats) needs no transaction of its own; now and then it moves the fence on.
        return self.next_message - self._durable_next > 200

    def begin_flush(self) -> None:
        """Take what was applied since the last flush. One flush at a time."""
        assert self._taken is None
        returned = [] if self._returned is None else [self._returned]
        pending = [*returned, *self._pending]
        self._taken = _Taken(pending, self.closing, self.next_message, self._upstream_next, self.newest_sent_ms)
        self._pending, self._pending_rows, self._pending_corrects, self._returned = [], 0, False, None

    @property
    def flushing(self) -> Flush:
        """The flush that was begun and not settled. Its rows are folded when this is first asked for."""
        if self._flushing is None:
            assert self._taken is not None
            self._flushing = self._fold(self._taken)
        return self._flushing

    def _fold(self, taken: _Taken) -> Flush:
        delta = self._without_too_old(partials.merge([partials.widened(Partials.joined(taken.pending), self.grain_ms)]))
        closed_before = self._durable_closing.closed_ms
        late = delta[WINDOW] + self.grain_ms <= (-(2**62) if closed_before is None else closed_before)
        delta = delta.with_column(CHANGED, late.astype(np.uint8))
        # By the watermarks of the flush before: rows of this very delta may still belong to windows that only its
        # own watermarks make droppable.
        droppable = max(self.dropped_ms, self._durable_closing.droppable_ms(self._sources))
        dropped = [w for w in self.windows if w + self.grain_ms <= droppable]
        header = ChunkHeader(
            version=chunks.SCHEMA_VERSION,
            sequence=self._sequence + 1,
            from_offset=self._durable_next,
            to_offset=taken.to_offset,
            closing=taken.closing,
            closed_before_ms=closed_before,
            dropped_ms=droppable,
            upstream_next=taken.upstream_next,
        )
        state, state_header = delta, header
        tombstones = [key for key, end in self._log.items() if end <= droppable]
        if self._loose_rows + len(delta) > max(_COMPACT_ROWS, 2 * self._base_rows):
            gone = set(dropped)
            state = partials.merge([*(w.whole() for start, w in self.windows.items() if start not in gone), delta])
            state_header = msgspec.structs.replace(header, base=True)
            tombstones = list(self._log)
        return Flush(header, delta, state, state_header, tombstones, dropped, taken.sent_ms)

    def _without_too_old(self, rows: Partials) -> Partials:
        """Rows of windows that are still held. One of a window that is gone would be shown as all of it."""
        old = rows[WINDOW] + self.grain_ms <= self.dropped_ms
        if not self.dropped_ms or not old.any():
            return rows
        self.too_old += int(old.sum())
        return rows.take(~old)

    def abort(self) -> None:
        """The flush did not happen: its delta belongs to the next one."""
        delta = self.flushing.delta
        if len(delta):
            self._returned = delta.only((*partials.KEYS, *partials.SUMS))
        self._flushing = None
        self._taken = None

    def commit(self) -> Changes:
        """The flush is durable: move on, and say what the sinks must show."""
        flush = self.flushing
        self._remember(flush.state, flush.state_header, flush.tombstones)
        for start in flush.dropped:
            del self.windows[start]
        self.dropped_ms = flush.header.dropped_ms
        self._durable_next = flush.header.to_offset
        self._sequence = flush.header.sequence
        before, after = self._durable_closing.closed_ms, flush.header.closing.closed_ms
        self._durable_closing, self._durable_sent_ms = flush.header.closing, flush.sent_ms
        touched = self._hold(flush.delta, _PIECES_OF_A_MINUTE if self.grain_ms == MINUTE_MS else MERGE_PIECES)
        self._flushing = None
        self._taken = None
        return Changes(
            sequence=self._sequence,
            closed_ms=after,
            settled_ms=self._durable_closing.droppable_ms(self._sources),
            delta=flush.delta,
            newly_closed=[w for w in self.windows if self._is_closed(w, after) and not self._is_closed(w, before)],
            corrected=[w for w in touched if self._is_closed(w, before)],
            open=[w for w in touched if not self._is_closed(w, after)],
        )

    def _is_closed(self, start: int, closed_ms: int | None) -> bool:
        return closed_ms is not None and start + self.grain_ms <= closed_ms

    def _hold(self, rows: Partials, merge_pieces: int) -> list[int]:
        pieces = by_window(partials.ordered(rows))
        for start, piece in pieces.items():
            if start not in self.windows:
                self.windows[start] = Window(start)
            self.windows[start].add(piece, merge_pieces)
        return list(pieces)

    def _remember(self, rows: Partials, header: ChunkHeader, tombstones: list[bytes]) -> None:
        for key in tombstones:
            self._log.pop(key, None)
        newest = self._end_of(rows)
        for part in range(blocks.parts_of(len(rows))):
            self._log[chunks.key(header, part)] = newest
        if header.base:
            self._base_rows, self._loose_rows = len(rows), 0
        else:
            self._loose_rows += len(rows)

    def _end_of(self, rows: Partials) -> int:
        """The end of the newest window."""
        return int(rows[WINDOW].max()) + self.grain_ms if len(rows) else 0

    # -- recovery -------------------------------------------------------------------------------------------

    def restore(self, log: list[tuple[bytes, bytes]], where: str) -> None:
        """Rebuild from the live (key, value) messages of the state log. Raises CorruptLog when ranges do not tile."""
        found = sorted(((*chunks.decode(v, where), k) for k, v in log), key=lambda c: (c[1].sequence, c[1].part))
        # A base stands for all before it. Where a reader was so slow that the log was compacted between its reads, a chunk may be
        # left of which the tombstone is gone.
        base = max((header.sequence for _, header, _ in found if header.base), default=0)
        found = [entry for entry in found if entry[1].sequence >= base]
        last: ChunkHeader | None = None
        for rows, header, key in found:
            if last is not None and header.part == 0 and not header.base and header.from_offset < last.to_offset:
                raise CorruptLog(
                    f"{where}: chunk [{header.from_offset}, {header.to_offset}) overlaps offset {last.to_offset}"
                )
            self._hold(rows, MERGE_PIECES)
            self._log[key] = self._end_of(rows)
            if header.base:
                self._base_rows += len(rows)
            else:
                self._loose_rows += len(rows)
            last = header
        if last is None:
            return
        self.next_message = self._durable_next = last.to_offset
        self.closing = self._durable_closing = last.closing
        self.dropped_ms, self._sequence, self._upstream_next = (
            last.dropped_ms,
            last.sequence,
            last.upstream_next,
        )
        for start in [w for w in self.windows if w + self.grain_ms <= self.dropped_ms]:
            del self.windows[start]

    @property
    def sequence(self) -> int:
        """How many flushes are durable."""
        return self._sequence

    @property
    def shown_sent_ms(self) -> int:
        """When the newest block was sent that has no row left to be made durable; 0 before the first since a recovery."""
        # Read before the rows are looked for: what is applied meanwhile is newer.
        newest = self.newest_sent_ms
        waits = self._pending or self._returned is not None or self._taken is not None
        return self._durable_sent_ms if waits else newest

    @property
    def durable_closed_ms(self) -> int | None:
        """The closing watermark as it is in the log."""
        return self._durable_closing.closed_ms

    def corrections(self, changes: Changes, *, whole: bool) -> list[Partials]:
        """For each corrected window, all its rows of the campaigns that changed; `whole`: one for each key."""
        window, campaign = changes.delta[WINDOW], changes.delta["campaign_id"]
        starts, stops = (np.searchsorted(window, changes.corrected, side) for side in ("left", "right"))
        return [
            self.windows[w].of(np.unique(campaign[start:stop]).astype(np.int64), whole=whole)
            for w, start, stop in zip(changes.corrected, starts.tolist(), stops.tolist(), strict=True)
        ]

    def everything(self) -> Changes:
        """All that is held, as if it had just become durable: for a sink that lost its memory."""
        closed_ms = self._durable_closing.closed_ms
        closed = [w for w in self.windows if self._is_closed(w, closed_ms)]
        still_open = sorted(set(self.windows) - set(closed))
        delta = Partials.joined([chunks.empty(), *(self.windows[w].whole() for w in still_open)])
        settled_ms = self._durable_closing.droppable_ms(self._sources)
        return Changes(self._sequence, closed_ms, settled_ms, delta, closed, [], still_open)
