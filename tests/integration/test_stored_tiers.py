"""The reader of stored tiers on the real ClickHouse: several pieces with one statement, of one advertiser among many."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS
from infra.settings import Settings
from query.plan import EXACT_HOURS, WARM, Piece
from query.question import Question, Retention, parse_question
from query.tiers.clickhouse import StoredTiers

START = 1_795_132_800_000 // DAY_MS * DAY_MS
NOW = START + 3 * DAY_MS
_DIMENSIONS = "time, campaign_id, advertiser_id, ad_id, publisher_id, country, device"
# 240 campaigns of seven advertisers, in the order of neither; 48 hours.
_ROWS = f"""toDateTime({START // 1000} + 3600 * (number % 48), 'UTC'), 1 + intDiv(number, 48) AS campaign, campaign * 5 % 7, campaign * 10,
    1, 'DE', 'mobile'"""
_COUNT = 240 * 48


@pytest.fixture
def client(settings: Settings) -> ClickHouse:
    """Hours, a third of which were written again with other numbers."""
    client = ClickHouse.of(settings)
    for version, where in ((1, "1"), (2, "cityHash64(number) % 3 = 0")):
        client.command(
            f"""INSERT INTO {client.database}.stream_hours ({_DIMENSIONS}, shard, impressions, version)
            SELECT {_ROWS}, 0, {version} * 1000 + number % 97, {version} FROM numbers({_COUNT}) WHERE {where}"""
        )
    return client


def question_of(**more: str) -> Question:
    parameters = {"advertiser_id": "3", "start": "-3d", "end": "now", "granularity": "hour", "group_by": "campaign_id"}
    return parse_question(list((parameters | more).items()), NOW, Retention(DAY_MS, 30 * DAY_MS))


def read(client: ClickHouse, question: Question, pieces: Sequence[Piece]) -> list[dict[tuple[int, ...], int]]:
    """(bucket, group…) → impressions, of each piece."""
    return [
        dict(zip(zip(table.buckets.tolist(), *(g.tolist() for g in table.groups), strict=True), table.measures[0].tolist(), strict=True))
        for table, _ in StoredTiers(client, client, 1).read(question, pieces)
    ]  # fmt: skip


def test_pieces_of_an_advertiser_have_the_newest_version_of_each_of_its_rows_and_no_others(client: ClickHouse) -> None:
    pieces = [Piece(WARM, START + a * HOUR_MS, START + b * HOUR_MS) for a, b in ((0, 5), (9, 30), (30, 31), (40, 48))]
    newest = client.rows(
        f"""SELECT toUnixTimestamp(time) * 1000, campaign_id, argMax(impressions, version) FROM {client.database}.stream_hours
        WHERE campaign_id * 5 % 7 = 3 GROUP BY time, campaign_id SETTINGS use_skip_indexes = 0"""
    )
    truth = [{(t, c): n for t, c, n in newest if p.start_ms <= t < p.end_ms} for p in pieces]
    assert all(truth)
    assert read(client, question_of(), pieces) == truth
    assert read(client, question_of(), pieces[:1]) == truth[:1]
    question = question_of(granularity="total", group_by="")
    assert read(client, question, pieces) == [{(question.start_ms,): sum(of_piece.values())} for of_piece in truth]


def test_each_of_several_runs_answers_for_its_own_piece_alone(client: ClickHouse) -> None:
    # As runs do not: each has rows of both days, and one is no longer the current one.
    for number, run in enumerate(("a", "b", "replaced")):
        client.command(
            f"""INSERT INTO {client.database}.exact_hours ({_DIMENSIONS}, run_id, impressions)
            SELECT {_ROWS}, '{run}', {10**number} FROM numbers({_COUNT})"""
        )
    pieces = [
        Piece(EXACT_HOURS, START, START + DAY_MS, "a"),
        Piece(EXACT_HOURS, START + DAY_MS, START + DAY_MS + 7 * HOUR_MS, "b"),
    ]
    campaigns = sum(campaign * 5 % 7 == 3 for campaign in range(1, 241))
    first, second = read(client, question_of(granularity="total", group_by=""), pieces)
    assert [*first.values(), *second.values()] == [24 * campaigns, 7 * campaigns * 10]


def test_granules_without_the_advertiser_are_skipped(client: ClickHouse) -> None:
    plan = client.rows(
        f"EXPLAIN indexes = 1 SELECT sum(impressions) FROM {client.database}.stream_hours FINAL WHERE advertiser_id = 999"
    )
    text = "\n".join(line for (line,) in plan)
    skipping = text[text.index("Skip") :]
    assert "Name: advertiser" in skipping and "Granules: 0/" in skipping
