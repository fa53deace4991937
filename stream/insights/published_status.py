"""Which detectors have stopped, published in Redis for `adclick status` and the notify worker. Written and read here alone."""

from __future__ import annotations

import contextlib

from infra.errors import AdclickError
from infra.redis.client import Redis

# A detector that has stopped is tried again each minute, and says so again where that fails.
_STOPPED_S = 180


def _key(prefix: str, shard: int) -> str:
    return f"{prefix}detector:{{s{shard}}}"


def publish_stop(redis: Redis, prefix: str, shard: int, why: str) -> None:
    """Publish why the detector of a shard has stopped, or with an empty text that it works; best effort."""
    key = _key(prefix, shard)
    with contextlib.suppress(AdclickError):
        if why:
            redis.call("SET", key, why, "EX", _STOPPED_S)
        else:
            redis.call("DEL", key)


def read_stopped(redis: Redis, prefix: str, shards: int) -> dict[int, str]:
    """Shard → why its detector has stopped, of those that have. Raises Unavailable."""
    replies = redis.pipeline([("GET", _key(prefix, shard)) for shard in range(shards)])
    return {shard: why.decode() for shard, why in enumerate(replies) if why}
