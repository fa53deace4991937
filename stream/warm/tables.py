"""The tables of hours and days in ClickHouse, as all shards of a worker write them: what they write at the same time is one insert.

An insert costs ClickHouse some 20 ms with the merges that it brings about, and a look at a table 3 ms, however many rows there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pyarrow as pa

from infra.clickhouse import borders, closed_cells
from infra.clickhouse.borders import Border
from infra.clickhouse.client import ClickHouse
from infra.errors import Refused
from stream.warm.group_commit import GroupCommit

# So that an insert is a single part: ClickHouse cuts blocks at a million rows.
ROWS_PER_INSERT = 500_000
# That share an insert, and how many rows each of them may have.
_MOST_SHARDS, _ROWS_OF_A_SHARD = 16, 50_000


class WarmTables:
    """Thread-safe. Every method may raise Unavailable and can then simply be called again."""

    def __init__(self, client: ClickHouse, look_every_s: float = 15.0) -> None:
        """`look_every_s`: how often, at most, to look whether a table was made again."""
        self.client, self._look_every_s = client, look_every_s
        self.turn = threading.Lock()
        """Rows are merged, sorted and laid out under this lock, of one shard at a time: that takes room, and time of the interpreter."""
        self._inserts = {
            table: GroupCommit[int, pa.Table](self._insert_into(table), _MOST_SHARDS)
            for table in (*borders.TABLES.values(), closed_cells.TABLE)
        }
        self._borders = GroupCommit[str, tuple[int, Border]](
            lambda tier, of_shards: borders.publish_borders(client, tier, of_shards), _MOST_SHARDS
        )
        self._looking = threading.Lock()
        self._ids, self._looked_at = dict[str, str](), float("-inf")

    def _insert_into(self, table: str) -> Callable[[int, list[pa.Table]], None]:
        def insert(_window_ms: int, parts: list[pa.Table]) -> None:
            # Numbers are as narrow in each of them as they can be there: the widest type of each column takes all.
            self.client.insert(table, pa.concat_tables(parts, promote_options="permissive").combine_chunks())

        return insert

    def insert(self, table: str, window_ms: int, rows: int, make: Callable[[], pa.Table]) -> None:
        """Append `rows` rows of the window that begins there. So they are in one partition of the table: an insert over several is not
        atomic. `make` makes a table of them, when it is their turn."""
        if rows <= _ROWS_OF_A_SHARD:
            with self.turn:
                data = make()
            self._inserts[table].submit(window_ms, data)
        else:
            with self.turn:
                self.client.insert(table, make())

    def publish(self, tier: str, shard: int, border: Border) -> None:
        """Publish how far a shard has written a tier."""
        self._borders.submit(tier, (shard, border))

    def present_ids(self, tier: str) -> tuple[str, str]:
        """The UUIDs of a tier's table and of that of closed cells, as of now. Raises Refused where the tier's table is not there."""
        began = time.monotonic()
        ids = borders.table_ids(self.client, (*borders.TABLES.values(), closed_cells.TABLE))
        self._ids, self._looked_at = ids, began
        table = borders.TABLES[tier]
        if table not in ids:
            code = "UNKNOWN_TABLE"
            message = f"ClickHouse: there is no table {table} ({code})"
            raise Refused(message, hint="adclick migrate makes it", backend="clickhouse", code=code)
        return ids[table], ids.get(closed_cells.TABLE, "")

    def recent_ids(self, tier: str) -> tuple[str, str]:
        """The same as of the last look, of whichever shard. While one looks, others do not wait for it."""
        is_old = time.monotonic() - self._looked_at >= self._look_every_s
        if is_old and self._looking.acquire(blocking=False):
            try:
                return self.present_ids(tier)
            finally:
                self._looking.release()
        ids = self._ids
        return ids.get(borders.TABLES[tier], ""), ids.get(closed_cells.TABLE, "")
