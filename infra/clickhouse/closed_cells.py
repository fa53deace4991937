"""Closed windows by campaign, as each flush wrote them: written by the stream's warm sink, read by the feed of changes."""

from __future__ import annotations

from infra.clickhouse.client import ClickHouse

TABLE = "closed_cells"


def marks_of(tier: str) -> str:
    """Where the table has the rows that come last of each version of a tier: apart, since the newest are looked for often."""
    return f"{tier}-sent"


def newest_version(client: ClickHouse, tier: str, shard: int) -> int:
    """The newest flush of which a shard has written all cells of a tier; 0 for none. Raises Unavailable."""
    ((version,),) = client.rows(
        f"SELECT max(version) FROM {client.database}.{TABLE} WHERE tier = {{tier:String}} AND shard = {{shard:UInt16}}",
        {"tier": marks_of(tier), "shard": shard},
    )
    return int(version)
