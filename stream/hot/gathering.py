"""Which cells of open minutes the hot tier writes whole again, where their rows by flush have become many.

A reader then finds few pieces, and rows of one key once instead of once a flush. A cell is gathered when it has got as many rows
again as it had, so a row is written log n times, however large its cell gets (as in a log-structured merge, O'Neil et al. 1996);
or after so many flushes, which is what counts for small ones.
"""

from __future__ import annotations

from collections.abc import Collection

from stream.hot import cell_format
from stream.hot.limits import HotLimits


class Gathering:
    """Counts what flushes add to the cells of one shard's open minutes."""

    def __init__(self, limits: HotLimits) -> None:
        self._limits = limits
        self._cells: dict[int, dict[int, tuple[int, int, int]]] = {}
        """By minute and campaign: flushes and rows since it was gathered, and how many rows it had then."""

    def keep(self, windows: Collection[int]) -> None:
        """Forget all other minutes."""
        self._cells = {window: self._cells.get(window, {}) for window in windows}

    def due(self, window: int, campaign: int, value: bytes) -> bool:
        """Count the rows that a flush adds to a cell; whether to write all of it instead. The minute is one of those kept."""
        flushes, added, whole = self._cells[window].get(campaign, (0, 0, 0))
        flushes, added = flushes + 1, added + cell_format.count(value)
        self._cells[window][campaign] = flushes, added, whole
        grown = flushes > 1 and added >= max(self._limits.gather_above_rows, whole)
        return grown or flushes >= self._limits.gather_after_flushes + campaign % self._limits.gather_spread

    def gathered(self, window: int, campaign: int, value: bytes) -> None:
        """Begin the count anew: the cell is written whole now."""
        self._cells[window][campaign] = 0, 0, cell_format.count(value)
