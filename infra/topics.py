"""The topics of an installation: names, partition counts and how long each keeps what.

`ensure` is idempotent. The partitions of ad-blocks and of what follows it are fixed when these topics are made. Those of
ad-events can grow: the setting is raised, and `ensure` adds partitions here, too. Partitions that others have added and no
worker has read are left alone; `status` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.clock import DAY_MS, HOUR_MS
from infra.errors import UserError
from infra.kafka import Admin
from infra.settings import Settings

EVENTS = "ad-events"
DEAD_LETTERS = "ad-events-dead"
SENT_LETTERS = "ad-events-dead-sent"
BLOCKS = "ad-blocks"
ARCHIVE = "ad-archive"
MINUTES = "ad-minutes"
HOURS = "ad-hours"
MINUTE_STATE = "ad-minute-state"
HOUR_STATE = "ad-hour-state"
DAY_STATE = "ad-day-state"

INGEST_GROUP = "adclick-ingest"
ARCHIVE_GROUP = "adclick-archive"
STREAM_GROUP = "adclick-stream"

MIB = 1 << 20
_MEANING = {
    "message.timestamp.type": "log time is then what producers say (adclick migrate sets it)",
    "cleanup.policy": "messages are then deleted before they are read (adclick migrate sets it)",
    "max.message.bytes": "larger messages are refused (adclick migrate sets it)",
}


@dataclass(frozen=True)
class Topic:
    """One topic as it should be."""

    name: str
    partitions: int
    config: dict[str, str]


def wanted(settings: Settings) -> list[Topic]:
    """Every topic of the installation."""
    deleted = {"cleanup.policy": "delete"}
    events = {**_kept(settings.events_retention_s), **deleted}
    internal = {**_kept(settings.blocks_retention_s), **deleted, "max.message.bytes": str(4 * MIB)}
    # What a recovery reads is what is alive, and what no segment was closed on since.
    state = {
        "cleanup.policy": "compact",
        "max.message.bytes": str(4 * MIB),
        "segment.ms": str(HOUR_MS),
        "segment.bytes": str(32 * MIB),
        "delete.retention.ms": str(HOUR_MS),
    }
    logged = {"message.timestamp.type": "LogAppendTime"}
    p, b = settings.event_partitions, settings.block_partitions
    return [
        Topic(settings.topic(EVENTS), p, {**events, **logged, "max.message.bytes": str(9 * MIB)}),
        Topic(settings.topic(DEAD_LETTERS), p, {"retention.ms": "-1", **deleted, "max.message.bytes": str(16 * MIB)}),
        Topic(settings.topic(SENT_LETTERS), 1, {"cleanup.policy": "compact"}),
        Topic(settings.topic(ARCHIVE), p, internal),
        Topic(settings.topic(BLOCKS), b, internal),
        Topic(settings.topic(MINUTES), b, internal),
        Topic(settings.topic(HOURS), b, internal),
        Topic(settings.topic(MINUTE_STATE), b, state),
        Topic(settings.topic(HOUR_STATE), b, state),
        Topic(settings.topic(DAY_STATE), b, state),
    ]


def _kept(retention_s: int) -> dict[str, str]:
    """Only closed segments are deleted: eight of them span what is kept."""
    return {"retention.ms": str(retention_s * 1000), "segment.ms": str(min(DAY_MS, retention_s * 1000 // 8))}


def ensure(settings: Settings) -> list[str]:
    """Make what is missing and set what each keeps; returns the names made. Raises UserError on a partition count that does not do."""
    admin = Admin(settings.kafka)
    counts = admin.partitions()
    topics = wanted(settings)
    grown = dict[str, int]()
    for topic in topics:
        count = counts.get(topic.name, topic.partitions)
        if count < topic.partitions and topic.name not in _growing(settings):
            raise UserError(
                f"topic {topic.name} has {count} partitions, the setting says {topic.partitions}",
                hint="these cannot grow: set ADCLICK_BLOCK_PARTITIONS back, or start in a new folder",
            )
        if count < topic.partitions:
            grown[topic.name] = topic.partitions
        if count > topic.partitions:
            _refuse_shrinking(admin, settings, topic, count)
    # ad-events last: what is written to a new partition of it needs its place in the others.
    for name in sorted(grown, key=lambda name: name == settings.topic(EVENTS)):
        admin.grow({name: grown[name]})
    missing = [t for t in topics if t.name not in counts]
    admin.create({t.name: (t.partitions, t.config) for t in missing})
    admin.configure({t.name: t.config for t in topics})
    return [t.name for t in missing]


def _growing(settings: Settings) -> set[str]:
    """The topics with a partition for each of ad-events."""
    return {settings.topic(name) for name in (EVENTS, DEAD_LETTERS, ARCHIVE)}


def _refuse_shrinking(admin: Admin, settings: Settings, topic: Topic, count: int) -> None:
    """Raise UserError when partitions beyond the setting have been in use."""
    if topic.name == settings.topic(EVENTS):
        positions = admin.committed(settings.topic(INGEST_GROUP), topic.name, count)
        used = [c.partition for c in positions[topic.partitions :] if c.offset >= 0]
    else:
        ends = admin.high_watermarks(topic.name, count)
        used = [p for p in range(topic.partitions, count) if ends[p] > 0]
    if used:
        name = "EVENT" if topic.name in _growing(settings) else "BLOCK"
        raise UserError(
            f"topic {topic.name} has {count} partitions, and partition {used[-1]} is in use: the setting says {topic.partitions}",
            hint=f"partitions cannot be taken away: set ADCLICK_{name}_PARTITIONS to {count}",
        )


@dataclass(frozen=True)
class Deviation:
    """A topic that is not as it should be, and what that means."""

    topic: str
    explanation: str


def deviations(admin: Admin, settings: Settings) -> list[Deviation]:
    """What of the topics differs from what `ensure` makes of them. Raises Unavailable."""
    counts, topics = admin.partitions(), wanted(settings)
    found = [Deviation(t.name, "does not exist: adclick migrate makes it") for t in topics if t.name not in counts]
    there = [t for t in topics if t.name in counts]
    for t in there:
        if counts[t.name] > t.partitions:
            unread = (
                f"{t.partitions} to {counts[t.name] - 1}" if counts[t.name] - 1 > t.partitions else f"{t.partitions}"
            )
            found.append(Deviation(t.name, f"has partitions that are not read: {unread}"))
        if counts[t.name] < t.partitions:
            what = "adclick migrate adds them" if t.name in _growing(settings) else "these cannot grow"
            found.append(Deviation(t.name, f"has {counts[t.name]} partitions, the setting says {t.partitions}: {what}"))
    in_force = admin.configs(t.name for t in there)
    for t in there:
        for key, value in t.config.items():
            actual = in_force[t.name].get(key)
            if actual != value:
                what = _MEANING.get(key, "adclick migrate sets it")
                found.append(Deviation(t.name, f"{key} is {actual}, it should be {value}: {what}"))
    return found
