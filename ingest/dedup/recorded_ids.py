"""Looks up one id in what Redis has recorded, of all partitions and generations. It writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.columnar.columns import Values
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.dedup.digest import digest_ids
from ingest.dedup.registry import Registry, RegistryLost
from ingest.dedup.segments import UNKNOWN


@dataclass(frozen=True)
class RecordedId:
    """The first occurrence of an id in a partition: its offset, and between which log times it arrived (epoch ms)."""

    partition: int
    offset: int
    from_ms: int
    to_ms: int


@dataclass
class RecordedIds:
    """What a look-up has found. `since_ms`: the log time from which on ids are recorded; None where there are none."""

    found: list[RecordedId] = field(default_factory=list)
    since_ms: int | None = None
    lacking: list[int] = field(default_factory=list)
    """Partitions of which nothing is recorded, or not all that was."""


def find_recorded(settings: Settings, event_id: str) -> RecordedIds:
    """Where an id was first seen, as far as ids are still recorded. Raises Unavailable."""
    redis = Redis(settings.redis_access)
    registry = Registry(
        redis, settings.key_prefix, ttl_s=settings.events_retention_s, segment_ids=settings.dedup_segment_ids
    )
    digests, horizon_ms = digest_ids(Values.of([event_id.encode()])), settings.dedup_horizon_s * 1000
    recorded = RecordedIds()
    try:
        for partition in range(settings.event_partitions):
            mirror = registry.load(partition)
            if mirror is None:
                recorded.lacking.append(partition)
                continue
            for generation in mirror.generations:
                from_ms = generation * horizon_ms
                recorded.since_ms = min(recorded.since_ms or from_ms, from_ms)
                try:
                    offsets, _ = registry.lookup(mirror, generation, digests)
                except RegistryLost:
                    # Also where its worker has dropped this generation meanwhile.
                    continue
                if offsets[0] != UNKNOWN:
                    found = RecordedId(partition, int(offsets[0]), from_ms, from_ms + horizon_ms)
                    recorded.found.append(found)
    finally:
        redis.close()
    return recorded
