"""Sends batches of events at a pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from infra.cli.app import App
from infra.clock import DAY_MS, MINUTE_MS
from infra.errors import UsageError
from infra.kafka.event_producer import EventProducer
from ingest.replay.replay_batch import ReplayBatch

# A slice, and what may wait for Kafka before the next one: together less than the producer's queue takes.
_SLICE, _SLICE_BYTES = 20_000, 64 << 20
_QUEUED, _QUEUED_BYTES = 300_000, 256 << 20
_NEAR_MS = 30 * MINUTE_MS
# A time is far off when it is so from the median of this many before and behind it.
_NEIGHBOURS = 10
_LONGEST_MS = 10 * 365 * DAY_MS
# After a stop, what is on its way to Kafka is waited for this long.
_LAST_FLUSH_S = 10.0


@dataclass(frozen=True)
class Pace:
    """How fast to send: events a second, or as the events' own times say; neither means as fast as it goes."""

    rate: float | None = None
    real_time: bool = False


def parse_pace(text: str) -> Pace:
    """`max`, `real-time` or a number. Raises UsageError."""
    if text == "max":
        return Pace()
    if text == "real-time":
        return Pace(real_time=True)
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e9:
        raise UsageError(f"not a rate: {text}", hint="events a second, max, or real-time")
    return Pace(rate=rate)


class EventTimeSchedule:
    """When lines are due that are sent at the pace of their own event times."""

    def __init__(self) -> None:
        self._first_ms: float | None = None
        self._last_due_ms = 0

    def due_ms(self, times_ms: Sequence[int | None]) -> npt.NDArray[np.int64]:
        """When each of the next lines is due, in ms since the first. One without a time, late or far off goes with its neighbours."""
        known = np.array([time for time in times_ms if time is not None], np.float64)
        if not len(known):
            return np.full(len(times_ms), self._last_due_ms, np.int64)
        usual = np.median(sliding_window_view(np.pad(known, _NEIGHBOURS, mode="edge"), 2 * _NEIGHBOURS + 1), axis=1)
        if self._first_ms is None:
            self._first_ms = float(np.median(known[: 2 * _NEIGHBOURS]))
        offsets = np.full(len(times_ms), self._last_due_ms, np.int64)
        near = np.where(np.abs(known - usual) <= _NEAR_MS, known - self._first_ms, 0)
        offsets[[time is not None for time in times_ms]] = np.clip(near, 0, _LONGEST_MS).astype(np.int64)
        due_ms = np.maximum.accumulate(np.maximum(offsets, self._last_due_ms))
        self._last_due_ms = int(due_ms[-1])
        return due_ms


class Sender:
    """Sends batches at a pace, until `stop` is set."""

    def __init__(self, producer: EventProducer, topic: str, pace: Pace, stop: threading.Event) -> None:
        self.producer, self._topic, self._pace, self._stop = producer, topic, pace, stop
        self.sent = 0
        self._began, self._schedule = time.monotonic(), EventTimeSchedule()

    def send(self, batch: ReplayBatch, advance: Callable[[int], object]) -> None:
        """Send all lines, in slices that keep the pace; `advance(n)` is called for each."""
        if self._pace.real_time:
            self._send_real_time(batch, advance)
            return
        usual = max(1, min(_SLICE, _SLICE_BYTES * len(batch.lines) // max(1, sum(map(len, batch.lines)))))
        size = usual if self._pace.rate is None else max(1, min(usual, int(self._pace.rate / 20)))
        for start in range(0, len(batch.lines), size):
            if self._stop.is_set():
                return
            self._send_slice(batch, start, start + size, advance)
            if self._pace.rate is not None:
                self._stop.wait(max(0.0, self._began + self.sent / self._pace.rate - time.monotonic()))

    def _send_real_time(self, batch: ReplayBatch, advance: Callable[[int], object]) -> None:
        due_ms = self._schedule.due_ms(batch.times_ms)
        start = 0
        while start < len(batch.lines) and not self._stop.is_set():
            elapsed = (time.monotonic() - self._began) * 1000
            end = int(np.searchsorted(due_ms, elapsed, side="right"))
            if end > start:
                self._send_slice(batch, start, end, advance)
                start = end
            else:
                self._stop.wait(min(0.2, max(0.001, (due_ms[start] - elapsed) / 1000)))

    def _send_slice(self, batch: ReplayBatch, start: int, end: int, advance: Callable[[int], object]) -> None:
        lines = batch.lines[start:end]
        if not self._wait_for_room(sum(map(len, lines)) // max(1, len(lines))):
            return
        self.producer.send(self._topic, batch.keys[start:end], lines)
        self.sent += len(lines)
        advance(len(lines))

    def _wait_for_room(self, line_bytes: int) -> bool:
        """Wait until the producer's queue takes a slice without blocking, which it would deaf to a stop; False once stopped."""
        most = min(_QUEUED, _QUEUED_BYTES // max(1, line_bytes))
        while not self._stop.is_set():
            if self.producer.flush(0.0) <= most or self.producer.flush(0.1) <= most:
                return True
        return False

    def finish(self, app: App) -> int:
        """Wait for the acknowledgements, as long as it takes; returns how many events are not acknowledged."""
        announced, stopped_at = False, None
        while self.producer.flush(0.5):
            if self._stop.is_set():
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > _LAST_FLUSH_S:
                    break
            elif not announced and self.producer.flush(1.5):
                app.say("waiting for Kafka to acknowledge events (Ctrl-C gives up)")
                announced = True
        return self.sent - self.producer.acknowledged
