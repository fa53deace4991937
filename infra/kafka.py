"""Kafka, through confluent-kafka: the only module that imports it.

All reads are read-committed. Librdkafka's errors become decisions: `Unavailable` (back off, try again; `Refused` and `Denied`
where the broker says why), `SessionLost` (only a new client goes on: `Fenced`, `OutcomeUnknown`, `ClientBroken`),
`OffsetOutOfRange` (the log no longer holds what we must read).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
    admin,
)

from infra import faults
from infra.columns import Columns, Values
from infra.errors import (
    Aborted,
    AdclickError,
    ClientBroken,
    OffsetOutOfRange,
    OutcomeUnknown,
    TimedOut,
    Unavailable,
    UserError,
)
from infra.kafka_errors import FENCED, PASSING, decision_on, declined, hint, lost
from infra.patience import bounded
from infra.records import Committed, Record, TopicState

T = TypeVar("T")
BEGINNING: int = OFFSET_BEGINNING
REQUEST_TIMEOUT_S = 15.0
# A stopped worker's open transaction holds every reader back for this long at most.
TRANSACTION_TIMEOUT_MS = 8_000
# A broker that is just coming back knows no topics yet. A group whose leader asks it then assigns nothing to anybody, until
# that leader looks again: after five minutes, by the clients' defaults.
METADATA_REFRESH_MS = 3_000

# For one call about a transaction, and for a commit in all.
_CALL_S, _COMMIT_S = 8.0, 20.0
_TOPIC_PATIENCE_S, _GIVE_UP_S = 60.0, 20.0


def columns_of(messages: Sequence[Any]) -> Columns:
    """Consumed messages by column, without a line of Python for each."""
    count = len(messages)
    return Columns(
        np.fromiter(map(Message.partition, messages), np.int64, count),
        np.fromiter(map(Message.offset, messages), np.int64, count),
        np.fromiter(map(itemgetter(1), map(Message.timestamp, messages)), np.int64, count),
        Values.of(list(map(Message.value, messages))),
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except KafkaException as error:
        raise decision_on(error.args[0]) from error


def _asked_again(call: Callable[[], T], timeout_s: float) -> T:
    """The result of `call`, repeated while the answer is one of a moment. Raises what `decision_on` makes of others."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].name() not in PASSING or time.monotonic() > deadline:
                raise decision_on(error.args[0]) from error
            time.sleep(0.05)


def _common(servers: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": servers,
        "log_level": 2,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
    }


def _reading(servers: str) -> dict[str, Any]:
    return _common(servers) | {
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # The default, 1 s, makes the fetcher sleep each time its queue is full.
        "fetch.queue.backoff.ms": 2,
        "fetch.message.max.bytes": 4 << 20,
        "receive.message.max.bytes": 128 << 20,
    }


