"""What the shards of the hot tier publish about themselves, for `adclick status` and the router: fields of their spans."""

from __future__ import annotations

from dataclasses import dataclass

from infra.redis.client import Redis
from stream.hot.layout import ShardKeys, SpanField


@dataclass(frozen=True)
class ShardStatus:
    """`sequence`: the newest flush that is shown; `closed_ms`: the closing watermark; `sent_ms`: when ingest sent what is shown;
    `events`: how many events it has shown since its span was made. None where the shard has not published it."""

    sequence: int | None
    closed_ms: int | None
    sent_ms: int | None
    events: int | None = None


def read_shards(redis: Redis, prefix: str, shards: int) -> list[ShardStatus]:
    """The status of each shard. Raises Unavailable."""
    fields = (SpanField.SEQUENCE, SpanField.CLOSED, SpanField.SENT, SpanField.EVENTS)
    replies = redis.pipeline([("HMGET", ShardKeys.of(prefix, shard).span, *fields) for shard in range(shards)])
    return [ShardStatus(*(int(value) if value else None for value in reply)) for reply in replies]
