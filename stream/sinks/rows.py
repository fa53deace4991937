"""How the hot tier packs the partials of one campaign and minute: fixed-width rows, each column as narrow as may be.

Written by the sink, read by the query router. A value begins with the width in bytes of each of COLUMNS (0: all zero, left
out), and goes on with its rows, column by column within a row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ingest.partials import SUMS, WINDOW, Partials, ordered
from stream.chunks import CHANGED
from stream.held import stretches

COLUMNS = ("advertiser_id", "ad_id", "publisher_id", "country", "device", *SUMS, CHANGED)
# Readers ask only whether there was any.
_FLAGS = ("late", "sampled", CHANGED)
_HEAD = len(COLUMNS)
_LATER = struct.Struct("<BI")


@lru_cache(maxsize=1024)
def _layout(head: bytes) -> np.dtype[np.void]:
    return np.dtype([(name, f"<u{width}") for name, width in zip(COLUMNS, head, strict=True) if width])


def _width(largest: int) -> int:
    return 0 if largest == 0 else next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))


def pack(partials: Partials) -> tuple[list[tuple[int, int]], list[bytes]]:
    """(window_ms, campaign_id) of each cell, and its packed rows. Columns: those of a chunk."""
    if not len(partials):
        return [], []
    partials = ordered(partials)
    columns = {name: np.minimum(partials[name], 1) if name in _FLAGS else partials[name] for name in COLUMNS}
    widths = [_width(int(column.max())) for column in columns.values()]
    if not any(widths):
        widths[0] = 1
    head = bytes(widths)
    packed = np.empty(len(partials), _layout(head))
    for name in packed.dtype.names or ():
        packed[name] = columns[name]
    window, campaign = partials[WINDOW], partials["campaign_id"]
    edges = stretches(window, campaign)
    starts = [start for start, _ in edges]
    raw, width = packed.tobytes(), packed.itemsize
    cells = list(zip(window[starts].tolist(), campaign[starts].tolist(), strict=True))
    values = [head + raw[a * width : b * width] for a, b in edges]
    return cells, values


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


def unpack(values: list[bytes]) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """All rows of many values by column, and for each row the index of the value it came from."""
    by_head: dict[bytes, list[int]] = {}
    for index, value in enumerate(values):
        by_head.setdefault(value[:_HEAD], []).append(index)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in COLUMNS}
    sources = [np.empty(0, np.int64)]
    for head, indices in by_head.items():
        layout = _layout(head)
        found = np.frombuffer(b"".join([values[i][_HEAD:] for i in indices]), layout)
        lengths = [(len(values[i]) - _HEAD) // layout.itemsize for i in indices]
        sources.append(np.repeat(np.array(indices, np.int64), lengths))
        for name, width in zip(COLUMNS, head, strict=True):
            parts[name].append(found[name].astype(np.int64) if width else np.zeros(len(found), np.int64))
    columns = {name: np.concatenate(part) if part else np.empty(0, np.int64) for name, part in parts.items()}
    return columns, np.concatenate(sources)
