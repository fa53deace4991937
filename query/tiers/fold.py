"""Sums of packed rows by group, in one pass over their bytes: rows are never laid out as columns. Compiled.

Rows of one place (a bucket, and a campaign where these are told apart) are folded together, with a hash table of their own that
stays in the cache. A large campaign has a hundred thousand rows in an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.columns import PADDING, Ints
from infra.compiled import Number, byte_at, compiled, word_at
from ingest.grouping import SPREAD
from query.sums import Exact, of_halves
from stream.sinks.rows import COLUMNS, SUMMED

_PADDING = bytes(PADDING)
_HEAD, _FIRST = len(COLUMNS), COLUMNS.index(SUMMED[0])
_SPEND = COLUMNS.index("spend_micros")
_LOW = 2**32 - 1


@dataclass(frozen=True)
class Folded:
    """Groups: the place of each, the values of each dimension asked for, sums by column, and how many rows were read."""

    places: Ints
    groups: tuple[Ints, ...]
    sums: dict[str, Exact]
    rows_read: int


def fold(
    values: Sequence[bytes],
    places: Sequence[int],
    dimensions: Sequence[str],
    wanted: Sequence[tuple[str, Sequence[int]]],
) -> Folded:
    """Packed rows, and the place of each value: 0 and up. `wanted`: dimensions, and which of their values count."""
    raw = np.frombuffer(b"".join([*values, _PADDING]), np.uint8)
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    starts = np.cumsum(sizes) - sizes
    counts = np.empty(len(values), np.int64)
    total = int(_count(raw.ctypes.data, starts, sizes, counts))
    where = np.array(places, np.int64)
    order = np.argsort(where, kind="stable")
    edges = np.append(np.flatnonzero(np.diff(where[order], prepend=-1)), len(where))
    most = int(np.add.reduceat(counts[order], edges[:-1]).max(initial=0))
    slots = np.empty(4 * max(1, most), np.int32)
    keys, stretches = np.empty((total, len(dimensions)), np.int64), np.empty(total, np.int64)
    # Of the money, halves of 32 bits: so many rows as there can be do not overflow their sums.
    sums = np.empty((total, len(SUMMED) + 1), np.int64)
    picked = np.array([COLUMNS.index(name) for name in dimensions], np.int64)
    tested = np.array([COLUMNS.index(name) for name, _ in wanted], np.int64)
    allowed = [sorted(set(some)) for _, some in wanted]
    bounds = np.array([0, *itertools.accumulate(map(len, allowed))], np.int64)
    some = np.array([value for part in allowed for value in part], np.int64)
    count = _fold(
        raw.ctypes.data, starts[order], counts[order], edges, picked, tested, bounds, some, slots, keys, stretches, sums
    )
    found = dict(zip(SUMMED, sums[:count].T, strict=False))
    found["spend_micros"] = of_halves(found["spend_micros"], sums[:count, -1], 32)
    return Folded(where[order][edges[:-1]][stretches[:count]], tuple(keys[:count].T), found, total)


@compiled
def _count(data: Number, starts: Ints, sizes: Ints, counts: Ints) -> Number:
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
def _fold(
    data: Number, starts: Ints, counts: Ints, edges: Ints, picked: Ints, tested: Ints, bounds: Ints, allowed: Ints,
    slots: Any, keys: Any, places: Ints, sums: Any,
) -> Number:  # fmt: skip
    """A slot holds the number of a group among those of its place, counted from 1; 0 where it is free."""
    row, groups = np.zeros(_HEAD, np.int64), 0
    there, offsets, masks = np.empty(_HEAD, np.int64), np.empty(_HEAD, np.int64), np.empty(_HEAD, np.uint64)
    for place in range(len(edges) - 1):
        total, size = 0, 2
        for value in range(edges[place], edges[place + 1]):
            total += counts[value]
        while size < 2 * total:
            size *= 2
        for i in range(size):
            slots[i] = 0
        mask, before = np.uint64(size - 1), groups
        for value in range(edges[place], edges[place + 1]):
            at = starts[value] + _HEAD
            held = width = np.int64(0)
            for column in range(_HEAD):
                bytes_ = np.int64(byte_at(data, starts[value] + column))
                row[column] = 0
                if bytes_ > 0:
                    there[held], offsets[held] = column, width
                    masks[held] = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * bytes_)
                    held += 1
                    width += bytes_
            for _ in range(counts[value]):
                for i in range(held):
                    row[there[i]] = np.int64(word_at(data, at + offsets[i]) & masks[i])
                at += width
                counts_ = True
                for i in range(len(tested)):
                    low, high = bounds[i], bounds[i + 1]
                    while low < high:
                        middle = (low + high) // 2
                        if allowed[middle] < row[tested[i]]:
                            low = middle + 1
                        else:
                            high = middle
                    if low == bounds[i + 1] or allowed[low] != row[tested[i]]:
                        counts_ = False
                        break
                if not counts_:
                    continue
                code = np.uint64(0)
                for i in range(len(picked)):
                    code = (code ^ np.uint64(row[picked[i]])) * SPREAD
                    code ^= code >> np.uint64(32)
                slot = code & mask
                while True:
                    group = np.int64(before + slots[slot]) - 1
                    if group < before:
                        slots[slot] = groups - before + 1
                        group = np.int64(groups)
                        groups += 1
                        places[group] = place
                        for i in range(len(picked)):
                            keys[group, i] = row[picked[i]]
                        for i in range(sums.shape[1]):
                            sums[group, i] = 0
                        break
                    same = True
                    for i in range(len(picked)):
                        if keys[group, i] != row[picked[i]]:
                            same = False
                            break
                    if same:
                        break
                    slot = (slot + np.uint64(1)) & mask
                for i in range(sums.shape[1] - 1):
                    sums[group, i] += row[_FIRST + i]
                sums[group, _SPEND - _FIRST] += (row[_SPEND] & _LOW) - row[_SPEND]
                sums[group, sums.shape[1] - 1] += row[_SPEND] >> 32
    return groups
