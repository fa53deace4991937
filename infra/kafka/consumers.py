"""Consumers: a member of a group that positions itself, and reading a partition to its end. All reads are read-committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from infra.errors import ClientBroken, CorruptLog, OffsetOutOfRange, TimedOut
from infra.kafka.client import (
    BEGINNING,
    METADATA_REFRESH_MS,
    REQUEST_TIMEOUT_S,
    ConnectionErrors,
    Consumer,
    KafkaError,
    Message,
    TopicPartition,
    make_consumer,
    make_reader,
    retry_passing,
    translated_errors,
)
from infra.kafka.connection import Connection
from infra.kafka.errors import declined, lost
from infra.kafka.records import Committed
from infra.retries import bounded

_GIVE_UP_S = 20.0
# A record batch that librdkafka fetches for ever: damaged, or of a codec that it does not know.
_UNREADABLE = (KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED)
# A member is out of its group for some seconds at a rebalance.
_CUT_OFF_S = 30.0


def refuse_lost(error: KafkaError | None, message: Message) -> None:
    """Raise OffsetOutOfRange, CorruptLog or SessionLost where the client will not go on by itself."""
    if error is None:
        return
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        where = f"{message.topic()}/{message.partition()}: offset {message.offset()}"
        raise OffsetOutOfRange(f"{where} is no longer there: {error.str()}", hint="messages were deleted unread")
    if error.code() in _UNREADABLE:
        where = f"{message.topic()}/{message.partition()}: the record batch at offset {message.offset()}"
        raise CorruptLog(f"{where} cannot be read: {error.str()}", hint="restore the segment from an intact replica")
    if error.fatal():
        raise lost(error)


def committed_positions(
    consumer: Consumer, topic: str, partitions: Iterable[int], timeout_s: float = REQUEST_TIMEOUT_S
) -> list[Committed]:
    requested = [TopicPartition(topic, p) for p in partitions]
    answers = retry_passing(lambda: consumer.committed(requested, timeout=timeout_s), timeout_s)
    for tp in answers:
        if tp.error is not None:
            raise declined(tp.error)
    return [Committed(tp.partition, max(tp.offset, -1), tp.metadata or "") for tp in answers]


class GroupConsumer:
    """One member of a consumer group over one topic, which positions itself.

    `on_assign(partitions)` returns the offset to start each at; `on_revoke(partitions)` is told what is gone.
    Both run inside `consume`.
    """

    def __init__(
        self,
        kafka: Connection,
        group: str,
        topic: str,
        on_assign: Callable[[list[int]], dict[int, int]],
        on_revoke: Callable[[list[int]], None],
        session_timeout_ms: int = 6_000,
        *,
        reads: bool = True,
        fetch_ahead_mb: int = 48,
        on_end: Callable[[int, int], None] | None = None,
    ) -> None:
        """A member that does not read is one in name: others read for it. `fetch_ahead_mb`: how much may wait to be consumed.
        `on_end(partition, offset)` is called within `consume`, which returns all messages before this offset by then, when none follows."""
        self.topic, self._group = topic, group
        self._reads, self._on_end = reads, on_end
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._failure: BaseException | None = None
        self.is_assigned = self._is_closing = False
        """Whether the group has assigned this member its partitions, which may be none."""
        self._unassigned_at, self._connections = time.monotonic(), ConnectionErrors()
        own = {
            "group.id": group, "enable.auto.offset.store": False, "auto.offset.reset": "error",
            "session.timeout.ms": session_timeout_ms, "heartbeat.interval.ms": session_timeout_ms // 4,
            "queued.max.messages.kbytes": fetch_ahead_mb * 1024, "fetch.wait.max.ms": 100, "fetch.min.bytes": 256 << 10,
            "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS, "enable.partition.eof": on_end is not None,
            "error_cb": self._connections.on_error,
        }  # fmt: skip
        self._consumer = make_reader(kafka, own)
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._is_closing:
            # Without a call of ours the client would begin to read them.
            consumer.unassign()
            return
        # An exception raised in a callback is lost inside the client: keep it for `consume`.
        try:
            starts = self._on_assign([tp.partition for tp in partitions])
            positions = [TopicPartition(self.topic, p, offset) for p, offset in starts.items()]
            consumer.assign(positions)
            if not self._reads:
                consumer.pause(positions)
            self.is_assigned = True
        except BaseException as error:
            self._failure = error

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.is_assigned, self._unassigned_at = False, time.monotonic()
        if self._is_closing:
            return
        self._on_revoke([tp.partition for tp in partitions])

    def consume(self, count: int, timeout_s: float) -> list[Any]:
        """Up to `count` messages. Raises OffsetOutOfRange; transient errors are left to the client's retries. Raises ClientBroken where
        the client has been out of its group for long, and its connections fail."""
        messages = self._consumer.consume(count, timeout_s)
        self._refuse_cut_off()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if set(map(type, map(Message.error, messages))) <= {type(None)}:
            return list(messages)
        for message in messages:
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF and self._on_end is not None:
                self._on_end(message.partition(), message.offset())
            refuse_lost(error, message)
        return [message for message in messages if message.error() is None]

    def _refuse_cut_off(self) -> None:
        """The client keeps the certificate that it was made with, also once that has expired: only a new one takes what is in the files."""
        now, failed_at = time.monotonic(), self._connections.failed_at
        if (
            self.is_assigned
            or failed_at is None
            or now - self._unassigned_at < _CUT_OFF_S
            or now - failed_at > _CUT_OFF_S
        ):
            return
        raise ClientBroken(f"Kafka: connections of a member of {self._group} fail, and it is out of its group")

    def committed(self, partitions: Iterable[int], topic: str = "") -> list[Committed]:
        """The group's committed positions, by default in the topic that it consumes. Raises Unavailable."""
        return committed_positions(self._consumer, topic or self.topic, partitions)

    def commit(self, positions: Sequence[Committed]) -> None:
        """Commit outside a transaction, and wait. Raises Unavailable or SessionLost."""
        with translated_errors():
            offsets = [TopicPartition(self.topic, c.partition, c.offset, c.metadata) for c in positions]
            bounded(lambda: self._consumer.commit(offsets=offsets, asynchronous=False), _GIVE_UP_S, "commit offsets")

    @property
    def group_metadata(self) -> Any:
        """Goes into a transaction, so that a member that lost its place cannot commit."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Leave the group; a client that hangs is left behind. `on_assign` and `on_revoke` are not called any more: an assignment that was not
        consumed yet would come now, and in another thread, when its owner may have the partitions of its next member already."""
        self._is_closing = True
        with contextlib.suppress(ClientBroken):
            bounded(self._consumer.close, _GIVE_UP_S, "leave its group")


