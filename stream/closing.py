"""When windows close: the closing watermark, over the verdict watermarks of all source partitions.

It is the minimum over the active partitions, taken at every block: how blocks are bundled into flushes changes
nothing. When all are silent it moves on at the pace of the clock from where it stood. It never goes back, never jumps
to now, and does not start before every partition is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.structs import decodable
from ingest.blocks import SourceRange
from ingest.canary.arrivals import Canaries

# A window's state is kept until no accepted event can find it gone.
KEPT_AFTER_END_MS = HOUR_MS
# A partition that never speaks again must not keep all state for ever.
KEPT_AFTER_CLOSE_MS = DAY_MS
GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}


@decodable
class Source(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one source partition: the next offset, the verdict watermark, whether it is silent, and its last canary."""

    next_offset: int
    watermark_ms: int | None
    silent: bool
    canary_ms: int = 0
    """When the last canary of it was sent; 0 where there was none."""


@decodable
class Upstream(msgspec.Struct, frozen=True, array_like=True):
    """How far a shard of the stage before has come: where its next chunk begins, its closing watermark, and up to where it has dropped its
    windows, of which no more rows come then."""

    next_offset: int
    closed_ms: int | None
    dropped_ms: int


@decodable
class Closing(msgspec.Struct, frozen=True):
    """The closing watermark and what it was derived from. `silent_since_ms` and `noted_at_ms` are clock times."""

    sources: dict[int, Source] = {}
    closed_ms: int | None = None
    silent_since_ms: int | None = None
    silent_from_ms: int | None = None
    noted_at_ms: int | None = None
    noted_ms: int = 0
    """Where the closing watermark was at `noted_at_ms`."""
    aged_ms: int = 0
    """Where it was a day ago or earlier. Of several shards: up to where all have dropped their windows."""

    @classmethod
    def over(cls, shards: Mapping[int, Upstream], count: int) -> Closing:
        """That of the next stage over all the `count` shards: a window closes once each of them has closed it."""
        marks = [s.closed_ms for s in shards.values() if s.closed_ms is not None]
        if len(marks) < count:
            return cls()
        return cls(closed_ms=min(marks), aged_ms=min(s.dropped_ms for s in shards.values()))

    def canaries(self) -> Canaries:
        """The last canaries of the source partitions."""
        return Canaries.of(source.canary_ms for source in self.sources.values())

    def see(self, ranges: Iterable[SourceRange], partitions: int) -> Closing:
        """After a block: newer news of some of the `partitions` there are, and the minimum over the active ones."""
        sources = dict(self.sources)
        for r in ranges:
            sources[r.partition] = Source(r.to_offset, r.watermark_ms, r.silent, r.canary_ms)
        marks = [s.watermark_ms for s in sources.values() if not s.silent]
        known = [m for m in marks if m is not None]
        if not marks or len(sources) < partitions:
            return msgspec.structs.replace(self, sources=sources)
        closed = self.closed_ms
        if len(known) == len(marks):
            closed = min(known) if closed is None else max(closed, min(known))
        return msgspec.structs.replace(
            self, sources=sources, closed_ms=closed, silent_since_ms=None, silent_from_ms=None
        )

    def tick(self, partitions: int, now_ms: int) -> Closing:
        """With the clock: windows age, and the watermark moves on while all partitions are silent."""
        return self._age(now_ms)._wait(partitions, now_ms)

    def _age(self, now_ms: int) -> Closing:
        if self.closed_ms is None:
            return self
        if self.noted_at_ms is None:
            return msgspec.structs.replace(self, noted_at_ms=now_ms, noted_ms=self.closed_ms)
        if now_ms - self.noted_at_ms < KEPT_AFTER_CLOSE_MS:
            return self
        return msgspec.structs.replace(self, aged_ms=self.noted_ms, noted_at_ms=now_ms, noted_ms=self.closed_ms)

    def _wait(self, partitions: int, now_ms: int) -> Closing:
        if len(self.sources) < partitions or not all(s.silent for s in self.sources.values()):
            return self
        if self.silent_since_ms is None or self.silent_from_ms is None:
            seen = [s.watermark_ms for s in self.sources.values() if s.watermark_ms is not None]
            start = self.closed_ms if self.closed_ms is not None else min(seen, default=None)
            return msgspec.structs.replace(self, closed_ms=start, silent_since_ms=now_ms, silent_from_ms=start)
        moved = self.silent_from_ms + max(0, now_ms - self.silent_since_ms)
        return msgspec.structs.replace(self, closed_ms=max(moved, self.closed_ms or moved))

    def droppable_ms(self, partitions: int) -> int:
        """Windows that end at or before this are closed, and can get no accepted event any more or are a day old."""
        marks = [s.watermark_ms for s in self.sources.values()]
        known = [m for m in marks if m is not None]
        if len(known) < max(partitions, len(marks)) or self.closed_ms is None:
            return self.aged_ms
        # An event that is late by exactly an hour is still accepted. Silence may hold the close back for longer.
        return max(self.aged_ms, min(self.closed_ms, min(known) - KEPT_AFTER_END_MS - 1))
