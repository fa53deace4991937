"""The durable state of one input partition of a stage: applied input in, flushes out, and what they made durable.

fold    merges the input since the flush before to a delta, and says what must be written
commit  it is in the log: move on, and say what the sinks must show
abort   it is not: its delta belongs to the next flush

Used by one thread only, that of the flush: one call after the other. What leaves it (Flush, Publication, Durable) never changes. Pure:
no threads, no clock, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from infra.clock import MINUTE_MS
from infra.errors import CorruptLog
from ingest import blocks, partials
from ingest.partials import WINDOW, Partials
from stream import chunks
from stream.chunks import CHANGED, ChunkHeader, Sent
from stream.closed_rows import ClosedRows
from stream.closing import Closing, Upstream
from stream.intake import Applied, Durable
from stream.published import Publication
from stream.window import MERGE_PIECES, Window, by_window

# A state log is rewritten when what came since the last base outweighs the base: amortised, each row twice.
# Four million loose rows are 30 MB to read at a recovery.
COMPACT_ABOVE_ROWS = 4_000_000
# Open minutes gather what flushes bring, and are merged once they have closed.
_PIECES_OF_A_MINUTE = 1_000
_ADDED_UP = (*partials.KEYS, *partials.SUMS)


@dataclass(frozen=True)
class Flush:
    """What a flush writes. `delta` goes to the next stage; `state` with the keys in `tombstones` to the log; `closed_rows`, where there
    are any to be sent, to insights."""

    header: ChunkHeader
    delta: Partials
    state: Partials
    state_header: ChunkHeader
    tombstones: list[bytes]
    dropped: list[int]
    """Windows that are held no longer once this is durable."""
    sent_ms: int
    closed_rows: Partials | None = None
    closed_from: int = 0
    """The input offset at which the closed rows that were sent before ended."""


class StageState:
    """State of a stage for one input partition. `grain_ms` is the stage's window."""

    def __init__(
        self,
        grain_ms: int,
        source_partitions: int,
        compact_above_rows: int = COMPACT_ABOVE_ROWS,
        *,
        shard: int = 0,
        sends_closed: bool = False,
    ) -> None:
        """`shard`: the number of this partition, for what the next stage reads; `sends_closed`: whether insights gets what has closed."""
        self.grain_ms, self._sources, self._shard = grain_ms, source_partitions, shard
        self._compact_above_rows = compact_above_rows
        self.windows: dict[int, Window] = {}
        self.too_old = 0
        """Rows that came for windows that are held no longer."""
        self.sequence = 0
        """How many flushes are durable."""
        self._dropped_ms = 0
        """Windows that end at or before this are held no longer."""
        self._next_message = 0
        self._closing = Closing()
        self._upstream: dict[int, Upstream] = {}
        self._sent_ms = 0
        self._returned: Partials | None = None
        """The delta of a flush that did not happen: part of the next one."""
        self._log: dict[bytes, int] = {}
        """Keys alive in the state log → the end of the newest window in them, 0 where they have no rows."""
        self._base_rows = self._loose_rows = 0
        self._closed_rows = ClosedRows(grain_ms) if sends_closed else None

    @property
    def durable(self) -> Durable:
        """Where the log stands, for the input."""
        returned = 0 if self._returned is None else len(self._returned)
        return Durable(self._next_message, self._closing, self._upstream, self._sent_ms, returned)

    # -- flush ----------------------------------------------------------------------------------------------

    def fold(self, applied: Applied) -> Flush:
        """What to write of the input since the flush before. No row changes, only the count of those that are too old; windows may
        be merged."""
        returned = [] if self._returned is None else [self._returned]
        rows = partials.widened(Partials.joined([*returned, *applied.rows]), self.grain_ms)
        # By the watermarks of the flush before: rows of this very delta may still belong to windows that only its
        # own watermarks make droppable.
        droppable = max(self._dropped_ms, self._closing.droppable_ms(self._sources))
        delta = self._without_too_old(partials.merge_partials([rows]), droppable)
        closed_before = self._closing.closed_ms
        late = delta[WINDOW] + self.grain_ms <= (-(2**62) if closed_before is None else closed_before)
        delta = delta.with_column(CHANGED, late.astype(np.uint8))
        dropped = [w for w in self.windows if w + self.grain_ms <= droppable]
        header = ChunkHeader(
            version=chunks.SCHEMA_VERSION,
            shard=self._shard,
            sequence=self.sequence + 1,
            from_offset=self._next_message,
            to_offset=applied.to_offset,
            closing=applied.closing,
            closed_before_ms=closed_before,
            dropped_ms=droppable,
            upstream=applied.upstream,
        )
        compacts = self._is_large(len(delta))
        tombstones = [key for key, end in self._log.items() if compacts or end <= droppable]
        # A chunk without rows, as a canary brings about, marks none as late.
        closed_rows, sent = self._to_send(delta, header, any(self._log[key] for key in tombstones))
        header = msgspec.structs.replace(header, sent=sent)
        return Flush(
            header,
            delta,
            state=self._all_rows(dropped, delta) if compacts else delta,
            state_header=msgspec.structs.replace(header, base=True) if compacts else header,
            tombstones=tombstones,
            dropped=dropped,
            sent_ms=applied.sent_ms,
            closed_rows=closed_rows,
            closed_from=self._sent.to_offset,
        )

    @property
    def _sent(self) -> Sent:
        return Sent(0, 0) if self._closed_rows is None else self._closed_rows.sent

    def may_compact(self, rows: int) -> bool:
        """Whether a flush of so many rows may write all that is held anew, which takes long."""
        returned = 0 if self._returned is None else len(self._returned)
        return self._is_large(rows + returned)

    def _is_large(self, rows: int) -> bool:
        return self._loose_rows + rows > max(self._compact_above_rows, 2 * self._base_rows)

    def _to_send(self, delta: Partials, header: ChunkHeader, forgets: bool) -> tuple[Partials | None, Sent]:
        """What to send to insights with a flush, and up to where all is sent after it."""
        if self._closed_rows is None:
            return None, self._sent
        rows = self._closed_rows.due(self.windows, delta, header, forgets=forgets)
        return rows, self._sent if rows is None else Sent(header.sequence, header.to_offset)

    def _without_too_old(self, rows: Partials, droppable_ms: int) -> Partials:
        """Rows of windows that are held after this flush. One of a window that is gone would be shown as all of it."""
        old = rows[WINDOW] + self.grain_ms <= droppable_ms
        if not droppable_ms or not old.any():
            return rows
        self.too_old += int(old.sum())
        return rows.take(~old)

    def _all_rows(self, dropped: list[int], delta: Partials) -> Partials:
        """All rows that are held once `delta` is durable."""
        kept = self.windows.keys() - set(dropped)
        self.windows |= {start: self.windows[start].gathered() for start in kept}
        return partials.merge_partials(
            [*(self.windows[start].whole() for start in self.windows if start in kept), delta]
        )

    def abort(self, flush: Flush) -> None:
        """The flush did not happen: its delta belongs to the next one."""
        self._returned = flush.delta.only(_ADDED_UP) if len(flush.delta) else None

    def commit(self, flush: Flush) -> Publication:
        """The flush is durable: move on, and say what the sinks must show."""
        self._returned = None
        self._remember(flush.state, flush.state_header, flush.tombstones)
        for start in flush.dropped:
            del self.windows[start]
        before, after = self._closing.closed_ms, flush.header.closing.closed_ms
        self._stand_at(flush.header)
        self._sent_ms = flush.sent_ms
        if self._closed_rows is not None:
            self._closed_rows.commit(flush.delta, flush.header)
        touched = self._hold(flush.delta, _PIECES_OF_A_MINUTE if self.grain_ms == MINUTE_MS else MERGE_PIECES)
        closed = [w for w in self.windows if self._is_closed(w, after) and not self._is_closed(w, before)]
        return self._published(
            flush.delta,
            newly_closed=self._gather(closed),
            corrected=[self.windows[w] for w in touched if self._is_closed(w, before)],
            open_=[self.windows[w] for w in touched if not self._is_closed(w, after)],
        )

    def snapshot(self) -> Publication:
        """All that is durable: for a sink after a recovery, or one that lost what it was given."""
        closed = [w for w in self.windows if self._is_closed(w, self._closing.closed_ms)]
        still_open = [self.windows[w] for w in sorted(self.windows.keys() - set(closed))]
        return self._published(chunks.empty(), newly_closed=self._gather(closed), corrected=[], open_=still_open)

    def _published(
        self, delta: Partials, *, newly_closed: list[Window], corrected: list[Window], open_: list[Window]
    ) -> Publication:
        return Publication(
            sequence=self.sequence,
            closed_ms=self._closing.closed_ms,
            settled_ms=self._closing.droppable_ms(self._sources),
            dropped_ms=self._dropped_ms,
            sent_ms=self._sent_ms,
            delta=delta,
            newly_closed=tuple(newly_closed),
            corrected=tuple(corrected),
            open=tuple(open_),
            newest_ms=max(self.windows, default=None),
            canaries=self._closing.canaries(),
        )

    def _gather(self, starts: list[int]) -> list[Window]:
        """Make windows one piece each. The state shares them with the sinks: whichever merges one first does so for both."""
        self.windows |= {start: self.windows[start].gathered() for start in starts}
        return [self.windows[start] for start in starts]

    def _is_closed(self, start: int, closed_ms: int | None) -> bool:
        return closed_ms is not None and start + self.grain_ms <= closed_ms

    def _stand_at(self, header: ChunkHeader) -> None:
        self.sequence, self._next_message = header.sequence, header.to_offset
        self._closing, self._dropped_ms, self._upstream = header.closing, header.dropped_ms, header.upstream

    def _hold(self, rows: Partials, merge_pieces: int) -> list[int]:
        """Add rows to their windows; returns these, in order."""
        pieces = by_window(partials.ordered(rows))
        for start, piece in pieces.items():
            self.windows[start] = self.windows.get(start, Window(start)).with_rows(piece, merge_pieces)
        return list(pieces)

    def _remember(self, rows: Partials, header: ChunkHeader, tombstones: list[bytes]) -> None:
        """Keep account of what is in the log."""
        for key in tombstones:
            self._log.pop(key, None)
        newest = self._end_of(rows)
        for part in range(blocks.part_count(len(rows))):
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
        messages = sorted(((*chunks.decode(v, where), k) for k, v in log), key=lambda c: (c[1].sequence, c[1].part))
        # A base stands for all before it. Where a reader was so slow that the log was compacted between its reads, a chunk may be
        # left of which the tombstone is gone.
        base = max((header.sequence for _, header, _ in messages if header.base), default=0)
        last: ChunkHeader | None = None
        for rows, header, key in messages:
            if header.sequence < base:
                continue
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
        if last is not None:
            self._stand_at(last)
            for start in [w for w in self.windows if w + self.grain_ms <= self._dropped_ms]:
                del self.windows[start]
            if self._closed_rows is not None:
                self._closed_rows.restore(((rows, header) for rows, header, _ in messages), last)
