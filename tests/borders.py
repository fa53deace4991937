"""Borders of the stored tiers, published as the stream worker does."""

from __future__ import annotations

from collections.abc import Iterable

from infra.clickhouse import borders
from infra.clickhouse.borders import Border
from infra.clickhouse.client import ClickHouse


def publish(
    client: ClickHouse, tier: str, shards: Iterable[int], border_ms: int, watermark_ms: int | None = None
) -> None:
    """Publish that shards have written a tier up to a moment."""
    table_id = borders.table_id(client, borders.TABLES[tier])
    border = Border(border_ms, border_ms if watermark_ms is None else watermark_ms, 0, table_id)
    borders.publish_borders(client, tier, [(shard, border) for shard in shards])
