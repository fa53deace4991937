"""The durable rows of one window, as frozen pieces. A window that gets more rows is a new window, and shares its pieces with the
old one: an hour of open minutes is what a worker's memory is spent on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Ints
from ingest import partials
from ingest.partials import WINDOW, Partials
from stream import chunks

MERGE_PIECES = 32


def by_window(rows: Partials) -> dict[int, Partials]:
    """Ordered rows of many windows by the start of each."""
    return {int(rows[WINDOW][a]): Partials.of(rows.take(slice(a, b)).columns) for a, b in stretches(rows[WINDOW])}


def stretches(*columns: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Where rows begin and end that have the same value in each column."""
    size = len(columns[0])
    differs = np.zeros(max(0, size - 1), np.bool_)
    for column in columns:
        differs |= column[1:] != column[:-1]
    edges = [0, *(np.flatnonzero(differs) + 1).tolist(), size]
    return list(pairwise(edges)) if size else []


class WindowPiece:
    """Rows of a window, ordered by campaign, which never change.

    A piece of several parts merges them when `merged` is first called, and lets go of the parts. That goes for all windows that
    share the piece. It is no change: the sums by key are the same before and after. Where two threads call it at once, both merge,
    and come to equal rows.
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: Partials) -> None:
        """Each part has a key at most once."""
        self._parts = parts

    @property
    def parts(self) -> tuple[Partials, ...]:
        """The rows, a key at most once in each part."""
        return self._parts

    def merged(self) -> Partials:
        """The rows, one for each key."""
        parts = self._parts
        if len(parts) > 1:
            parts = self._parts = (partials.merge_partials(parts),)
        return parts[0] if parts else chunks.empty()

    def __len__(self) -> int:
        return sum(map(len, self._parts))


@dataclass(frozen=True)
class Window:
    """Rows of the window that begins at `start` (epoch ms)."""

    start: int
    pieces: tuple[WindowPiece, ...] = ()
    loose: int = 0
    """How many of the last pieces were never merged with others."""

    def with_rows(self, rows: Partials, merge_pieces: int = MERGE_PIECES) -> Window:
        """The window with more rows, as `by_window` gives them; where loose pieces get more than `merge_pieces`, they are merged."""
        pieces, loose = (*self.pieces, WindowPiece(rows)), self.loose + 1
        if loose <= merge_pieces:
            return Window(self.start, pieces, loose)
        first = len(pieces) - _worthwhile(pieces, loose)
        merged = _joined(pieces[first:])
        merged.merged()
        return Window(self.start, (*pieces[:first], merged))

    def gathered(self) -> Window:
        """The window as one piece, which is merged when its rows are first needed whole."""
        return self if len(self.pieces) == 1 else Window(self.start, (_joined(self.pieces),))

    def whole(self) -> Partials:
        """All rows, one for each key. Of a window that is `gathered` they are merged once."""
        return self.gathered().pieces[0].merged()

    @property
    def parts(self) -> list[Partials]:
        """All rows, a key at most once in each part."""
        return [part for piece in self.pieces for part in piece.parts]

    def count(self, campaign: int) -> int:
        """How many rows a campaign has, at most."""
        return sum(len(_of(part, np.array([campaign]))) for part in self.parts)

    def of(self, campaigns: Ints, *, whole: bool) -> Partials:
        """The rows of some campaigns, which are in order; `whole`: one for each key. Reads only those: a correction touches
        few."""
        rows = [_of(part, campaigns) for part in self.parts]
        return partials.merge_partials(rows) if whole else Partials.joined(rows)


def _joined(pieces: tuple[WindowPiece, ...]) -> WindowPiece:
    return WindowPiece(*(part for piece in pieces for part in piece.parts))


def _worthwhile(pieces: tuple[WindowPiece, ...], loose: int) -> int:
    """How many of the last pieces to merge: the loose ones, and those before that are no larger than all after them.

    So a row is merged log n times, however much its window holds (a log-structured merge).
    """
    count, rows = loose, sum(map(len, pieces[-loose:]))
    while count < len(pieces) and len(pieces[-count - 1]) <= rows:
        rows += len(pieces[-count - 1])
        count += 1
    return count


def _of(rows: Partials, campaigns: Ints) -> Partials:
    column = rows["campaign_id"]
    # In the type of what is searched, or all of that would be converted.
    searched = campaigns[campaigns <= np.iinfo(column.dtype).max].astype(column.dtype)
    starts, stops = np.searchsorted(column, searched, "left"), np.searchsorted(column, searched, "right")
    sizes = stops - starts
    return rows.take(np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum())))
