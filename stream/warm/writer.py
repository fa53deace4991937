"""The warm and cold tiers: hours and days in ClickHouse, written when their window closes and when it is corrected.

Rows are absolute, replace themselves by key, and carry the flush's sequence as version: a blind re-send is safe,
and what an ousted owner still has in hand loses.

Two borders are published, once the rows before them are acknowledged: `watermark_ms`, before whose last window end every
window is here, and `border_ms`, before whose last no event is accepted any more, also of partitions that are silent now.
Late events reach the minutes a moment before they get here, so readers take a window from here only when none can come
any more, or when the minutes are lost.

A border names the table that its rows are in. One that was dropped and made again is noticed, and filled with what the state still
holds; its border then says from when on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from infra import faults, logs
from infra.clickhouse import borders, closed_cells
from infra.clickhouse.borders import Border
from infra.clickhouse.client import ClickHouse
from infra.clock import iso, now_ms
from infra.columnar.grouping import sort_order
from infra.errors import Refused
from ingest import events, partials
from ingest.partials import WINDOW, Partials
from stream.chunks import CHANGED
from stream.published import Publication
from stream.warm.cells import Cells, table_of

_ROWS_PER_INSERT = 500_000
# Of one window.
_ORDER = ("campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_NAMES = {"country": list(events.COUNTRIES), "device": list(events.DEVICES)}
_RANKS = {name: np.argsort(np.argsort(names)).astype(np.uint8) for name, names in _NAMES.items()}
_ONE_AT_A_TIME = threading.Lock()
# How often the table is looked at, and what borders of releases that did not name it have for its UUID.
_LOOK_EVERY_S = 15.0
_NO_TABLE = "00000000-0000-0000-0000-000000000000"


class WarmSink:
    """Writes one shard of one tier. Every method may raise Unavailable and can then simply be called again.

    It is attached to a table once all that the state holds has been sent there. Until then no border is published: it would vouch for
    rows that may not have arrived.
    """

    def __init__(
        self, client: ClickHouse, tier: str, grain_ms: int, shard: int, look_every_s: float = _LOOK_EVERY_S
    ) -> None:
        """`look_every_s`: how often, at most, to look whether the table was made again."""
        self._client, self._tier, self._grain_ms, self._shard = client, tier, grain_ms, shard
        self._look_every_s = look_every_s
        self._borders: tuple[int, int] | None = None
        self._table_id, self._from_ms, self._looked_at = "", 0, 0.0
        """The table that this is attached to, empty for none; since when it has all rows; and when it was looked at."""
        self._cells_id = ""

    def attach(self, snapshot: Publication) -> None:
        """Send all closed windows that are held: after a recovery the last flush may not have arrived."""
        if not snapshot.sequence:
            return
        self._table_id = ""
        (table_id, cells_id), self._looked_at = self._present_tables(), time.monotonic()
        former = borders.read_border(self._client, self._tier, self._shard)
        from_ms = self._whole_from(former, table_id, snapshot.dropped_ms)
        self._send(snapshot, self._closed_before_ms(former, table_id))
        # What is published from now on is about the table that was there before its rows were sent.
        self._table_id, self._from_ms, self._borders, self._cells_id = table_id, from_ms, None, cells_id
        self._publish_borders(snapshot)

    def refresh(self, sent_ms: int) -> bool:
        """ClickHouse syncs what it acknowledges. But its table may have been dropped and made again, or not have been sent all yet:
        False then."""
        if self._table_id and time.monotonic() - self._looked_at >= self._look_every_s:
            present, self._looked_at = self._present_tables(), time.monotonic()
            if present != (self._table_id, self._cells_id):
                self._table_id = ""
        return bool(self._table_id)

    def _present_tables(self) -> tuple[str, str]:
        """The UUIDs of the table and of that of closed cells. Raises Refused where the table is not there."""
        table = borders.TABLES[self._tier]
        ids = borders.table_ids(self._client, (table, closed_cells.TABLE))
        if table not in ids:
            raise Refused(
                f"ClickHouse: there is no table {table}", hint="adclick migrate makes it", backend="clickhouse", code="UNKNOWN_TABLE"
            )  # fmt: skip
        return ids[table], ids.get(closed_cells.TABLE, "")

    def _whole_from(self, former: Border | None, table_id: str, dropped_ms: int) -> int:
        """From when on the table has all rows of this shard (epoch ms), once what the state holds is sent to it. One for which no border
        was published lacks what the state has dropped. `former`: the border that was published last."""
        if former is not None and former.table_id in (table_id, _NO_TABLE):
            return former.from_ms
        from_ms = dropped_ms // self._grain_ms * self._grain_ms
        if from_ms:
            logs.get("stream").warning(
                "a table was made again: what is still held is written to it", table=borders.TABLES[self._tier],
                shard=self._shard, missing_before=iso(from_ms), hint="adclick reconcile brings earlier days back",
            )  # fmt: skip
        return from_ms

    def _closed_before_ms(self, former: Border | None, table_id: str) -> int:
        """Windows that end at or before this were closed when they were last sent, with their cells; 0 for none."""
        if former is None or former.table_id != table_id:
            return 0
        return former.watermark_ms if closed_cells.has_marks(self._client, self._tier, self._shard) else 0

    packs = False

    def pack(self, given_up: Callable[[], bool]) -> None:
        """ClickHouse merges what it holds by itself: nothing to do."""

    def prepare(self, published: Publication) -> None:
        """Nothing: what is sent depends on where the table stands."""

    def write(self, published: Publication) -> bool:
        """Show what a flush made durable; False where the table lacks what came before: it needs a snapshot. Safe to repeat."""
        if not self.refresh(published.sent_ms):
            return False
        self._send(published)
        self._publish_borders(published)
        return True

    def _send(self, published: Publication, closed_before_ms: int = 0) -> None:
        cells: list[Cells] = []
        # One after the other in a process: rows take more room on their way out.
        with _ONE_AT_A_TIME:
            for window in published.newly_closed:
                rows = window.whole()
                self._insert(rows, published.sequence)
                cells.append(Cells.of(rows, closing=window.start + self._grain_ms > closed_before_ms))
            for rows in published.corrections(whole=True):
                self._insert(partials.among(rows, published.delta), published.sequence)
                cells.append(Cells.of(rows, closing=False))
            if cells:
                self._insert_cells(cells, published.sequence)

    def _publish_borders(self, published: Publication) -> None:
        if published.closed_ms is not None:
            settled = published.settled_ms // self._grain_ms * self._grain_ms
            published_borders = (settled, published.closed_ms // self._grain_ms)
            if self._borders is None or published_borders > self._borders:
                self._publish(settled, published.closed_ms)
                self._borders = published_borders

    def _insert(self, rows: Partials, version: int) -> None:
        """Rows of one window, so of one day: an insert over several partitions is not atomic."""
        rows = in_key_order(rows)
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            page = rows.take(slice(start, start + _ROWS_PER_INSERT))
            self._client.insert(borders.TABLES[self._tier], self._table(page, version))
            faults.point("warm.half")

    def _insert_cells(self, cells: list[Cells], version: int) -> None:
        """The last row, which says that all are there, goes with the last of them; on a cluster after them, since an insert reaches
        one shard before another."""
        table = table_of(cells, self._tier, self._shard, version)
        last = len(table) - 1 if self._client.deployment.is_cluster else len(table)
        for start in range(0, last, _ROWS_PER_INSERT):
            self._client.insert(closed_cells.TABLE, table.slice(start, min(_ROWS_PER_INSERT, last - start)))
        if last < len(table):
            self._client.insert(closed_cells.TABLE, table.slice(last))

    def _table(self, rows: Partials, version: int) -> pa.Table:
        # A row that is written again after a recovery is reported as changed once more, rather than not at all.
        changed_at = np.where(rows[CHANGED] > 0, now_ms() // 1000, 0).astype(np.uint32)
        shard = np.full(len(rows), self._shard, np.uint16)
        stamps = {"shard": shard, "version": np.full(len(rows), version, np.uint64), "changed_at": changed_at}
        return pa.table(to_clickhouse(rows) | {name: pa.array(column) for name, column in stamps.items()})

    def _publish(self, border_ms: int, watermark_ms: int) -> None:
        border = Border(border_ms, watermark_ms, self._from_ms, self._table_id)
        borders.publish_border(self._client, self._tier, self._shard, border)


def lowest_border(client: ClickHouse, tier: str, shards: int) -> int | None:
    """The lowest published border of all shards (epoch ms): where readers may begin to take the tier for the whole truth. None
    while some shard has published none for the table that there is. Raises Unavailable."""
    border = borders.read_published(client, shards).tiers.get(tier)
    return border.border_ms if border else None


def in_key_order(rows: Partials) -> Partials:
    """In the order of the tables' keys, so that ClickHouse need not sort them."""
    names = {name: _RANKS[name][rows[name]] for name in _NAMES}
    return rows.take(sort_order([names.get(name, rows[name]) for name in _ORDER]))


def to_clickhouse(rows: Partials) -> dict[str, pa.Array]:
    """Columns as the tables have them: seconds, names instead of codes. Numbers stay as narrow as they are."""
    by_name = {name: np.ascontiguousarray(column) for name, column in rows.columns.items()}
    named = {
        name: pa.DictionaryArray.from_arrays(pa.array(by_name.pop(name)), pa.array(of)) for name, of in _NAMES.items()
    }
    seconds = (by_name.pop(WINDOW) // 1000).astype(np.uint32)
    return {"time": pa.array(seconds), **named, **{name: pa.array(column) for name, column in by_name.items()}}
