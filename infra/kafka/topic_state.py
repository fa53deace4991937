"""A topic as the brokers describe it: its id, its leaders and its partitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infra.errors import UserError

_URL_SAFE = str.maketrans("+/", "-_")


@dataclass(frozen=True)
class TopicState:
    """A topic as the brokers describe it."""

    topic_id: str
    """Another topic of the same name has another one (KIP-516)."""
    leaders: dict[int, tuple[str, int]]
    """Partition → address of its leader, where it has one."""
    partitions: int
    replicas: int = 1
    """Of the partition that has fewest."""
    brokers: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Id → address of those that have replicas."""

    @classmethod
    def of(cls, description: Any) -> TopicState:
        """From the client's description. Raises UserError where the brokers know no topic ids."""
        # As Kafka's own tools print it.
        topic_id = str(description.topic_id).translate(_URL_SAFE)
        if not topic_id.strip("A"):
            raise UserError("the Kafka brokers know no topic ids", hint="Kafka 3.1 or newer is needed")
        leaders = {p.id: (p.leader.host, int(p.leader.port)) for p in description.partitions if p.leader}
        replicas = min((len(p.replicas) for p in description.partitions), default=1)
        brokers = {r.id: (r.host, int(r.port)) for p in description.partitions for r in p.replicas if r.host}
        return cls(topic_id, leaders, len(description.partitions), replicas, brokers)
