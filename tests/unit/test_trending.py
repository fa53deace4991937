"""What trends grows, comes from many sources, and goes on; a bot does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from query.bad_question import BadQuestion
from query.question import MEASURES, Retention
from query.row_scope import ALL_ROWS, RowScope
from query.sums import Sums, sum_equal_keys
from query.trending import (
    LEAST_USUAL,
    Trend,
    TrendingQuestion,
    UserCounts,
    find_trends,
    parse_trending_question,
    rank_trends,
)

NOW = 1_795_181_895_182
RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
CAMPAIGNS, RISER, BOT, FADED, NEW, BOTNET = 40, 5, 6, 7, 41, 8


def parse(**parameters: str) -> TrendingQuestion:
    given = {"advertiser_id": "3"} | parameters
    return parse_trending_question(list(given.items()), NOW, RETENTION, ALL_ROWS, admin=False)


def sums(buckets: np.ndarray, groups: tuple[np.ndarray, ...], clicks: np.ndarray) -> Sums:
    zeros, flags = np.zeros(len(clicks), np.int64), np.zeros(len(clicks), bool)
    return Sums(buckets, groups, tuple(clicks if m == "clicks" else zeros for m in MEASURES), flags, flags)


def users_of(counts: dict[int, int]) -> UserCounts:
    return UserCounts((np.array(list(counts), np.int64),), np.array(list(counts.values()), np.int64))


def trends(question: TrendingQuestion, users: UserCounts | None = None) -> dict[int, Trend]:
    """Of steady campaigns with 600 clicks an hour from 20 places; one has four times as many, one is clicked 10,000 times by one bot, one by
    a bot with as many addresses as the others have, one has had as many as the riser but long ago in the hour, and one is new."""
    random = np.random.default_rng(3)
    start = question.start_ms
    minutes, ids = np.meshgrid(np.arange(60), np.arange(1, CAMPAIGNS + 2), indexing="ij")
    clicks = random.poisson(10, minutes.shape)
    clicks[:, RISER - 1] = random.poisson(40, 60)
    clicks[:, [BOT - 1, BOTNET - 1]] = 10_000 // 60
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
        users,
    )
    return {trend.id: trend for trend in rank_trends(found)}


# Each user clicks twice, but for the bots, which are one user each.
USERS = dict.fromkeys(range(1, CAMPAIGNS + 1), 300) | {RISER: 1_200, BOT: 1, BOTNET: 1, FADED: 1_200}


def test_the_riser_leads_and_bots_do_not_trend() -> None:
    found = trends(parse(), users_of(USERS))
    assert next(iter(found)) == RISER
    assert found[RISER].users == pytest.approx(0.5, rel=0.1)
    assert BOT not in found and found[BOTNET].score < 0.01
    # Of a bot with many addresses its one user alone tells.
    assert next(iter(trends(parse()))) == BOTNET


def test_a_group_without_known_users_counts_as_the_lowest_of_the_others() -> None:
    honest = {i: n for i, n in USERS.items() if i not in (BOT, BOTNET)}
    found = trends(parse(), users_of(honest))
    lowest = min(trend.users or 0.0 for trend in found.values() if not trend.is_assumed)
    assert 0.2 < lowest < 0.6 and found[BOTNET].users == lowest
    users_known = {i: trend.document("campaign_id")["users_known"] for i, trend in found.items()}
    assert users_known == {i: i in honest for i in found}
    # A bot gains nothing by sending no ids: of another bot the factor is as low.
    assert trends(parse(), users_of(honest | {FADED: 1}))[BOTNET].score < 0.01
    # Of none known, none counts.
    without = trends(parse())[BOTNET].document("campaign_id")
    assert (without["users"], without["users_known"]) == (None, False)


def test_more_users_than_events_count_as_one_each() -> None:
    assert trends(parse(), users_of({RISER: 10**9}))[RISER].users == 1.0


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 59), st.integers(1, 90)), min_size=1, max_size=40))  # fmt: skip
def test_campaigns_of_an_advertiser_are_scored_as_if_there_were_no_other(rows: list[tuple[int, int, int, int]]) -> None:
    question = parse()

    def score(of: list[tuple[int, int, int, int]], keys: int) -> dict[tuple[int, ...], float]:
        columns = [np.array(column, np.int64) for column in zip(*of, strict=True)]
        campaigns, advertisers, minutes, clicks = columns
        groups = (campaigns, advertisers)[:keys]
        buckets = question.start_ms + minutes * MINUTE_MS
        # Sources come as the stores give them: each once.
        whole = sum_equal_keys(sums(np.full(len(of), question.start_ms), (*groups, minutes % 3, minutes % 2), clicks))
        users = UserCounts(tuple(np.unique(np.stack(groups), axis=1)), np.full(len({*zip(*groups, strict=True)}), 7))
        found = find_trends(question, sums(buckets, groups, clicks), whole, whole, users, keys=keys)
        return {(t.id, t.advertiser or 0)[:keys]: t.score for t in found}

    together = score(rows, 2)
    for advertiser in {row[1] for row in rows}:
        apart = score([row for row in rows if row[1] == advertiser], 1)
        assert {c: s for (c, a), s in together.items() if a == advertiser} == {c: pytest.approx(s) for (c,), s in apart.items()}  # fmt: skip


def test_a_few_events_of_a_new_campaign_are_no_trend() -> None:
    trend = trends(parse())[NEW]
    assert (trend.usual, trend.volume) == (LEAST_USUAL, 3)
    assert trend.score < 0.5


@pytest.mark.parametrize("users", [None, users_of({RISER: 900, FADED: 1_000})])
def test_the_score_is_the_product_of_its_factors(users: UserCounts | None) -> None:
    for trend in trends(parse(), users).values():
        document = trend.document("campaign_id")
        product = document["growth"] * (document["users"] or 1) * document["sources"] * document["recency"]
        assert document["score"] == pytest.approx(product, rel=1e-3)


def test_the_highest_come_first() -> None:
    found = list(trends(parse(), users_of(USERS)).values())
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    assert rank_trends(found[::-1], 3) == found[:3]


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
