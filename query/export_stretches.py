"""Exports: all rows of a question, however many, read in stretches of time and sent page by page, so that memory stays bounded.

A stretch is a question of its own over a part of the buckets, small enough for `stretch_rows` as far as that can be estimated.
Rows come in the order of the whole question. A question that orders its rows by another column than time, fills empty buckets,
compares with an earlier range, has the largest groups alone, or continues behind a cursor is read as one stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ingest.events import COUNTRIES, DEVICES
from query.buckets import GRAINS
from query.finality import FINALITY
from query.page import Page
from query.question import Question
from query.reading import DegradedRange
from query.router import Answer

_NO_LIMIT = 1 << 62
_SIZES = {"country": len(COUNTRIES), "device": len(DEVICES)}

AnswerQuestion = Callable[[Question], Answer]


@dataclass(frozen=True)
class ExportLimits:
    """How many rows are sent at once, and how many are in memory at once, as far as that can be estimated."""

    page_rows: int = 10_000
    stretch_rows: int = 100_000


DEFAULT_LIMITS = ExportLimits()


@dataclass(frozen=True)
class Export:
    """The answer to a whole question. `first`: its first stretch, with all rows of it. `rest`: the stretches that follow, to be
    asked one after the other. `finality` and `warnings`: of the whole, before the rest is read."""

    first: Answer
    rest: list[Question]
    finality: str
    warnings: list[str]
    rows_read: int

    degraded: list[DegradedRange]
    """What of the whole is missing or old, as far as `warnings` say."""
    limits: ExportLimits
    total: Page | None = None
    """The one row of all rows; None where the question does not want it."""

    @property
    def id(self) -> str | None:
        """The id of the answer; None where the rows are read in several stretches, which are answers of their own."""
        return None if self.rest else self.first.id

    @property
    def fits_a_page(self) -> bool:
        """Whether there is no more than one page of it."""
        return not self.rest and len(self.first.page) <= self.limits.page_rows

    def split_pages(self, stretch: Answer) -> Iterator[Answer]:
        """A stretch as answers of at most a page of rows each; one without rows as one."""
        page, page_rows = stretch.page, self.limits.page_rows
        for first in range(0, max(1, len(page)), page_rows):
            row_numbers = page.row_numbers[first : first + page_rows]
            yield replace(stretch, page=Page(page.question, page.rows, row_numbers, page.names))

    def unannounced(self, stretch: Answer) -> str:
        """The first warning of a later stretch that rows are missing or old, of which `warnings` say nothing; empty for none."""
        for degraded in stretch.degraded:
            if not _covered(degraded, self.degraded):
                return degraded.warning
        known = {*self.warnings, *stretch.notes, *(degraded.warning for degraded in stretch.degraded)}
        return next((warning for warning in stretch.warnings if warning not in known), "")


def fits_a_page(question: Question, limits: ExportLimits = DEFAULT_LIMITS) -> bool:
    """Whether the question itself says that its rows fit a page. Cheap; buckets are not counted one by one."""
    buckets = 1 if question.grain == "total" else (question.end_ms - question.start_ms) // GRAINS[question.grain] + 2
    return _most_groups(question) * buckets <= limits.page_rows


def begin_export(question: Question, answer: AnswerQuestion, limits: ExportLimits = DEFAULT_LIMITS) -> Export:
    """Divide a question into stretches, and read the first one. Raises what `answer` raises."""
    question = replace(question, limit=_NO_LIMIT)
    stretches, survey = [question], None
    if _can_be_divided(question):
        buckets = question.buckets()
        groups = _most_groups(question)
        if groups * len(buckets) > limits.stretch_rows:
            # The total of the range tells how many groups there are, and what the whole export must warn of.
            survey = answer(replace(question, grain="total", order=None, descending=False, names=False))
            groups = len(survey.page)
        if groups * len(buckets) > limits.stretch_rows:
            stretches = _stretches(question, buckets, max(1, limits.stretch_rows // int(groups)))
    # The total is that of all stretches.
    stretches = [replace(stretch, totals=question.totals and len(stretches) == 1) for stretch in stretches]
    first = answer(stretches[0])
    rows_read = first.rows_read + (survey.rows_read if survey else 0)
    if len(stretches) == 1 or survey is None:
        return Export(
            first, stretches[1:], first.finality, first.warnings, rows_read, first.degraded, limits, first.total
        )
    warnings = list(dict.fromkeys([*survey.warnings, *first.warnings]))
    degraded = [*survey.degraded, *first.degraded]
    finality = _weakest_possible(survey)
    return Export(first, stretches[1:], finality, warnings, rows_read, degraded, limits, survey.total)


def _can_be_divided(question: Question) -> bool:
    """Whether stretches of time, one after the other, have the rows of a question in its order."""
    by_time = question.grain != "total" and question.order in (None, "time") and question.cursor is None
    return by_time and not question.fill and not question.top and question.compare is None


def _most_groups(question: Question) -> float:
    """How many groups a bucket may have at most, by the question alone; infinity where it does not bound them."""
    filters = {name: len(values) for name, values in question.filters}
    campaigns = {"campaign_id": len(question.campaigns)} if question.campaigns else {}
    sizes = _SIZES | campaigns | filters
    return math.prod(sizes.get(name, math.inf) for name in question.group_by)


def _stretches(question: Question, buckets: list[int], length: int) -> list[Question]:
    starts, _ = question.extents(np.array(buckets[::length], np.int64))
    bounds = pairwise([*starts.tolist(), question.end_ms])
    stretches = [replace(question, start_ms=start, end_ms=end) for start, end in bounds]
    return stretches[::-1] if question.descending else stretches


def _weakest_possible(survey: Answer) -> str:
    """A finality that no row of the range is below: where its last moment is closed, all of it is."""
    return min(survey.finality, "closed", key=FINALITY.index)


def _covered(degraded: DegradedRange, announced: list[DegradedRange]) -> bool:
    """Whether all of a range was announced as missing, or as no newer than it is, of whichever tier: a stretch may read another one
    than the whole."""
    at = degraded.start_ms
    for other in sorted(announced, key=lambda known: known.start_ms):
        if other.start_ms <= at and other.as_of_ms <= degraded.as_of_ms:
            at = max(at, other.end_ms)
    return at >= degraded.end_ms
