"""Overload levels."""

from __future__ import annotations

from ingest.shedding import Level, Policy, next_level


def test_overload_levels_have_hysteresis() -> None:
    policy, level = Policy(), Level.NORMAL
    levels = []
    for lag in (0, 499_999, 500_000, 450_000, 399_999, 1_000_000, 10_000_000, 8_000_001, 7_999_999, 0):
        level = next_level(level, lag, policy)
        levels.append(level)
    assert levels == [0, 0, 1, 1, 0, 2, 3, 3, 2, 0]
