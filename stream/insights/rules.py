"""When the numbers of a campaign are unusual: the four rules, by bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from infra.clickhouse.alerts import SEVERITIES
from stream.insights.detector import CRITICAL, WARNING

KINDS = {
    "ctr-drop": "the click rate fell",
    "spend-spike": "more was spent than three times the usual",
    "zero-impressions": "no impressions, where more than a hundred are usual",
    "surge-ctr-collapse": "five times the usual impressions, at a tenth of the usual click rate",
}
"""What each kind is about."""
MEASURES = ("impressions", "clicks", "spend_micros")
"""What the rules are about."""
FEWEST_IMPRESSIONS = 100.0
"""Where more than this are usual, none are unusual."""
_SPIKE, _SURGE, _COLLAPSE = 3.0, 5.0, 0.1
# Of the highest that is usual within two hours: so much is no spike of a campaign that starts at a fixed time, or starts an hour later
# since clocks were changed.
_ABOVE_HIGHEST = 1.5


class Finding(NamedTuple):
    """An unusual bucket of a campaign. `deviations`: how far `value` of `measure` is from `expected`, with its sign. `click_rate`: the one
    that was to be expected; 0 where it is not known."""

    kind: str
    measure: str
    deviations: float
    value: float
    expected: float
    click_rate: float = 0.0

    @property
    def severity(self) -> str:
        """By how many deviations it is away."""
        return SEVERITIES[abs(self.deviations) >= CRITICAL]

    def corrected(self, value: float) -> Finding:
        """The same bucket once late events have changed its value."""
        distance = self.value - self.expected
        share = (value - self.expected) / distance if distance else 0.0
        return self._replace(value=value, deviations=self.deviations * share)


class Judged(NamedTuple):
    """Deviations and expected values of some campaigns, by the detector. `lowest` and `highest`: what is usual within two hours, NaN where
    that is not known."""

    deviations: Any
    expected: Any
    lowest: Any = np.nan
    highest: Any = np.nan

    @property
    def expects_impressions(self) -> Any:
        """Where so many are usual that none are unusual."""
        # A comparison with NaN is false: where nothing is known of the time of the day, the expected value counts alone.
        return (self.expected > FEWEST_IMPRESSIONS) & ~(self.lowest <= FEWEST_IMPRESSIONS)

    @property
    def high(self) -> Any:
        """What a value must exceed to be more than what some time nearby has."""
        return np.maximum(self.expected, np.nan_to_num(_ABOVE_HIGHEST / _SPIKE * self.highest))


def click_rates(impressions: Any, clicks: Any) -> tuple[Any, Any]:
    """Click rates, and the deviation that each has by chance: that of a binomial share. NaN without impressions."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(impressions > 0, clicks / impressions, np.nan)
        # Of a share of 0 or 1 the plain estimate is 0: two more of each, as Agresti and Coull have it (1998).
        likely = (clicks + 2) / (impressions + 4)
        return rates, np.nan_to_num(np.sqrt(likely * (1 - likely) / (impressions + 4)))


def unusual_rows(
    impressions: Any, spend: Any, rate: Any, of_counts: Judged, of_spend: Judged, of_rates: Judged
) -> Iterator[tuple[str, str, Any, Judged, Any]]:
    """Of each kind: its measure, in which rows it is true, what the detector says of these, and the values."""
    yield "ctr-drop", "ctr", of_rates.deviations <= -WARNING, of_rates, rate
    spike = (of_spend.deviations >= WARNING) & (spend > _SPIKE * of_spend.high)
    yield "spend-spike", "spend_micros", spike, of_spend, spend
    silent = (impressions == 0) & of_counts.expects_impressions & (of_counts.deviations <= -WARNING)
    yield "zero-impressions", "impressions", silent, of_counts, impressions
    surge = (of_counts.deviations >= WARNING) & (impressions > _SURGE * of_counts.expected)
    # Of a few impressions none is clicked by chance.
    surge &= (rate < _COLLAPSE * of_rates.expected) & (of_rates.deviations <= -WARNING)
    yield "surge-ctr-collapse", "impressions", surge, of_counts, impressions


def still_unusual(finding: Finding, impressions: float, clicks: float, spend: float) -> Finding | None:
    """A bucket that was unusual, with numbers that late events have changed; None where it no longer is."""
    if finding.measure == "ctr":
        if not impressions:
            return None
        changed = finding.corrected(clicks / impressions)
        return changed if changed.deviations <= -WARNING else None
    changed = finding.corrected(spend if finding.measure == "spend_micros" else impressions)
    holds = {
        "spend-spike": changed.deviations >= WARNING and spend > _SPIKE * finding.expected,
        "zero-impressions": impressions == 0,
        "surge-ctr-collapse": changed.deviations >= WARNING
        and impressions > _SURGE * finding.expected
        and clicks < _COLLAPSE * finding.click_rate * impressions,
    }
    return changed if holds[finding.kind] else None
