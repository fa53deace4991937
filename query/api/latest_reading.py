"""What is read for scrapes in a thread of its own and kept for a while, so that a slow store holds no scrape up."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from infra.errors import AdclickError

T = TypeVar("T")
# What changes once a day is not read for each scrape; nor is a store that could not answer asked at each.
FRESH_S, _RETRY_S = 600.0, 60.0
# Of a thread: what takes long to read is read less often.
_BUSY_SHARE = 0.01
# Prometheus gives a scrape ten seconds.
_WAIT_S = 2.0


class LatestReading(Generic[T]):
    """The result of a function that reads a store. Thread-safe."""

    def __init__(
        self, read: Callable[[], T], clock: Callable[[], float] = time.monotonic, wait_s: float = _WAIT_S,
        fresh_s: float = FRESH_S,
    ) -> None:  # fmt: skip
        """`wait_s`: for how long a scrape waits for what is being read; `fresh_s`: for how long it is kept at least, and a hundred times
        as long as reading it took."""
        self._read, self._clock, self._wait_s, self._fresh_s = read, clock, wait_s, fresh_s
        self._pool, self._lock = ThreadPoolExecutor(1, "reading"), threading.Lock()
        self._reading: Future[None] | None = None
        self._latest: T | None = None
        self._expires_s = -math.inf

    def get(self) -> T | None:
        """What was read lately, by default at most ten minutes ago; None where the last read failed, or the first one still lasts. The
        other metrics are worth more than an error."""
        with self._lock:
            if self._reading is None or (self._reading.done() and self._clock() >= self._expires_s):
                self._reading = self._pool.submit(self._refresh)
            reading = self._reading
        try:
            reading.result(self._wait_s)
        except TimeoutError:
            pass  # a later scrape has it
        return self._latest

    def _refresh(self) -> None:
        began_s = self._clock()
        try:
            self._latest, fresh_s = self._read(), self._fresh_s
            fresh_s = max(fresh_s, (self._clock() - began_s) / _BUSY_SHARE)
        except AdclickError:
            self._latest, fresh_s = None, _RETRY_S
        self._expires_s = self._clock() + fresh_s
