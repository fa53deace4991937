"""Which cells of open minutes the hot tier writes whole again, where their rows by flush have become many.

A reader then finds few pieces, and rows of one key once instead of once a flush. A cell is gathered when it has got as many rows
again as it had, so a row is written log n times, however large its cell gets (as in a log-structured merge, O'Neil et al. 1996);
or after so many flushes, which is what counts for small ones.
"""

from __future__ import annotations

from collections.abc import Collection

from stream.sinks import rows

# Not all cells of a minute with the same flush.
_FLUSHES, _SPREAD = 12, 8
_FEW_ROWS = 64


class Gathering:
    """Of one shard."""

    def __init__(self) -> None:
        self._cells: dict[int, dict[int, tuple[int, int, int]]] = {}
        """By minute and campaign: flushes and rows since it was gathered, and how many rows it had then."""

    def keep(self, windows: Collection[int]) -> None:
        """Forget all other minutes."""
        self._cells = {window: self._cells.get(window, {}) for window in windows}

    def due(self, window: int, campaign: int, value: bytes) -> bool:
        """Count the rows that a flush adds to a cell; whether to write all of it instead. The minute is one of those kept."""
        flushes, added, whole = self._cells[window].get(campaign, (0, 0, 0))
        flushes, added = flushes + 1, added + rows.count(value)
        self._cells[window][campaign] = flushes, added, whole
        grown = flushes > 1 and added >= max(_FEW_ROWS, whole)
        return grown or flushes >= _FLUSHES + campaign % _SPREAD

    def gathered(self, window: int, campaign: int, value: bytes) -> None:
        """It is written whole now."""
        self._cells[window][campaign] = 0, 0, rows.count(value)
