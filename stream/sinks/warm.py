"""The warm and cold tiers: hours and days in ClickHouse, written when their window closes and when it is corrected.

Rows are absolute, replace themselves by key, and carry the flush's sequence as version: a blind re-send is safe,
and what an ousted owner still has in hand loses.

Two marks are published, once the rows before them are acknowledged: `watermark_ms`, before whose last window end every
window is here, and `border_ms`, before whose last no event is accepted any more, also of partitions that are silent now.
Late events reach the minutes a moment before they get here, so readers take a window from here only when none can come
any more, or when the minutes are lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from infra import faults
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from ingest import events, partials
from ingest.grouping import in_order
from ingest.partials import WINDOW, Partials
from stream.chunks import CHANGED
from stream.state import Changes, StageState

_ROWS_PER_INSERT = 500_000
# Of one window.
_ORDER = ("campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_NAMES = {"country": list(events.COUNTRIES), "device": list(events.DEVICES)}
_RANKS = {name: np.argsort(np.argsort(names)).astype(np.uint8) for name, names in _NAMES.items()}
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

    packs = False

    def pack(self, given_up: Callable[[], bool]) -> None:
        """ClickHouse merges what it holds by itself: nothing to do."""

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable. Safe to repeat."""
        # One after the other in a process: rows take more room on their way out.
        with _ONE_AT_A_TIME:
            for window in changes.newly_closed:
                self._insert(state.windows[window].whole(), changes.sequence)
            for rows in state.corrections(changes, whole=True):
                self._insert(partials.among(rows, changes.delta), changes.sequence)
        if changes.closed_ms is not None:
            settled = changes.settled_ms // self._grain_ms * self._grain_ms
            marks = (settled, changes.closed_ms // self._grain_ms)
            if self._marks is None or marks > self._marks:
                self._publish(settled, changes.closed_ms)
                self._marks = marks

    def _insert(self, rows: Partials, version: int) -> None:
        """Rows of one window, so of one day: an insert over several partitions is not atomic."""
        rows = in_key_order(rows)
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            page = rows.take(slice(start, start + _ROWS_PER_INSERT))
            self._client.insert(f"stream_{self._tier}", self._table(page, version))
            faults.point("warm.half")

    def _table(self, rows: Partials, version: int) -> pa.Table:
        # Written again after a recovery, a row is told as changed once more: rather than not at all.
        changed_at = np.where(rows[CHANGED] > 0, now_ms() // 1000, 0).astype(np.uint32)
        shard = np.full(len(rows), self._shard, np.uint16)
        more = {"shard": shard, "version": np.full(len(rows), version, np.uint64), "changed_at": changed_at}
        return pa.table(to_clickhouse(rows) | {name: pa.array(column) for name, column in more.items()})

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


def lowest_border(client: ClickHouse, tier: str, shards: int) -> int | None:
    """The lowest published border of all shards (epoch ms): where readers may begin to take the tier for the whole truth. None
    while some shard has published none. Raises Unavailable."""
    rows = client.rows(
        f"""SELECT min(border) FROM (
                SELECT max(border_ms) AS border FROM {client.database}.tier_borders
                WHERE tier = {{tier:String}} AND shard < {{shards:UInt16}} GROUP BY shard)
            HAVING count() = {{shards:UInt16}}""",
        {"tier": tier, "shards": shards},
    )
    return int(rows[0][0]) if rows else None


def in_key_order(rows: Partials) -> Partials:
    """In the order of the tables' keys, so that ClickHouse need not sort them."""
    names = {name: _RANKS[name][rows[name]] for name in _NAMES}
    return rows.take(in_order([names.get(name, rows[name]) for name in _ORDER]))


def to_clickhouse(rows: Partials) -> dict[str, pa.Array]:
    """Columns as the tables have them: seconds, names instead of codes. Numbers stay as narrow as they are held."""
    held = {name: np.ascontiguousarray(column) for name, column in rows.columns.items()}
    named = {
        name: pa.DictionaryArray.from_arrays(pa.array(held.pop(name)), pa.array(of)) for name, of in _NAMES.items()
    }
    seconds = (held.pop(WINDOW) // 1000).astype(np.uint32)
    return {"time": pa.array(seconds), **named, **{name: pa.array(column) for name, column in held.items()}}
