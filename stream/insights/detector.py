"""Anomalies in a series of numbers, one value after the other: how many deviations a value is from what was to be expected.

A series is summed up in a few numbers, of a fixed size however long it is:

- **A baseline**: the exponentially weighted mean of its last values, or what is usual at this time of the day, or of the week. A
  seasonal baseline is used once its squared error is well below that of the mean alone.
- **A spread by horizon.** Of the last two values, and of the last ten, the weighted mean is compared with its own long-run mean and
  standard deviation, so that a jump is seen at once, and a smaller change that stays soon after.
- **A peak** that fades: of a long episode only what is worse than before is reported.

Means and deviations follow Welford's update with forgetting: B. P. Welford, "Note on a method for calculating corrected sums of
squares and products", Technometrics 4 (1962); its weighted form is that of T. Finch, "Incremental calculation of weighted mean and
variance" (2009). Compiled, for many series at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.clock import DAY_MS, HOUR_MS
from infra.columnar.columns import Ints
from infra.columnar.jit import Number, compiled

WARNING, CRITICAL = 3.0, 5.0
"""Deviations from which on a value is worth a warning, and critical."""
STATE_BYTES = 192
"""What a series takes."""
_WEEK_MS, _BIN_MS = 7 * DAY_MS, 2 * HOUR_MS
_BINS, _BINS_OF_DAY = _WEEK_MS // _BIN_MS, DAY_MS // _BIN_MS
# 5 January 1970 was a Monday.
_MONDAY_MS = 4 * DAY_MS
# How many values count: for long-run means and deviations, for those of the two horizons, and until a peak has faded to a third.
_MEMORY, _HORIZONS, _FADING = 1500.0, (2.0, 10.0), 150.0
# Values until a deviation is told from chance, until a seasonal baseline is trusted, and until its own deviations are.
_FEWEST, _FEWEST_SEASONAL, _FEWEST_RESIDUAL = 20.0, 200.0, 50.0
# A seasonal baseline must explain so much that its squared error is below this share of the other's.
_BETTER = 0.4
# The weight of a week in the usual value of a bin, and how many root mean squares an error counts at most.
_WEEK_WEIGHT, _MOST_ERRORS = 0.2, 5.0
# Deviations that an anomaly adds to long-run means and deviations at most: it must not hide the next one. What stays becomes usual within
# two hundred values all the same, since deviations grow.
_MOST_DEVIATIONS = 8.0
# Two deviations that differ by less are the same: which one is larger is a matter of rounding, and so of the unit.
_BEYOND_ROUNDING = 1.001
# By the square root of the baseline, as those of counts do; within these bounds.
_COUNT_GROWTH, _LEAST_SCALE, _MOST_SCALE = 0.5, 0.1, 4.0
# No deviation is smaller than this share of the level, or of its spread once the season is subtracted.
_LEAST_OF_LEVEL, _LEAST_OF_SPREAD, _LEAST = 0.01, 0.02, 1e-9
_UNKNOWN, _QUANTA = -128, 100.0
# Columns of the numbers of a series. Errors are root mean squares. A horizon has three: its mean now, and long-run mean and deviation.
(
    _COUNT, _LEVEL, _ERROR, _DAY_COUNT, _DAY_ERROR, _WEEK_COUNT, _WEEK_ERROR, _RESIDUAL_COUNT, _PEAK, _CENTER, _QUANTUM, _BIN,
    _BIN_SUM, _BIN_COUNT, _CLOSED_BINS,
) = range(15)  # fmt: skip
_PLAIN, _RESIDUAL = 15, 21
_NUMBERS = 27


@dataclass(frozen=True)
class Verdict:
    """What a value is taken for. `deviations`: how far the nearest past is from the expected, with its sign, by whichever horizon is
    further away; 0 while too little is known. `expected`: the baseline for this value. `score`: 0 to 1, above 0 only where it is
    worse than what was reported a while ago; WARNING is 0.375, CRITICAL 0.5."""

    deviations: float
    expected: float
    score: float


class DetectorBank:
    """Many series side by side."""

    def __init__(self, series: int, *, counts: bool = False) -> None:
        """`counts`: the values are counts or amounts, whose deviations grow with what is usual."""
        self._growth = _COUNT_GROWTH if counts else 0.0
        self._numbers = np.zeros((series, _NUMBERS), np.float32)
        self._profiles = np.full((series, _BINS), _UNKNOWN, np.int8)

    def __len__(self) -> int:
        return len(self._numbers)

    def update(self, rows: Ints, times_ms: Ints, values: Any, noise: Any = None) -> tuple[Any, Any, Any]:
        """Take the next value of some series, each named once. Returns deviations, expected values and scores: see Verdict.

        `noise`: the standard deviation that a value has by chance alone, such as sqrt(p (1 - p) / n) of a share; no deviation is
        measured in less than that. Values that are not finite are skipped.
        """
        shape = len(rows)
        noises = np.zeros(shape) if noise is None else np.asarray(noise, np.float64)
        deviations, expected, scores = np.zeros(shape), np.full(shape, np.nan), np.zeros(shape)
        values = np.asarray(values, np.float64)
        _update(
            self._numbers, self._profiles, rows, times_ms, values, noises, self._growth, deviations, expected, scores
        )  # fmt: skip
        return deviations, expected, scores

    def usual_range(self, time_ms: int) -> tuple[Any, Any]:
        """The lowest and the highest that is usual at this time of the day or of the week, two hours before and two hours after it; of each
        series, NaN where two days of it are not known. A baseline is a line between such values: where a campaign starts or stops at a
        fixed time, it is neither.
        """
        low, high = np.full(len(self), np.nan), np.full(len(self), np.nan)
        _usual_ranges(self._numbers, self._profiles, time_ms, low, high)
        return low, high

    def grow(self, series: int) -> None:
        """Make room for so many series in all."""
        more = series - len(self)
        self._numbers = np.vstack([self._numbers, np.zeros((more, _NUMBERS), np.float32)])
        self._profiles = np.vstack([self._profiles, np.full((more, _BINS), _UNKNOWN, np.int8)])

    def keep(self, rows: Ints) -> None:
        """Keep these series, in this order, and no others."""
        self._numbers, self._profiles = self._numbers[rows], self._profiles[rows]

    def arrays(self) -> dict[str, Any]:
        """The states of all series."""
        return {"numbers": self._numbers, "profiles": self._profiles}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Go on with what `arrays` gave. Raises ValueError for arrays of another shape."""
        numbers, profiles = arrays["numbers"], arrays["profiles"]
        if numbers.shape[1:] != (_NUMBERS,) or profiles.shape != (len(numbers), _BINS):
            raise ValueError(f"states of series have {_NUMBERS} numbers and {_BINS} bins each")
        self._numbers, self._profiles = numbers, profiles

    def encode(self, row: int) -> bytes:
        """The state of a series, of STATE_BYTES."""
        return bytes(self._numbers[row].tobytes() + self._profiles[row].tobytes())

    def decode(self, row: int, state: bytes) -> None:
        """Go on with a state. Raises ValueError for one of another size."""
        if len(state) != STATE_BYTES:
            raise ValueError(f"the state of a series has {STATE_BYTES} bytes, not {len(state)}")
        self._numbers[row] = np.frombuffer(state, np.float32, _NUMBERS)
        self._profiles[row] = np.frombuffer(state, np.int8, _BINS, 4 * _NUMBERS)


