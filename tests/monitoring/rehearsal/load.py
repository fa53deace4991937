"""A steady load of a rehearsal: events that are sent, and questions that are asked."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator

import httpx
import msgspec

from infra.clock import now_ms
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings

_STEP_S = 0.2
_TYPES = ("impression",) * 8 + ("click", "conversion")
CAMPAIGNS = 20
Message = tuple[bytes, bytes]
"""Key and value."""


def make_event(time_ms: int, event_id: str = "") -> Message:
    """A valid event of that time."""
    campaign = random.randrange(CAMPAIGNS)
    event_id = event_id or uuid.uuid4().hex
    event = {
        "event_id": event_id, "event_type": random.choice(_TYPES), "event_time": time_ms, "campaign_id": 1 + campaign,
        "ad_id": 10 + campaign, "advertiser_id": 100 + campaign % 4, "publisher_id": random.randrange(50), "country": "US",
        "device": "mobile", "cost_micros": 1_000,
    }  # fmt: skip
    return event_id.encode(), msgspec.json.encode(event)


def send_events(settings: Settings, messages: list[Message]) -> None:
    """Send messages at once, and wait until all are acknowledged."""
    producer = EventProducer(settings.kafka_connection)
    producer.send(settings.topic(EVENTS), [key for key, _ in messages], [value for _, value in messages])
    assert producer.flush(120) == 0


class LiveLoad:
    """Sends events of this moment until it is closed. `rate`: a second; `invalid`: the share that is no JSON."""

    def __init__(self, settings: Settings, rate: float) -> None:
        self.rate, self.invalid = rate, 0.0
        self._settings, self._stop = settings, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        producer, topic = EventProducer(self._settings.kafka_connection), self._settings.topic(EVENTS)
        due, last_s = 0.0, time.monotonic()
        while not self._stop.wait(_STEP_S):
            now_s = time.monotonic()
            due += (now_s - last_s) * self.rate
            last_s = now_s
            messages = [self._make() for _ in range(int(due))]
            due -= len(messages)
            producer.send(topic, [key for key, _ in messages], [value for _, value in messages])
        producer.flush(5)

    def _make(self) -> Message:
        key, value = make_event(now_ms())
        return (key, value[:-9]) if random.random() < self.invalid else (key, value)


class SteadyQuestions:
    """Asks a router until it is closed: of minutes in Redis, of hours in ClickHouse, of runs."""

    def __init__(self, url: str, key: str, threads: int = 3, pause_s: float = 0.3) -> None:
        self._url, self._headers, self._pause_s = url, {"Authorization": f"Bearer {key}"}, pause_s
        self.hot_only = False
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=20) as client:
            for path in self._paths():
                if self._stop.wait(self._pause_s):
                    return
                with contextlib.suppress(httpx.HTTPError):
                    client.get(path)

    def _paths(self) -> Iterator[str]:
        while True:
            # Another campaign each time: what was asked before comes from a cache.
            campaign = random.randrange(1, CAMPAIGNS + 1)
            yield f"/v1/metrics?campaign_id={campaign}&start=-{random.randrange(1, 60)}m&end=now&granularity=minute"
            if not self.hot_only:
                yield f"/v1/metrics?campaign_id={campaign}&start=-{random.randrange(75, 100)}h&end=-26h&granularity=hour"
                yield "/v1/reconciliations"
