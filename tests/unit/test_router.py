"""The router, with stores that answer in an order of the test's choosing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from infra.clock import DAY_MS, HOUR_MS, iso
from infra.settings import Settings
from query import sums
from query.cache import Found
from query.plan import Borders
from query.request import Held, parse
from query.router import Router
from query.tiers.hot import Span

DAY = 1_795_132_800_000  # 2026-11-20T00:00:00Z
NOW = DAY + 20 * HOUR_MS + 600_000
BORDERS = Borders(warm_ms=DAY + 19 * HOUR_MS, cold_ms=DAY - DAY_MS, watermark_ms=NOW, runs={DAY - 2 * DAY_MS: "r"})


class StaleInTurn:
    """A cache that only has stale entries, and gives them out in the order of `turns`, by tier."""

    def __init__(self, turns: tuple[str, ...], table: bytes) -> None:
        self._turns, self._table = turns, table
        self._passed = {tier: threading.Event() for tier in turns}

    def fresh(self, _key: str) -> None:
        return None

    def held(self, _key: str, _late_s: float) -> tuple[Found, bool]:
        return Found(msgspec.json.encode(BORDERS), 0.0), False

    def renewed(self, key: str, _fresh_s: float, _ask: Callable[[], bytes]) -> Found:
        tier = next(tier for tier in self._turns if f"tier='{tier}'" in key)
        for earlier in itertools.takewhile(lambda t: t != tier, self._turns):
            assert self._passed[earlier].wait(20)
        self._passed[tier].set()
        return Found(self._table, 5.0, "stale")


class NoMinutes:
    """A hot tier that holds all of its range, and no rows."""

    span = Span([NOW], [NOW], [0], [NOW])

    def seen(self) -> Span:
        return self.span

    def read(self, question: Any, *_: Any) -> tuple[sums.Sums, int, Span]:
        return sums.none(question), 0, self.span


@pytest.mark.parametrize("turns", list(itertools.permutations(["exact-days", "cold", "warm"])))
def test_warnings_come_in_the_order_of_time_whichever_tier_answers_first(
    turns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"campaign_id": "7", "start": iso(DAY - 3 * DAY_MS), "end": iso(DAY + DAY_MS), "granularity": "day"}
    question = parse(list(asked.items()), NOW, Held(DAY_MS, 30 * DAY_MS))
    router = Router(Settings.model_validate({}))
    monkeypatch.setattr(router, "cache", StaleInTurn(turns, sums.as_bytes(sums.none(question), 0)))
    monkeypatch.setattr(router, "_hot", NoMinutes())
    warnings = router.answer(question).warnings
    assert [warning.split()[1] for warning in warnings] == ["cold", "exact-days", "warm"]
    assert all("is as of 2" in warning for warning in warnings)


@pytest.mark.parametrize(("zone", "cut"), [("Asia/Kolkata", True), ("Europe/Berlin", False)])
def test_an_answer_whose_days_are_cut_at_whole_hours_says_so(
    zone: str, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"campaign_id": "7", "start": "-3d", "end": "now", "granularity": "day", "timezone": zone}
    question = parse(list(asked.items()), NOW, Held(DAY_MS, 30 * DAY_MS))
    router = Router(Settings.model_validate({}))
    nothing = sums.as_bytes(sums.none(question), 0)
    monkeypatch.setattr(router, "cache", StaleInTurn(("warm", "exact-hours"), nothing))
    monkeypatch.setattr(router, "_hot", NoMinutes())
    warnings = router.answer(question).warnings
    assert [f"days of {zone} are cut at whole hours of UTC" in warning for warning in warnings].count(True) == int(cut)
