"""How final a number is: the four words that rows, answers and exports use, and which of them is true of a row. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from query.plan import EXACT, HOT, Borders, Piece
from query.question import Question
from query.sums import Sums

FINALITY = ("provisional", "closed", "corrected", "reconciled")
"""The weakest first."""
PROVISIONAL, CLOSED, CORRECTED, RECONCILED = range(len(FINALITY))
"""Indices into FINALITY."""


def finality_of_rows(
    question: Question, table: Sums, borders: Borders, pieces: Sequence[Piece]
) -> npt.NDArray[np.uint8]:
    """How final each row is. A bucket is closed by the watermark of the tier that its newest events come from."""
    buckets, bucket_numbers = np.unique(table.buckets, return_inverse=True)
    starts, ends = question.extents(buckets)
    watermarks = np.full(len(buckets), _known_watermark_ms(borders.watermark_ms))
    for piece in pieces:
        if piece.tier == HOT:
            overlaps = (starts < piece.end_ms) & (piece.start_ms < ends)
            watermarks[overlaps] = _known_watermark_ms(borders.hot_watermark_ms)
    by_bucket = np.where(ends > watermarks, PROVISIONAL, CLOSED).astype(np.uint8)
    for start, end in _reconciled_ranges(pieces):
        by_bucket[(start <= starts) & (ends <= end)] = RECONCILED
    finality = by_bucket[bucket_numbers]
    finality[(finality == CLOSED) & table.corrected] = CORRECTED
    return finality


def weakest_finality(
    row_finality: npt.NDArray[np.uint8], question: Question, borders: Borders, pieces: Sequence[Piece]
) -> str:
    """The finality of a whole answer: that of its weakest row; without rows, that of its range."""
    if len(row_finality):
        return FINALITY[int(row_finality.min())]
    if _cover(_reconciled_ranges(pieces), question):
        return FINALITY[RECONCILED]
    by_tier = [(p, borders.hot_watermark_ms if p.tier == HOT else borders.watermark_ms) for p in pieces]
    closed = [(p.start_ms, p.end_ms) for p, watermark in by_tier if p.end_ms <= _known_watermark_ms(watermark)]
    return FINALITY[CLOSED if _cover(_join_adjacent(closed), question) else PROVISIONAL]


def _reconciled_ranges(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """The ranges that exact tiers answer."""
    return _join_adjacent([(p.start_ms, p.end_ms) for p in pieces if p.tier in EXACT])


def _known_watermark_ms(watermark_ms: int | None) -> int:
    """Before the first watermark nothing is closed."""
    return -1 if watermark_ms is None else watermark_ms


def _join_adjacent(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges, in order, as the fewest that cover the same."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and start == joined[-1][1]:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _cover(ranges: Sequence[tuple[int, int]], question: Question) -> bool:
    """Whether one of the ranges holds all of the question's."""
    return any(start <= question.start_ms and question.end_ms <= end for start, end in ranges)
