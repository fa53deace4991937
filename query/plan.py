"""The plan of a question: which tier answers which part of its range. Pure: borders and current runs come in, pieces go out.

Pieces tile the range, without overlap and without a gap. Each part is answered by the coarsest tier that holds it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from infra.clock import DAY_MS, HOUR_MS
from infra.structs import decodable

HOT, WARM, COLD, EXACT_HOURS, EXACT_DAYS = "hot", "warm", "cold", "exact-hours", "exact-days"
EXACT = (EXACT_HOURS, EXACT_DAYS)


@decodable
@dataclass(frozen=True)
class Borders:
    """What each tier holds: read once for a reading, the same for all of its pieces.

    `warm_ms`, `cold_ms`: hours and days that end at or before this are in the tier, on every shard, and no event can
    change them any more; None: none are. `warm_closed_ms`: hours that end at or before this are in the tier, but minutes
    may be ahead of them by what came late; they serve where minutes are not retained from `hot_from_ms` on.
    `runs`: start of a reconciled day → its current run. `open_from_ms`: start of a day whose run was forced while it was open → from
    when on the stream still answers. `watermark_ms`: the closing watermark of what ClickHouse has;
    `hot_watermark_ms`: of what Redis had when it was read. One may be ahead of the other, and says nothing about its rows.

    `warm_from_ms`, `cold_from_ms`: what began before this may be missing from the tier, since its table was made again.
    `void`: tiers whose table was made again, and does not have all yet that it will have. `void_runs`: starts of days whose exact rows
    were lost so. `table_ids`: tier → which table its border is about.
    """

    warm_ms: int | None = None
    warm_closed_ms: int | None = None
    hot_from_ms: int | None = 0
    cold_ms: int | None = None
    watermark_ms: int | None = None
    hot_watermark_ms: int | None = None
    runs: dict[int, str] = field(default_factory=dict)
    open_from_ms: dict[int, int] = field(default_factory=dict)
    warm_from_ms: int = 0
    cold_from_ms: int = 0
    void: tuple[str, ...] = ()
    void_runs: tuple[int, ...] = ()
    table_ids: dict[str, str] = field(default_factory=dict)

    def run_at(self, ms: int) -> str | None:
        """The run whose rows answer for a moment; None where the stream's do."""
        day = ms - ms % DAY_MS
        return self.runs.get(day) if ms < self.run_end_ms(day) else None

    def run_end_ms(self, day: int) -> int:
        """The end of what a day's run answers for."""
        return self.open_from_ms.get(day, day + DAY_MS)


@dataclass(frozen=True)
class Piece:
    """A part of a question's range, [start_ms, end_ms), and the tier that answers it; for an exact tier, with a day's run."""

    tier: str
    start_ms: int
    end_ms: int
    run: str = ""


def make_plan(
    start_ms: int, end_ms: int, borders: Borders, *, whole_days: bool, only_minutes: bool = False
) -> list[Piece]:
    """Cover a range with pieces. `whole_days`: whole days of UTC may come from day tiers. `only_minutes`: all of it is read from the
    hot tier."""
    if only_minutes:
        return [Piece(HOT, start_ms, end_ms)]
    pieces: list[Piece] = []
    days = sorted(borders.runs)
    # From here on only the hot tier can hold anything, however far the range reaches.
    hot_from = max(_warm_end(borders), borders.cold_ms or 0, days[-1] + DAY_MS if days else 0)
    at = start_ms
    while at < end_ms:
        # One run holds up to `until`, or none: the end of a reconciled day, or the start of the next one.
        day = at - at % DAY_MS
        next_run = bisect.bisect_right(days, day)
        if borders.run_at(at) is not None:
            until = borders.run_end_ms(day)
        elif day in borders.runs:
            until = day + DAY_MS
        else:
            until = days[next_run] if next_run < len(days) else end_ms
        piece = Piece(HOT, at, end_ms) if at >= hot_from else _next_piece(at, min(until, end_ms), borders, whole_days)
        if pieces and pieces[-1].tier == piece.tier and pieces[-1].run == piece.run:
            piece = Piece(piece.tier, pieces.pop().start_ms, piece.end_ms, piece.run)
        pieces.append(piece)
        at = piece.end_ms
    return pieces


def _next_piece(at: int, until: int, borders: Borders, whole_days: bool) -> Piece:
    """The first piece of [at, until), for all of which one run holds, or none."""
    day = at - at % DAY_MS
    run = borders.run_at(at)
    if whole_days and at == day:
        if run is not None and until == day + DAY_MS:
            return Piece(EXACT_DAYS, at, until, run)
        whole = at >= borders.cold_from_ms
        if run is None and whole and (end := _round_down(min(until, borders.cold_ms or 0), DAY_MS)) > at:
            return Piece(COLD, at, end)
    if at % HOUR_MS == 0:
        if run is not None and (end := _round_down(until, HOUR_MS)) > at:
            return Piece(EXACT_HOURS, at, end, run)
        # The next day may come from a tier of days again.
        until = min(until, day + DAY_MS) if whole_days else until
        if run is None and (end := _round_down(min(until, _warm_end(borders)), HOUR_MS)) > at:
            return Piece(WARM, at, end) if at >= borders.warm_from_ms else _stand_in(at, end, borders)
    return Piece(HOT, at, min(_round_down(at, HOUR_MS) + HOUR_MS, until))


def _stand_in(at: int, end: int, borders: Borders) -> Piece:
    """The first piece of [at, end), which begins where the table of hours may lack rows: minutes, where they are retained."""
    end = min(end, _round_up(borders.warm_from_ms, HOUR_MS))
    minutes_ms = end if borders.hot_from_ms is None else min(_round_up(borders.hot_from_ms, HOUR_MS), end)
    return Piece(HOT, at, end) if at >= minutes_ms else Piece(WARM, at, minutes_ms)


def _warm_end(borders: Borders) -> int:
    """The end of the hours that are settled, or closed while their minutes are no longer retained."""
    closed = borders.warm_closed_ms or 0
    lost = closed if borders.hot_from_ms is None else min(closed, _round_up(borders.hot_from_ms, HOUR_MS))
    return max(borders.warm_ms or 0, lost)


def _round_down(ms: int, size: int) -> int:
    return ms // size * size


def _round_up(ms: int, size: int) -> int:
    return -(-ms // size) * size
