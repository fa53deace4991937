"""What Redis lacks that workers rebuild, and what makes them do it now: dedup ids from ad-events, the hot tier from the stream's state.

A worker notices by itself that its Redis has lost something: with the next message, or the next flush. Until one comes nothing is
rebuilt, and nobody sees whether it will be. The command has the group of ingest workers take its partitions anew, at which each loads
its ids or rebuilds them; their first transaction reaches every shard of the stream, and each writes what Redis lacks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clock import now_ms
from infra.errors import Unavailable
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import GroupConsumer
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.committed_positions import read_positions
from ingest.dedup_rebuild import DedupRebuilder
from stream.hot.published_status import read_shards

_JOIN_S = 60.0


@dataclass(frozen=True)
class PartitionIds:
    """The ids of a partition that has been read up to `offset`. `is_whole`: Redis has all of them. `start`: where a rebuild begins to
    read; `doubtful`: generations whose ids are lost for good, since ad-events begins within or behind them."""

    partition: int
    offset: int
    is_whole: bool
    start: int
    doubtful: tuple[int, ...]

    @property
    def messages(self) -> int:
        """How many messages a rebuild reads."""
        return 0 if self.is_whole else self.offset - self.start

    def document(self) -> dict[str, Any]:
        """As --json has it."""
        outcome = "doubt" if self.doubtful else "whole" if self.is_whole else "rebuild"
        return {"partition": self.partition, "outcome": outcome, "offset": self.offset, "messages": self.messages}


class IdsWatch:
    """Looks at what Redis has of an installation. Every method may raise Unavailable."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings, self._redis = settings, redis
        self._rebuilder = DedupRebuilder(settings, redis, "rebuild")

    def read_partitions(self) -> list[PartitionIds]:
        """The partitions that were ever read. Loads their ids, one partition at a time."""
        settings, admin = self._settings, Admin(self._settings.kafka_connection)
        partitions = list[PartitionIds]()
        for p, position in enumerate(read_positions(settings, admin, settings.event_partitions)):
            if position is None:
                continue
            mirror = self._rebuilder.registry.load(p)
            if mirror is not None and mirror.recorded_up_to >= position.offset:
                partitions.append(PartitionIds(p, position.offset, True, position.offset, mirror.head.doubtful))
                continue
            position = self._rebuilder.with_turns(p, position.at_most(now_ms()))
            start, doubtful = self._rebuilder.rebuild_range(p, position)
            partitions.append(PartitionIds(p, position.offset, False, start, tuple(sorted(doubtful))))
        return partitions

    def count_left(self, lost: Sequence[PartitionIds]) -> int:
        """How many messages are left to read for partitions whose ids were lost."""
        left = 0
        for ids in lost:
            recorded = self._rebuilder.registry.recorded_up_to(ids.partition)
            # Without a head it is still to be written, also where nothing is to be read.
            left += ids.messages + 1 if recorded is None else max(0, ids.offset - max(ids.start, recorded))
        return left

    def silent_shards(self) -> list[int]:
        """The shards of the stream of which Redis has nothing."""
        shards = read_shards(self._redis, self._settings.key_prefix, self._settings.block_partitions)
        return [number for number, shard in enumerate(shards) if shard.sequence is None]


def regroup(settings: Settings) -> None:
    """Have the ingest workers take their partitions anew: a member joins their group, reads nothing, and leaves. Raises Unavailable."""
    member = GroupConsumer(
        settings.kafka_connection, settings.topic(topics.INGEST_GROUP), settings.topic(topics.EVENTS),
        lambda partitions: dict.fromkeys(partitions, 0), lambda _: None, settings.session_timeout_ms, reads=False,
    )  # fmt: skip
    deadline = time.monotonic() + _JOIN_S
    try:
        while not member.is_assigned:
            member.consume(1, 0.2)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka: the group of ingest workers took no new member within {_JOIN_S:.0f} s",
                    hint="are its workers rebuilding already? adclick status", backend="kafka",
                )  # fmt: skip
    finally:
        member.close()
