"""The positions that ingest workers have committed, for programs that are none of them."""

from __future__ import annotations

from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.settings import Settings
from ingest import continuation
from ingest.position import Position


def read_positions(settings: Settings, admin: Admin, count: int | None = None) -> list[Position | None]:
    """One for each partition of `ad-events`, None where nothing was read yet; empty without the topic. `count`: of how many partitions; as
    many as there are, up to the setting, by default. Raises Unavailable."""
    topic, group = settings.topic(topics.EVENTS), settings.topic(topics.INGEST_GROUP)
    if count is None:
        count = min(settings.event_partitions, admin.partitions().get(topic, 0))
    if not count:
        return []
    mains = admin.committed(group, topic, count)
    copies = admin.committed(group, settings.topic(topics.ARCHIVE), count)
    return [continuation.choose_position(main, copy) for main, copy in zip(mains, copies, strict=True)]
