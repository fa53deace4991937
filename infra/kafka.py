"""Kafka, through confluent-kafka: the only module that imports it.

Everything that reads does so read-committed. Librdkafka's errors become decisions: `Fenced` (a successor owns
this), `Unavailable` (back off, try again), `OffsetOutOfRange` (the log no longer holds what we must read).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from infra.errors import AdclickError, CorruptLog, Fenced, Unavailable

BEGINNING: int = OFFSET_BEGINNING
REQUEST_TIMEOUT_S = 15.0
# A stopped worker's open transaction holds every reader back for this long at most.
TRANSACTION_TIMEOUT_MS = 8_000
SESSION_TIMEOUT_MS = 6_000

_FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
}


class Aborted(Unavailable):
    """The transaction was rolled back; nothing of it is visible."""


class OffsetOutOfRange(CorruptLog):
    """The log no longer holds the offset that must be read next."""


@dataclass(frozen=True)
class Record:
    """One message to write. `partition` −1 lets the key decide."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int = -1
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Committed:
    """A committed position: the next offset to read, and the text stored with it. Offset −1: none yet."""

    partition: int
    offset: int
    metadata: str = ""


def _translate(error: KafkaException) -> AdclickError:
    cause = error.args[0]
    if cause.fatal() or cause.code() in _FENCED:
        return Fenced(f"Kafka: {cause.str()}")
    return Unavailable(f"Kafka: {cause.str()}")


def _common(servers: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": servers,
        "log_level": 2,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
    }


