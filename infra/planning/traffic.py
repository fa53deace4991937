"""How many rows events make: of a number of events, how many differ in campaign, ad, publisher, country or device.

Values of a dimension are Zipf-distributed, independently of each other, as `adclick generate` makes them. Of n events, n·p are
expected of a combination that has the share p, and it is missing with probability exp(-n·p).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Dimensions = tuple[tuple[int, float], ...]
"""For each dimension within a campaign: how many values, and the exponent of their distribution."""

# Shares that differ by less than a thousandth are taken as equal.
_BINS_A_UNIT = 1_000
_EVENTS = np.geomspace(1e-9, 1e15, 2_000)


@dataclass(frozen=True)
class Traffic:
    """The distribution of events over campaigns, and within a campaign over all other dimensions."""

    campaigns: int
    skew: float
    """Exponent of the campaigns' distribution."""
    dimensions: Dimensions

    @cached_property
    def _shares(self) -> tuple[Floats, Floats]:
        return _binned(zipf_shares(self.campaigns, self.skew))

    def rows(self, events: float) -> float:
        """Expected number of different combinations of all dimensions among so many events of one window."""
        shares, counts = self._shares
        curve = _rows_of_campaign(self.dimensions)
        return float(np.sum(counts * np.interp(np.log(events * shares), np.log(_EVENTS), curve)))

    def cells(self, events: float) -> float:
        """Expected number of campaigns that have one of so many events."""
        return self.occupied(events, 1)

    def occupied(self, events: float, places: int) -> float:
        """The same where each campaign has so many equally likely places, such as registers of users."""
        shares, counts = self._shares
        return float(np.sum(counts * places * -np.expm1(-events * shares / places)))


def zipf_shares(count: int, exponent: float) -> Floats:
    """Share of each rank, the most frequent first."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    return np.asarray(weights / weights.sum())


@cache
def _rows_of_campaign(dimensions: Dimensions) -> Floats:
    """Expected combinations within a campaign, by its number of events (`_EVENTS`)."""
    shares = np.ones(1)
    for count, exponent in dimensions:
        shares = np.outer(shares, zipf_shares(count, exponent)).ravel()
    means, counts = _binned(shares)
    return np.array([np.sum(counts * -np.expm1(-events * means)) for events in _EVENTS])


def _binned(shares: Floats) -> tuple[Floats, Floats]:
    """Shares as (mean, how many), nearly equal ones together."""
    bins = np.round(np.log(shares) * _BINS_A_UNIT).astype(np.int64)
    _, place, counts = np.unique(bins, return_inverse=True, return_counts=True)
    return np.bincount(place, shares) / counts, counts.astype(np.float64)
