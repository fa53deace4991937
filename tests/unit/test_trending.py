"""What trends grows, comes from many sources, and goes on; a bot does not."""

from __future__ import annotations

import numpy as np
import pytest

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from query.bad_question import BadQuestion
from query.question import MEASURES, Retention
from query.row_scope import ALL_ROWS, RowScope
from query.sums import Sums
from query.trending import LEAST_USUAL, Trend, TrendingQuestion, find_trends, parse_trending_question

NOW = 1_795_181_895_182
RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
CAMPAIGNS, RISER, BOT, FADED, NEW = 40, 5, 6, 7, 41


def parse(**parameters: str) -> TrendingQuestion:
    given = {"advertiser_id": "3"} | parameters
    return parse_trending_question(list(given.items()), NOW, RETENTION, ALL_ROWS, admin=False)


def sums(buckets: np.ndarray, groups: tuple[np.ndarray, ...], clicks: np.ndarray) -> Sums:
    zeros, flags = np.zeros(len(clicks), np.int64), np.zeros(len(clicks), bool)
    return Sums(buckets, groups, tuple(clicks if m == "clicks" else zeros for m in MEASURES), flags, flags)


def trends(question: TrendingQuestion) -> dict[int, Trend]:
    """Of steady campaigns with 600 clicks an hour from 20 places; one has four times as many, one is clicked 10,000 times by one bot, one has
    had as many as the riser but long ago in the hour, and one is new."""
    random = np.random.default_rng(3)
    start = question.minutes.start_ms
    minutes, ids = np.meshgrid(np.arange(60), np.arange(1, CAMPAIGNS + 2), indexing="ij")
    clicks = random.poisson(10, minutes.shape)
    clicks[:, RISER - 1] = random.poisson(40, 60)
    clicks[:, BOT - 1] = 10_000 // 60
    clicks[:20, FADED - 1], clicks[20:, FADED - 1] = 120, 0
    clicks[:, NEW - 1] = 0
    clicks[-1, NEW - 1] = 3
    places = np.arange(20)
    by_source = np.array(
        [c * (places == 0) if i == BOT - 1 else c // 20 + (places < c % 20) for i, c in enumerate(clicks.sum(axis=0))]
    )
    source_ids, source = np.repeat(np.arange(1, CAMPAIGNS + 2), 20), np.tile(places, CAMPAIGNS + 1)
    former = np.arange(1, CAMPAIGNS + 1)
    found = find_trends(
        question,
        sums((start + minutes * MINUTE_MS).ravel(), (ids.ravel(),), clicks.ravel()),
        sums(np.full(len(source), start), (source_ids, source, source, source), by_source.ravel()),
        sums(np.full(CAMPAIGNS, start), (former,), np.full(CAMPAIGNS, 600 * 24 * 7)),
    )
    return {trend.id: trend for trend in found}


def test_the_riser_leads_and_a_bot_does_not_trend() -> None:
    found = trends(parse())
    assert next(iter(found)) == RISER
    assert found[RISER].score == pytest.approx(4 * 0.95, rel=0.1)
    assert BOT not in found
    assert found[RISER].score > 2 * found[FADED].score
    steady = [found[i].score for i in range(8, CAMPAIGNS + 1)]
    assert all(score == pytest.approx(0.95, rel=0.2) for score in steady)


def test_a_few_events_of_a_new_campaign_are_no_trend() -> None:
    trend = trends(parse())[NEW]
    assert (trend.usual, trend.volume) == (LEAST_USUAL, 3)
    assert trend.score < 0.5


def test_the_score_is_the_product_of_its_factors() -> None:
    for trend in trends(parse()).values():
        document = trend.document("campaign_id")
        product = document["growth"] * document["diversity"] * document["recency"]
        assert document["score"] == pytest.approx(product, rel=1e-3)


def test_so_many_groups_are_listed_at_most() -> None:
    assert list(trends(parse(k="3"))) == list(trends(parse()))[:3]


def test_nothing_trends_without_events() -> None:
    none = np.zeros(0, np.int64)
    empty, wide = sums(none, (none,), none), sums(none, (none,) * 4, none)
    assert find_trends(parse(), empty, wide, empty) == []


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"dimension": "country"}, "dimension"),
        ({"by": "spend_micros"}, "by"),
        ({"k": "0"}, "k"),
        ({"range": "1h"}, "range"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: dict[str, str], name: str) -> None:
    with pytest.raises(BadQuestion) as raised:
        parse(**parameters)
    assert raised.value.parameter == name


def test_a_key_for_several_advertisers_names_one() -> None:
    with pytest.raises(BadQuestion, match="advertiser_id is missing"):
        parse_trending_question([], NOW, RETENTION, RowScope(frozenset({1, 2})), admin=False)