class Admin:
    """Topics, ends of logs and committed positions."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._client = AdminClient(_common(servers))

    def partitions(self, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, int]:
        """topic → number of partitions. Raises Unavailable when no broker answers."""
        try:
            found = self._client.list_topics(timeout=timeout_s)
        except KafkaException as error:
            raise _translate(error) from error
        return {name: len(meta.partitions) for name, meta in found.topics.items()}

    def create(self, topics: dict[str, tuple[int, dict[str, str]]]) -> None:
        """Make topics (name → partitions, config); ones that exist are left as they are."""
        if not topics:
            return
        new = [
            NewTopic(name, count, 1 if self._single_broker() else 3, config=config)
            for name, (count, config) in topics.items()
        ]
        for name, future in self._client.create_topics(new, request_timeout=REQUEST_TIMEOUT_S).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise AdclickError(f"topic {name} could not be made: {error.args[0].str()}") from error

    def _single_broker(self) -> bool:
        return len(self._client.list_topics(timeout=REQUEST_TIMEOUT_S).brokers) < 3

    def ends(self, topic: str, partitions: int) -> list[int]:
        """The committed end offset (last stable offset) of each partition."""
        return self._offsets(topic, partitions, OffsetSpec.latest())

    def starts(self, topic: str, partitions: int) -> list[int]:
        """The first offset each partition still holds."""
        return self._offsets(topic, partitions, OffsetSpec.earliest())

    def _offsets(self, topic: str, partitions: int, spec: Any) -> list[int]:
        request = {TopicPartition(topic, p): spec for p in range(partitions)}
        try:
            futures = self._client.list_offsets(
                request, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=REQUEST_TIMEOUT_S
            )
            found = {tp.partition: future.result().offset for tp, future in futures.items()}
        except KafkaException as error:
            raise _translate(error) from error
        return [found[p] for p in range(partitions)]

    def committed(self, group: str, topic: str, partitions: int) -> list[Committed]:
        """What a group has committed, without joining it."""
        consumer = Consumer(_common(self._servers) | {"group.id": group, "enable.auto.commit": False})
        try:
            return _committed(consumer, topic, range(partitions))
        finally:
            consumer.close()


def _committed(consumer: Consumer, topic: str, partitions: Iterable[int]) -> list[Committed]:
    try:
        found = consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise _translate(error) from error
    for tp in found:
        if tp.error is not None:
            raise Unavailable(f"Kafka: {tp.error.str()}")
    return [Committed(tp.partition, max(tp.offset, -1), tp.metadata or "") for tp in found]


class GroupConsumer:
    """One member of a consumer group over one topic, which positions itself.

    `on_assign(partitions)` returns the offset to start each at; `on_revoke(partitions)` is told what is gone.
    Both run inside `consume`.
    """

    def __init__(
        self,
        servers: str,
        group: str,
        topic: str,
        on_assign: Callable[[list[int]], dict[int, int]],
        on_revoke: Callable[[list[int]], None],
    ) -> None:
        self.topic = topic
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._failure: BaseException | None = None
        self._consumer = Consumer(
            _common(servers)
            | {
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": 1_500,
                # The default, 1 s, makes the fetcher sleep each time its queue is full.
                "fetch.queue.backoff.ms": 2,
                "queued.max.messages.kbytes": 48 * 1024,
                "fetch.message.max.bytes": 4 << 20,
                "receive.message.max.bytes": 128 << 20,
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # An exception raised in a callback is lost inside the client: keep it for `consume`.
        try:
            starts = self._on_assign([tp.partition for tp in partitions])
            consumer.assign([TopicPartition(self.topic, p, offset) for p, offset in starts.items()])
        except BaseException as error:
            self._failure = error

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._on_revoke([tp.partition for tp in partitions])

    def consume(self, count: int, timeout_s: float) -> list[Any]:
        """Up to `count` messages. Raises OffsetOutOfRange; transient errors are left to the client's retries."""
        messages = self._consumer.consume(count, timeout_s)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise OffsetOutOfRange(
                    f"{message.topic()}/{message.partition()}: offset {message.offset()} is no longer there: {error.str()}",
                    hint="events were deleted before they were read; restore them, or move the group's offset on purpose",
                )
            elif error.fatal():
                raise Fenced(f"Kafka: {error.str()}")
        return good

    def committed(self, partitions: Iterable[int]) -> list[Committed]:
        """The group's committed positions. Raises Unavailable."""
        return _committed(self._consumer, self.topic, partitions)

    def ends(self, partition: int) -> tuple[int, int]:
        """(first, end) offsets as last seen by the fetcher, without a request; (−1001, −1001) before that."""
        low, high = self._consumer.get_watermark_offsets(TopicPartition(self.topic, partition), cached=True)
        return low, high

    def seek(self, partition: int, offset: int) -> None:
        """Go back (or forward) to an offset."""
        try:
            self._consumer.seek(TopicPartition(self.topic, partition, offset))
        except KafkaException as error:
            raise _translate(error) from error

    def commit(self, positions: Sequence[Committed]) -> None:
        """Commit outside a transaction, and wait. Raises Unavailable or Fenced."""
        try:
            self._consumer.commit(
                offsets=[TopicPartition(self.topic, c.partition, c.offset, c.metadata) for c in positions],
                asynchronous=False,
            )
        except KafkaException as error:
            raise _translate(error) from error

    @property
    def group_metadata(self) -> Any:
        """Goes into a transaction, so that a member that lost its place cannot commit."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


class TransactionalProducer:
    """Writes in transactions. Whoever calls `open` with the same id later fences this one."""

    def __init__(self, servers: str, transactional_id: str) -> None:
        self._producer = Producer(
            _common(servers)
            | {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "message.max.bytes": 16 << 20,
                "queue.buffering.max.kbytes": 512 * 1024,
                "queue.buffering.max.messages": 1_000_000,
                "linger.ms": 1,
            }
        )

    def open(self, timeout_s: float = 30.0) -> None:
        """Register the id, which fences a predecessor and settles its open transaction."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.init_transactions(max(1.0, deadline - time.monotonic()))
                return
            except KafkaException as error:
                if error.args[0].fatal() or time.monotonic() > deadline:
                    raise _translate(error) from error
                time.sleep(0.1)

    def write(
        self,
        records: Iterable[Record],
        *,
        consumed: Sequence[Committed] = (),
        source: GroupConsumer | None = None,
    ) -> None:
        """One transaction: all records and, with `source`, the consumed positions; returns once committed.

        Raises Aborted when nothing of it happened and it can be tried again, Fenced when it never can.
        """
        try:
            self._producer.begin_transaction()
            for r in records:
                self._producer.produce(
                    r.topic, value=r.value, key=r.key, partition=r.partition, headers=list(r.headers) or None
                )
            if source is not None:
                self._producer.send_offsets_to_transaction(
                    [TopicPartition(source.topic, c.partition, c.offset, c.metadata) for c in consumed],
                    source.group_metadata,
                    REQUEST_TIMEOUT_S,
                )
            self._commit()
        except KafkaException as error:
            self._settle(error)
        except BufferError as error:
            self._abort()
            raise Aborted("Kafka: the producer's queue is full") from error

    def _commit(self) -> None:
        deadline = time.monotonic() + 30.0
        while True:
            try:
                self._producer.commit_transaction(10.0)
                return
            except KafkaException as error:
                # A retriable commit must be asked again: whether it happened is not known yet.
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def _settle(self, error: KafkaException) -> None:
        cause = error.args[0]
        if cause.fatal() or cause.code() in _FENCED:
            raise Fenced(f"Kafka: {cause.str()}") from error
        if not cause.txn_requires_abort():
            # Neither fatal nor abortable: the outcome is unknown. A new producer with this id settles it.
            raise Fenced(f"Kafka: outcome of a transaction unknown: {cause.str()}") from error
        self._abort()
        raise Aborted(f"Kafka: {cause.str()}") from error

    def _abort(self) -> None:
        try:
            self._producer.abort_transaction(30.0)
        except KafkaException as error:
            raise Fenced(f"Kafka: {error.args[0].str()}") from error


