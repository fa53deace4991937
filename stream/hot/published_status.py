"""What the shards of the hot tier publish about themselves, for `adclick status` and the router: fields of their spans."""

from __future__ import annotations

from dataclasses import dataclass

from infra.redis.client import Redis
from ingest.canary.arrivals import Canaries
from stream.hot.layout import ShardKeys, SpanField


@dataclass(frozen=True)
class ShardStatus:
    """`sequence`: the newest flush that is shown; `closed_ms`: the closing watermark; `sent_ms`: when ingest sent what is shown;
    `events`: how many events it has shown since its span was made. `canary_ms`, `newest_canary_ms`: when the oldest and the newest of the last canaries of all source partitions were sent. None where
    the shard has not published it."""

    sequence: int | None
    closed_ms: int | None
    sent_ms: int | None
    events: int | None = None
    canary_ms: int | None = None
    newest_canary_ms: int | None = None

    @property
    def canaries(self) -> Canaries:
        """The last canaries of the source partitions that it shows."""
        return Canaries(self.canary_ms or 0, self.newest_canary_ms or 0)


def read_shards(redis: Redis, prefix: str, shards: int) -> list[ShardStatus]:
    """The status of each shard. Raises Unavailable."""
    fields = (
        SpanField.SEQUENCE, SpanField.CLOSED, SpanField.SENT, SpanField.EVENTS, SpanField.CANARY, SpanField.NEWEST_CANARY,
    )  # fmt: skip
    replies = redis.pipeline([("HMGET", ShardKeys.of(prefix, shard).span, *fields) for shard in range(shards)])
    return [ShardStatus(*(int(value) if value else None for value in reply)) for reply in replies]
