"""Sums to rows: ratios, finality, empty buckets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import HOUR_MS, MINUTE_MS
from query import sums
from query.finality import weakest_finality
from query.page import Page
from query.plan import EXACT_HOURS, HOT, WARM, Borders, Piece
from query.question import MEASURES, RATIOS, BadQuestion
from query.rows import build_rows
from query.sums import Sums
from tests.unit.questions import NOW, Totals, frame_of, question_of, rows_of, sums_of


def test_ratios_follow_the_sums_and_are_null_without_a_divisor() -> None:
    question = question_of(granularity="total")

    def ratios(*values: int) -> tuple[Any, ...]:
        return frame_of(question, rows_of(question, {(question.start_ms,): (*values, 0)})).select(RATIOS).row(0)

    assert ratios(1200, 31, 2, 15_400_000) == (0.0258, 0.0645, 496_774, 12_833_333)
    assert ratios(0, 0, 0, 0) == (None, None, None, None)
    assert ratios(1200, 31, 2, 2**90)[3] == (2**90 * 1000 + 600) // 1200
    wide = rows_of(question, {(question.start_ms,): (1200, 31, 2, 2**90, 0)})
    assert json.loads(Page(question, wide, wide.order).json())[0]["spend_micros"] == 2**90
    assert ratios(80_000, 10, 0, 0)[0] == 0.0001  # 0.000125
    assert ratios(20_000, 7, 0, 0)[0] == 0.0004  # 0.00035: halves up, where a float would be just below


def test_a_ratio_is_the_float_nearest_to_its_four_decimals() -> None:
    question = question_of(granularity="minute", start="-24h")
    hundredths: Totals = {(question.start_ms + n * MINUTE_MS,): (10_000, n, 0, 0, 0) for n in range(1_440)}
    assert frame_of(question, rows_of(question, hundredths))["ctr"].to_list() == [n / 10_000 for n in range(1_440)]


def test_the_finality_of_a_row_is_the_weakest_of_its_parts() -> None:
    question = question_of(granularity="hour", start="2026-11-20T00:00:00Z", end="2026-11-20T04:00:00Z")
    hours = [question.start_ms + n * HOUR_MS for n in range(4)]
    borders = Borders(watermark_ms=hours[3] + 1)
    pieces = [
        Piece(EXACT_HOURS, hours[0], hours[1], "r"),
        Piece(WARM, hours[1], hours[3]),
        Piece(HOT, hours[3], question.end_ms),
    ]
    table = sums_of(question, {(h,): (1, 0, 0, 0, 0) for h in hours}, corrected=[2])
    rows = build_rows(question, table, borders, pieces)
    assert frame_of(question, rows)["finality"].to_list() == ["reconciled", "closed", "corrected", "provisional"]
    assert weakest_finality(rows.finality, question, borders, pieces) == "provisional"
    empty = build_rows(question, sums_of(question, {}), borders, pieces)
    assert weakest_finality(empty.finality, question, borders, pieces) == "provisional"
    ahead = replace(borders, hot_watermark_ms=question.end_ms)
    by_redis = frame_of(question, build_rows(question, table, ahead, pieces))["finality"].to_list()
    assert by_redis == ["reconciled", "closed", "corrected", "closed"]
    assert weakest_finality(empty.finality, question, ahead, pieces) == "closed"
    behind = replace(borders, watermark_ms=question.end_ms, hot_watermark_ms=hours[3])
    assert frame_of(question, build_rows(question, table, behind, pieces))["finality"].to_list()[3] == "provisional"
    assert weakest_finality(empty.finality, question, behind, pieces) == "provisional"
    assert weakest_finality(empty.finality, question, ahead, pieces[:2]) == "provisional", "a piece was not answered"
    first = sums_of(question, {(h,): (1, 0, 0, 0, 0) for h in hours[:3]}, corrected=[2])
    assert (
        weakest_finality(build_rows(question, first, borders, pieces).finality, question, borders, pieces) == "closed"
    )


@pytest.mark.parametrize("grain", ["hour", "day", "total"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_an_answer_without_rows_has_the_columns_of_one_with_rows(grain: str, zone: str) -> None:
    question = question_of(granularity=grain, start="-24h", timezone=zone)
    pieces = [Piece(EXACT_HOURS, question.start_ms, question.end_ms, "r")]
    rows = build_rows(question, sums_of(question, {}), Borders(watermark_ms=NOW), pieces)
    one_row = build_rows(question, sums_of(question, {(question.start_ms,): (1, 0, 0, 0, 0)}), Borders(), pieces)
    assert frame_of(question, rows).schema == frame_of(question, one_row).schema
    assert len(rows) == 0
    assert weakest_finality(rows.finality, question, Borders(), pieces) == "reconciled"


def test_fill_adds_the_empty_buckets() -> None:
    question = question_of(granularity="minute", start="-5m", fill="zero")
    rows = rows_of(question, {})
    assert len(rows) == 6
    assert set(frame_of(question, rows)["impressions"]) == {0}
    grouped = question_of(granularity="minute", start="-5m", fill="zero", group_by="country")
    assert len(rows_of(grouped, {(grouped.start_ms, "DE"): (1, 0, 0, 0, 0)})) == 6


def test_empty_buckets_of_too_many_groups_are_refused_before_they_are_made() -> None:
    question = question_of(granularity="minute", start="-24h", fill="zero", group_by="ad_id")
    rows: Totals = {(question.start_ms, ad): (1, 0, 0, 0, 0) for ad in range(20_000)}
    assert len(rows_of(question, dict(list(rows.items())[:300]))) == 300 * 1_441
    with pytest.raises(BadQuestion, match="28,820,000 rows") as error:
        rows_of(question, rows)
    assert (error.value.parameter, error.value.status) == ("fill", 400)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2**63 - 1), st.booleans()), max_size=30))
def test_sums_are_exact_however_large(rows: list[tuple[int, int, int, bool]]) -> None:
    question = question_of(granularity="total", group_by="country")
    columns = list(zip(*rows, strict=True)) or [()] * 4
    amounts = np.array(columns[2], np.int64)
    flags = np.array(columns[3], bool)
    part = Sums(
        np.array(columns[0], np.int64), (np.array(columns[1], np.int64),), (amounts,) * len(MEASURES), flags, flags
    )
    merged = sums.merge_pieces(question, [part, sums.decode_sums(sums.encode_sums(part, 7))[0]])
    expected: dict[tuple[int, int], tuple[int, bool]] = {}
    for bucket, group, amount, flag in rows:
        total, any_ = expected.get((bucket, group), (0, False))
        expected[bucket, group] = (total + 2 * amount, any_ or flag)
    assert sums.decode_sums(sums.encode_sums(merged, 7))[1] == 7
    again = sums.decode_sums(sums.encode_sums(merged, 7))[0]
    assert {
        (b, g): (int(m), bool(c))
        for b, g, m, c in zip(again.buckets, again.groups[0], again.measures[3], again.corrected, strict=True)
    } == expected
