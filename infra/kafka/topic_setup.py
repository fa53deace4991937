"""Makes the topics of an installation, and tells what of them is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.errors import Unavailable, UserError
from infra.kafka.admin import Admin
from infra.kafka.topics import ARCHIVE, CANARIES, DEAD_LETTERS, EVENTS, INGEST_GROUP, Topic, wanted
from infra.settings import Settings

_REPLICAS, _KNOWN_S = 3, 15.0
_MEANING = {
    "min.insync.replicas": "a broker that ends may take with it what was acknowledged (adclick migrate sets it)",
    "message.timestamp.type": "log time is then not when events were written (adclick migrate sets it)",
    "cleanup.policy": "messages are then deleted before they are read (adclick migrate sets it)",
    "max.message.bytes": "larger messages are refused (adclick migrate sets it)",
}


def ensure(settings: Settings) -> list[str]:
    """Make the topics that are missing, and set what each keeps; returns the names of new ones.

    Raises UserError where a partition count differs from the setting.
    """
    admin = Admin(settings.kafka_connection)
    counts, topics = admin.partitions(), wanted(settings)
    present, missing = [t for t in topics if t.name in counts], [t for t in topics if t.name not in counts]
    _set_partitions(admin, settings, present, counts)
    if missing:
        replicas = _new_replicas(admin, settings)
        durability = _durability(settings, replicas)
        # Brokers may make a topic by themselves meanwhile, as they like it, for a producer that asks for it.
        others = admin.create({t.name: (t.partitions, t.config | durability) for t in missing}, replicas)
        late = [t for t in missing if t.name in others]
        _set_partitions(admin, settings, late, admin.partitions() if late else {})
        present += late
    _configure(admin, settings, present)
    return [t.name for t in topics if t not in present]


def _set_partitions(admin: Admin, settings: Settings, topics: Sequence[Topic], counts: Mapping[str, int]) -> None:
    """Add partitions where there are fewer than the setting says. Raises UserError where that cannot be, or there are more in use."""
    grown = dict[str, int]()
    for topic in topics:
        count = counts[topic.name]
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


def _configure(admin: Admin, settings: Settings, topics: Sequence[Topic]) -> None:
    """Set what differs: who has topics made by others need not be allowed to change them."""
    if changes := _config_changes(admin, settings, topics):
        admin.configure(changes)


def _config_changes(admin: Admin, settings: Settings, topics: Sequence[Topic]) -> dict[str, dict[str, str]]:
    """Topic → setting → value, of what differs."""
    replicas, in_force = _replicas(admin, [t.name for t in topics]), admin.configs(t.name for t in topics)
    changes = dict[str, dict[str, str]]()
    for t in topics:
        config = t.config | _durability(settings, replicas[t.name])
        if differing := {key: value for key, value in config.items() if in_force[t.name].get(key) != value}:
            changes[t.name] = differing
    return changes


def changes_due(admin: Admin, settings: Settings) -> list[tuple[str, str]]:
    """What `ensure` would change of topics that are there: the topic, and the operation on it that Kafka must allow. Raises Unavailable."""
    counts = admin.partitions()
    there = [t for t in wanted(settings) if t.name in counts]
    growing = [t.name for t in there if counts[t.name] < t.partitions and t.name in _growing(settings)]
    configured = _config_changes(admin, settings, there)
    return [(name, "ALTER") for name in growing] + [(name, "ALTER_CONFIGS") for name in configured]


def _new_replicas(admin: Admin, settings: Settings) -> int:
    """How many replicas new topics get. Raises UserError where there are fewer brokers."""
    brokers, replicas = admin.brokers(), settings.replication_factor
    if replicas > brokers:
        raise UserError(
            f"replication_factor is {replicas}, and there are {brokers} brokers",
            hint="add brokers, or lower the setting",
        )
    return replicas or _replicas_by_default(brokers)


def _replicas_by_default(brokers: int) -> int:
    return _REPLICAS if brokers >= _REPLICAS else 1


def _replicas(admin: Admin, names: Sequence[str]) -> dict[str, int]:
    """How many replicas each topic has. Raises Unavailable."""
    deadline = time.monotonic() + _KNOWN_S
    while True:
        states = admin.describe(names)
        # Brokers hear of a new topic one after the other.
        missing = [name for name in names if name not in states]
        if not missing:
            return {name: state.replicas for name, state in states.items()}
        if time.monotonic() > deadline:
            raise Unavailable(f"Kafka: a broker does not know topic {missing[0]} yet", backend="kafka")
        time.sleep(0.1)


def _durability(settings: Settings, replicas: int) -> dict[str, str]:
    """What makes a write of ours outlast a broker: with one replica in sync alone, its broker's end would lose what was acknowledged."""
    return {"min.insync.replicas": str(min(settings.min_insync_replicas, replicas) or max(1, replicas - 1))}


def _growing(settings: Settings) -> set[str]:
    """The topics with a partition for each of ad-events."""
    return {settings.topic(name) for name in (EVENTS, DEAD_LETTERS, CANARIES, ARCHIVE)}


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
    deviations_found = [
        Deviation(t.name, "does not exist: adclick migrate makes it") for t in topics if t.name not in counts
    ]
    there = [t for t in topics if t.name in counts]
    for t in there:
        if counts[t.name] > t.partitions:
            unread = (
                f"{t.partitions} to {counts[t.name] - 1}" if counts[t.name] - 1 > t.partitions else f"{t.partitions}"
            )
            deviations_found.append(Deviation(t.name, f"has partitions that are not read: {unread}"))
        if counts[t.name] < t.partitions:
            what = "adclick migrate adds them" if t.name in _growing(settings) else "these cannot grow"
            deviations_found.append(
                Deviation(t.name, f"has {counts[t.name]} partitions, the setting says {t.partitions}: {what}")
            )
    in_force, states = admin.configs(t.name for t in there), admin.describe(t.name for t in there)
    wanted_replicas = settings.replication_factor or _replicas_by_default(admin.brokers())
    for t in there:
        replicas = states[t.name].replicas if t.name in states else 1
        if replicas < wanted_replicas:
            what = f"it should have {wanted_replicas}: kafka-reassign-partitions adds some"
            deviations_found.append(Deviation(t.name, f"has {replicas} replica{'s' * (replicas != 1)}, {what}"))
        for key, value in (t.config | _durability(settings, replicas)).items():
            actual = in_force[t.name].get(key)
            if actual != value:
                what = _MEANING.get(key, "adclick migrate sets it")
                deviations_found.append(Deviation(t.name, f"{key} is {actual}, it should be {value}: {what}"))
    return deviations_found
