"""The id of an answer: the same for the same question over the same data, in whichever format, page, order or stream it is shown."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from infra.columnar.columns import Ints
from query.question import PREVIOUS, Question
from query.rows import Rows
from query.sums import Exact

_MAX_INT64 = 2**63 - 1


def identify_answer(question: Question, rows: Rows, finality: str) -> str:
    """A digest of what is asked (of whom, the range that was settled on, in which buckets and groups), of all its numbers, and of how
    final they are. Not of what decides which of them are shown, and how: order, limit, cursor, empty buckets, totals, format; nor of
    the key, unless it sees other numbers."""
    parts = [
        question.campaigns, question.advertiser, question.grain, question.start_ms, question.end_ms, question.zone.key,
        sorted(question.group_by), question.filters, *([question.compare.state] if question.compare else []),
        *([question.top, question.by] if question.top else []),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode())
    order = _canonical_order(question, rows)
    groups = dict(zip(question.group_by, rows.sums.groups, strict=True))
    shown_beside = rows.compared | rows.users
    beside = [column for pair in shown_beside.values() for column in (pair.values, pair.absent)]
    columns = [
        rows.sums.buckets,
        *(groups[name] for name in sorted(groups)),
        *rows.sums.measures,
        rows.finality,
        *beside,
    ]
    for column in columns:
        digest.update(_encode(column[order]))
    # Without rows, the finality is that of the range.
    digest.update(b"" if len(order) else finality.encode())
    return digest.hexdigest()[:24]


def _canonical_order(question: Question, rows: Rows) -> Ints:
    """The numbers of all rows but empty buckets, by bucket and groups, however the question orders either."""
    names, groups = question.group_by, rows.sums.groups
    if len(names) > 1:
        by_name = sorted(zip(names, groups, strict=True), key=lambda named: named[0])
        order: Ints = np.lexsort([*(group for _, group in reversed(by_name)), rows.sums.buckets])
    else:
        order = rows.natural_order(question)
    if not question.fill:
        return order
    amounts = [*rows.sums.measures, *(rows.compared[name].values for name in PREVIOUS if name in rows.compared)]
    shown = np.any([np.asarray(column != 0, bool) for column in amounts], axis=0)
    return np.asarray(order[shown[order]])


def _encode(column: Exact) -> bytes:
    """The same bytes for the same numbers, whichever type holds them."""
    if column.dtype == object:
        if max(column, default=0) <= _MAX_INT64:
            return column.astype(np.int64).tobytes()
        return ",".join(map(str, column)).encode()
    return column.tobytes()
