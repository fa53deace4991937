"""Which tier answers which part of a range."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from query.plan import COLD, EXACT_DAYS, EXACT_HOURS, HOT, WARM, Borders, Piece, make_plan
from tests.unit.questions import NOW, question_of

_day = NOW // DAY_MS * DAY_MS


_borders = st.builds(
    Borders,
    warm_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    warm_closed_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    hot_from_ms=st.one_of(st.none(), st.integers(-60, 30).map(lambda h: _day + h * HOUR_MS)),
    cold_ms=st.one_of(st.none(), st.integers(-4, 1).map(lambda d: _day + d * DAY_MS)),
    watermark_ms=st.none(),
    runs=st.sets(st.integers(-4, 1)).map(lambda days: {_day + d * DAY_MS: f"run{d}" for d in days}),
    # Of such a day the first hours had closed when its run was forced.
    open_from_ms=st.dictionaries(st.integers(-4, 1), st.integers(0, 23)).map(
        lambda hours: {_day + d * DAY_MS: _day + d * DAY_MS + h * HOUR_MS for d, h in hours.items()}
    ),
    # Tables that were made again: what began earlier is not in them.
    warm_from_ms=st.one_of(st.just(0), st.integers(-96, 24).map(lambda h: _day + h * HOUR_MS)),
    cold_from_ms=st.one_of(st.just(0), st.integers(-4, 1).map(lambda d: _day + d * DAY_MS)),
)


def coarsest(at: int, low: int, high: int, borders: Borders, whole_days: bool) -> str:
    """The tier that should serve what comes from `at` up to the next hour."""
    day, hour = at // DAY_MS * DAY_MS, at // HOUR_MS * HOUR_MS
    run = day in borders.runs and at < borders.open_from_ms.get(day, day + DAY_MS)
    if whole_days and low <= day and day + DAY_MS <= high:
        if run and day not in borders.open_from_ms:
            return EXACT_DAYS
        none = day not in borders.runs or borders.open_from_ms.get(day) == day
        if none and borders.cold_from_ms <= day and day + DAY_MS <= (borders.cold_ms or 0):
            return COLD
    if low <= hour and hour + HOUR_MS <= high:
        if run:
            return EXACT_HOURS
        lost = borders.hot_from_ms is None or hour < borders.hot_from_ms
        if hour + HOUR_MS <= max(borders.warm_ms or 0, (lost and borders.warm_closed_ms) or 0):
            return WARM if lost or borders.warm_from_ms <= hour else HOT
    return HOT


@given(st.integers(-5000, 2000), st.integers(1, 5000), _borders, st.booleans())
def test_pieces_tile_the_range_and_lie_within_what_their_tier_retains(
    start: int, length: int, borders: Borders, whole_days: bool
) -> None:
    low, high = _day + start * MINUTE_MS, _day + (start + length) * MINUTE_MS
    pieces = make_plan(low, high, borders, whole_days=whole_days)
    assert pieces[0].start_ms == low
    assert pieces[-1].end_ms == high
    assert all(a.end_ms == b.start_ms for a, b in pairwise(pieces))
    for edge in range(low - low % HOUR_MS, high, HOUR_MS):
        at = max(low, edge)
        assert [p.tier for p in pieces if p.start_ms <= at < p.end_ms] == [coarsest(at, low, high, borders, whole_days)]
    for piece in pieces:
        grain = {HOT: MINUTE_MS, WARM: HOUR_MS, EXACT_HOURS: HOUR_MS, COLD: DAY_MS, EXACT_DAYS: DAY_MS}[piece.tier]
        assert piece.start_ms % grain == 0
        assert piece.end_ms % grain == 0
        days = range(piece.start_ms // DAY_MS * DAY_MS, piece.end_ms, DAY_MS)
        if piece.tier in (EXACT_HOURS, EXACT_DAYS):
            assert [borders.runs[d] for d in days] == [piece.run]
            assert piece.end_ms <= borders.open_from_ms.get(days[0], piece.end_ms)
        for hour in range(piece.start_ms, piece.end_ms, HOUR_MS) if piece.tier == WARM else ():
            settled = borders.warm_ms is not None and hour + HOUR_MS <= borders.warm_ms
            closed = borders.warm_closed_ms is not None and hour + HOUR_MS <= borders.warm_closed_ms
            lost = borders.hot_from_ms is None or hour < borders.hot_from_ms
            assert settled or (closed and lost)
        if piece.tier == COLD:
            assert borders.cold_ms is not None
            assert borders.cold_from_ms <= piece.start_ms
            assert piece.end_ms <= borders.cold_ms
            assert not any(d in borders.runs and borders.open_from_ms.get(d) != d for d in days)


def test_a_total_may_end_in_a_distant_year() -> None:
    question = question_of(granularity="total", start="-1h", end="2199-12-31T00:00:00Z")
    pieces = make_plan(question.start_ms, question.end_ms, Borders(warm_ms=NOW - 2 * HOUR_MS), whole_days=True)
    assert pieces == [Piece(HOT, question.start_ms, question.end_ms)]
