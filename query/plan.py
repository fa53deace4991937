"""Which tier answers which part of a range. Pure: borders and current runs come in, pieces go out.

Pieces tile the range, without overlap and without a gap. The coarsest tier that may serve a stretch does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.clock import DAY_MS, HOUR_MS

HOT, WARM, COLD, EXACT_HOURS, EXACT_DAYS = "hot", "warm", "cold", "exact-hours", "exact-days"
EXACT = (EXACT_HOURS, EXACT_DAYS)


@dataclass(frozen=True)
class Borders:
    """Taken once per question, and passed to every part of it.

    `warm_ms`, `cold_ms`: hours and days that end at or before this are in the tier, on every shard, and no event can
    change them any more; None: none are. `warm_closed_ms`: hours that end at or before this are in the tier, but minutes
    may be ahead of them by what came late; they serve where minutes are not held from `hot_from_ms` on.
    `runs`: start of a reconciled day → its current run. `watermark_ms`: the closing watermark.
    """

    warm_ms: int | None = None
    warm_closed_ms: int | None = None
    hot_from_ms: int | None = 0
    cold_ms: int | None = None
    watermark_ms: int | None = None
    runs: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """[start_ms, end_ms) of one tier; of an exact tier, one day's run."""

    tier: str
    start_ms: int
    end_ms: int
    run: str = ""


def plan(start_ms: int, end_ms: int, borders: Borders, *, whole_days: bool, only_minutes: bool = False) -> list[Piece]:
    """Cover the range. `whole_days`: stretches that are days of UTC may come from day tiers."""
    if only_minutes:
        return [Piece(HOT, start_ms, end_ms)]
    pieces: list[Piece] = []
    at = start_ms
    while at < end_ms:
        piece = _next(at, end_ms, borders, whole_days)
        if pieces and pieces[-1].tier == piece.tier and pieces[-1].run == piece.run:
            piece = Piece(piece.tier, pieces.pop().start_ms, piece.end_ms, piece.run)
        pieces.append(piece)
        at = piece.end_ms
    return pieces


def _next(at: int, end_ms: int, borders: Borders, whole_days: bool) -> Piece:
    day = at - at % DAY_MS
    run = borders.runs.get(day)
    if whole_days and at == day and at + DAY_MS <= end_ms:
        if run is not None:
            return Piece(EXACT_DAYS, at, at + DAY_MS, run)
        if borders.cold_ms is not None and at + DAY_MS <= borders.cold_ms:
            return Piece(COLD, at, at + DAY_MS)
    hour_end = at - at % HOUR_MS + HOUR_MS
    if at % HOUR_MS == 0 and hour_end <= end_ms:
        if run is not None:
            return Piece(EXACT_HOURS, at, hour_end, run)
        if borders.warm_ms is not None and hour_end <= borders.warm_ms:
            return Piece(WARM, at, hour_end)
        lost = borders.hot_from_ms is None or at < borders.hot_from_ms
        if lost and borders.warm_closed_ms is not None and hour_end <= borders.warm_closed_ms:
            return Piece(WARM, at, hour_end)
    return Piece(HOT, at, min(hour_end, end_ms))
