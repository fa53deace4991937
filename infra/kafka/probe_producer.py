"""Sends small messages that are worth nothing later: what brokers do not take in time is dropped, not kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infra.kafka.client import KafkaException, make_producer
from infra.kafka.connection import Connection
from infra.kafka.records import Record


class _Outcomes:
    """What became of messages. Apart from the producer, so that no cycle keeps its client."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.refusal = self.connection = ""

    def on_error(self, error: Any) -> None:
        """Keep what is wrong with connections: of a message that was not taken in time the client says no more than that."""
        self.connection = error.str()

    def on_delivery(self, error: Any, _message: Any) -> None:
        """Count what a broker took, and keep why it did not take another one."""
        if error is None:
            self.acknowledged += 1
        else:
            self.refusal = error.str()


class ProbeProducer:
    """Sends to partitions by number. A message may arrive twice."""

    def __init__(self, kafka: Connection, timeout_s: float) -> None:
        """`timeout_s`: how long a message may wait for a broker."""
        self._outcomes = _Outcomes()
        own = {
            # One at a time: a message that is sent again must not come after a newer one.
            "acks": "all", "linger.ms": 5, "max.in.flight.requests.per.connection": 1, "message.timeout.ms": int(timeout_s * 1000),
            "on_delivery": self._outcomes.on_delivery, "error_cb": self._outcomes.on_error,
        }  # fmt: skip
        self._producer = make_producer(kafka, own)

    def send(self, records: Iterable[Record], wait_s: float) -> tuple[int, str]:
        """Send, and wait so long for what brokers say; returns how many they acknowledged since the last call, of whichever call, and
        why another one was not, or an empty text."""
        for record in records:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, record.partition, headers=list(record.headers)
                )
            except (KafkaException, BufferError) as error:
                self._outcomes.refusal = str(error)
        self._producer.flush(wait_s)
        outcomes, acknowledged, refusal = self._outcomes, self._outcomes.acknowledged, self._outcomes.refusal
        if refusal and outcomes.connection:
            refusal = f"{refusal} ({outcomes.connection})"
        outcomes.acknowledged, outcomes.refusal, outcomes.connection = 0, "", ""
        return acknowledged, refusal
