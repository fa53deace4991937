"""When windows close: the closing watermark, over the verdict watermarks of all source partitions.

It is the minimum over the active partitions. When all are silent it moves on at the pace of the clock from where it
stood. It never goes back, never jumps to now, and does not start before every partition is known.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from ingest.blocks import SourceRange

# A window's state is kept until no accepted event can find it gone.
KEPT_AFTER_END_MS = HOUR_MS
GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}


class Source(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one source partition: the next offset, the verdict watermark, and whether it is silent."""

    next_offset: int
    watermark_ms: int | None
    silent: bool


class Closing(msgspec.Struct, frozen=True):
    """The closing watermark and what it was derived from. `silent_since_ms` is clock time."""

    sources: dict[int, Source] = {}
    closed_ms: int | None = None
    silent_since_ms: int | None = None
    silent_from_ms: int | None = None

    def see(self, ranges: Iterable[SourceRange]) -> Closing:
        """With newer news of some partitions; the watermark itself moves in `advance`."""
        sources = dict(self.sources)
        for r in ranges:
            sources[r.partition] = Source(r.to_offset, r.watermark_ms, r.silent)
        return msgspec.structs.replace(self, sources=sources)

    def advance(self, partitions: int, now_ms: int) -> Closing:
        """With the watermark as far as it may go; `partitions` is how many there are."""
        if len(self.sources) < partitions:
            return self
        active = [s.watermark_ms for s in self.sources.values() if not s.silent]
        if active:
            known = [w for w in active if w is not None]
            if len(known) < len(active):
                return msgspec.structs.replace(self, silent_since_ms=None, silent_from_ms=None)
            closed = min(known) if self.closed_ms is None else max(self.closed_ms, min(known))
            return msgspec.structs.replace(self, closed_ms=closed, silent_since_ms=None, silent_from_ms=None)
        if self.silent_since_ms is None or self.silent_from_ms is None:
            seen = [s.watermark_ms for s in self.sources.values() if s.watermark_ms is not None]
            start = self.closed_ms if self.closed_ms is not None else min(seen, default=None)
            return msgspec.structs.replace(self, closed_ms=start, silent_since_ms=now_ms, silent_from_ms=start)
        moved = self.silent_from_ms + max(0, now_ms - self.silent_since_ms)
        return msgspec.structs.replace(self, closed_ms=max(moved, self.closed_ms or moved))

    def droppable_ms(self, partitions: int) -> int | None:
        """Windows that end at or before this can get no accepted event any more; None while that is unknown."""
        marks = [s.watermark_ms for s in self.sources.values()]
        if len(marks) < partitions or any(m is None for m in marks):
            return None
        return min(m for m in marks if m is not None) - KEPT_AFTER_END_MS
