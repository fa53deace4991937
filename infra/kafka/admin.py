"""Topics, ends of logs and committed positions, through Kafka's admin client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from infra.errors import AdclickError, Denied, Refused, Unavailable
from infra.kafka.client import (
    REQUEST_TIMEOUT_S,
    ConnectionErrors,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
    admin,
    explained,
    make_admin,
    make_consumer,
    retry_passing,
    translated_errors,
)
from infra.kafka.connection import Connection
from infra.kafka.consumers import committed_positions
from infra.kafka.errors import decision_on
from infra.kafka.records import Committed
from infra.kafka.topic_state import TopicState
from infra.retries import WAITS, WATCH

T = TypeVar("T")
_POLL_S = 0.1


def _names(future: Any) -> frozenset[str]:
    """The operations in a description."""
    try:
        return frozenset(operation.name for operation in future.result().authorized_operations or ())
    except KafkaException as error:
        if isinstance(decision_on(error.args[0]), Denied):
            return frozenset()
        raise


class Admin:
    """Topics, ends of logs and committed positions."""

    def __init__(self, kafka: Connection, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._kafka, self._timeout_s = kafka, timeout_s
        self._errors = ConnectionErrors()
        self._client = make_admin(kafka, self._errors)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise the client's errors as decisions; where connections were refused or failed meanwhile, that is why it had no answer."""
        try:
            with translated_errors():
                yield
        except Unavailable as error:
            self._client.poll(0)
            refusal = None if isinstance(error, Refused) else self._errors.refusal()
            reason = explained(self._kafka, refusal or error)
            if reason is error:
                reason = self._errors.explain(error)
            if reason is error:
                raise
            raise reason from error
        self._client.poll(0)
        self._errors.forget()

    def partitions(self, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, int]:
        """topic → number of partitions. Raises Unavailable when no broker answers."""
        with self._translated():
            answer = self._client.list_topics(timeout=timeout_s)
        return {name: len(meta.partitions) for name, meta in answer.topics.items()}

    def describe(self, topics: Iterable[str]) -> dict[str, TopicState]:
        """The topics that exist, of these. Raises Unavailable, and UserError where brokers know no topic ids."""
        states = dict[str, TopicState]()
        with self._translated():
            futures = self._client.describe_topics(TopicCollection(list(topics)), request_timeout=self._timeout_s)
            for name, future in futures.items():
                try:
                    states[name] = TopicState.of(future.result())
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
        return states

    def brokers(self) -> int:
        """How many brokers there are. Raises Unavailable."""
        return len(self.addresses())

    def addresses(self) -> list[tuple[str, int]]:
        """Where the brokers are reached, as they say. Raises Unavailable."""
        with self._translated():
            brokers = self._client.list_topics(timeout=self._timeout_s).brokers.values()
        return [(broker.host, broker.port) for broker in brokers]

    def cluster_id(self) -> str:
        """The name that a Kafka cluster has given itself. Raises Unavailable."""
        with self._translated():
            return str(self._client.describe_cluster(request_timeout=self._timeout_s).result().cluster_id)

    def allowed(self, topics: Iterable[str], groups: Iterable[str]) -> dict[str, frozenset[str]]:
        """What this user may do with each of these topics and groups, by Kafka's names of operations: none where it may not even describe it.
        Raises Unavailable."""
        options: dict[str, Any] = {"include_authorized_operations": True, "request_timeout": self._timeout_s}
        topic_names, group_names = list(topics), list(groups)

        def describe() -> dict[str, frozenset[str]]:
            futures = dict[str, Any]()
            if topic_names:
                futures |= self._client.describe_topics(TopicCollection(topic_names), **options)
            if group_names:  # which the client takes for a mistake
                futures |= self._client.describe_consumer_groups(group_names, **options)
            return {name: _names(future) for name, future in futures.items()}

        with self._translated():
            # A new cluster has no coordinator of groups before one is asked for.
            return retry_passing(describe, self._timeout_s)

    def uncreatable(self, topics: Iterable[str]) -> list[str]:
        """Of these topics, none of which exists, those that this user may not make. Makes none. Raises Unavailable."""
        new, denied = [admin.NewTopic(name, 1, 1) for name in topics], list[str]()
        if not new:
            return denied
        with self._translated():
            futures = self._client.create_topics(new, validate_only=True, request_timeout=self._timeout_s)
            for name, future in futures.items():
                try:
                    future.result()
                except KafkaException as error:
                    if isinstance(decision_on(error.args[0]), Denied):
                        denied.append(name)
                    elif error.args[0].name().startswith("_"):
                        raise  # no broker has answered
        return denied

    def create(self, topics: dict[str, tuple[int, dict[str, str]]], replicas: int = 1) -> set[str]:
        """Make topics (name → partitions, config) with so many replicas, and wait until brokers list them. Returns the ones that existed:
        they are left as they are. See `configure`."""
        existed = set[str]()
        if not topics:
            return existed
        new = [admin.NewTopic(name, count, replicas, config=config) for name, (count, config) in topics.items()]
        with self._translated():
            for name, future in self._client.create_topics(new, request_timeout=self._timeout_s).items():
                try:
                    future.result()
                except KafkaException as error:
                    cause = error.args[0]
                    if cause.name().startswith("_"):
                        raise  # no broker has answered
                    if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                        existed.add(name)
                    else:
                        raise AdclickError(f"topic {name} could not be made: {cause.str()}") from error
        deadline = time.monotonic() + self._timeout_s
        while missing := topics.keys() - self.partitions().keys():
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka: made {min(missing)}, and does not list it yet", backend="kafka")
            time.sleep(0.05)
        return existed

    def grow(self, topics: dict[str, int]) -> None:
        """Add partitions to topics (at least one) until each has as many; brokers list them a moment later."""
        new = [admin.NewPartitions(name, count) for name, count in topics.items()]
        with self._translated():
            for future in self._client.create_partitions(new, request_timeout=self._timeout_s).values():
                future.result()

    def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Topic → setting → value in force. Raises Unavailable."""
        resources = [admin.ConfigResource(admin.ConfigResource.Type.TOPIC, name) for name in topics]
        if not resources:  # which the client takes for a mistake
            return {}
        with self._translated():
            futures = self._client.describe_configs(resources, request_timeout=self._timeout_s)
            return {r.name: {k: e.value for k, e in future.result().items()} for r, future in futures.items()}

    def configure(self, topics: dict[str, dict[str, str]]) -> None:
        """Set these settings of topics; others that a topic has stay."""
        resources, set_to = list[admin.ConfigResource](), admin.AlterConfigOpType.SET
        for name, config in topics.items():
            changes = [admin.ConfigEntry(k, v, incremental_operation=set_to) for k, v in config.items()]
            resources.append(admin.ConfigResource(admin.ConfigResource.Type.TOPIC, name, incremental_configs=changes))
        with self._translated():
            for future in self._client.incremental_alter_configs(resources, request_timeout=self._timeout_s).values():
                future.result()

    def newest_timestamps_ms(self, topic: str, partitions: int) -> list[int]:
        """The largest timestamp in each partition; negative where there is none. Raises Unavailable."""
        request = {TopicPartition(topic, p): admin.OffsetSpec.max_timestamp() for p in range(partitions)}
        with self._translated():
            futures = self._client.list_offsets(request, request_timeout=self._timeout_s)
            return [int(future.result().timestamp) for future in futures.values()]

    def ends(self, topic: str, partitions: int) -> list[int]:
        """The last stable offset of each partition: where a read-committed reader has to stop for now."""
        return self._offsets(topic, range(partitions), admin.OffsetSpec.latest())

    def high_watermarks(self, topic: str, partitions: int) -> list[int]:
        """The end of each partition's log, whatever transactions are open in it."""
        return self._offsets(topic, range(partitions), admin.OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)

    def high_watermark(self, topic: str, partition: int) -> int:
        """The end of one partition's log, whatever transactions are open in it."""
        return self._offsets(topic, [partition], admin.OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)[0]

    def starts(self, topic: str, partitions: int) -> list[int]:
        """The first offset each partition still holds."""
        return self._offsets(topic, range(partitions), admin.OffsetSpec.earliest())

    def _offsets(
        self,
        topic: str,
        partitions: Sequence[int],
        spec: Any,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> list[int]:
        request = {TopicPartition(topic, p): spec for p in partitions}

        def ask() -> list[int]:
            futures = self._client.list_offsets(request, isolation_level=isolation, request_timeout=self._timeout_s)
            answer = {tp.partition: future.result().offset for tp, future in futures.items()}
            return [answer[p] for p in partitions]

        deadline = time.monotonic() + self._timeout_s
        while True:
            with self._translated():
                offsets = retry_passing(ask, self._timeout_s)
            # Of a partition that has no leader for the moment the client gives a number that is no offset, and no error.
            unknown = [p for p, offset in zip(partitions, offsets, strict=True) if offset < 0]
            if not unknown:
                return offsets
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka: no broker leads {topic}/{unknown[0]}", backend="kafka")
            time.sleep(_POLL_S)

    def committed(self, group: str, topic: str, partitions: int) -> list[Committed]:
        """What a group has committed, without joining it."""
        consumer = make_consumer(self._kafka, {"group.id": group})
        with contextlib.closing(consumer):
            return committed_positions(consumer, topic, range(partitions), self._timeout_s)


class RenewedAdmin:
    """The admin client of a watch that lasts as long as its worker. It is made by the first call, and anew by the one after a failure: a
    client keeps the certificate that it was made with, also once files have a newer one. Not thread-safe."""

    def __init__(self, kafka: Connection, log: Any, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._kafka, self._log, self._timeout_s = kafka, log, timeout_s
        self._admin: Admin | None = None
        self._failures = 0

    def call(self, request: Callable[[Admin], T]) -> T:
        """The result of `request`. Blocks. Raises AdclickError; from the second failure in a row on it is in WAITS, as side work."""
        try:
            self._admin = self._admin or Admin(self._kafka, timeout_s=self._timeout_s)
            result = request(self._admin)
        except AdclickError as error:
            self._admin = None
            self._failures += 1
            if self._failures == 2:
                self._log.warning("watching Kafka fails", why=str(error))
            if self._failures > 1:
                WAITS.begin(self, error, WATCH)
            raise
        if self._failures > 1:
            self._log.info("watching Kafka works again", failures=self._failures)
        self.end_wait()
        return result

    def end_wait(self) -> None:
        """Withdraw what was reported."""
        self._failures = 0
        WAITS.end(self)
