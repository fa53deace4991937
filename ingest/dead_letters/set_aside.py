"""Setting aside what a partition of ad-events stops before: an operator names it, the worker that holds the partition does it."""

from __future__ import annotations

import contextlib
import time

from infra.clock import now_ms
from infra.errors import AdclickError, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import poison
from ingest.committed_positions import read_positions
from ingest.dead_letters.letters import read_letters
from ingest.events import Reason
from ingest.published_status import read_reports

# A worker looks each second; one that is started again meanwhile takes longer.
_WAIT_S, _LOOK_EVERY_S = 60.0, 0.3
# A worker that does not come to it within this time is not to do it unawares later.
_APPROVED_S = 600
# Clocks of Kafka and of this machine differ by some seconds at most.
_CLOCK_MS = 60_000


def set_aside(settings: Settings, name: str, wait_s: float = _WAIT_S) -> str:
    """Have what is named by `adclick status` set aside; returns the name of the dead letter that it has become. Raises UserError."""
    topic = settings.topic(topics.EVENTS)
    with contextlib.closing(Redis(settings.redis_access)) as redis:
        stopped_before = read_reports(redis, settings.key_prefix).poison_names()
        if name not in stopped_before:
            names = ", ".join(sorted(stopped_before))
            raise UserError(
                f"no partition of {topic} stops before {name}",
                hint=f"there is {names}" if stopped_before else "adclick status names what there is",
            )
        began_ms, deadline = now_ms(), time.monotonic() + wait_s
        redis.call("SET", poison.approval_key(settings.key_prefix, name), "1", "EX", _APPROVED_S)
        while time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
            with contextlib.suppress(AdclickError):
                if name not in read_reports(redis, settings.key_prefix).poison_names() and (
                    letter := _letter_of(settings, name, began_ms - _CLOCK_MS)
                ):
                    return letter
    raise UserError(
        f"{name} is not set aside after {wait_s:.0f} s",
        hint="is its ingest worker running? It is still set aside if one comes to it within ten minutes",
    )


def _letter_of(settings: Settings, name: str, since_ms: int) -> str:
    """The newest dead letter of what was set aside under this name; empty where there is none yet."""
    place = poison.place_of(name)
    assert place is not None, "a worker reports it"
    partition, first = place
    position, newest = read_positions(settings, Admin(settings.kafka_connection))[partition], ""
    offset = first + (position.base if position is not None else 0)
    for letter in read_letters(settings, since_ms):
        source = letter.source
        if (
            letter.headers.get("reason") == Reason.UNREADABLE
            and source
            and (source.partition, source.offset) == (partition, offset)
        ):
            newest = letter.name
    return newest
