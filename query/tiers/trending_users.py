"""Reads from ClickHouse about how many users campaigns had within some whole hours: from the stream's registers, which stay there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError
from query.reach import STREAM_HOURS
from query.reach_progress import Partitions, is_behind
from query.row_scope import ALL_ROWS, RowScope
from query.tiers.clickhouse import row_conditions
from query.tiers.reach import DENSE_RANKS, MOST_DENSE, SPARSE_RANKS
from query.trending import UserCounts
from stream.reach.registers import MAX_RANK, estimate

# Of a statement; one that needs more fails, and trends go without users.
_MOST_BYTES = 512 << 20


class HourlyUsers:
    """Raises Unavailable when ClickHouse is away or the statement is too large, BadStatement when there is no such table."""

    def __init__(self, client: ClickHouse, timeout_s: float, progress: Callable[[], Partitions]) -> None:
        """`timeout_s`: after which ClickHouse ends a statement by itself. `progress`: reads how far users are counted, by partition."""
        self._client, self._progress = client, progress
        self._settings = f" SETTINGS max_execution_time = {timeout_s:g}, max_memory_usage = {_MOST_BYTES}"

    def is_behind(self, now_ms: int) -> bool:
        """Whether the newest users are not counted yet, so that campaigns of many would rank like bots; also where it is not known."""
        try:
            return is_behind(self._progress(), now_ms)
        except AdclickError:
            return True

    def read(
        self, start_ms: int, end_ms: int, campaigns: Sequence[int] = (), advertiser: int | None = None,
        scope: RowScope = ALL_ROWS, *, by_advertiser: bool = False,
    ) -> UserCounts:  # fmt: skip
        """The users of the hours that begin in [start_ms, end_ms), by campaign, and with `by_advertiser` by advertiser. No campaigns: all
        that the advertiser has, or that may be seen."""
        conditions, parameters = row_conditions(campaigns, advertiser, scope)
        conditions += ["time >= toDateTime({start:UInt32}, 'UTC')", "time < toDateTime({end:UInt32}, 'UTC')"]
        parameters |= {"start": start_ms // 1000, "end": -(-end_ms // 1000)}
        names = ("campaign_id", "advertiser_id") if by_advertiser else ("campaign_id",)
        keys = ", ".join(names)
        rows = (
            f"SELECT {keys}, CAST(coupons AS Array(UInt32)) AS coupons FROM {self._client.database}.{STREAM_HOURS}"
            f" WHERE {' AND '.join(conditions)}"
        )
        count = len(campaigns) or self._count_groups(keys, rows, parameters)
        ranks = (DENSE_RANKS if count <= MOST_DENSE else SPARSE_RANKS).format(keys=keys, rows=rows)
        reply = self._client.arrow(
            f"SELECT {keys}, rank, count() AS registers FROM ({ranks}) ARRAY JOIN ranks AS rank WHERE rank > 0"
            f" GROUP BY {keys}, rank{self._settings}",
            parameters,
        )
        columns = {name: reply[name].to_numpy().astype(np.int64) for name in reply.column_names}
        distinct, groups = np.unique(np.stack([columns[name] for name in names]), axis=1, return_inverse=True)
        counts = np.zeros((distinct.shape[1], MAX_RANK + 1), np.int64)
        counts[groups.reshape(-1), columns["rank"]] = columns["registers"]
        return UserCounts(tuple(distinct), np.rint(estimate(counts)).astype(np.int64))

    def _count_groups(self, keys: str, rows: str, parameters: dict[str, Any]) -> int:
        return int(self._client.rows(f"SELECT uniqExact({keys}) FROM ({rows}){self._settings}", parameters)[0][0])
