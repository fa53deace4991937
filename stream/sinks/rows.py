"""How the hot tier packs the partials of one campaign and minute: fixed-width rows, each column as narrow as may be.

Written by the sink, read by the query router. A value begins with the width in bytes of each of COLUMNS (0: all zero, left
out), and goes on with its rows, column by column within a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest import partials
from stream.chunks import CHANGED

COLUMNS = ("advertiser_id", "ad_id", "publisher_id", "country", "device", *partials.SUMS, CHANGED)
# Readers ask only whether there was any.
_FLAGS = ("late", "sampled", CHANGED)
_HEAD = len(COLUMNS)


@lru_cache(maxsize=1024)
def _layout(head: bytes) -> np.dtype[np.void]:
    return np.dtype([(name, f"<u{width}") for name, width in zip(COLUMNS, head, strict=True) if width])


def _width(largest: int) -> int:
    return 0 if largest == 0 else next(w for w in (1, 2, 4, 8) if largest < 1 << (8 * w))


def pack(frame: pl.DataFrame) -> tuple[list[tuple[int, int]], list[bytes]]:
    """(window_ms, campaign_id) of each cell, and its packed rows. Columns: `chunks.SCHEMA`."""
    if not frame.height:
        return [], []
    frame = frame.sort("window_ms", "campaign_id").with_columns(
        pl.min_horizontal(name, 1).alias(name) for name in _FLAGS
    )
    widths = [_width(largest) for largest in frame.select(pl.col(COLUMNS).max()).row(0)]
    if not any(widths):
        widths[0] = 1
    head = bytes(widths)
    packed = np.empty(frame.height, _layout(head))
    for name in packed.dtype.names or ():
        packed[name] = frame[name].to_numpy()
    window, campaign = frame["window_ms"].to_numpy(), frame["campaign_id"].to_numpy()
    edge = np.flatnonzero((np.diff(window) != 0) | (np.diff(campaign) != 0)) + 1
    starts = np.concatenate(([0], edge))
    stops = np.concatenate((edge, [frame.height]))
    raw, width = packed.tobytes(), packed.itemsize
    cells = list(zip(window[starts].tolist(), campaign[starts].tolist(), strict=True))
    values = [head + raw[a * width : b * width] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return cells, values


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