class Detector:
    """One series. `counts`: see `DetectorBank`."""

    def __init__(self, *, counts: bool = False) -> None:
        self._bank = DetectorBank(1, counts=counts)
        self._row = np.zeros(1, np.int64)

    def update(self, time_ms: int, value: float, noise: float = 0.0) -> Verdict:
        """Take the next value; see `DetectorBank.update`."""
        deviations, expected, scores = self._bank.update(self._row, np.array([time_ms]), [value], [noise])
        return Verdict(float(deviations[0]), float(expected[0]), float(scores[0]))


@compiled
def _update(
    numbers: Any, profiles: Any, rows: Ints, times_ms: Ints, values: Any, noises: Any, growth: Number, deviations: Any,
    expected: Any, scores: Any,
) -> None:  # fmt: skip
    for i in range(len(rows)):
        value = values[i]
        if not math.isfinite(value):
            continue
        own, profile = numbers[rows[i]], profiles[rows[i]]
        deviations[i], expected[i] = _step(own, profile, times_ms[i], value, noises[i], growth)
        scores[i] = _report(own, abs(deviations[i]))


@compiled
def _step(own: Any, profile: Any, time_ms: Number, value: Number, noise: Number, growth: Number) -> Any:
    """Take a value; returns its deviations and what was expected."""
    of_day, of_week = _usual(own, profile, time_ms)
    least = max(abs(own[_LEVEL]) * _LEAST_OF_LEVEL, _LEAST)
    baseline = _baseline(own, of_day, of_week)
    own[_COUNT] += 1.0
    deviations = _compare(own, _PLAIN, own[_COUNT], value, least, noise, _FEWEST)
    expected = own[_LEVEL] if own[_COUNT] > 1.0 else value
    if not math.isnan(baseline):
        own[_RESIDUAL_COUNT] += 1.0
        least = max(least, _LEAST_OF_SPREAD * own[_ERROR])
        scale = _scale(baseline, own[_LEVEL], growth)
        residual = _compare(
            own, _RESIDUAL, own[_RESIDUAL_COUNT], (value - baseline) / scale, least, noise / scale, _FEWEST
        )
        if own[_RESIDUAL_COUNT] > _FEWEST_RESIDUAL:
            deviations, expected = residual, baseline
    if own[_COUNT] > _FEWEST:
        own[_ERROR] = _error(own[_ERROR], own[_COUNT] - _FEWEST, value - own[_LEVEL], False)
    if not math.isnan(of_day):
        own[_DAY_COUNT] += 1.0
        own[_DAY_ERROR] = _error(own[_DAY_ERROR], own[_DAY_COUNT], value - of_day, True)
    if not math.isnan(of_week):
        own[_WEEK_COUNT] += 1.0
        own[_WEEK_ERROR] = _error(own[_WEEK_ERROR], own[_WEEK_COUNT], value - of_week, True)
    own[_LEVEL] += _weight(own[_COUNT], _MEMORY) * (value - own[_LEVEL])
    _learn(own, profile, time_ms, value)
    return deviations, expected


