"""The durable rows of one window, as they are held: in pieces, each ordered by campaign, so that one is found at once.

An hour of open minutes is what a worker's memory is spent on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columns import Ints
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


@dataclass
class Window:
    """Rows of the window that begins at `start`, in pieces that are merged when somebody needs them whole."""

    start: int
    pieces: list[Partials] = field(default_factory=list)
    loose: int = 0
    """How many of the last pieces were never merged."""
    _changing: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def merged(self) -> bool:
        """Whether there is one row for each key for certain."""
        return len(self.pieces) + self.loose < 2

    def add(self, piece: Partials, merge_pieces: int = MERGE_PIECES) -> None:
        """Take more rows in, as `by_window` gives them; more than so many loose pieces are merged."""
        with self._changing:
            self.pieces.append(piece)
            self.loose += 1
            if self.loose > merge_pieces:
                self._merge_last(self._worthwhile())

    def _worthwhile(self) -> int:
        """How many of the last pieces to merge: the loose ones, and those before that are no larger than all after them.

        So a row is merged log n times, however much its window holds (a log-structured merge).
        """
        count = self.loose
        rows = sum(map(len, self.pieces[-count:]))
        while count < len(self.pieces) and len(self.pieces[-count - 1]) <= rows:
            rows += len(self.pieces[-count - 1])
            count += 1
        return count

    def _merge_last(self, count: int) -> Partials:
        self.pieces[-count:] = [partials.merge(self.pieces[-count:])]
        self.loose = 0
        return self.pieces[-1]

    def whole(self) -> Partials:
        """All rows, one for each key."""
        with self._changing:
            if self.merged:
                return self.pieces[0] if self.pieces else chunks.empty()
            return self._merge_last(len(self.pieces))

    def together(self, pieces: Sequence[Partials]) -> Partials:
        """The rows of its first pieces, one for each key. Others may add rows meanwhile."""
        if len(pieces) == 1 and self.merged:
            return pieces[0]
        rows = partials.merge(pieces) if pieces else chunks.empty()
        with self._changing:
            count = len(pieces)
            if 0 < count <= len(self.pieces) and all(map(is_, self.pieces, pieces)):
                self.pieces[:count] = [rows]
                self.loose = len(self.pieces) - 1
        return rows

    def count(self, campaign: int) -> int:
        """How many rows a campaign has, at most."""
        return sum(len(_of(piece, np.array([campaign]))) for piece in list(self.pieces))

    def of(self, campaigns: Ints, *, whole: bool) -> Partials:
        """The rows of some campaigns, which are in order; `whole`: one for each key. Reads only those: a correction touches
        few."""
        found = [_of(piece, campaigns) for piece in list(self.pieces)]
        return partials.merge(found) if whole else Partials.joined(found)


def _of(piece: Partials, campaigns: Ints) -> Partials:
    held = piece["campaign_id"]
    # In the type of what is searched, or all of that would be converted.
    wanted = campaigns[campaigns <= np.iinfo(held.dtype).max].astype(held.dtype)
    starts, stops = np.searchsorted(held, wanted, "left"), np.searchsorted(held, wanted, "right")
    sizes = stops - starts
    rows = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
    return piece.take(rows)
