"""Whether the detector has stopped, published in Redis for `adclick status` and the notify worker. Written and read here alone."""

from __future__ import annotations

import contextlib

from infra.errors import AdclickError
from infra.redis.client import Redis

# A detector that has stopped is tried again each minute, and says so again where that fails.
_STOPPED_S = 180


def _key(prefix: str) -> str:
    return f"{prefix}detector"


def publish_stop(redis: Redis, prefix: str, why: str) -> None:
    """Publish why the detector has stopped, or with an empty text that it works; best effort."""
    key = _key(prefix)
    with contextlib.suppress(AdclickError):
        if why:
            redis.call("SET", key, why, "EX", _STOPPED_S)
        else:
            redis.call("DEL", key)


def read_stop(redis: Redis, prefix: str) -> str:
    """Why the detector has stopped; empty where it works. Raises Unavailable."""
    why: bytes | None = redis.call("GET", _key(prefix))
    return why.decode() if why else ""
