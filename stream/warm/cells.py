"""Cells: what a window has of each campaign, as it was after a flush. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.clickhouse.closed_cells import marks_of
from infra.columnar.grouping import sort_order
from ingest.partials import BILLED, WINDOW, Partials
from stream.chunks import CHANGED
from stream.window import stretches

_KEYS = ("campaign_id", "advertiser_id")
_AMOUNTS = (*BILLED, CHANGED)
Column = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Cells:
    """Of one window, by column. `closing`: whether the window has just closed: what is here corrects nothing that was shown."""

    columns: dict[str, Column]
    closing: bool

    @staticmethod
    def of(rows: Partials, *, closing: bool) -> Cells:
        """The cells of rows of one window, which has all rows of each campaign that is among them."""
        rows = rows.take(sort_order([rows[name] for name in _KEYS]))
        starts = np.array([start for start, _ in stretches(*(rows[name] for name in _KEYS))], np.int64)
        columns = {name: rows[name][starts].astype(np.uint64) for name in (WINDOW, *_KEYS)}
        columns |= {name: np.add.reduceat(rows[name].astype(np.uint64), starts) for name in _AMOUNTS}
        return Cells(columns, closing)


def table_of(cells: Sequence[Cells], tier: str, shard: int, version: int) -> pa.Table:
    """Cells of one flush as ClickHouse has them, and at the end the row that says that they are all."""
    parts = [part for part in cells if len(part.columns[WINDOW])]
    names = (WINDOW, *_KEYS, *_AMOUNTS)
    columns = {name: np.concatenate([part.columns[name] for part in parts] + [_mark(name, parts)]) for name in names}
    seconds = (columns.pop(WINDOW) // 1000).astype(np.uint32)
    closing = np.concatenate(
        [np.full(len(p.columns[WINDOW]), p.closing, np.uint8) for p in parts] + [np.zeros(1, np.uint8)]
    )
    size = len(seconds)
    return pa.table(
        {
            "tier": pa.array([tier, marks_of(tier)]).take(pa.array(np.arange(size) == size - 1).cast(pa.int8())),
            "time": pa.array(seconds),
            **{name: pa.array(column) for name, column in columns.items()},
            "shard": pa.array(np.full(size, shard, np.uint16)),
            "version": pa.array(np.full(size, version, np.uint64)),
            "closing": pa.array(closing),
        }
    )


def _mark(name: str, parts: Sequence[Cells]) -> Column:
    """The last row: in the newest window."""
    newest = max((int(part.columns[WINDOW].max()) for part in parts), default=0)
    return np.array([newest if name == WINDOW else 0], np.uint64)