class Admin:
    """Topics, ends of logs and committed positions."""

    def __init__(self, servers: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._servers, self._timeout_s = servers, timeout_s
        self._client = admin.AdminClient(_common(servers))

    def partitions(self, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, int]:
        """topic → number of partitions. Raises Unavailable when no broker answers."""
        with _translated():
            found = self._client.list_topics(timeout=timeout_s)
        return {name: len(meta.partitions) for name, meta in found.topics.items()}

    def describe(self, topics: Iterable[str]) -> dict[str, TopicState]:
        """The topics that exist, of these. Raises Unavailable, and UserError where brokers know no topic ids."""
        futures = self._client.describe_topics(TopicCollection(list(topics)), request_timeout=self._timeout_s)
        states = dict[str, TopicState]()
        for name, future in futures.items():
            try:
                states[name] = TopicState.of(future.result())
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise decision_on(error.args[0]) from error
        return states

    def create(self, topics: dict[str, tuple[int, dict[str, str]]]) -> None:
        """Make topics (name → partitions, config) and wait until brokers tell of them; ones that exist are left as they
        are. See `configure`."""
        if not topics:
            return
        replicas = 3 if len(self._client.list_topics(timeout=self._timeout_s).brokers) >= 3 else 1
        new = [admin.NewTopic(name, count, replicas, config=config) for name, (count, config) in topics.items()]
        for name, future in self._client.create_topics(new, request_timeout=self._timeout_s).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise AdclickError(f"topic {name} could not be made: {error.args[0].str()}") from error
        deadline = time.monotonic() + self._timeout_s
        while missing := topics.keys() - self.partitions().keys():
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka: made {min(missing)}, and does not tell of it yet", backend="kafka")
            time.sleep(0.05)

    def grow(self, topics: dict[str, int]) -> None:
        """Add partitions to topics (at least one) until each has as many; brokers list them a moment later."""
        new = [admin.NewPartitions(name, count) for name, count in topics.items()]
        with _translated():
            for future in self._client.create_partitions(new, request_timeout=self._timeout_s).values():
                future.result()

    def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Topic → setting → value in force. Raises Unavailable."""
        resources = [admin.ConfigResource(admin.ConfigResource.Type.TOPIC, name) for name in topics]
        if not resources:  # which the client takes for a mistake
            return {}
        with _translated():
            futures = self._client.describe_configs(resources, request_timeout=self._timeout_s)
            return {r.name: {k: e.value for k, e in future.result().items()} for r, future in futures.items()}

    def configure(self, topics: dict[str, dict[str, str]]) -> None:
        """Set these settings of topics; others that a topic has stay."""
        resources, set_to = list[admin.ConfigResource](), admin.AlterConfigOpType.SET
        for name, config in topics.items():
            changes = [admin.ConfigEntry(k, v, incremental_operation=set_to) for k, v in config.items()]
            resources.append(admin.ConfigResource(admin.ConfigResource.Type.TOPIC, name, incremental_configs=changes))
        with _translated():
            for future in self._client.incremental_alter_configs(resources, request_timeout=self._timeout_s).values():
                future.result()

    def ends(self, topic: str, partitions: int) -> list[int]:
        """The last stable offset of each partition: where a read-committed reader has to stop for now."""
        return self._offsets(topic, partitions, admin.OffsetSpec.latest())

    def high_watermarks(self, topic: str, partitions: int) -> list[int]:
        """The end of each partition's log, whatever transactions are open in it."""
        return self._offsets(topic, partitions, admin.OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)

    def starts(self, topic: str, partitions: int) -> list[int]:
        """The first offset each partition still holds."""
        return self._offsets(topic, partitions, admin.OffsetSpec.earliest())

    def _offsets(
        self, topic: str, partitions: int, spec: Any, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
    ) -> list[int]:
        request = {TopicPartition(topic, p): spec for p in range(partitions)}

        def ask() -> list[int]:
            futures = self._client.list_offsets(request, isolation_level=isolation, request_timeout=self._timeout_s)
            found = {tp.partition: future.result().offset for tp, future in futures.items()}
            return [found[p] for p in range(partitions)]

        return _asked_again(ask, self._timeout_s)

    def committed(self, group: str, topic: str, partitions: int) -> list[Committed]:
        """What a group has committed, without joining it."""
        consumer = Consumer(_common(self._servers) | {"group.id": group, "enable.auto.commit": False})
        with contextlib.closing(consumer):
            return _committed(consumer, topic, range(partitions), self._timeout_s)


def _refuse_lost(error: KafkaError | None, message: Message) -> None:
    """Raise OffsetOutOfRange or SessionLost where the client will not go on by itself."""
    if error is None:
        return
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        where = f"{message.topic()}/{message.partition()}: offset {message.offset()}"
        raise OffsetOutOfRange(f"{where} is no longer there: {error.str()}", hint="messages were deleted unread")
    if error.fatal():
        raise lost(error)


def _committed(
    consumer: Consumer, topic: str, partitions: Iterable[int], timeout_s: float = REQUEST_TIMEOUT_S
) -> list[Committed]:
    wanted = [TopicPartition(topic, p) for p in partitions]
    found = _asked_again(lambda: consumer.committed(wanted, timeout=timeout_s), timeout_s)
    for tp in found:
        if tp.error is not None:
            raise declined(tp.error)
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
        session_timeout_ms: int = 6_000,
        *,
        reads: bool = True,
    ) -> None:
        """A member that does not read is one in name: others read for it."""
        self.topic = topic
        self._reads = reads
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._failure: BaseException | None = None
        own = {
            "group.id": group, "enable.auto.offset.store": False, "auto.offset.reset": "error",
            "session.timeout.ms": session_timeout_ms, "heartbeat.interval.ms": session_timeout_ms // 4,
            "queued.max.messages.kbytes": 48 * 1024, "fetch.wait.max.ms": 100,
            "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS,
        }  # fmt: skip
        self._consumer = Consumer(_reading(servers) | own)
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # An exception raised in a callback is lost inside the client: keep it for `consume`.
        try:
            starts = self._on_assign([tp.partition for tp in partitions])
            positions = [TopicPartition(self.topic, p, offset) for p, offset in starts.items()]
            consumer.assign(positions)
            if not self._reads:
                consumer.pause(positions)
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
        if set(map(type, map(Message.error, messages))) <= {type(None)}:
            return list(messages)
        for message in messages:
            _refuse_lost(message.error(), message)
        return [message for message in messages if message.error() is None]

    def committed(self, partitions: Iterable[int], topic: str = "") -> list[Committed]:
        """The group's committed positions, by default in the topic that it consumes. Raises Unavailable."""
        return _committed(self._consumer, topic or self.topic, partitions)

    def commit(self, positions: Sequence[Committed]) -> None:
        """Commit outside a transaction, and wait. Raises Unavailable or SessionLost."""
        with _translated():
            offsets = [TopicPartition(self.topic, c.partition, c.offset, c.metadata) for c in positions]
            bounded(lambda: self._consumer.commit(offsets=offsets, asynchronous=False), _GIVE_UP_S, "commit offsets")

    @property
    def group_metadata(self) -> Any:
        """Goes into a transaction, so that a member that lost its place cannot commit."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        """Leave the group; a client that hangs is left behind."""
        with contextlib.suppress(ClientBroken):
            bounded(self._consumer.close, _GIVE_UP_S, "leave its group")


class TransactionalProducer:
    """Writes in transactions. Whoever calls `open` with the same id later fences this one."""

    def __init__(self, servers: str, transactional_id: str, kind: str = "producer") -> None:
        """`kind` names its fault points."""
        self._produced, self._committed = f"{kind}.produced", f"{kind}.committed"
        own = {
            "transactional.id": transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS, "linger.ms": 1,
            "message.max.bytes": 16 << 20, "queue.buffering.max.kbytes": 512 * 1024,
            "queue.buffering.max.messages": 1_000_000, "error_cb": self._error,
        }  # fmt: skip
        self._producer = Producer(_common(servers) | own)
        self._away = False

    def _error(self, error: KafkaError) -> None:  # a broker that closes an idle connection is not away
        self._away |= error.code() == KafkaError._TRANSPORT and "Connect to" in error.str()

    def open(self, timeout_s: float = 30.0) -> None:
        """Register the id, which fences a predecessor and settles its open transaction. Raises Unavailable, SessionLost."""
        bounded(lambda: self._open(timeout_s), timeout_s + 10.0, "register its transactional id")

    def _open(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.init_transactions(max(1.0, deadline - time.monotonic()))
                return
            except KafkaException as error:
                if error.args[0].fatal() or time.monotonic() > deadline:
                    raise decision_on(error.args[0]) from error
                time.sleep(0.1)

    def write(
        self,
        records: Iterable[Record],
        *,
        consumed: Sequence[Committed] = (),
        source: GroupConsumer | None = None,
    ) -> None:
        """One transaction: all records and, with `source`, the consumed positions; returns once committed.

        Raises Aborted when nothing of it happened and it can be tried again. Raises SessionLost when only opening the id again
        settles what happened: Fenced when another client has opened it, or the broker gave the transaction up; OutcomeUnknown;
        ClientBroken when the broker was away since.
        """
        self._producer.poll(0)
        if self._away:
            # Librdkafka tends to hang in the first transaction after an outage.
            raise ClientBroken("Kafka: the broker was away")
        try:
            self._producer.begin_transaction()
            for r in records:
                self._producer.produce(
                    r.topic, value=r.value, key=r.key, partition=r.partition, headers=list(r.headers) or None
                )
            if source is not None:
                offsets = [TopicPartition(c.topic or source.topic, c.partition, c.offset, c.metadata) for c in consumed]
                metadata = source.group_metadata
                self._bounded(self._producer.send_offsets_to_transaction, offsets, metadata, _CALL_S)
            faults.point(self._produced, self._producer.flush)
            self._commit()
            faults.point(self._committed)
        except KafkaException as error:
            self._settle(error)
        except BufferError as error:
            self._abort()
            raise Aborted("Kafka: the producer's queue is full", backend="kafka") from error

    def _commit(self) -> None:
        deadline = time.monotonic() + _COMMIT_S
        while True:
            try:
                self._bounded(self._producer.commit_transaction, _CALL_S)
                return
            except KafkaException as error:
                # A retriable commit must be asked again: whether it happened is not known yet.
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def _bounded(self, call: Callable[..., Any], *arguments: Any) -> None:
        bounded(lambda: call(*arguments), _CALL_S + 2.0, "answer for a transaction")

    def _settle(self, error: KafkaException) -> None:
        cause = error.args[0]
        if cause.fatal() or cause.name() in FENCED:
            raise lost(cause) from error
        if not cause.txn_requires_abort():
            # Neither fatal nor abortable: the outcome is unknown. A new producer with this id settles it.
            raise OutcomeUnknown(f"Kafka: outcome of a transaction unknown: {cause.str()}") from error
        self._abort()
        raise Aborted(f"Kafka: {cause.str()}", hint=hint(cause), backend="kafka") from error

    def _abort(self) -> None:
        try:
            self._bounded(self._producer.abort_transaction, _CALL_S)
        except KafkaException as error:
            raise OutcomeUnknown(f"Kafka: {error.args[0].str()}") from error


def read_to_end(servers: str, topic: str, partition: int, start: int = BEGINNING) -> Iterable[Any]:
    """Every committed message of a partition from `start` to its end as it is when reading begins.

    Raises Unavailable when the broker stays silent for 30 s.
    """
    reset = "earliest" if start == BEGINNING else "error"
    own = {"group.id": "adclick-reader", "auto.offset.reset": reset, "enable.partition.eof": True}
    consumer = Consumer(_reading(servers) | own)
    with contextlib.closing(consumer), _translated():
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
                    _refuse_lost(error, message)
            if time.monotonic() - heard > 30:
                raise TimedOut(f"Kafka: no answer while reading {topic}/{partition}", backend="kafka")


def offset_at(servers: str, topic: str, partition: int, time_ms: int) -> int:
    """The first offset whose log time is at or after `time_ms`; the end when there is none."""
    consumer = Consumer(_common(servers) | {"group.id": "adclick-reader", "enable.auto.commit": False})
    with contextlib.closing(consumer), _translated():
        found = consumer.offsets_for_times([TopicPartition(topic, partition, time_ms)], timeout=REQUEST_TIMEOUT_S)
        if found[0].offset >= 0:
            return int(found[0].offset)
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_S)
        return int(high)


class EventProducer:
    """Sends many messages and counts what was acknowledged; waits for a broker that goes away."""

    def __init__(self, servers: str) -> None:
        self.acknowledged = 0
        self.failed: list[str] = []
        own = {
            "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 20, "batch.size": 1 << 20,
            "message.max.bytes": 9 << 20, "queue.buffering.max.messages": 400_000,
            "queue.buffering.max.kbytes": 512 * 1024, "on_delivery": self._delivered,
            # A broker that is away is waited for: an hour, not the default five minutes.
            "message.timeout.ms": 3_600_000,
        }  # fmt: skip
        self._producer = Producer(_common(servers) | own)

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed.append(error.str())

    def send(self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        """Queue messages; blocks while the queue is full. Raises UserError when there is no such topic."""
        produce, poll = self._producer.produce, self._producer.poll
        for key, value in zip(keys, values, strict=True):
            missing_since = None
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    poll(0.1)
                except KafkaException as error:
                    # A broker that is just coming back may not know its topics yet.
                    missing_since = missing_since or time.monotonic()
                    if time.monotonic() - missing_since > _TOPIC_PATIENCE_S:
                        raise UserError(f"topic {topic}: {error.args[0].str()}") from error
                    poll(0.5)
        poll(0)

    def flush(self, timeout_s: float) -> int:
        """Wait for acknowledgements; returns how many are still missing."""
        return int(self._producer.flush(timeout_s))