def read_to_end(kafka: Connection, topic: str, partition: int, start: int = BEGINNING) -> Iterable[Any]:
    """Every committed message of a partition from `start` to its end as it is when reading begins.

    Raises Unavailable when the broker stays silent for 30 s.
    """
    reset = "earliest" if start == BEGINNING else "error"
    own = {"group.id": "adclick-reader", "auto.offset.reset": reset, "enable.partition.eof": True}
    consumer = make_reader(kafka, own)
    with contextlib.closing(consumer), translated_errors():
        tp = TopicPartition(topic, partition, start)
        # With read_committed, the end that a consumer asks for is the last stable offset: an open transaction
        # of a fenced predecessor was settled before this is called.
        _, high = consumer.get_watermark_offsets(tp, timeout=REQUEST_TIMEOUT_S)
        consumer.assign([tp])
        heard = time.monotonic()
        while True:
            # The call waits until it is full or over, whatever has come: keep it short.
            for message in consumer.consume(10_000, 0.05):
                heard = time.monotonic()
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    if message.offset() >= high:
                        return
                else:
                    refuse_lost(error, message)
            if time.monotonic() - heard > 30:
                raise TimedOut(f"Kafka: no answer while reading {topic}/{partition}", backend="kafka")


def offset_at(kafka: Connection, topic: str, partition: int, time_ms: int) -> int:
    """The first offset whose log time is at or after `time_ms`; the end when there is none."""
    consumer = make_consumer(kafka, {"group.id": "adclick-reader"})
    with contextlib.closing(consumer), translated_errors():
        answers = consumer.offsets_for_times([TopicPartition(topic, partition, time_ms)], timeout=REQUEST_TIMEOUT_S)
        if answers[0].offset >= 0:
            return int(answers[0].offset)
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_S)
        return int(high)


def read_stretches(
    kafka: Connection,
    topic: str,
    stretches: Mapping[int, tuple[int, int]],
    on_message: Callable[[Any], None],
    seconds: float,
) -> dict[int, int]:
    """Hand the committed messages of offsets [start, stop) of some partitions to `on_message`, for so many seconds at most; returns up
    to which offset each partition was read. Bounded in memory: a few megabytes are fetched ahead. Raises Unavailable."""
    reached = {p: start for p, (start, _) in stretches.items()}
    left = {p for p, (start, stop) in stretches.items() if start < stop}
    own = {
        "group.id": "adclick-reader", "auto.offset.reset": "earliest", "enable.partition.eof": True,
        "queued.max.messages.kbytes": 16_384,
    }  # fmt: skip
    deadline = time.monotonic() + seconds
    consumer = make_reader(kafka, own)
    with contextlib.closing(consumer), translated_errors():
        consumer.assign([TopicPartition(topic, p, stretches[p][0]) for p in sorted(left)])
        while left and time.monotonic() < deadline:
            for message in consumer.consume(500, 0.05):
                p, error = message.partition(), message.error()
                if p not in left:
                    continue
                stop = stretches[p][1]
                is_end = error is not None and error.code() == KafkaError._PARTITION_EOF
                if is_end or (error is None and message.offset() >= stop):
                    reached[p] = stop
                    left.discard(p)
                    consumer.pause([TopicPartition(topic, p)])
                elif error is None:
                    on_message(message)
                    reached[p] = message.offset() + 1
                else:
                    refuse_lost(error, message)
            # Nothing follows what was read last, but markers of transactions.
            for p in [p for p in left if reached[p] >= stretches[p][1]]:
                left.discard(p)
                consumer.pause([TopicPartition(topic, p)])
    return reached
