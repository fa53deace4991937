"""Docs/runbooks.md, "A poisoned partition": record batches that cannot be read, in two of three partitions."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

from infra.kafka import topics
from infra.kafka.consumers import read_to_end
from infra.kafka.event_producer import EventProducer
from infra.settings import Settings
from query.status import read_status
from tests.conftest import adclick
from tests.damage import damage_batch
from tests.flow import Flow, environment
from tests.product import wait_until
from tests.recovery.load import backends, counting, installation

_WORKERS = ("ingest-0", "ingest-1", "archive-0", "stream-0")
_TAIL = 600
"""The newest events, among which batches are damaged: these may come again without being too late."""


def poison(work: Path) -> float:
    """The other partitions go on, both batches are named and set aside, their events are sent again, and the night names them."""
    with backends(work) as folder:
        settings = installation(folder)
        with counting(settings, work, malformed=0.0) as running:
            for name in _WORKERS:
                running.start(name)
            running.send(len(running.events.lines) - _TAIL)
            wait_until(lambda: _lags(settings) == [0, 0, 0], 60, "all is ingested")
            for name in ("ingest-0", "ingest-1"):
                running.stop(name)
            running.send()
            lost = [
                _damage_last_batch(folder, settings, partition, how)
                for partition, how in enumerate(("checksum", "codec"))
            ]
            began = time.monotonic()
            for name in ("ingest-0", "ingest-1"):
                running.start(name)

            topic = settings.topic(topics.EVENTS)
            found = dict[str, str]()

            def are_named() -> bool:
                found.clear()
                found.update({k: v for k, v in read_status(settings)["problems"].items() if k.startswith(topic)})
                return len(found) == 2 and _lags(settings)[2] == 0

            wait_until(are_named, 60, lambda: f"two partitions stop, and the third goes on: {found}, {_lags(settings)}")
            print(f"  named after {time.monotonic() - began:.1f} s: {sorted(found.values())}", flush=True)
            ended = {name: code for name in _WORKERS if (code := running.workers[name].poll()) is not None}
            assert not ended, f"workers ended: {ended}"
            for text in found.values():
                name = text.rsplit(" ", 1)[1]
                _run(running, "dead-letters", "set-aside", name)
            producer = EventProducer(settings.kafka_connection)
            for messages in lost:
                producer.send(topic, [key for key, _ in messages], [value for _, value in messages])
            assert producer.flush(30) == 0
            running.wait_until_exact(60)
            running.wait_until_archived(60)
            took_s = time.monotonic() - began
            _reconcile(running, sum(map(len, lost)))
            running.wait_until_exact(60)
            return took_s


def _damage_last_batch(folder: Path, settings: Settings, partition: int, how: str) -> list[tuple[bytes | None, bytes]]:
    """Damage the last record batch of a partition; returns keys and values of its messages, as the producer has them."""
    topic = settings.topic(topics.EVENTS)
    messages = list(read_to_end(settings.kafka_connection, topic, partition))
    raw = damage_batch(folder / "kafka" / "data" / f"{topic}-{partition}", messages[-1].offset(), how)
    first = int.from_bytes(raw[:8])
    return [(m.key(), m.value()) for m in messages if m.offset() >= first]


def _lags(settings: Settings) -> list[int]:
    return list(read_status(settings)["partitions"].get(settings.topic(topics.EVENTS), []))


def _reconcile(running: Flow, lost: int) -> None:
    """The days of the events, which may be open still: each run ends with an alert that counts what was set aside."""
    days = {dt.datetime.fromtimestamp(ms / 1000, dt.UTC).date() for ms in (running.start_ms, running.end_ms - 1)}
    for day in sorted(days):
        said = _run(running, "reconcile", "--date", day.isoformat(), "--force", codes=(3,))
        assert f"{lost:,} messages of ad-events were set aside unread" in said, said


def _run(running: Flow, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command on the installation; returns what it wrote to standard error."""
    result = adclick(*words, cwd=None, **environment(running.settings))
    assert result.returncode in codes, f"{words} ended with {result.returncode}: {result.stderr}"
    return result.stderr
