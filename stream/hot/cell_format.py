"""How the hot tier packs the partials of one campaign and minute: fixed-width rows, each column as narrow as may be.

Written by the sink, read by the query router. A value begins with the width in bytes of each of COLUMNS (0: all zero, left
out), and goes on with its rows, column by column within a row. Many rows come together with their roll-ups, which are rows
again: sums by advertiser and one dimension. Most questions need no more, and a large campaign has ten thousand rows a minute.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

from infra.columnar.grouping import interleave, pack_keys, sum_by_key
from ingest.partials import SUMS, WINDOW, Column, Partials, ordered
from stream.chunks import CHANGED
from stream.hot.layout import ROLLED
from stream.window import stretches

SUMMED = (*SUMS, CHANGED)
COLUMNS = ("advertiser_id", "ad_id", "publisher_id", "country", "device", *SUMMED)
# Readers ask only whether there was any.
_FLAGS = ("late", "sampled", CHANGED)
_HEAD = len(COLUMNS)
_LATE = struct.Struct("<BI")
_SIZES = struct.Struct("<4I")


@lru_cache(maxsize=1024)
def _layout(head: bytes) -> np.dtype[np.void]:
    return np.dtype([(name, f"<u{width}") for name, width in zip(COLUMNS, head, strict=True) if width])


def _width(largest: int) -> int:
    return 0 if largest == 0 else next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))


def pack(
    partials: Partials, roll_up_above_rows: int | None = None
) -> tuple[list[tuple[int, int]], list[bytes], list[bytes]]:
    """(window_ms, campaign_id) of each cell, its packed rows, and its roll-ups: of a cell of more rows than `roll_up_above_rows`;
    empty for others, and for all with None. Columns: those of a chunk."""
    if not len(partials):
        return [], [], []
    partials = ordered(partials)
    columns = {name: np.minimum(partials[name], 1) if name in _FLAGS else partials[name] for name in COLUMNS}
    window, campaign = partials[WINDOW], partials["campaign_id"]
    edges = stretches(window, campaign)
    starts = [start for start, _ in edges]
    cells = list(zip(window[starts].tolist(), campaign[starts].tolist(), strict=True))
    values = _lay_out(columns, edges)
    threshold = math.inf if roll_up_above_rows is None else roll_up_above_rows
    large = [cell for cell, (a, b) in enumerate(edges) if b - a > threshold]
    rolls = [b""] * len(edges)
    if large:
        for cell, parts in zip(large, _roll_up(columns, [edges[cell] for cell in large]), strict=True):
            rolls[cell] = b"".join([_SIZES.pack(*map(len, parts)), *parts])
    return cells, values, rolls


def _lay_out(columns: dict[str, Column], edges: list[tuple[int, int]]) -> list[bytes]:
    """Pack each stretch of rows into a value."""
    widths = [_width(int(column.max())) for column in columns.values()]
    if not any(widths):
        widths[0] = 1
    head = bytes(widths)
    laid = np.empty(edges[-1][1], _layout(head))
    for name in laid.dtype.names or ():
        laid[name] = columns[name]
    raw, width = laid.tobytes(), laid.itemsize
    return [head + raw[a * width : b * width] for a, b in edges]


def _roll_up(columns: dict[str, Column], edges: list[tuple[int, int]]) -> Iterator[tuple[bytes, ...]]:
    """The packed roll-ups of each stretch: sums by advertiser and each of ROLLED."""
    starts = np.array([a for a, _ in edges])
    sums = [name for name in (*SUMS, CHANGED) if columns[name].any()]
    amounts = interleave([columns[name] for name in sums])
    placed = np.concatenate([np.arange(a, b) for a, b in edges]), np.cumsum([0, *(b - a for a, b in edges)])
    by_dimension = []
    for dimension in ROLLED:
        first, summed = sum_by_key(pack_keys([columns["advertiser_id"], columns[dimension]]), amounts, placed)
        groups: dict[str, Column] = dict.fromkeys(COLUMNS, np.zeros(len(first), np.uint8))
        groups |= {name: columns[name][first] for name in ("advertiser_id", dimension)}
        groups |= {n: np.minimum(c, 1) if n in _FLAGS else c for n, c in zip(sums, summed.T, strict=True)}
        # Groups come out stretch by stretch.
        ends = np.cumsum(np.bincount(np.searchsorted(starts, first, "right") - 1, minlength=len(edges)))
        by_dimension.append(_lay_out(groups, list(pairwise([0, *ends.tolist()]))))
    yield from zip(*by_dimension, strict=True)


def count(value: bytes) -> int:
    """How many rows a value has."""
    return (len(value) - _HEAD) // sum(value[:_HEAD])


def late_entry(minute: int, value: bytes) -> bytes:
    """Packed late rows of a minute of an hour, as they are appended to those before. `cells.lua` takes them apart, too."""
    return _LATE.pack(minute, len(value)) + value


def late_entries(late: bytes) -> Iterator[tuple[int, bytes]]:
    """(minute, packed rows) of each entry."""
    at = 0
    while at < len(late):
        minute, size = _LATE.unpack_from(late, at)
        at += _LATE.size + size
        yield minute, late[at - size : at]