def read_to_end(servers: str, topic: str, partition: int, start: int = BEGINNING) -> Iterable[Any]:
    """Every committed message of a partition from `start` to its end as it is when reading begins.

    Raises Unavailable when the broker stays silent for 30 s.
    """
    consumer = Consumer(
        _common(servers)
        | {
            "group.id": "adclick-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest" if start == BEGINNING else "error",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 2,
            "fetch.message.max.bytes": 4 << 20,
            "receive.message.max.bytes": 128 << 20,
        }
    )
    try:
        tp = TopicPartition(topic, partition, start)
        # With read_committed, the end that a consumer asks for is the last stable offset: an open transaction
        # of a fenced predecessor was settled before this is called.
        _, high = consumer.get_watermark_offsets(tp, timeout=REQUEST_TIMEOUT_S)
        consumer.assign([tp])
        heard = time.monotonic()
        while True:
            for message in consumer.consume(10_000, 0.5):
                heard = time.monotonic()
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    if message.offset() >= high:
                        return
                elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise OffsetOutOfRange(f"{topic}/{partition}: {error.str()}")
            if time.monotonic() - heard > 30:
                raise Unavailable(f"Kafka: no answer while reading {topic}/{partition}")
    except KafkaException as error:
        raise _translate(error) from error
    finally:
        consumer.close()


def offset_at(servers: str, topic: str, partition: int, time_ms: int) -> int:
    """The first offset whose log time is at or after `time_ms`; the end when there is none."""
    consumer = Consumer(_common(servers) | {"group.id": "adclick-reader", "enable.auto.commit": False})
    try:
        found = consumer.offsets_for_times([TopicPartition(topic, partition, time_ms)], timeout=REQUEST_TIMEOUT_S)
        if found[0].offset >= 0:
            return int(found[0].offset)
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_S)
        return int(high)
    except KafkaException as error:
        raise _translate(error) from error
    finally:
        consumer.close()


class EventProducer:
    """Sends many messages and counts what was acknowledged; waits for a broker that goes away."""

    def __init__(self, servers: str) -> None:
        self.acknowledged = 0
        self.failed: list[str] = []
        self._producer = Producer(
            _common(servers)
            | {
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 20,
                "batch.size": 1 << 20,
                "message.max.bytes": 9 << 20,
                "queue.buffering.max.messages": 400_000,
                "queue.buffering.max.kbytes": 512 * 1024,
                # A broker that is away is waited for: an hour, not the default five minutes.
                "message.timeout.ms": 3_600_000,
                "on_delivery": self._delivered,
            }
        )

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed.append(error.str())

    def send(self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        """Queue messages; blocks while the queue is full."""
        produce, poll = self._producer.produce, self._producer.poll
        for key, value in zip(keys, values, strict=True):
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    poll(0.1)
        poll(0)

    def flush(self, timeout_s: float) -> int:
        """Wait for acknowledgements; returns how many are still missing."""
        return int(self._producer.flush(timeout_s))
