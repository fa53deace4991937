"""A member of a consumer group that reads by column: membership and offsets by librdkafka, messages by `infra.kafka.fetch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.consumers import GroupConsumer
from infra.kafka.fetch import Fetcher
from infra.kafka.record_batches import CorruptBatch, Records
from infra.kafka.sasl import Connector


@dataclass(frozen=True)
class Starts:
    """Where to start reading: partition → offset, in the topic of this id, after batches of these leader epochs."""

    positions: dict[int, int]
    topic_id: str
    leader_epochs: dict[int, int]


class ColumnConsumer:
    """One member of a consumer group over one topic, which positions itself.

    `on_assign(partitions)` returns where to start each; `on_revoke(partitions)` is called when they are gone. Both run inside
    `take`.
    """

    def __init__(
        self,
        kafka: Connection,
        group: str,
        topic: str,
        on_assign: Callable[[list[int]], Starts],
        on_revoke: Callable[[list[int]], None],
        session_timeout_ms: int,
    ) -> None:
        self._on_assign = on_assign
        admin = Admin(kafka, timeout_s=3.0)
        self._fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic), Connector(kafka).open, kafka.rack)
        self.member = GroupConsumer(kafka, group, topic, self._assigned, on_revoke, session_timeout_ms, reads=False)

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        starts = self._on_assign(partitions)
        self._fetcher.assign(starts.positions, topic_id=starts.topic_id, leader_epochs=starts.leader_epochs)
        return starts.positions

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order.

        Raises TopicChanged, LogTruncated, OffsetOutOfRange, CorruptLog.
        """
        self.member.consume(1, 0.0)
        return self._fetcher.take(count, timeout_s)

    def unreadable(self) -> dict[int, CorruptBatch]:
        """Partition → the record batch that it stops before, since it cannot be read, where all messages before it were taken."""
        return self._fetcher.unreadable()

    @property
    def leaves_messages(self) -> bool:
        """Whether more messages were waiting than the last `take` has taken."""
        return self._fetcher.leaves_messages

    def end(self, partition: int) -> int:
        """The end of the log (high watermark) as last seen; negative before that."""
        return self._fetcher.end(partition)

    def waits_only_for(self, partition: int, is_such: Callable[[bytes | None], bool]) -> bool:
        """Whether all that a partition has up to its end waits to be taken, and all of it has such values. False for more than a few."""
        return self._fetcher.waits_only_for(partition, is_such)

    def stable_end(self, partition: int) -> int:
        """Where reading has to stop for an open transaction, or the end of the log; negative before it is known."""
        return self._fetcher.stable_end(partition)

    def seek(self, partition: int, offset: int, leader_epoch: int = -1, *, hold: bool = False) -> None:
        """Go back (or forward) to an offset. `hold`: take nothing of the partition until the next call."""
        self._fetcher.seek(partition, offset, leader_epoch, hold=hold)

    def close(self) -> None:
        """Stop reading and leave the group."""
        self._fetcher.close()
        self.member.close()
