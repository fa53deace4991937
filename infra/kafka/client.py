"""Confluent-kafka, and its librdkafka: the only module that imports it.

Its classes under their own names for the other modules of this package, with the configuration that all clients share.
Librdkafka's errors become decisions: `Unavailable` (back off, try again; `Refused` and `Denied` where the broker says why),
`SessionLost` (only a new client goes on: `Fenced`, `OutcomeUnknown`, `ClientBroken`), `OffsetOutOfRange` (the log no longer
holds what must be read).
"""

from __future__ import annotations

import contextlib
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

from infra.kafka.errors import PASSING, decision_on

__all__ = [
    "BEGINNING",
    "Consumer",
    "IsolationLevel",
    "KafkaError",
    "KafkaException",
    "Message",
    "Producer",
    "TopicCollection",
    "TopicPartition",
    "admin",
    "common_config",
    "read_config",
    "retry_passing",
    "translated_errors",
]
T = TypeVar("T")
BEGINNING: int = OFFSET_BEGINNING
REQUEST_TIMEOUT_S = 15.0
# A broker that is just coming back knows no topics yet. A group leader that reads metadata then assigns nothing to any
# member, until it reads them again: after five minutes, by the clients' defaults.
METADATA_REFRESH_MS = 3_000


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


def common_config(servers: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": servers,
        "log_level": 2,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
    }


def read_config(servers: str) -> dict[str, Any]:
    return common_config(servers) | {
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # The default, 1 s, makes the fetcher sleep each time its queue is full.
        "fetch.queue.backoff.ms": 2,
        "fetch.message.max.bytes": 4 << 20,
        "receive.message.max.bytes": 128 << 20,
    }
