"""How the hot tier packs the partials of one campaign and minute: fixed-width rows, each column as narrow as may be.

Written by the sink, read by the query router. A value begins with the width in bytes of each of COLUMNS (0: all zero, left
out), and goes on with its rows, column by column within a row. Many rows come together with their roll-ups, which are rows
again: sums by advertiser and one dimension. Most questions need no more, and a large campaign has ten thousand rows a minute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ingest.grouping import packed, rows_of, sum_by_key
from ingest.partials import SUMS, WINDOW, Column, Partials, ordered
from stream.chunks import CHANGED
from stream.held import stretches

SUMMED = (*SUMS, CHANGED)
COLUMNS = ("advertiser_id", "ad_id", "publisher_id", "country", "device", *SUMMED)
# Readers ask only whether there was any.
_FLAGS = ("late", "sampled", CHANGED)
_HEAD = len(COLUMNS)
_LATER = struct.Struct("<BI")
ROLLED = {"ad_id": "a", "publisher_id": "p", "country": "c", "device": "d"}
"""Dimensions that cells are rolled up by, and what the fields of a roll-up end in."""
ROWS = "r"
"""And those of the rows that are rolled up."""
ROLLED_ROWS = 128
_SIZES = struct.Struct("<4I")


@lru_cache(maxsize=1024)
def _layout(head: bytes) -> np.dtype[np.void]:
    return np.dtype([(name, f"<u{width}") for name, width in zip(COLUMNS, head, strict=True) if width])


def _width(largest: int) -> int:
    return 0 if largest == 0 else next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))


def pack(partials: Partials, *, rolled: bool = False) -> tuple[list[tuple[int, int]], list[bytes], list[bytes]]:
    """(window_ms, campaign_id) of each cell, its packed rows, and, with `rolled`, its roll-ups, where it has more than
    ROLLED_ROWS rows; else nothing. Columns: those of a chunk."""
    if not len(partials):
        return [], [], []
    partials = ordered(partials)
    columns = {name: np.minimum(partials[name], 1) if name in _FLAGS else partials[name] for name in COLUMNS}
    window, campaign = partials[WINDOW], partials["campaign_id"]
    edges = stretches(window, campaign)
    starts = [start for start, _ in edges]
    cells = list(zip(window[starts].tolist(), campaign[starts].tolist(), strict=True))
    values = _laid_out(columns, edges)
    large = [cell for cell, (a, b) in enumerate(edges) if b - a > ROLLED_ROWS] if rolled else []
    rolls = [b""] * len(edges)
    if large:
        for cell, parts in zip(large, _rolled(columns, [edges[cell] for cell in large]), strict=True):
            rolls[cell] = b"".join([_SIZES.pack(*map(len, parts)), *parts])
    return cells, values, rolls


def _laid_out(columns: dict[str, Column], edges: list[tuple[int, int]]) -> list[bytes]:
    """Each stretch of rows as a value."""
    widths = [_width(int(column.max())) for column in columns.values()]
    if not any(widths):
        widths[0] = 1
    head = bytes(widths)
    laid = np.empty(edges[-1][1], _layout(head))
    for name in laid.dtype.names or ():
        laid[name] = columns[name]
    raw, width = laid.tobytes(), laid.itemsize
    return [head + raw[a * width : b * width] for a, b in edges]


def _rolled(columns: dict[str, Column], edges: list[tuple[int, int]]) -> Iterator[tuple[bytes, ...]]:
    """For each stretch, its sums by advertiser and each of ROLLED."""
    starts = np.array([a for a, _ in edges])
    sums = [name for name in (*SUMS, CHANGED) if columns[name].any()]
    amounts = rows_of([columns[name] for name in sums])
    placed = np.concatenate([np.arange(a, b) for a, b in edges]), np.cumsum([0, *(b - a for a, b in edges)])
    by_dimension = []
    for dimension in ROLLED:
        first, summed = sum_by_key(packed([columns["advertiser_id"], columns[dimension]]), amounts, placed)
        found: dict[str, Column] = dict.fromkeys(COLUMNS, np.zeros(len(first), np.uint8))
        found |= {name: columns[name][first] for name in ("advertiser_id", dimension)}
        found |= {n: np.minimum(c, 1) if n in _FLAGS else c for n, c in zip(sums, summed.T, strict=True)}
        # Groups come out stretch by stretch.
        ends = np.cumsum(np.bincount(np.searchsorted(starts, first, "right") - 1, minlength=len(edges)))
        by_dimension.append(_laid_out(found, list(pairwise([0, *ends.tolist()]))))
    yield from zip(*by_dimension, strict=True)


def count(value: bytes) -> int:
    """How many rows a value has."""
    return (len(value) - _HEAD) // sum(value[:_HEAD])


def later(minute: int, value: bytes) -> bytes:
    """What came for a minute of an hour after it had closed, as it is added to what came before."""
    return _LATER.pack(minute, len(value)) + value


def all_later(held: bytes) -> Iterator[tuple[int, bytes]]:
    """(minute, value) of all that was added."""
    at = 0
    while at < len(held):
        minute, size = _LATER.unpack_from(held, at)
        at += _LATER.size + size
        yield minute, held[at - size : at]
