"""How far a nightly run is, published in Redis: written by the run, read by the router."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from infra.errors import AdclickError
from infra.redis.client import Redis

# For so long a step is shown; one may take longer without a word.
_SHOWN_S = 600


def lease_key(prefix: str) -> str:
    """The key of the lease that a nightly run holds."""
    return f"{prefix}reconcile"


def _key(prefix: str) -> str:
    return f"{prefix}reconcile:progress"


def publish_progress(redis: Redis, prefix: str, **fields: Any) -> None:
    """Publish what the run is doing; best effort."""
    with contextlib.suppress(AdclickError):
        redis.call("SET", _key(prefix), json.dumps(fields), "EX", _SHOWN_S)


def end_progress(redis: Redis, prefix: str) -> None:
    """The run is over; best effort."""
    with contextlib.suppress(AdclickError):
        redis.call("UNLINK", _key(prefix))


def read_progress(redis: Redis, prefix: str) -> dict[str, Any] | None:
    """What a run is doing, without fields where that is not known; None when none holds the lease. Raises Unavailable."""
    is_leased, progress = redis.pipeline([("EXISTS", lease_key(prefix)), ("GET", _key(prefix))])
    if not is_leased:
        return None
    fields: dict[str, Any] = json.loads(progress) if progress else {}
    return fields
