"""The idempotent producer of `replay`: sends events, and counts what brokers acknowledged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from infra.errors import UserError
from infra.kafka.client import KafkaException, make_producer
from infra.kafka.connection import Connection

_TOPIC_PATIENCE_S = 60.0


class _Deliveries:
    """What brokers acknowledged, and why they refused messages. Apart from the producer, so that no cycle keeps its client."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.failed: list[str] = []

    def on_delivery(self, error: Any, _message: Any) -> None:
        """Count a delivery report: acknowledged, or failed with its reason."""
        if error is None:
            self.acknowledged += 1
        else:
            self.failed.append(error.str())


class EventProducer:
    """Sends many messages and counts what was acknowledged; waits for a broker that goes away."""

    def __init__(self, kafka: Connection) -> None:
        self._deliveries = _Deliveries()
        own = {
            "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 20, "batch.size": 1 << 20,
            "message.max.bytes": 9 << 20, "queue.buffering.max.messages": 400_000,
            "queue.buffering.max.kbytes": 512 * 1024, "on_delivery": self._deliveries.on_delivery,
            # A broker that is away is waited for: an hour, not the default five minutes.
            "message.timeout.ms": 3_600_000,
        }  # fmt: skip
        self._producer = make_producer(kafka, own)

    @property
    def acknowledged(self) -> int:
        """How many messages brokers have acknowledged."""
        return self._deliveries.acknowledged

    @property
    def failed(self) -> list[str]:
        """Why messages were refused for good: one reason each."""
        return self._deliveries.failed

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
