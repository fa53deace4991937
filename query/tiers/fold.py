"""Sums of packed rows by group, in one pass over their bytes: rows are never laid out as columns. Compiled.

Rows of one place (a bucket, and a campaign where these are told apart) are folded together, with a hash table of their own that
stays in the cache. A large campaign has a hundred thousand rows in an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from infra.columnar.columns import PADDING, Ints
from infra.columnar.grouping import SPREAD
from infra.columnar.jit import Number, byte_at, compiled, word_at
from query.sums import Exact, of_halves
from stream.hot.cell_format import COLUMNS, SUMMED

_PADDING = bytes(PADDING)
_HEAD, _FIRST_SUM = len(COLUMNS), COLUMNS.index(SUMMED[0])
_SPEND = COLUMNS.index("spend_micros")
_SPEND_SUM, _HIGH_SPEND_SUM = _SPEND - _FIRST_SUM, len(SUMMED)
_LOW_HALF = 2**32 - 1
_ALL_BITS = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Folded:
    """Groups: the place of each, the values of each dimension asked for, sums by column, and how many rows were read."""

    places: Ints
    groups: tuple[Ints, ...]
    sums: dict[str, Exact]
    rows_read: int


class _Values(NamedTuple):
    """Packed values, in the order of their places: where each begins, how many rows it has, and where the values of each place
    begin, and the last end."""

    starts: Ints
    counts: Ints
    edges: Ints


class _Filters(NamedTuple):
    """Columns, and the values that each may have: those from `bounds[i]` to `bounds[i + 1]` of `allowed`, in order."""

    columns: Ints
    bounds: Ints
    allowed: Ints


class _Groups(NamedTuple):
    """Of each group its place, its values of `dimensions` (columns), and its sums.

    `slots` is the hash table of the place at hand. A slot has the number of a group among those of its place, counted from 1; 0
    where it is free. `sums` has SUMMED, with the low half of the money, and then the high one.
    """

    dimensions: Ints
    slots: Any
    places: Ints
    keys: Any
    sums: Any


def fold(
    values: Sequence[bytes],
    places: Sequence[int],
    dimensions: Sequence[str],
    filters: Sequence[tuple[str, Sequence[int]]],
) -> Folded:
    """Packed rows, and the place of each value: 0 and up. `filters`: dimensions, and which of their values count."""
    raw = np.frombuffer(b"".join([*values, _PADDING]), np.uint8)
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    starts, counts = np.cumsum(sizes) - sizes, np.empty(len(values), np.int64)
    total = int(_count_rows(raw.ctypes.data, starts, sizes, counts))
    place_of = np.array(places, np.int64)
    order = np.argsort(place_of, kind="stable")
    edges = np.append(np.flatnonzero(np.diff(place_of[order], prepend=-1)), len(place_of))
    most = int(np.add.reduceat(counts[order], edges[:-1]).max(initial=0))
    groups = _Groups(
        _numbers(dimensions),
        np.empty(4 * max(1, most), np.int32),
        np.empty(total, np.int64),
        np.empty((total, len(dimensions)), np.int64),
        np.empty((total, len(SUMMED) + 1), np.int64),
    )
    in_order = _Values(starts[order], counts[order], edges)
    count = _fold(raw.ctypes.data, in_order, _filters(filters), groups)
    sums = dict(zip(SUMMED, groups.sums[:count].T, strict=False))
    sums["spend_micros"] = of_halves(sums["spend_micros"], groups.sums[:count, _HIGH_SPEND_SUM], 32)
    return Folded(place_of[order][edges[:-1]][groups.places[:count]], tuple(groups.keys[:count].T), sums, total)


def _numbers(names: Sequence[str]) -> Ints:
    return np.array([COLUMNS.index(name) for name in names], np.int64)


def _filters(filters: Sequence[tuple[str, Sequence[int]]]) -> _Filters:
    allowed = [sorted(set(values)) for _, values in filters]
    bounds = np.array([0, *itertools.accumulate(map(len, allowed))], np.int64)
    return _Filters(_numbers([name for name, _ in filters]), bounds, np.array([*itertools.chain(*allowed)], np.int64))


@compiled
def _count_rows(data: Number, starts: Ints, sizes: Ints, counts: Ints) -> Number:
    """The rows of each value; returns how many all have."""
    total = 0
    for value in range(len(starts)):
        width = np.int64(0)
        for column in range(_HEAD):
            width += np.int64(byte_at(data, starts[value] + column))
        counts[value] = (sizes[value] - _HEAD) // width
        total += counts[value]
    return total


@compiled
def _fold(data: Number, values: _Values, filters: _Filters, groups: _Groups) -> Number:
    """Fill `groups`; returns how many there are. Steps that are not functions would cost 15 ns a row as such."""
    dimensions, slots, places, keys, sums = groups
    columns, bounds, allowed = filters
    row, count, depth = np.zeros(_HEAD, np.int64), 0, sums.shape[1] - 1
    numbers, offsets, masks = np.empty(_HEAD, np.int64), np.empty(_HEAD, np.int64), np.empty(_HEAD, np.uint64)
    for place in range(len(values.edges) - 1):
        first, mask = count, _clear_slots(values, place, slots)
        for value in range(values.edges[place], values.edges[place + 1]):
            present, width = _read_head(data, values.starts[value], numbers, offsets, masks, row)
            at = values.starts[value] + _HEAD
            for _ in range(values.counts[value]):
                for i in range(present):
                    row[numbers[i]] = np.int64(word_at(data, at + offsets[i]) & masks[i])
                at += width
                if len(columns) > 0 and not _passes(row, columns, bounds, allowed):
                    continue
                slot = _hash(row, dimensions) & mask
                while True:
                    group = np.int64(first + slots[slot]) - 1
                    if group < first:  # a free slot: a group of the row's own
                        slots[slot] = count - first + 1
                        group = np.int64(count)
                        count += 1
                        _begin_group(row, dimensions, keys, sums, group)
                        places[group] = place
                        break
                    if _has_key(row, dimensions, keys, group):
                        break
                    slot = (slot + np.uint64(1)) & mask
                # Of the money, halves of 32 bits: so many rows as there can be do not overflow their sums.
                for i in range(depth):
                    sums[group, i] += row[_FIRST_SUM + i]
                sums[group, _SPEND_SUM] += (row[_SPEND] & _LOW_HALF) - row[_SPEND]
                sums[group, depth] += row[_SPEND] >> 32
    return count


@compiled
def _clear_slots(values: _Values, place: Number, slots: Any) -> Number:
    """Free as many slots as a place needs, which is a power of two; returns the mask of their numbers."""
    rows, size = 0, 2
    for value in range(values.edges[place], values.edges[place + 1]):
        rows += values.counts[value]
    while size < 2 * rows:
        size *= 2
    for i in range(size):
        slots[i] = 0
    return np.uint64(size - 1)


@compiled
def _read_head(
    data: Number, start: Number, numbers: Ints, offsets: Ints, masks: Any, row: Ints
) -> tuple[Number, Number]:
    """Read which columns the value at `start` has: number, offset within a row, and mask of the word that begins there. The others
    are 0 in all of its rows. Returns how many there are, and the width of a row."""
    present = width = np.int64(0)
    for column in range(_HEAD):
        size = np.int64(byte_at(data, start + column))
        row[column] = 0
        if size > 0:
            numbers[present], offsets[present] = column, width
            masks[present] = _ALL_BITS >> np.uint64(64 - 8 * size)
            present += 1
            width += size
    return present, width


@compiled
def _passes(row: Ints, columns: Ints, bounds: Ints, allowed: Ints) -> bool:
    """Whether a row has one of the allowed values in each filtered column (by binary search)."""
    for i in range(len(columns)):
        value, low, end = row[columns[i]], bounds[i], bounds[i + 1]
        high = end
        while low < high:
            middle = (low + high) // 2
            if allowed[middle] < value:
                low = middle + 1
            else:
                high = middle
        if low == end or allowed[low] != value:
            return False
    return True


@compiled
def _hash(row: Ints, dimensions: Ints) -> Number:
    code = np.uint64(0)
    for i in range(len(dimensions)):
        code = (code ^ np.uint64(row[dimensions[i]])) * SPREAD
        code ^= code >> np.uint64(32)
    return code


@compiled
def _has_key(row: Ints, dimensions: Ints, keys: Any, group: Number) -> bool:
    """Whether a group has the row's values."""
    for i in range(len(dimensions)):  # noqa: SIM110 - numba has no `all`
        if keys[group, i] != row[dimensions[i]]:
            return False
    return True


@compiled
def _begin_group(row: Ints, dimensions: Ints, keys: Any, sums: Any, group: Number) -> None:
    """A group of the row's values, without any sums yet."""
    for i in range(len(dimensions)):
        keys[group, i] = row[dimensions[i]]
    for i in range(sums.shape[1]):
        sums[group, i] = 0
