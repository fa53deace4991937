"""An installation of a rehearsal's own on an embedded stack's backends, and load on it: events sent at a rate, answers read all the time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.kafka import topic_setup
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings, resolve
from tests.clusters.campaign import Reader
from tests.conftest import NO_WORKERS, adclick
from tests.flow import Flow, flow

_LOAD_S = 60


@contextmanager
def backends(work: Path) -> Iterator[Path]:
    """The folder of an embedded stack without ingest, stream and notify workers."""
    folder = work / "backends"
    result = adclick("up", "--detach", "--dir", str(folder), *NO_WORKERS)
    assert result.returncode == 0, result.stderr
    try:
        yield folder
    finally:
        adclick("down", "--dir", str(folder))


def installation(folder: Path, *, made: bool = True, **changes: Any) -> Settings:
    """Settings with a namespace and an archive of their own on a stack's backends; with topics and tables, unless these are not to be
    `made`."""
    name = f"r{uuid.uuid4().hex[:8]}_"
    own = {"namespace": name, "archive": str(folder / f"{name}archive"), "event_partitions": 3, "block_partitions": 2}
    settings = resolve(str(folder)).settings.model_copy(update=own | changes)
    Path(settings.archive).mkdir()
    if made:
        topic_setup.ensure(settings)
        apply_migrations(ClickHouse.of(settings))
    return settings


@contextmanager
def counting(settings: Settings, work: Path, **spec: Any) -> Iterator[Flow]:
    """A flow of EVENTS (20,000) events, none of them too late: then the night counts what the stream counts."""
    usual = {"events": int(os.environ.get("EVENTS") or 20_000), "late": 0.0}
    with flow(settings, work, **usual | spec) as running:
        yield running


class Producers:
    """Send all events of a flow at a rate, and can be stopped in between."""

    def __init__(self, running: Flow, rate: int) -> None:
        self._flow, self._step_s, self._step = running, 0.2, max(1, rate // 5)
        self._sent, self._running = 0, threading.Event()
        self._is_hurried = False
        self._thread = threading.Thread(target=self._run)
        self._lock = threading.Lock()
        self._producer: EventProducer
        self.failure = ""

    def start(self) -> None:
        """Begin, or go on, with a client of its own."""
        self._producer = EventProducer(self._flow.settings.kafka_connection)
        self._running.set()
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> int:
        """Return once all that was sent is acknowledged: nothing will be retried. How many events that are."""
        self._running.clear()
        with self._lock:
            assert self._producer.flush(60) == 0
        return self._sent

    def finish(self) -> None:
        """Send what is left at once."""
        self._is_hurried = True
        self._running.set()
        self._thread.join()
        assert not self.failure, self.failure

    def _run(self) -> None:
        try:
            while self._sent < len(self._flow.events.lines):
                self._running.wait()
                with self._lock:
                    if self._running.is_set():
                        self._send_step()
                if not self._is_hurried:
                    time.sleep(self._step_s)
            missing = self._producer.flush(120)
            self.failure = f"{missing} messages were never acknowledged" if missing else ""
        except Exception as error:
            self.failure = f"the producers ended: {error!r}"
            raise

    def _send_step(self) -> None:
        events, rows = self._flow.events, slice(self._sent, self._sent + self._step)
        keys = [None if key is None else key.encode() for key in events.keys[rows].to_list()]
        self._producer.send(self._flow.settings.topic(EVENTS), keys, events.lines[rows].to_list())
        self._sent += len(keys)


@contextmanager
def under_load(running: Flow, seconds: int = _LOAD_S) -> Iterator[Producers]:
    """Send all events of a flow over so many seconds while the block runs, and what is left behind it. Answers are read all the while: closed counts
    never decrease. Returns once all answers, dead letters and the archive are the truth."""
    producers, reader = Producers(running, len(running.events.lines) // seconds), Reader(running)
    reading = threading.Thread(target=reader.run)
    reading.start()
    producers.start()
    try:
        yield producers
        sent = producers.stop()
        producers.start()
        producers.finish()
        running.wait_until_exact(90)
        running.wait_until_archived(60)
    finally:
        with contextlib.suppress(AssertionError):
            producers.finish()
        reader.stop()
        reading.join()
    assert not reader.problems, reader.problems[:3]
    total = len(running.events.lines)
    print(f"  {sent:,} of {total:,} events were sent meanwhile, and {len(reader.shown)} whole answers read", flush=True)
    assert running.restarts == [], running.restarts