@compiled
def _scale(baseline: Number, level: Number, growth: Number) -> Number:
    """How much larger deviations are at the baseline than at the level."""
    if level == 0.0 or growth == 0.0:
        return 1.0
    return min(_MOST_SCALE, max(_LEAST_SCALE, abs(baseline / level))) ** growth


@compiled
def _weight(count: Number, memory: Number) -> Number:
    """Of the newest of `count` values: all count alike until there are more than the memory holds."""
    return max(1.0 / count, 1.0 / memory)


@compiled
def _compare(
    own: Any, first: Number, count: Number, value: Number, least: Number, noise: Number, fewest: Number
) -> Number:
    """Deviations of the horizon that is further from its long-run mean, of the shorter one where both are as far; 0 for the first
    values. Takes the value into both."""
    worst = 0.0
    for horizon in range(2):
        at = first + 3 * horizon
        recent = own[at] + _weight(count, _HORIZONS[horizon]) * (value - own[at])
        mean, spread = np.float64(own[at + 1]), np.float64(own[at + 2])
        distance = recent - mean
        if count > fewest:
            usual = max(spread, least, noise)
            if abs(distance / usual) > _BEYOND_ROUNDING * abs(worst):
                worst = distance / usual
            distance = min(_MOST_DEVIATIONS * usual, max(-_MOST_DEVIATIONS * usual, distance))
        weight = _weight(count, _MEMORY)
        own[at] = recent
        own[at + 1] = mean + weight * distance
        own[at + 2] = math.sqrt((1.0 - weight) * (spread * spread + weight * distance * distance))
    return worst


@compiled
def _error(root: Number, count: Number, error: Number, limited: Number) -> Number:
    """The root mean square of errors with a new one, which counts as a few of the others at most."""
    square, before = error * error, np.float64(root) * root
    if limited and count > _FEWEST_RESIDUAL:
        square = min(square, _MOST_ERRORS * _MOST_ERRORS * before)
    return math.sqrt(before + _weight(count, _MEMORY) * (square - before))


@compiled
def _baseline(own: Any, of_day: Number, of_week: Number) -> Number:
    """The seasonal baseline that is much better than the level alone; NaN where none is."""
    best, baseline = math.sqrt(_BETTER) * own[_ERROR], math.nan
    if own[_DAY_COUNT] >= _FEWEST_SEASONAL and own[_DAY_ERROR] < best:
        best, baseline = own[_DAY_ERROR], of_day
    if own[_WEEK_COUNT] >= _FEWEST_SEASONAL and own[_WEEK_ERROR] < best:
        baseline = of_week
    return baseline


@compiled
def _usual(own: Any, profile: Any, time_ms: Number) -> Any:
    """What is usual at this time of the day, and of the week: between the middles of two bins; NaN where one is unknown."""
    place = (time_ms - _MONDAY_MS) % _WEEK_MS / _BIN_MS - 0.5
    floor = math.floor(place)
    low, share = int(floor) % _BINS, place - floor
    high = (low + 1) % _BINS
    of_week = math.nan
    if profile[low] != _UNKNOWN and profile[high] != _UNKNOWN:
        steps = profile[low] * (1.0 - share) + profile[high] * share
        of_week = own[_CENTER] + own[_QUANTUM] * steps
    of_day = _mean_of_days(profile, low) * (1.0 - share) + _mean_of_days(profile, high) * share
    return own[_CENTER] + own[_QUANTUM] * of_day, of_week


