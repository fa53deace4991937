"""How far an amount is from what is usual by chance alone, where it is made of lumps: of a campaign with a click a day, the minute of
that click is no anomaly, whatever it costs.

A sum of independent lumps (a compound Poisson process) has a variance of its mean × the mean square of a lump ÷ the mean of a lump. The
ratio of variance and mean, its index of dispersion (D. R. Cox and P. A. W. Lewis, "The Statistical Analysis of Series of Events",
1966), is so the size of a lump as far as chance goes. The variance is that of successive values (J. von Neumann, "Distribution of the
ratio of the mean square successive difference to the variance", 1941): it does not take a slow curve of the day for chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.columnar.columns import Ints

# How many values count, and how many large lumps must be among them before their size is trusted.
_MEMORY, _FEWEST_LARGE = 1500.0, 30.0
_COUNT, _MEAN, _HALF_SQUARE, _LAST, _LARGE = range(5)
_COLUMNS = 5


class LumpSizes:
    """Of many series side by side."""

    def __init__(self) -> None:
        self._numbers = np.zeros((0, _COLUMNS))

    def grow(self, series: int) -> None:
        """Make room for so many series in all."""
        self._numbers = np.vstack([self._numbers, np.zeros((series - len(self._numbers), _COLUMNS))])

    def keep(self, rows: Ints) -> None:
        """Keep these series, in this order, and no others."""
        self._numbers = self._numbers[rows]

    @property
    def numbers(self) -> Any:
        """The states of all series."""
        return self._numbers

    def restore(self, numbers: Any) -> None:
        """Go on with what `numbers` gave. Raises ValueError for another shape."""
        if numbers.ndim != 2 or numbers.shape[1] != _COLUMNS:
            raise ValueError(f"sizes of lumps have {_COLUMNS} numbers each")
        self._numbers = numbers

    def update(self, amounts: Any, large: Any, small: Any) -> Any:
        """Take the next amount of each series, NaN where it is not known, and how many large and small lumps it is made of, such as clicks and
        impressions. Returns the standard deviation that each has by chance alone, from the amounts before it."""
        own, known = self._numbers, np.isfinite(amounts)
        amounts, large, small = (np.where(known, column, 0.0) for column in (amounts, large, small))
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.nan_to_num(own[:, _HALF_SQUARE] / own[:, _MEAN])
            noise = np.sqrt(size * amounts)
            # Of few large lumps so far their size is not known: this amount may be as many as it has itself.
            few = own[:, _LARGE] * np.minimum(own[:, _COUNT], _MEMORY) < _FEWEST_LARGE
            own_lumps = np.maximum(np.where(large > 0, large, small), 1.0)
            noise = np.where(few, np.maximum(noise, amounts / np.sqrt(own_lumps)), noise)
        count = own[:, _COUNT] + 1.0
        weight = np.where(known, np.maximum(1.0 / count, 1.0 / _MEMORY), 0.0)
        half_square = np.where(count > 1.0, (amounts - own[:, _LAST]) ** 2 / 2.0, 0.0)
        for column, value in ((_MEAN, amounts), (_HALF_SQUARE, half_square), (_LARGE, large)):
            own[:, column] += weight * (value - own[:, column])
        own[known, _COUNT] += 1.0
        own[known, _LAST] = amounts[known]
        return noise
