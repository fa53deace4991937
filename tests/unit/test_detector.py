"""The detector against deviations computed by hand, on series whose anomalies are known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from stream.insights.detector import CRITICAL, STATE_BYTES, WARNING, Detector, DetectorBank, Verdict

_MONDAY_MS = 4 * DAY_MS
_STEP_MS = 15 * MINUTE_MS
_DAY = DAY_MS // _STEP_MS


def verdicts(values: list[float], step_ms: int = MINUTE_MS) -> list[Verdict]:
    detector = Detector()
    return [detector.update(_MONDAY_MS + n * step_ms, value) for n, value in enumerate(values)]


def noise(count: int, mean: float = 100.0, deviation: float = 5.0) -> list[float]:
    return list(np.random.default_rng(7).normal(mean, deviation, count))


def season(days: int, shape: Callable[[float], float]) -> list[float]:
    """A value every quarter of an hour, by a shape over the hours since Monday, with a little noise."""
    random = np.random.default_rng(3)
    return [shape(n * _STEP_MS / HOUR_MS) * (1 + 0.02 * random.standard_normal()) for n in range(days * _DAY)]


def by_day(hours: float) -> float:
    return 1000 + 900 * math.sin(hours / 24 * 2 * math.pi)


def by_week(hours: float) -> float:
    """Nothing at all on weekends."""
    return by_day(hours) if hours % 168 < 120 else 20.0


def test_deviations_are_those_of_all_values_before() -> None:
    values = noise(60)
    recent = values[0]
    means = [recent]
    for count, value in enumerate(values[1:], start=2):
        recent += max(1 / count, 1 / 2) * (value - recent)
        means.append(recent)
    # Of the horizon of two values; that of ten agrees with it for a jump of the last value alone, only less.
    expected = (means[-1] - statistics.fmean(means[:-1])) / statistics.pstdev(means[:-1])
    jump = verdicts([*values[:-1], values[-1]])[-1].deviations
    assert abs(jump) >= abs(expected) - 1e-3
    jump = verdicts([*values[:-1], 1000.0])[-1].deviations
    recent = means[-2] + 0.5 * (1000 - means[-2])
    assert jump == pytest.approx((recent - statistics.fmean(means[:-1])) / statistics.pstdev(means[:-1]), rel=1e-3)


def test_nothing_is_said_of_the_first_values_and_of_a_constant() -> None:
    assert {v.deviations for v in verdicts([1.0, 1e9, -5.0, *noise(17)])} == {0.0}
    constant = verdicts([5.0] * 500)
    assert max(v.score for v in constant) == 0
    assert constant[-1].expected == 5


def test_a_jump_is_reported_at_once_and_once() -> None:
    scores = [v.score for v in verdicts([*noise(400), *noise(120, mean=160.0)])]
    alarms = [n for n, score in enumerate(scores) if score >= 0.5]
    assert alarms[0] == 400
    # Until both horizons have seen it; nothing is said of the rest of the episode.
    assert alarms[-1] < 415
    assert max(scores[100:400]) < 0.5


def test_a_small_change_that_stays_is_seen_by_the_longer_horizon() -> None:
    values = [*noise(600), *noise(15, mean=108.0)]
    assert max(abs(v.deviations) for v in verdicts(values)[600:]) > WARNING


def test_seasons_are_usual_once_they_are_known_and_their_absence_is_not() -> None:
    for shape, learned, days in ((by_day, 8, 10), (by_week, 22, 28)):
        values = season(days, shape)
        calm = verdicts(values, _STEP_MS)
        assert max(abs(v.deviations) for v in calm[learned * _DAY :]) < CRITICAL, shape
        at = (days - 2) * _DAY - _DAY // 2
        assert calm[at].expected == pytest.approx(values[at], rel=0.15)
    # At noon of a Tuesday there is as little as on a Sunday.
    values = season(30, by_week)
    at = 29 * _DAY + _DAY // 4
    values[at : at + 4] = [20.0] * 4
    low = verdicts(values, _STEP_MS)[at : at + 4]
    assert low[0].deviations < -WARNING
    assert low[3].deviations < -CRITICAL


def test_a_deviation_that_chance_alone_explains_is_none() -> None:
    detector = Detector()
    for n, value in enumerate([0.02, 0.021, 0.019] * 50):
        detector.update(n * MINUTE_MS, value, math.sqrt(0.02 * 0.98 / 1_000_000))
    # One click of four impressions.
    assert abs(detector.update(150 * MINUTE_MS, 0.25, math.sqrt(0.02 * 0.98 / 4)).deviations) < WARNING
    assert abs(detector.update(151 * MINUTE_MS, 0.25, math.sqrt(0.02 * 0.98 / 40_000)).deviations) > CRITICAL


def test_what_is_no_number_is_skipped_and_huge_ones_do_no_harm() -> None:
    values = noise(200)
    skipped = [x for value in values for x in (value, math.nan, math.inf)]
    times = [n * MINUTE_MS for n in range(200) for _ in range(3)]
    detector, plain = Detector(), Detector()
    scores = [detector.update(at, value).score for at, value in zip(times, skipped, strict=True)]
    assert scores[::3] == [plain.update(n * MINUTE_MS, value).score for n, value in enumerate(values)]
    assert all(math.isfinite(v.deviations) for v in verdicts([1e18, -1e18, 0.0, 1e18] * 100))
    # A clock that jumps, in either direction, asks for another time of the week and nothing else.
    assert math.isfinite(detector.update(-(10**15), 100.0).deviations)
    assert math.isfinite(detector.update(10**15, 100.0).deviations)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=30, max_size=80), st.sampled_from([1e-3, 7.0, 1e4]))
def test_the_unit_does_not_matter(values: list[float], unit: float) -> None:
    values = [value + 1e7 for value in values]
    mine, scaled = verdicts(values), verdicts([value * unit for value in values])
    for one, other in zip(mine, scaled, strict=True):
        assert other.deviations == pytest.approx(one.deviations, rel=0.02, abs=0.02)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1e5)), max_size=120), st.randoms())
def test_series_of_a_bank_are_series_alone_and_go_on_from_their_bytes(
    series: int, steps: list[tuple[int, float]], random: Random
) -> None:
    bank, alone = DetectorBank(series), [Detector() for _ in range(series)]
    for n, (number, value) in enumerate(steps):
        row, at = number % series, n * HOUR_MS
        deviations, _, scores = bank.update(np.array([row]), np.array([at]), [value])
        verdict = alone[row].update(at, value)
        assert (deviations[0], scores[0]) == (verdict.deviations, verdict.score)
        if random.random() < 0.2:
            state = bank.encode(row)
            assert len(state) == STATE_BYTES <= 200
            bank = _copied(bank, series)
    with pytest.raises(ValueError, match="192 bytes"):
        bank.decode(0, b"")


def _copied(bank: DetectorBank, series: int) -> DetectorBank:
    copy = DetectorBank(series)
    for row in range(series):
        copy.decode(row, bank.encode(row))
    return copy
