"""Rows for a reader that needs windows only once they have closed: all of a window when it closes, and what comes later at the next close.

So it gets a message a window and shard, however often the stage flushes. What came late and was not sent yet is found again in the state
log: those rows are marked there. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ingest import partials
from ingest.partials import WINDOW, Partials
from stream.chunks import CHANGED, ChunkHeader, Sent
from stream.window import Window

_ADDED_UP = (*partials.KEYS, *partials.SUMS)


class ClosedRows:
    """What was sent of a stage's windows, and what was not yet. `grain_ms` is the stage's window."""

    def __init__(self, grain_ms: int) -> None:
        self._grain_ms = grain_ms
        self._sent = Sent(0, 0)
        self._late: list[Partials] = []
        """Rows for windows that were sent before."""

    @property
    def sent(self) -> Sent:
        """Up to which flush all was sent."""
        return self._sent

    def due(
        self, windows: Mapping[int, Window], delta: Partials, header: ChunkHeader, *, forgets: bool
    ) -> Partials | None:
        """The rows to send with a flush of `delta`, or None where they can wait. `windows`: those of before; `forgets`: whether this flush
        removes chunks from the state log, after which marks of what is late are gone. A key may occur more than once."""
        before_ms, after_ms = header.closed_before_ms, header.closing.closed_ms
        closes = after_ms is not None and self._ends_by(before_ms) != self._ends_by(after_ms)
        if not closes and not forgets:
            return None
        late = [*self._late, *_marked(delta)]
        end = delta[WINDOW] + self._grain_ms
        closing = delta.take((end <= self._ends_by(after_ms)) & (end > self._ends_by(before_ms)))
        whole = [
            part
            for start, window in windows.items()
            if self._ends_by(before_ms) < start + self._grain_ms <= self._ends_by(after_ms)
            for part in window.parts
        ]
        return Partials.joined([rows.only(_ADDED_UP) for rows in (*whole, closing, *late) if len(rows)])

    def _ends_by(self, closed_ms: int | None) -> int:
        """The end of the newest window that is closed then."""
        return -(2**62) if closed_ms is None else closed_ms // self._grain_ms * self._grain_ms

    def commit(self, delta: Partials, header: ChunkHeader) -> None:
        """A flush is durable."""
        if header.sent == self._sent:
            self._late += _marked(delta)
        else:
            self._sent, self._late = header.sent, []

    def restore(self, chunks: Iterable[tuple[Partials, ChunkHeader]], last: ChunkHeader) -> None:
        """From the chunks of the state log, of which `last` is the newest."""
        self._sent = last.sent
        self._late = [late for rows, header in chunks if header.sequence > last.sent.sequence for late in _marked(rows)]


def _marked(rows: Partials) -> list[Partials]:
    """Those that came when their window was closed."""
    late = rows[CHANGED] > 0
    return [rows.take(np.flatnonzero(late)).only(_ADDED_UP)] if late.any() else []
