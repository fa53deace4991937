"""Reads from ClickHouse about how many users campaigns had within some whole hours: from the stream's registers, which stay there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infra.clickhouse.client import ClickHouse
from infra.errors import AdclickError
from query.reach import STREAM_HOURS
from query.reach_progress import Partitions, is_behind
from query.row_scope import ALL_ROWS, RowScope
from query.tiers.clickhouse import row_conditions
from query.tiers.user_registers import UserRegisters
from query.trending import UserCounts


class HourlyUsers:
    """Raises Unavailable when ClickHouse is away or the statement is too large, BadStatement when there is no such table."""

    def __init__(self, client: ClickHouse, timeout_s: float, progress: Callable[[], Partitions]) -> None:
        """`timeout_s`: after which ClickHouse ends a statement by itself. `progress`: reads how far users are counted, by partition."""
        self._client, self._progress = client, progress
        self._registers = UserRegisters(client, timeout_s)

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
        rows = (
            f"SELECT {', '.join(names)}, CAST(coupons AS Array(UInt32)) AS coupons FROM {self._client.database}.{STREAM_HOURS}"
            f" WHERE {' AND '.join(conditions)}"
        )
        count = len(campaigns) or self._registers.count_groups(names, rows, parameters)
        distinct, users, _ = self._registers.estimate_users(names, rows, parameters, count)
        return UserCounts(tuple(distinct), users)
