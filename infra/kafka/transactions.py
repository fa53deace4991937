"""Writing in transactions, with the positions that were consumed: all of it becomes visible, or none."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infra import faults
from infra.errors import Aborted, ClientBroken, OutcomeUnknown
from infra.kafka.client import KafkaError, KafkaException, Producer, TopicPartition, explained, make_producer
from infra.kafka.connection import Connection
from infra.kafka.consumers import GroupConsumer
from infra.kafka.errors import FENCED, decision_on, hint, lost
from infra.kafka.records import Committed, Record
from infra.retries import bounded

# A stopped worker's open transaction holds every reader back for this long at most.
TRANSACTION_TIMEOUT_MS = 8_000
# For one call about a transaction, and for a commit in all.
_CALL_S, _COMMIT_S = 8.0, 20.0


class _BrokerReports:
    """What a client reports of its brokers.

    An object of its own, because the client refers to it: a cycle of client and producer would keep the client's threads, which
    go on connecting, until the garbage collector runs. Workers rarely run it.
    """

    def __init__(self) -> None:
        self.lost = False

    def on_error(self, error: KafkaError) -> None:
        """Note that a broker cannot be reached. One that closes an idle connection can."""
        self.lost |= error.code() == KafkaError._TRANSPORT and "Connect to" in error.str()


def _end(_client: Producer) -> None:
    """A client ends with its last reference. A thread that runs this has that one: the client then waits for threads of its own,
    which may wait for a broker."""


class TransactionalProducer:
    """Writes in transactions. A later `open` with the same id, by any process, fences this one.

    Its client ends in the background once nothing refers to the producer any more.
    """

    def __init__(self, kafka: Connection, transactional_id: str, kind: str = "producer") -> None:
        """`kind` names its fault points."""
        self._kafka, self._reports = kafka, _BrokerReports()
        self._produced, self._committed = f"{kind}.produced", f"{kind}.committed"
        own = {
            "transactional.id": transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS, "linger.ms": 1,
            "message.max.bytes": 16 << 20, "queue.buffering.max.kbytes": 512 * 1024,
            "queue.buffering.max.messages": 1_000_000, "error_cb": self._reports.on_error,
        }  # fmt: skip
        self._producer = make_producer(kafka, own)

    def __del__(self) -> None:
        if hasattr(self, "_producer"):
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                threading.Thread(target=_end, args=(self.__dict__.pop("_producer"),), daemon=True).start()

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
                    raise explained(self._kafka, decision_on(error.args[0])) from error
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
        if self._reports.lost:
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
                # A retriable commit must be repeated: whether it happened is not known yet.
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
