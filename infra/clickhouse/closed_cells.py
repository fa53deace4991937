"""Closed windows by campaign, as each flush wrote them: written by the stream's warm sink, read by the feed of changes."""

from __future__ import annotations

from infra.clickhouse.client import ClickHouse

TABLE = "closed_cells"


def marks_of(tier: str) -> str:
    """Where the table has the rows that come last of each version of a tier: apart, since the newest are looked for often."""
    return f"{tier}-sent"


def has_marks(client: ClickHouse, tier: str, shard: int) -> bool:
    """Whether a shard has ever written cells of a tier. Raises Unavailable."""
    rows = client.rows(
        f"SELECT 1 FROM {client.database}.{TABLE} WHERE tier = {{tier:String}} AND shard = {{shard:UInt16}} LIMIT 1",
        {"tier": marks_of(tier), "shard": shard},
    )
    return bool(rows)
