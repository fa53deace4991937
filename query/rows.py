"""Sums to rows: ratios, the earlier range beside them, finality, and the order of the question. Pure, and by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Ints
from query import compared, sums
from query.compared import EarlierSums
from query.finality import finality_of_rows
from query.plan import Borders, Piece
from query.question import MEASURES, Question
from query.ratios import Ratio, ratios_of
from query.sums import NAMES, Sums

# The place of each name in alphabetical order.
_PLACES = {name: np.argsort(np.argsort(np.array(values))) for name, values in NAMES.items()}


UsersBeside = Callable[[Question, Sums], dict[str, Ratio]]


@dataclass(frozen=True)
class Rows:
    """All rows of an answer. `finality`: indices into FINALITY. `sort_keys`: the columns that rows are ordered by, ascending, as
    numbers; `order`: the row numbers in that order. `compared`: PREVIOUS and CHANGES, of a question that compares;
    else none. `users`: USERS, of a question that wants them."""

    sums: Sums
    ratios: dict[str, Ratio]
    finality: npt.NDArray[np.uint8]
    sort_keys: list[npt.NDArray[Any]]
    order: Ints
    compared: dict[str, Ratio]
    users: dict[str, Ratio] = field(default_factory=dict)

    @property
    def beside(self) -> dict[str, Ratio]:
        """All columns beside the sums of a row: what may be absent."""
        return self.ratios | self.users | self.compared

    def __len__(self) -> int:
        return len(self.sums)

    def sort_key(self, row: int) -> list[Any]:
        """What the row is ordered by."""
        values = (column[row] for column in self.sort_keys)
        return [value.item() if isinstance(value, np.generic) else value for value in values]

    def natural_order(self, question: Question) -> Ints:
        """The row numbers by bucket and group, however the question orders them."""
        return self.order if question.order is None else _sorted(self.sort_keys[-1 - len(question.group_by) :])


def build_rows(
    question: Question, table: Sums, borders: Borders, pieces: Sequence[Piece], earlier: EarlierSums | None = None,
    users: UsersBeside | None = None,
) -> Rows:  # fmt: skip
    """All rows of the answer in their order. `users`: the columns that are beside the rows of a table. Raises BadQuestion where `fill=zero`
    makes too many."""
    if earlier is not None:
        table = compared.join_earlier(question, table, earlier)
    if question.top:
        table = _keep_largest(question, table)
    if question.fill:
        table = sums.fill_buckets(question, table)
    beside: dict[str, Ratio] = {}
    if earlier is not None:
        table, before = compared.split_joined(table)
        beside = compared.compare_columns(question, table, before, earlier)
    ratios = ratios_of(table)
    finality = finality_of_rows(question, table, borders, pieces)
    of_users = {} if users is None else users(question, table)
    sort_keys = _sort_keys(question, table, ratios | beside | of_users)
    return Rows(table, ratios, finality, sort_keys, _sorted(sort_keys), beside, of_users)


def build_total(
    question: Question, table: Sums, borders: Borders, pieces: Sequence[Piece], earlier: EarlierSums | None = None,
    users: UsersBeside | None = None,
) -> tuple[Question, Rows]:  # fmt: skip
    """The one row of all rows of a question, also of the groups that `top` leaves out, and the question whose answer it is: that about
    the total of the same range."""
    total = replace(
        question, grain="total", group_by=(), fill=False, order=None, descending=False, cursor=None, totals=False, top=0
    )
    if earlier is not None:
        earlier = replace(earlier, sums=sums.sum_all(earlier.sums, earlier.part.start_ms))
    return total, build_rows(total, sums.sum_all(table, question.start_ms), borders, pieces, earlier, users)


def _keep_largest(question: Question, table: Sums) -> Sums:
    """The rows of the groups with the largest totals of a measure; of equal ones, those that come first by name or number."""
    if not len(table):
        return table
    by_group, groups, is_new = sums.sort_by_keys(table.groups)
    starts, numbers = np.flatnonzero(is_new), np.cumsum(is_new) - 1
    measure = table.measures[MEASURES.index(question.by)]
    totals = np.add.reduceat(sums.widen(measure, len(table))[by_group], starts)
    names = zip(question.group_by, (group[starts] for group in groups), strict=True)
    largest = _sorted([-totals, *(_PLACES[g][values] if g in NAMES else values for g, values in names)])[: question.top]
    kept = np.zeros(len(starts), bool)
    kept[largest] = True
    return sums.take(table, np.sort(by_group[kept[numbers]]))


# -- order ------------------------------------------------------------------------------------------------------


def _sort_keys(question: Question, table: Sums, ratios: dict[str, Ratio]) -> list[npt.NDArray[Any]]:
    """The column of `order`, and then what tells rows apart. Absent values come last, in either direction."""
    groups = {g: _PLACES[g][c] if g in NAMES else c for g, c in zip(question.group_by, table.groups, strict=True)}
    keys: list[npt.NDArray[Any]] = [table.buckets, *groups.values()]
    sign = -1 if question.descending else 1
    if question.order in ratios:
        ratio = ratios[question.order]
        return [ratio.absent.astype(np.int64), np.where(ratio.absent, 0, sign * ratio.values), *keys]
    if question.order:
        columns = {"time": table.buckets, **groups, **dict(zip(MEASURES, table.measures, strict=True))}
        return [sign * columns[question.order], *keys]
    return keys


def _sorted(sort_keys: Sequence[npt.NDArray[Any]]) -> Ints:
    order = np.arange(len(sort_keys[0]))
    for column in reversed(sort_keys):
        order = order[np.argsort(column[order], kind="stable")]
    return order
