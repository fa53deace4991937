"""How many different users groups of rows have, by the registers that ClickHouse unites: only how many have which rank leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infra.clickhouse.client import ClickHouse
from infra.columnar.columns import Ints
from stream.reach.registers import MAX_RANK, PRECISION, REGISTERS, estimate

# A statement about users takes no more memory than this from those that count: two at once leave half of an embedded ClickHouse.
_MOST_BYTES = 512 << 20
_REGISTER, _RANK = f"bitAnd(c, {REGISTERS - 1})", f"bitShiftRight(c, {PRECISION})"
# Up to so many buckets and groups each has a dense array of all registers, of two bytes each in every thread, which is several times
# as fast; more of them would not fit: the distinct coupons of each, the greatest first, of which the first of each register counts.
_MOST_DENSE = 5_000
_DENSE_RANKS = (
    f"SELECT {{keys}}, maxResampleArray(0, {REGISTERS}, 1)(arrayMap(c -> toUInt8({_RANK}), coupons),"
    f" arrayMap(c -> {_REGISTER}, coupons)) AS ranks FROM ({{rows}}) GROUP BY {{keys}}"
)
_SPARSE_RANKS = (
    f"SELECT {{keys}}, arrayFilter((rank, nth) -> nth = 1, arrayMap(c -> toUInt8({_RANK}), sorted),"
    f" arrayEnumerateUniq(arrayMap(c -> {_REGISTER}, sorted))) AS ranks FROM (SELECT {{keys}},"
    " arrayReverseSort(groupUniqArrayArray(coupons)) AS sorted FROM ({rows}) GROUP BY {keys})"
)


class UserRegisters:
    """Statements about rows with `coupons`. Raises Unavailable when ClickHouse is away or refuses, BadStatement when it has no such
    table."""

    def __init__(self, client: ClickHouse, timeout_s: float) -> None:
        """`timeout_s`: after which ClickHouse ends a statement by itself."""
        self._client = client
        self._settings = f" SETTINGS max_execution_time = {timeout_s:g}, max_memory_usage = {_MOST_BYTES}"

    def count_groups(self, names: Sequence[str], rows: str, parameters: dict[str, Any]) -> int:
        """How many groups a query of rows has by these columns."""
        sql = f"SELECT uniqExact({', '.join(names)}) FROM ({rows}){self._settings}"
        return int(self._client.rows(sql, parameters)[0][0])

    def estimate_users(
        self, names: Sequence[str], rows: str, parameters: dict[str, Any], groups: int
    ) -> tuple[Ints, Ints, int]:
        """(columns, groups): the groups with users, their users, and how many rows ClickHouse returned. `groups`: how many there are at
        most."""
        keys = ", ".join(names)
        ranks = (_DENSE_RANKS if groups <= _MOST_DENSE else _SPARSE_RANKS).format(keys=keys, rows=rows)
        reply = self._client.arrow(
            f"SELECT {keys}, rank, count() AS registers FROM ({ranks}) ARRAY JOIN ranks AS rank WHERE rank > 0"
            f" GROUP BY {keys}, rank{self._settings}",
            parameters,
        )
        columns = {name: reply[name].to_numpy().astype(np.int64) for name in reply.column_names}
        distinct, places = np.unique(np.stack([columns[name] for name in names]), axis=1, return_inverse=True)
        counts = np.zeros((distinct.shape[1], MAX_RANK + 1), np.int64)
        counts[places.reshape(-1), columns["rank"]] = columns["registers"]
        return distinct, np.rint(estimate(counts)).astype(np.int64), len(reply)
