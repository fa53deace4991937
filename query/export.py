"""All rows of a question, however many: read in stretches of time and handed on page by page, so that memory stays bounded.

A stretch is a question of its own over a part of the buckets, so small that it has at most STRETCH_ROWS rows as far as that can
be known. Rows come in the order of the whole question. A question whose rows are ordered by something else than time, one that
fills empty buckets, and one that goes on behind a cursor are read as one stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ingest.events import COUNTRIES, DEVICES
from query.answer import FINALITY, Page
from query.request import Question
from query.router import Answer

PAGE_ROWS, STRETCH_ROWS = 10_000, 100_000
_ALL = 1 << 62
_SIZES = {"country": len(COUNTRIES), "device": len(DEVICES)}

Ask = Callable[[Question], Answer]


@dataclass(frozen=True)
class Export:
    """The answer to a whole question. `first`: its first stretch, with all rows of it. `rest`: the stretches that follow, to be
    asked one after the other. `finality` and `warnings`: of the whole, before the rest is read."""

    first: Answer
    rest: list[Question]
    finality: str
    warnings: list[str]
    rows_read: int

    @property
    def fits_a_page(self) -> bool:
        """Whether there is no more than one page of it."""
        return not self.rest and len(self.first.page) <= PAGE_ROWS

    def misses(self, stretch: Answer) -> str:
        """The first warning of a later stretch that something is missing of which `warnings` say nothing; empty for none."""
        subjects = {_subject(text) for text in self.warnings}
        return next((w for w in stretch.warnings if w.startswith("tier") and _subject(w) not in subjects), "")


def begin(question: Question, ask: Ask) -> Export:
    """Divide a question into stretches, and read the first one. Raises what `ask` raises."""
    question = replace(question, limit=_ALL)
    stretches, survey = [question], None
    if question.grain != "total" and question.order in (None, "time") and not question.fill and question.cursor is None:
        buckets = question.buckets()
        groups = _most_groups(question)
        if groups * len(buckets) > STRETCH_ROWS:
            # The whole range as one bucket tells how many groups there are, and what to be warned of.
            survey = ask(replace(question, grain="total", order=None, descending=False))
            groups = len(survey.page)
        if groups * len(buckets) > STRETCH_ROWS:
            stretches = _stretches(question, buckets, max(1, STRETCH_ROWS // int(groups)))
    first = ask(stretches[0])
    rows_read = first.rows_read + (survey.rows_read if survey else 0)
    if len(stretches) == 1 or survey is None:
        return Export(first, stretches[1:], first.finality, first.warnings, rows_read)
    warnings = list(dict.fromkeys([*survey.warnings, *first.warnings]))
    return Export(first, stretches[1:], _weakest_possible(survey), warnings, rows_read)


def pages(stretch: Answer) -> Iterator[Answer]:
    """An answer of any length as answers of at most PAGE_ROWS rows; one of no rows as one."""
    page = stretch.page
    for first in range(0, max(1, len(page)), PAGE_ROWS):
        yield replace(stretch, page=Page(page.question, page.made, page.which[first : first + PAGE_ROWS]))


def _most_groups(question: Question) -> float:
    """How many groups a bucket may have, as far as the question says."""
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
    """What no row of the range is weaker than: where its last moment is closed, all of it is."""
    return min(survey.finality, "closed", key=FINALITY.index)


def _subject(warning: str) -> tuple[str, ...]:
    """The tier that a warning is about."""
    return tuple(warning.split()[:2])
