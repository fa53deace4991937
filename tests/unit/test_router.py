"""The router, with stores that answer in an order of the test's choosing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from infra.clock import DAY_MS, HOUR_MS, iso
from infra.errors import Unavailable
from infra.settings import Settings
from ingest.partials import MEASURES
from query import sums
from query.circuit import Guard
from query.export_stretches import ExportLimits, begin_export
from query.plan import Borders, Piece
from query.question import Question, Retention, parse_question
from query.router import Router
from query.sums import Sums
from query.tier_cache import Lookup, TierCache
from query.tiers.clickhouse import StoredTiers
from query.tiers.redis import HotTier
from query.tiers.span import Span
from tests.unit.fakes import Clock, FakeRedis

DAY = 1_795_132_800_000  # 2026-11-20T00:00:00Z
NOW = DAY + 20 * HOUR_MS + 600_000
BORDERS = Borders(warm_ms=DAY + 19 * HOUR_MS, cold_ms=DAY - DAY_MS, watermark_ms=NOW, runs={DAY - 2 * DAY_MS: "r"})


class StaleInTurn(TierCache):
    """A cache that has the borders, and of sums stale entries alone, which it returns in the order of `turns`, by tier; for each
    piece `table`."""

    def __init__(self, turns: tuple[str, ...], table: Sums) -> None:
        self._turns, self._table = turns, table
        self._passed = {tier: threading.Event() for tier in turns}

    def peek(self, key: str, _expired_s: float) -> tuple[Lookup | None, bool]:
        if key == "borders":
            return Lookup(msgspec.json.encode(BORDERS), NOW / 1000), False
        return None, True

    def renew(self, key: str, _fresh_s: float, _read: Callable[[], bytes]) -> Lookup:
        tier = next(tier for tier in self._turns if f"tier='{tier}'" in key)
        for earlier in itertools.takewhile(lambda t: t != tier, self._turns):
            assert self._passed[earlier].wait(20)
        self._passed[tier].set()
        return Lookup(sums.encode_tables([(self._table, 0)] * key.count("Piece(")), NOW / 1000 - 5, "stale")


class Hours(StoredTiers):
    """Stored tiers with a row of each of `ads` ads in each hour. While `away` is set they raise Unavailable. `reads` counts pieces."""

    def __init__(self, ads: int) -> None:
        self._ads, self.away, self.reads = np.arange(ads), False, 0

    def borders(self) -> bytes:
        self._answer()
        return msgspec.json.encode(BORDERS)

    def read(self, question: Question, pieces: Sequence[Piece]) -> list[tuple[Sums, int]]:
        self._answer()
        return [self._read(question, piece) for piece in pieces]

    def _read(self, question: Question, piece: Piece) -> tuple[Sums, int]:
        self.reads += 1
        hours = np.arange(piece.start_ms, piece.end_ms, HOUR_MS)
        buckets = np.repeat([question.bucket(hour) for hour in hours.tolist()], len(self._ads))
        ads, flags = np.tile(self._ads, len(hours)), np.zeros(len(buckets), bool)
        return sums.sum_equal_keys(Sums(buckets, (ads,), (ads,) * len(MEASURES), flags, flags)), len(buckets)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("ClickHouse: it is away", backend="clickhouse")


class NoMinutes(HotTier):
    """A hot tier that holds all of its range, and no rows."""

    def __init__(self) -> None:
        super().__init__(FakeRedis(), "", 1)

    def seen(self) -> Span:
        return Span([NOW], [NOW], [0], [NOW])

    def read(self, question: Question, _start_ms: int, _end_ms: int) -> tuple[Sums, int, Span]:
        return sums.empty_sums(question), 0, self.seen()


def router_of(question: Question, turns: tuple[str, ...]) -> Router:
    """A router over no rows, whose stored tiers reply in the order of `turns`."""
    cache = StaleInTurn(turns, sums.empty_sums(question))
    return Router(Settings.model_validate({}), hot=NoMinutes(), cache=cache)


@pytest.mark.parametrize("turns", list(itertools.permutations(["exact-days", "cold", "warm"])))
def test_warnings_come_in_the_order_of_time_whichever_tier_answers_first(turns: tuple[str, ...]) -> None:
    parameters = {"campaign_id": "7", "start": iso(DAY - 3 * DAY_MS), "end": iso(DAY + DAY_MS), "granularity": "day"}
    question = parse_question(list(parameters.items()), NOW, Retention(DAY_MS, 30 * DAY_MS))
    answer = router_of(question, turns).answer(question)
    assert [warning.split()[1] for warning in answer.warnings] == ["cold", "exact-days", "warm"]
    assert all(warning.endswith(f"is as of {iso(NOW - 5_000)}") for warning in answer.warnings)
    assert [degraded.warning for degraded in answer.degraded] == answer.warnings
    assert {degraded.as_of_ms for degraded in answer.degraded} == {NOW - 5_000}
    assert not answer.notes


def test_an_export_is_aborted_where_cached_rows_begin_to_stand_in_for_clickhouse() -> None:
    parameters = {
        "campaign_id": "7",
        "start": iso(DAY),
        "end": iso(DAY + 10 * HOUR_MS),
        "granularity": "hour",
        "group_by": "ad_id",
    }
    question = parse_question(list(parameters.items()), NOW, Retention(DAY_MS, 30 * DAY_MS))
    clock, redis, hours = Clock(NOW / 1000), FakeRedis(), Hours(ads=30)
    router = Router(
        Settings.model_validate({}), hot=NoMinutes(), stored=hours, cache=TierCache(redis, Guard("redis"), "", clock)
    )
    limits = ExportLimits(page_rows=10, stretch_rows=100)
    for away in (False, True):
        export = begin_export(question, router.answer, limits)
        assert (len(export.rest), export.warnings) == (3, [])
        hours.away = away
        clock.now += 10
        answers = [router.answer(rest) for rest in export.rest]
        assert sum(len(answer.page) for answer in [export.first, *answers]) == 300, "all rows are cached"
        warning = f"tiers warm and cold are not available: what they hold is as of {iso(NOW + 10_000)}" if away else ""
        assert [export.unannounced(answer) for answer in answers] == [warning] * 3
    # Announced from the beginning, it is what the client was told.
    export = begin_export(question, router.answer, limits)
    assert export.warnings == [warning]
    assert not any(export.unannounced(router.answer(rest)) for rest in export.rest)


def test_cached_sums_of_a_version_with_other_measures_or_codes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        "campaign_id": "7",
        "start": iso(DAY),
        "end": iso(DAY + HOUR_MS),
        "granularity": "hour",
        "group_by": "ad_id",
    }
    question = parse_question(list(parameters.items()), NOW, Retention(DAY_MS, 30 * DAY_MS))
    redis, hours, reads = FakeRedis(), Hours(ads=3), list[int]()
    for encoding in (sums.ENCODING, sums.ENCODING, "of another version"):
        monkeypatch.setattr(sums, "ENCODING", encoding)
        cache = TierCache(redis, Guard("redis"), "", Clock(NOW / 1000))
        Router(Settings.model_validate({}), hot=NoMinutes(), stored=hours, cache=cache).answer(question)
        reads.append(hours.reads)
    assert reads == [1, 1, 2]


_CUT, _TO_BE_CUT = "are cut at whole hours of UTC: the hour", "are exact while their minutes are retained"


@pytest.mark.parametrize(
    ("zone", "start", "beginnings"),
    [
        ("Asia/Kolkata", "-3d", [_CUT]),
        ("Asia/Kolkata", "-1h", [_TO_BE_CUT]),  # today
        ("Europe/Berlin", "-3d", []),
        ("Europe/Berlin", "-1h", []),
    ],
)
def test_an_answer_warns_of_local_days_that_are_or_will_be_cut_at_whole_hours(
    zone: str, start: str, beginnings: list[str]
) -> None:
    parameters = {"campaign_id": "7", "start": start, "end": "now", "granularity": "day", "timezone": zone}
    question = parse_question(list(parameters.items()), NOW, Retention(DAY_MS, 30 * DAY_MS))
    answer = router_of(question, ("warm", "exact-hours")).answer(question)
    about_days = [
        warning.removeprefix(f"days of {zone} ") for warning in answer.warnings if warning.startswith(f"days of {zone}")
    ]
    assert answer.notes == [f"days of {zone} {rest}" for rest in about_days]
    assert len(about_days) == len(beginnings)
    assert all(warning.startswith(start) for warning, start in zip(about_days, beginnings, strict=True))


def test_a_closed_day_of_a_zone_off_whole_hours_is_exact_until_its_minutes_are_gone() -> None:
    start = DAY - HOUR_MS // 2 - 5 * HOUR_MS  # midnight in India
    parameters = {
        "campaign_id": "7",
        "start": iso(start),
        "end": iso(start + DAY_MS),
        "granularity": "day",
        "timezone": "Asia/Kolkata",
    }
    retention = Retention(DAY_MS, 30 * DAY_MS)
    exact, cut = (
        parse_question(list(parameters.items()), start + DAY_MS + minutes * 60_000, retention) for minutes in (30, 61)
    )
    assert (exact.will_cut_hours, exact.start_ms, exact.end_ms) == (True, start, start + DAY_MS)
    assert (cut.cuts_hours, cut.start_ms, cut.end_ms) == (True, start + HOUR_MS // 2, start + DAY_MS + HOUR_MS // 2)
