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

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from infra import faults, logs
from infra.clickhouse import borders, closed_cells
from infra.clickhouse.borders import Border
from infra.clickhouse.client import ClickHouse
from infra.clock import iso, now_ms
from infra.columnar.grouping import sort_order
from ingest import events, partials
from ingest.canary.arrivals import NO_CANARIES, Canaries
from ingest.partials import WINDOW, Partials
from stream.chunks import CHANGED
from stream.published import Publication
from stream.warm.cells import Cells, table_of
from stream.warm.tables import ROWS_PER_INSERT, WarmTables

# Of one window.
_ORDER = ("campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_NAMES = {"country": list(events.COUNTRIES), "device": list(events.DEVICES)}
_RANKS = {name: np.argsort(np.argsort(names)).astype(np.uint8) for name, names in _NAMES.items()}
# An insert costs some 20 ms, and these are for nobody but the operator.
_CANARY_EVERY_S = 20.0
# What borders of releases that did not name the table have for its UUID.
_NO_TABLE = "00000000-0000-0000-0000-000000000000"


class WarmSink:
    """Writes one shard of one tier. Every method may raise Unavailable and can then simply be called again.

    It is attached to a table once all that the state holds has been sent there. Until then no border is published: it would vouch for
    rows that may not have arrived.
    """

    def __init__(self, tables: WarmTables, tier: str, grain_ms: int, shard: int) -> None:
        self._tables, self._client = tables, tables.client
        self._tier, self._grain_ms, self._shard = tier, grain_ms, shard
        self._borders: tuple[int, int] | None = None
        self._table_id, self._from_ms = "", 0
        """The table that this is attached to, empty for none; and since when it has all rows."""
        self._cells_id = ""
        self._border: Border | None = None
        self._canaries, self._canary_at = NO_CANARIES, float("-inf")
        """The border and the canaries that were published last, and when (`time.monotonic`)."""

    def attach(self, snapshot: Publication) -> None:
        """Send all closed windows that are held: after a recovery the last flush may not have arrived."""
        if not snapshot.sequence:
            return
        self._table_id = ""
        table_id, cells_id = self._tables.present_ids(self._tier)
        former = borders.read_border(self._client, self._tier, self._shard)
        from_ms = self._whole_from(former, table_id, snapshot.dropped_ms)
        newest_cells = closed_cells.newest_version(self._client, self._tier, self._shard)
        # What closed before was sent as closing then. Sent once more as of the same flush, it would say that this corrected it.
        closed_before_ms = former.watermark_ms if former and former.table_id == table_id and newest_cells else 0
        self._send(snapshot, closed_before_ms, with_cells=newest_cells != snapshot.sequence)
        # What is published from now on is about the table that was there before its rows were sent.
        self._table_id, self._from_ms, self._borders, self._cells_id = table_id, from_ms, None, cells_id
        self._publish_borders(snapshot)

    def refresh(self, sent_ms: int, canaries: Canaries = NO_CANARIES) -> bool:
        """ClickHouse syncs what it acknowledges. But its table may have been dropped and made again, or not have been sent all yet:
        False then."""
        if self._table_id and self._tables.recent_ids(self._tier) != (self._table_id, self._cells_id):
            self._table_id = ""
        return bool(self._table_id)

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

    def _send(self, published: Publication, closed_before_ms: int = 0, *, with_cells: bool = True) -> None:
        """Rows, and then what they are by campaign. `closed_before_ms`: windows that end at or before this were closed when they were last
        sent with their cells; 0 for none."""
        cells: list[Cells] = []
        for window in published.newly_closed:
            with self._tables.turn:
                rows = window.whole()
                cells.append(Cells.of(rows, closing=window.start + self._grain_ms > closed_before_ms))
            self._insert(rows, published.sequence)
        with self._tables.turn:
            corrections = published.corrections(whole=True)
            changed = [partials.among(rows, published.delta) for rows in corrections]
            cells += [Cells.of(rows, closing=False) for rows in corrections]
        for rows in changed:
            self._insert(rows, published.sequence)
        if cells and with_cells:
            self._insert_cells(cells, published.sequence)

    def _publish_borders(self, published: Publication) -> None:
        if published.closed_ms is not None:
            settled = published.settled_ms // self._grain_ms * self._grain_ms
            published_borders = (settled, published.closed_ms // self._grain_ms)
            if self._borders is None or published_borders > self._borders:
                self._publish(Border(settled, published.closed_ms, self._from_ms, self._table_id), published.canaries)
                self._borders = published_borders
            elif self._border is not None and self._is_canary_due(published.canaries):
                # The same border once more: what readers go by does not move between the ends of windows.
                self._publish(self._border, published.canaries)

    def _publish(self, border: Border, canaries: Canaries) -> None:
        border = replace(border, canary_ms=canaries.oldest_ms, newest_canary_ms=canaries.newest_ms)
        self._tables.publish(self._tier, self._shard, border)
        self._border, self._canaries, self._canary_at = border, canaries, time.monotonic()

    def _is_canary_due(self, canaries: Canaries) -> bool:
        """Whether a border is published for canaries alone."""
        return canaries != self._canaries and time.monotonic() - self._canary_at >= _CANARY_EVERY_S

    def _insert(self, rows: Partials, version: int) -> None:
        """Rows of one window."""
        for start in range(0, len(rows), ROWS_PER_INSERT):
            page = rows.take(slice(start, start + ROWS_PER_INSERT))
            make = partial(self._table, page, version)
            self._tables.insert(borders.TABLES[self._tier], int(page[WINDOW][0]), len(page), make)
            faults.point("warm.half")

    def _insert_cells(self, cells: list[Cells], version: int) -> None:
        """The last row, which says that all are there, goes with the last of them; on a cluster after them, since an insert reaches
        one shard before another."""
        table = table_of(cells, self._tier, self._shard, version)
        last = len(table) - 1 if self._client.deployment.is_cluster else len(table)
        edges = [*range(0, last, ROWS_PER_INSERT), *sorted({last, len(table)})]
        for start, stop in pairwise(edges):
            # In one partition, that of the day of the insert.
            self._tables.insert(closed_cells.TABLE, 0, stop - start, partial(table.slice, start, stop - start))

    def _table(self, rows: Partials, version: int) -> pa.Table:
        rows = in_key_order(rows)
        # A row that is written again after a recovery is reported as changed once more, rather than not at all.
        changed_at = np.where(rows[CHANGED] > 0, now_ms() // 1000, 0).astype(np.uint32)
        shard = np.full(len(rows), self._shard, np.uint16)
        stamps = {"shard": shard, "version": np.full(len(rows), version, np.uint64), "changed_at": changed_at}
        return pa.table(to_clickhouse(rows) | {name: pa.array(column) for name, column in stamps.items()})


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
