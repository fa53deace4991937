"""The warm and cold tiers: hours and days in ClickHouse, written when their window closes and when it is corrected.

Rows are absolute, replace themselves by key, and carry the flush's sequence as version: a blind re-send is safe,
and what an ousted owner still has in hand loses.

Two marks are published, once the rows before them are acknowledged: `watermark_ms`, before whose last window end every
window is here, and `border_ms`, an hour behind it. Late events reach the minutes a moment before they get here, so
readers take a window from here only when none can come any more, or when the minutes are lost.
"""

from __future__ import annotations

import threading

import polars as pl
import pyarrow as pa

from infra import faults
from infra.clickhouse.client import ClickHouse
from ingest import events, partials
from ingest.partials import Partials
from stream import chunks
from stream.state import Changes, StageState
from stream.windows import KEPT_AFTER_END_MS

_ROWS_PER_INSERT = 200_000
_ONE_AT_A_TIME = threading.Lock()


class WarmSink:
    """Writes one shard of one tier. Every method may raise Unavailable and can then simply be called again."""

    def __init__(self, client: ClickHouse, tier: str, grain_ms: int, shard: int) -> None:
        self._client, self._tier, self._grain_ms, self._shard = client, tier, grain_ms, shard
        self._marks: tuple[int, int] | None = None

    def attach(self, state: StageState) -> None:
        """After a recovery: the last flush may not have arrived, so send all closed windows that are held."""
        if state.sequence:
            self.write(state.everything(), state)

    def refresh(self, state: StageState) -> None:
        """ClickHouse syncs what it acknowledges: nothing to do."""

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable. Safe to repeat."""
        # One after the other in a process: rows take five times the room on their way out.
        with _ONE_AT_A_TIME:
            for window in changes.newly_closed:
                self._insert(state.windows[window].whole(), changes.sequence)
            for rows in state.corrections(changes):
                self._insert(partials.among(rows, changes.delta), changes.sequence)
        if changes.closed_ms is not None:
            settled = (changes.closed_ms - KEPT_AFTER_END_MS) // self._grain_ms * self._grain_ms
            marks = (settled, changes.closed_ms // self._grain_ms)
            if self._marks is None or marks > self._marks:
                self._publish(settled, changes.closed_ms)
                self._marks = marks

    def _insert(self, rows: Partials, version: int) -> None:
        """Rows of one window, so of one day: an insert over several partitions is not atomic."""
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            page = rows.take(slice(start, start + _ROWS_PER_INSERT)).frame()
            self._client.insert(f"stream_{self._tier}", self._table(page, version))
            faults.point("warm.half")

    def _table(self, frame: pl.DataFrame, version: int) -> pa.Table:
        shaped = to_clickhouse(frame).with_columns(
            pl.lit(self._shard, dtype=pl.UInt16).alias("shard"),
            *(pl.col(c).cast(pl.UInt64) for c in (*partials.SUMS, chunks.CHANGED)),
            pl.lit(version, dtype=pl.UInt64).alias("version"),
        )
        return shaped.to_arrow(compat_level=pl.CompatLevel.oldest())

    def _publish(self, border_ms: int, watermark_ms: int) -> None:
        table = pa.table(
            {
                "tier": [self._tier],
                "shard": pa.array([self._shard], pa.uint16()),
                "border_ms": pa.array([border_ms], pa.uint64()),
                "watermark_ms": pa.array([watermark_ms], pa.uint64()),
            }
        )
        self._client.insert("tier_borders", table)


def border_of(client: ClickHouse, tier: str, shard: int) -> int | None:
    """The published border of a shard, whoever wrote it; None before the first. Raises Unavailable."""
    rows = client.rows(
        f"SELECT max(border_ms) FROM {client.database}.tier_borders"
        " WHERE tier = {tier:String} AND shard = {shard:UInt16} HAVING count() > 0",
        {"tier": tier, "shard": shard},
    )
    return int(rows[0][0]) if rows else None


def to_clickhouse(frame: pl.DataFrame) -> pl.DataFrame:
    """Keys as the tables have them: a DateTime, unsigned ids, names instead of codes. Sums stay as they are."""
    return frame.with_columns(
        pl.from_epoch(pl.col("window_ms"), time_unit="ms").dt.cast_time_unit("ms").alias("time"),
        *(pl.col(c).cast(pl.UInt64) for c in ("advertiser_id", "campaign_id", "ad_id", "publisher_id")),
        pl.col("country").replace_strict(range(len(events.COUNTRIES)), events.COUNTRIES, return_dtype=pl.String),
        pl.col("device").replace_strict(range(len(events.DEVICES)), events.DEVICES, return_dtype=pl.String),
    ).drop("window_ms")
