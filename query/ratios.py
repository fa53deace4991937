"""Ratios of sums: click rate, conversion rate, cost per click and per thousand impressions. Pure, by column, and exact.

Rates are rounded to four decimals, money to whole micros, halves up; there is none where the divisor is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Bools
from query import sums
from query.question import MEASURES, RATIOS
from query.sums import Exact, Sums

FRACTIONS = {
    "ctr": ("clicks", "impressions"),
    "cvr": ("conversions", "clicks"),
    "cpc_micros": ("spend_micros", "clicks"),
    "cpm_micros": ("spend_micros", "impressions"),
}
"""Which measure each ratio divides by which."""
# By so much a measure is multiplied at most before it is divided.
_SCALE = 2 * 10_000


@dataclass(frozen=True)
class Ratio:
    """Values, and where there is none, since the divisor is 0."""

    values: npt.NDArray[Any]
    absent: Bools


def ratios_of(table: Sums) -> dict[str, Ratio]:
    """The ratios of each row, by name."""
    measures = {m: sums.widen(column, _SCALE) for m, column in zip(MEASURES, table.measures, strict=True)}
    impressions, clicks = measures["impressions"], measures["clicks"]
    no_impressions, no_clicks = (np.asarray(column == 0, bool) for column in (impressions, clicks))

    def divide(part: Exact, whole: Exact, absent: Bools) -> Exact:
        return round_half_up(part, np.where(absent, 1, whole))

    ratios = {
        "ctr": Ratio(divide(clicks * 10_000, impressions, no_impressions) / 10_000, no_impressions),
        "cvr": Ratio(divide(measures["conversions"] * 10_000, clicks, no_clicks) / 10_000, no_clicks),
        "cpc_micros": Ratio(divide(measures["spend_micros"], clicks, no_clicks), no_clicks),
        "cpm_micros": Ratio(divide(measures["spend_micros"] * 1000, impressions, no_impressions), no_impressions),
    }
    assert tuple(ratios) == RATIOS
    return ratios


def round_half_up(part: Exact | int, whole: Exact | int) -> Exact:
    """part / whole to the nearest integer, halves up, without floats; `whole` is positive."""
    return np.asarray((2 * part + whole) // (2 * whole))
