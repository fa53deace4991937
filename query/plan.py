"""Which tier answers which part of a range. Pure: borders and current runs come in, pieces go out.

Pieces tile the range, without overlap and without a gap. The coarsest tier that may serve a stretch does.
"""

from __future__ import annotations

import bisect
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
    `runs`: start of a reconciled day → its current run. `open_from_ms`: start of a day whose run was forced while it was open → from
    when on the stream still answers. `watermark_ms`: the closing watermark of what ClickHouse has;
    `hot_watermark_ms`: of what Redis had when it was read. One may be ahead of the other, and says nothing about its rows.
    """

    warm_ms: int | None = None
    warm_closed_ms: int | None = None
    hot_from_ms: int | None = 0
    cold_ms: int | None = None
    watermark_ms: int | None = None
    hot_watermark_ms: int | None = None
    runs: dict[int, str] = field(default_factory=dict)
    open_from_ms: dict[int, int] = field(default_factory=dict)

    def run_at(self, ms: int) -> str | None:
        """The run that holds at a moment."""
        day = ms - ms % DAY_MS
        return self.runs.get(day) if ms < self.run_end_ms(day) else None

    def run_end_ms(self, day: int) -> int:
        """Up to when a day's run holds."""
        return self.open_from_ms.get(day, day + DAY_MS)


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
    days = sorted(borders.runs)
    # From here on only minutes can hold anything, however far the range reaches.
    last = max(_warm_until(borders), borders.cold_ms or 0, days[-1] + DAY_MS if days else 0)
    at = start_ms
    while at < end_ms:
        # Up to where another rule holds: the end of a reconciled day, or the next one.
        day = at - at % DAY_MS
        next_run = bisect.bisect_right(days, day)
        if borders.run_at(at) is not None:
            until = borders.run_end_ms(day)
        elif day in borders.runs:
            until = day + DAY_MS
        else:
            until = days[next_run] if next_run < len(days) else end_ms
        piece = Piece(HOT, at, end_ms) if at >= last else _next(at, min(until, end_ms), borders, whole_days)
        if pieces and pieces[-1].tier == piece.tier and pieces[-1].run == piece.run:
            piece = Piece(piece.tier, pieces.pop().start_ms, piece.end_ms, piece.run)
        pieces.append(piece)
        at = piece.end_ms
    return pieces


def _next(at: int, until: int, borders: Borders, whole_days: bool) -> Piece:
    """The first piece of [at, until), for all of which one run holds, or none."""
    day = at - at % DAY_MS
    run = borders.run_at(at)
    if whole_days and at == day:
        if run is not None and until == day + DAY_MS:
            return Piece(EXACT_DAYS, at, until, run)
        if run is None and (end := _down(min(until, borders.cold_ms or 0), DAY_MS)) > at:
            return Piece(COLD, at, end)
    if at % HOUR_MS == 0:
        if run is not None and (end := _down(until, HOUR_MS)) > at:
            return Piece(EXACT_HOURS, at, end, run)
        # The next day may come from a tier of days again.
        until = min(until, day + DAY_MS) if whole_days else until
        if run is None and (end := _down(min(until, _warm_until(borders)), HOUR_MS)) > at:
            return Piece(WARM, at, end)
    return Piece(HOT, at, min(_down(at, HOUR_MS) + HOUR_MS, until))


def _warm_until(borders: Borders) -> int:
    """Before when hours are settled, or closed while their minutes are held no longer."""
    closed = borders.warm_closed_ms or 0
    lost = closed if borders.hot_from_ms is None else min(closed, -_down(-borders.hot_from_ms, HOUR_MS))
    return max(borders.warm_ms or 0, lost)


def _down(ms: int, size: int) -> int:
    return ms // size * size