@compiled
def _usual_ranges(numbers: Any, profiles: Any, time_ms: Number, low: Any, high: Any) -> None:
    at = (time_ms - _MONDAY_MS) % _WEEK_MS // _BIN_MS
    for row in range(len(numbers)):
        profile = profiles[row]
        if numbers[row, _CLOSED_BINS] < 2 * _BINS_OF_DAY:
            continue
        least, most = 128.0, -128.0
        for near in range(at - 1, at + 2):
            of_day = _mean_of_days(profile, near % _BINS)
            least, most = min(least, of_day), max(most, of_day)
            steps = profile[near % _BINS]
            if steps != _UNKNOWN:
                least, most = min(least, float(steps)), max(most, float(steps))
        low[row] = numbers[row, _CENTER] + numbers[row, _QUANTUM] * least
        high[row] = numbers[row, _CENTER] + numbers[row, _QUANTUM] * most


@compiled
def _mean_of_days(profile: Any, bin_of_week: Number) -> Number:
    """Of the bins of the same time on all days that are known; NaN where none is."""
    total, count = 0.0, 0
    for at in range(bin_of_week % _BINS_OF_DAY, _BINS, _BINS_OF_DAY):
        if profile[at] != _UNKNOWN:
            total += profile[at]
            count += 1
    return total / count if count > 0 else math.nan


@compiled
def _learn(own: Any, profile: Any, time_ms: Number, value: Number) -> None:
    """Add a value to its bin; when the next bin begins, the mean of the one before is added to what is usual there."""
    at = (time_ms - _MONDAY_MS) % _WEEK_MS // _BIN_MS
    if own[_BIN_COUNT] > 0.0 and own[_BIN] != at:
        _close_bin(own, profile, int(own[_BIN]), np.float64(own[_BIN_SUM]) / own[_BIN_COUNT])
        own[_BIN_SUM] = own[_BIN_COUNT] = 0.0
    own[_BIN] = at
    own[_BIN_SUM] += value
    own[_BIN_COUNT] += 1.0


@compiled
def _close_bin(own: Any, profile: Any, at: Number, mean: Number) -> None:
    """Profiles are kept in steps of a quantum from a center, so that a bin takes a byte."""
    usual = mean
    if profile[at] != _UNKNOWN:
        before = own[_CENTER] + own[_QUANTUM] * profile[at]
        usual = before + max(_WEEK_WEIGHT, 1.0 / (1.0 + own[_CLOSED_BINS] // _BINS)) * (mean - before)
    if own[_CLOSED_BINS] == 0.0:
        own[_CENTER] = usual
    own[_CLOSED_BINS] += 1.0
    if abs(usual - own[_CENTER]) > _QUANTA * own[_QUANTUM]:
        _widen(own, profile, usual)
    profile[at] = _steps(own, usual)


@compiled
def _widen(own: Any, profile: Any, usual: Number) -> None:
    """Choose center and quantum anew, so that all bins and another value have room."""
    center, quantum = np.float64(own[_CENTER]), np.float64(own[_QUANTUM])
    low = high = usual
    for at in range(_BINS):
        if profile[at] != _UNKNOWN:
            low, high = min(low, center + quantum * profile[at]), max(high, center + quantum * profile[at])
    own[_CENTER] = (low + high) / 2.0
    # Some room more: values grow for a while.
    own[_QUANTUM] = 1.25 * (high - low) / 2.0 / _QUANTA
    for at in range(_BINS):
        if profile[at] != _UNKNOWN:
            profile[at] = _steps(own, center + quantum * profile[at])


@compiled
def _steps(own: Any, value: Number) -> Number:
    """How many quanta a value is from the center."""
    if own[_QUANTUM] == 0.0:
        return 0
    return int(min(127.0, max(-127.0, round((value - own[_CENTER]) / own[_QUANTUM]))))


@compiled
def _report(own: Any, deviations: Number) -> Number:
    """The score of deviations that are worse than the fading peak of those before; 0 of others."""
    peak = own[_PEAK] * math.exp(-1.0 / _FADING)
    own[_PEAK] = max(peak, deviations)
    return deviations / (CRITICAL + deviations) if deviations > peak else 0.0
