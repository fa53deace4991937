"""Confluent-kafka, and its librdkafka: the only module that imports it.

Its classes under their own names for the other modules of this package, with the configuration that all clients share.
Librdkafka's errors become decisions: `Unavailable` (back off, try again; `Refused` and `Denied` where the broker says why),
`SessionLost` (only a new client goes on: `Fenced`, `OutcomeUnknown`, `ClientBroken`), `OffsetOutOfRange` (the log no longer
holds what must be read).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

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

from infra.errors import AdclickError, Denied, Refused, Unavailable, UserError
from infra.kafka.connection import OAUTHBEARER, Connection
from infra.kafka.errors import PASSING, TLS_REFUSED, decision_on
from infra.kafka.tokens import token_of

__all__ = [
    "BEGINNING",
    "ConnectionErrors",
    "Consumer",
    "IsolationLevel",
    "KafkaError",
    "KafkaException",
    "Message",
    "Producer",
    "TopicCollection",
    "TopicPartition",
    "admin",
    "explained",
    "make_admin",
    "make_consumer",
    "make_producer",
    "make_reader",
    "retry_passing",
    "translated_errors",
]
T = TypeVar("T")
BEGINNING: int = OFFSET_BEGINNING
REQUEST_TIMEOUT_S = 15.0
# A broker that is just coming back knows no topics yet. A group leader that reads metadata then assigns nothing to any
# member, until it reads them again: after five minutes, by the clients' defaults.
METADATA_REFRESH_MS = 3_000

_HOW_OFTEN = re.compile(r" \(after \d+ms in state .*\)$")
# A connection to an address that brokers gave; one to an address of the settings has `bootstrap` in place of the number.
_OF_A_BROKER = re.compile(r"\S+/\d+: (Connect to|Failed to resolve)")
_CLOSED = "brokers close the connection"
_IS_CLOSED = re.compile(rf"{_CLOSED}|Disconnected")
_WRONG_PROTOCOL = "kafka_security_protocol must be that of the brokers' listener at this address; their log says more"
_ADVERTISED = "start that broker; if it runs, its advertised.listeners must name an address that is reached from here"


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the client's errors as decisions: see `infra.kafka.errors`."""
    try:
        yield
    except KafkaException as error:
        raise decision_on(error.args[0]) from error


def retry_passing(call: Callable[[], T], timeout_s: float) -> T:
    """The result of `call`, repeated while the answer is one of a moment. Raises what `decision_on` makes of others."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].name() not in PASSING or time.monotonic() > deadline:
                raise decision_on(error.args[0]) from error
            time.sleep(0.05)


def explained(kafka: Connection, error: AdclickError) -> AdclickError:
    """What is wrong with a certificate where that is why a broker did not answer, and the error itself elsewhere: always one to retry, if
    that one is.

    Librdkafka does not say what of a broker's certificate is wrong, and takes a broker's refusal of ours for a lost connection: a handshake
    of our own tells.
    """
    is_known = isinstance(error, Refused) and error.code != TLS_REFUSED
    if kafka.tls is None or is_known or not isinstance(error, Unavailable):
        return error
    from infra.kafka.sasl import refused_handshake  # aiokafka takes 100 ms

    try:
        return refused_handshake(kafka) or error
    except UserError as failure:
        # Files are checked when a process starts. Later they may be in the middle of a renewal: the next attempt has the new ones.
        return Denied(f"Kafka: {failure.message}", hint=failure.hint, backend="kafka", code="TLS")


class ConnectionErrors:
    """What a client reports of connections: those that were refused, by a certificate or by credentials, and those that failed.

    The client goes on trying, and calls merely time out. An object of its own, so that client and owner make no cycle.
    """

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._failed = ""
        self.failed_at: float | None = None
        """When the last error was reported, by `time.monotonic`."""

    def on_error(self, error: KafkaError) -> None:
        """The client's `error_cb`."""
        self.failed_at = time.monotonic()
        if error.code() in (KafkaError._SSL, KafkaError._AUTHENTICATION):
            self._last = error
        if error.code() in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            # Without how long it took and how often it was, which differs each time.
            self._failed = _HOW_OFTEN.sub("", error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            # Of a connection that a broker closes the client says nothing else.
            self._failed = self._failed or _CLOSED

    def refusal(self) -> Denied | None:
        """The last one, once; None where there was none."""
        error, self._last = self._last, None
        decision = None if error is None else decision_on(error)
        return decision if isinstance(decision, Denied) else None

    def explain(self, error: Unavailable) -> Unavailable:
        """The error of a call that had no answer, by the last connection that failed."""
        if not self._failed or isinstance(error, Refused):
            return error
        hint = (
            _WRONG_PROTOCOL
            if _IS_CLOSED.search(self._failed)
            else _ADVERTISED
            if _OF_A_BROKER.match(self._failed)
            else ""
        )
        return type(error)(f"Kafka: {self._failed}", hint=hint, backend="kafka")

    def forget(self) -> None:
        """Connections that failed so far were needed no more: a call had its answer."""
        self._failed = ""


def make_producer(kafka: Connection, own: dict[str, Any]) -> Producer:
    return _made(Producer, _config(kafka) | own)


def make_consumer(kafka: Connection, own: dict[str, Any]) -> Consumer:
    """One that only asks for positions."""
    return _made(Consumer, _config(kafka) | {"enable.auto.commit": False} | own)


def make_reader(kafka: Connection, own: dict[str, Any]) -> Consumer:
    """One that reads committed messages."""
    reads = {
        "isolation.level": "read_committed",
        # The default, 1 s, makes the fetcher sleep each time its queue is full.
        "fetch.queue.backoff.ms": 2,
        "fetch.message.max.bytes": 4 << 20,
        "receive.message.max.bytes": 128 << 20,
    }
    return make_consumer(kafka, reads | own)


def make_admin(kafka: Connection, errors: ConnectionErrors) -> admin.AdminClient:
    return _made(admin.AdminClient, _config(kafka) | {"error_cb": errors.on_error})


def _config(kafka: Connection) -> dict[str, Any]:
    config: dict[str, Any] = {
        "log_level": 2,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
    }
    if kafka.tls is not None:
        kafka.tls.check()
    sasl = kafka.sasl
    if sasl is not None and sasl.mechanism == OAUTHBEARER:
        # Librdkafka waits for ten seconds where there is none, and does not say why.
        token_of(sasl.tokens)
        config["oauth_cb"] = lambda _: token_of(sasl.tokens)
    return config | kafka.librdkafka() | dict(kafka.properties)


def _made(kind: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> T:
    try:
        return kind(config)
    except KafkaException as error:
        decision = decision_on(error.args[0])
        if isinstance(decision, Denied):
            raise decision from error
        raise UserError(f"Kafka's client refuses its settings: {error.args[0].str()}") from error
