"""Questions, sums and rows for unit tests of the router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from infra.clock import DAY_MS, HOUR_MS
from query.page import Page
from query.plan import Borders
from query.question import MEASURES, Question, Retention, parse_question
from query.rows import Rows, build_rows
from query.signing import Signer
from query.sums import NAMES, Sums

NOW = 1_795_181_895_182  # 2026-11-20T13:38:15.182Z
RETENTION = Retention(24 * HOUR_MS, 30 * DAY_MS)
SIGNER = Signer("secret")
Totals = dict[tuple[Any, ...], tuple[int, ...]]
"""(bucket, group…) → the first measures; the others are 0."""


def question_of(**parameters: str) -> Question:
    """A question about campaign 7 in the last hour, with these parameters instead of its own; empty ones are left out."""
    all_parameters = {"campaign_id": "7", "start": "-1h", "end": "now"} | parameters
    return parse_question([(k, v) for k, v in all_parameters.items() if v], NOW, RETENTION)


def sums_of(question: Question, totals: Totals, corrected: Sequence[int] = ()) -> Sums:
    """A tier's sums; `corrected`: the numbers of the rows that are."""
    keys, groups = list(totals), question.group_by
    numbers = [[NAMES[g].index(k[1 + n]) if g in NAMES else k[1 + n] for k in keys] for n, g in enumerate(groups)]
    whole = [(*values, *(0 for _ in MEASURES[len(values) :])) for values in totals.values()]
    measures = [[values[n] for values in whole] for n in range(len(MEASURES))]
    return Sums(
        np.array([k[0] for k in keys], np.int64),
        tuple(np.array(g, np.int64) for g in numbers),
        tuple(np.array(m, object if max(m, default=0) >= 2**63 else np.int64) for m in measures),
        np.array([n in corrected for n in range(len(keys))], bool),
        np.zeros(len(keys), bool),
    )


def rows_of(question: Question, totals: Totals) -> Rows:
    """The rows of an answer of no tier."""
    return build_rows(question, sums_of(question, totals), Borders(), [])


def frame_of(question: Question, rows: Rows) -> pl.DataFrame:
    """All rows as they are shown."""
    return Page(question, rows, rows.order).frame
