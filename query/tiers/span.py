"""What the hot tier says that it holds. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Span:
    """What each shard says it holds. `from_ms` is None for a shard that says nothing: unknown, not zero.

    `newest_ms` is the newest minute of each shard that has rows; minutes that end at or before `packed_ms` have no rows by flush.
    """

    closed_ms: list[int | None]
    packed_ms: list[int | None]
    from_ms: list[int | None]
    newest_ms: list[int | None]

    def covers(self, other: Span) -> bool:
        """Whether places planned by this span include all in which rows lie under the other one."""
        newer = zip(self.newest_ms, other.newest_ms, strict=True)
        packed = zip(self.packed_ms, other.packed_ms, strict=True)
        return all((b or 0) <= (a or 0) for a, b in newer) and all((a or 0) <= (b or 0) for a, b in packed)

    def as_of(self, earlier: Span) -> Span:
        """The span of rows whose places were planned by an earlier span: what was closed then is closed, what is retained now is
        retained."""
        return replace(
            self,
            closed_ms=_each(min, self.closed_ms, earlier.closed_ms),
            from_ms=_each(max, self.from_ms, earlier.from_ms),
        )

    @property
    def watermark_ms(self) -> int | None:
        """The closing watermark over all shards."""
        known = [c for c in self.closed_ms if c is not None]
        return min(known) if known and len(known) == len(self.closed_ms) else None

    @property
    def held_from_ms(self) -> int | None:
        """From when on all shards retain their minutes; None where one of them has no span."""
        return None if self.unknown else max(f for f in self.from_ms if f is not None)

    @property
    def unknown(self) -> list[int]:
        """Shards without a span."""
        return [s for s, f in enumerate(self.from_ms) if f is None]


def _each(pick: Callable[[int, int], int], values: list[int | None], others: list[int | None]) -> list[int | None]:
    """One of two values for each shard; None where either is unknown."""
    pairs = zip(values, others, strict=True)
    return [None if a is None or b is None else pick(a, b) for a, b in pairs]
