"""Sums by key over columns of integers, compiled: what every fold of events and partials comes down to.

Rows are laid side by side, so that a key is compared in one place. They are first counted into places (those of a campaign and
a minute), which also puts the groups in order; within a place a small table of hashes finds the group of each row. An eighth
of what a general group-by of seven columns and a sort cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Ints
from infra.columnar.jit import Number, compiled

SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / φ
# Rows are counted into places when there are not many more places than rows; else they are sorted.
_SPARSE, _FEW = 4, 65_536


def interleave(columns: Sequence[npt.NDArray[Any]]) -> Ints:
    """(n, columns): columns of any integers, row by row."""
    if len(columns) == 1:
        return columns[0].astype(np.int64).reshape(-1, 1)
    rows = np.empty((len(columns[0]), len(columns)), np.int64)
    for number, column in enumerate(columns):
        rows[:, number] = column
    return rows


def pack_keys(columns: Sequence[npt.NDArray[Any]]) -> Ints:
    """(n, words): columns of integers that are not negative side by side, in as few words of 64 bits as they fit into.

    Rows are equal where all their columns are. A column of one value (its stride is 0) tells nothing, and is left out.
    """
    words, used = list[npt.NDArray[np.uint64]](), 64
    for column in columns:
        bits = 0 if column.strides == (0,) else int(column.max(initial=0)).bit_length()
        if not bits:
            continue
        if used + bits > 64:
            words.append(column.astype(np.uint64))
            used = bits
        else:
            words[-1] |= column.astype(np.uint64) << np.uint64(used)
            used += bits
    return interleave(words or [np.zeros(len(columns[0]), np.uint64)])


def sort_order(columns: Sequence[npt.NDArray[Any]]) -> Ints:
    """What puts rows in the order of columns of integers that are not negative, the first one first."""
    widths = [int(column.max()).bit_length() if len(column) else 0 for column in columns]
    if sum(widths) > 64:
        return np.lexsort(columns[::-1])
    word = np.zeros(len(columns[0]), np.uint64)
    for column, width in zip(columns, widths, strict=True):
        if width:
            word = (word << np.uint64(width)) | column.astype(np.uint64)
    return np.argsort(word)


def order_by_place(place: Ints, places: int) -> tuple[Ints, Ints]:
    """Rows in the order of their places, which are below `places`, and where the rows of each one begin, and the last end.

    Places without any row may be left out.
    """
    if places <= _SPARSE * len(place) + _FEW:
        edges, order = np.zeros(places + 1, np.int64), np.empty(len(place), np.int64)
        _count(place, edges)
        _lay_out(place, edges[:-1].copy(), order)
        return order, edges
    order = np.argsort(place)
    begin = np.flatnonzero(np.diff(place[order], prepend=-1))
    return order, np.append(begin, len(place))


def sum_by_key(keys: Ints, amounts: Ints, placed: tuple[Ints, Ints] | None = None) -> tuple[Ints, Ints]:
    """The first row of each group of equal `keys` (n, k), and the sums of its `amounts` (n, s) as (groups, s).

    `placed`, as `order_by_place` gives it: rows in different places are different, and groups come out in the order of their
    places. Each place has a table of its own, so that a small one stays in the cache. Sums wrap: it is for the caller to know
    that they fit.
    """
    count = len(keys)
    order, edges = placed or (np.arange(count), np.array([0, count]))
    slots = np.empty(4 * max(1, int(np.diff(edges).max(initial=0))), np.int32)
    first, sums = np.empty(count, np.int64), np.empty_like(amounts)
    groups = _sum_by_key(keys, amounts, order, edges, slots, first, sums)
    return first[:groups], sums[:groups]


@compiled
def _count(place: Ints, edges: Ints) -> None:
    for row in range(len(place)):
        edges[place[row] + 1] += 1
    for i in range(1, len(edges)):
        edges[i] += edges[i - 1]


@compiled
def _lay_out(place: Ints, at: Ints, order: Ints) -> None:
    for row in range(len(place)):
        order[at[place[row]]] = row
        at[place[row]] += 1


@compiled
def _sum_by_key(keys: Any, amounts: Any, order: Ints, edges: Ints, slots: Any, first: Ints, sums: Any) -> Number:
    """A slot holds the number of a group among those of its place, counted from 1; 0 where it is free."""
    width, depth, groups = keys.shape[1], amounts.shape[1], 0
    for place in range(len(edges) - 1):
        start, stop = edges[place], edges[place + 1]
        size = 2
        while size < 2 * (stop - start):
            size *= 2
        for i in range(size):
            slots[i] = 0
        mask, before = np.uint64(size - 1), groups
        for at in range(start, stop):
            row = order[at]
            code = np.uint64(0)
            for i in range(width):
                code = (code ^ np.uint64(keys[row, i])) * SPREAD
                code ^= code >> np.uint64(32)
            slot = code & mask
            while True:
                group = before + np.int64(slots[slot]) - 1
                if group < before:
                    slots[slot] = groups - before + 1
                    first[groups] = row
                    for i in range(depth):
                        sums[groups, i] = amounts[row, i]
                    groups += 1
                    break
                same = True
                for i in range(width):
                    if keys[first[group], i] != keys[row, i]:
                        same = False
                        break
                if same:
                    for i in range(depth):
                        sums[group, i] += amounts[row, i]
                    break
                slot = (slot + np.uint64(1)) & mask
    return groups
