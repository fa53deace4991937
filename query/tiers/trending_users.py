"""Reads from ClickHouse about how many users campaigns had within some whole hours: one statement, from the stream's registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError
from query.reach import STREAM_HOURS
from query.reach_progress import Partitions, is_behind
from query.row_scope import ALL_ROWS, RowScope
from query.tiers.clickhouse import row_conditions
from query.trending import UserCounts
from stream.reach.registers import MAX_RANK, PRECISION, REGISTERS, estimate

# Of a statement; one that needs more fails, and trends go without users.
_MOST_BYTES = 1 << 30


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
        keys = ("campaign_id", "advertiser_id") if by_advertiser else ("campaign_id",)
        columns = ", ".join(f"{name} AS {name}_" for name in keys)
        grouped = ", ".join(f"{name}_" for name in keys)
        rows = self._client.arrow(
            f"SELECT {grouped}, rank, count() AS registers FROM (SELECT {columns}, bitAnd(coupon, {REGISTERS - 1}) AS register,"
            f" max(bitShiftRight(coupon, {PRECISION})) AS rank FROM {self._client.database}.{STREAM_HOURS} ARRAY JOIN coupons AS coupon"
            f" WHERE {' AND '.join(conditions)} GROUP BY {grouped}, register) GROUP BY {grouped}, rank{self._settings}",
            parameters | {"start": start_ms // 1000, "end": -(-end_ms // 1000)},
        )
        groups = np.stack([rows[f"{name}_"].to_numpy().astype(np.int64) for name in keys])
        distinct, numbers = np.unique(groups, axis=1, return_inverse=True)
        counts = np.zeros((distinct.shape[1], MAX_RANK + 1), np.int64)
        counts[numbers.reshape(-1), rows["rank"].to_numpy().astype(np.int64)] = rows["registers"].to_numpy()
        return UserCounts(tuple(distinct), np.rint(estimate(counts)).astype(np.int64))
