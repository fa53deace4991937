"""How the hot tier packs the partials of one campaign and minute: fixed-width rows, smallest first.

Written by the sink, read by the query router. The first byte of a value names the layout.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest import partials
from stream.chunks import CHANGED

_IDS = [
    ("advertiser_id", "<i8"),
    ("ad_id", "<i8"),
    ("publisher_id", "<i8"),
    ("country", "<u2"),
    ("device", "u1"),
]
NARROW = np.dtype(
    [*_IDS, ("late", "u1"), ("sampled", "u1"), (CHANGED, "u1"), ("impressions", "<u4"), ("clicks", "<u4"),
     ("conversions", "<u4"), ("spend_micros", "<i8"), ("late_events", "<u4")]
)  # fmt: skip
WIDE = np.dtype([*_IDS, *((name, "<i8") for name in (*partials.SUMS, CHANGED))])
LAYOUTS = {1: NARROW, 2: WIDE}
_FLAGS = ("late", "sampled", CHANGED)


def pack(frame: pl.DataFrame) -> tuple[list[tuple[int, int]], list[bytes]]:
    """(window_ms, campaign_id) of each cell, and its packed rows. Columns: `chunks.SCHEMA`."""
    if not frame.height:
        return [], []
    frame = frame.sort("window_ms", "campaign_id")
    counts = frame.select("impressions", "clicks", "conversions", "late_events").max().row(0)
    layout = 1 if max(counts) < 2**32 else 2
    dtype = LAYOUTS[layout]
    packed = np.empty(frame.height, dtype)
    for name in dtype.names or ():
        column = frame[name].to_numpy()
        # In the narrow layout flags say only whether there was any.
        packed[name] = np.minimum(column, 1) if layout == 1 and name in _FLAGS else column
    window, campaign = frame["window_ms"].to_numpy(), frame["campaign_id"].to_numpy()
    edge = np.flatnonzero((np.diff(window) != 0) | (np.diff(campaign) != 0)) + 1
    starts = np.concatenate(([0], edge))
    stops = np.concatenate((edge, [frame.height]))
    raw, width, head = packed.tobytes(), dtype.itemsize, bytes([layout])
    cells = list(zip(window[starts].tolist(), campaign[starts].tolist(), strict=True))
    values = [head + raw[a * width : b * width] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return cells, values


def unpack(values: list[bytes]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """All rows of many values in the WIDE layout, and for each row the index of the value it came from."""
    if not values:
        return np.empty(0, WIDE), np.empty(0, np.int64)
    if all(v[0] == 1 for v in values):
        found = np.frombuffer(b"".join([v[1:] for v in values]), NARROW)
        rows = np.empty(len(found), WIDE)
        for name in WIDE.names or ():
            rows[name] = found[name]
    else:
        parts = [np.frombuffer(v[1:], LAYOUTS[v[0]]) for v in values]
        rows = np.empty(sum(map(len, parts)), WIDE)
        at = 0
        for part in parts:
            for name in WIDE.names or ():
                rows[name][at : at + len(part)] = part[name]
            at += len(part)
    lengths = [(len(v) - 1) // LAYOUTS[v[0]].itemsize for v in values]
    return rows, np.repeat(np.arange(len(values)), lengths)
