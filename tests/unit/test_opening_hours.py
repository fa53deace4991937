"""Campaigns that run at fixed times of the day."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infra.clock import DAY_MS, MINUTE_MS
from stream.insights.alerting import Alerting, AlertPolicy
from stream.insights.watch import Watch


def _alerts_of_opening_hours(opens: Callable[[int], int], silent_from: int | None = None) -> list[tuple[int, str]]:
    """(day, kind) of the alerts of three campaigns that run for nine hours from `opens(day)` on, in steps of five minutes."""
    random, watch, alerting = np.random.default_rng(7), Watch(120), Alerting(AlertPolicy())
    watch.rows_of(np.arange(3), np.zeros(3, np.int64))
    alerts = list[tuple[int, str]]()
    for step in range(8 * 288):
        day, hour = step // 288, step % 288 / 12
        is_open = opens(day) <= hour < opens(day) + 9 and not (silent_from is not None and step >= silent_from)
        impressions = random.poisson(2_000.0 * is_open, 3).astype(np.float64)
        clicks = random.binomial(impressions.astype(np.int64), 0.03)
        findings = watch.take(4 * DAY_MS + step * 5 * MINUTE_MS, impressions, clicks, 900.0 * impressions)
        for alert in alerting.take(4 * DAY_MS + step * 5 * MINUTE_MS, findings, watch.expecting):
            alerts += [(day, alert.kind)] if alert.version == 1 else []
    return alerts


def test_opening_hours_are_learned_within_days_also_when_clocks_are_changed() -> None:
    for opens in (lambda day: 9, lambda day: 9 + (day >= 5), lambda day: 9 - (day >= 5)):
        assert [alert for alert in _alerts_of_opening_hours(opens) if alert[0] >= 4] == []


def test_a_silence_within_opening_hours_is_told() -> None:
    alerts = _alerts_of_opening_hours(lambda day: 9, silent_from=6 * 288 + 12 * 13)
    assert [day for day, kind in alerts if kind == "zero-impressions" and day >= 4][:1] == [6]
