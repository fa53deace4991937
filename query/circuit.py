"""A circuit breaker before each backend, through `circuitbreaker`: after some failures in a row its circuit is open for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from circuitbreaker import STATE_HALF_OPEN, STATE_OPEN, CircuitBreaker

from infra.errors import Refused, TimedOut, Unavailable

T = TypeVar("T")
_FAILURES, OPEN_S = 3, 2
# A call that probes whether a backend is available again waits for it no longer than this.
_PROBE_S = 0.25


def _is_failure(kind: type[BaseException], _error: BaseException | None) -> bool:
    """Whether an exception counts towards opening the circuit. A refusal is an answer: Redis may refuse writes, and still answer reads."""
    return issubclass(kind, Unavailable) and not issubclass(kind, Refused)


class _Breaker(CircuitBreaker):  # type: ignore[misc]
    """With an injected clock; the library itself reads `time.monotonic`."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._clock, self._opened_at = clock, 0.0
        super().__init__(_FAILURES, OPEN_S, _is_failure, name)

    @property
    def _opened(self) -> float:
        return self._opened_at

    @_opened.setter
    def _opened(self, _library_time: float) -> None:
        self._opened_at = self._clock()

    @property
    def open_remaining(self) -> float:
        """Seconds until the circuit is half open."""
        return self._opened_at + OPEN_S - self._clock()


class Guard:
    """The circuit breaker of one backend. Thread-safe: counts may be off by one under a race, which delays opening by a call."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._breaker = _Breaker(name, clock)
        # While the circuit is half open, one call probes the backend, and only for a short time; the others fail at once.
        self._probing = threading.Lock()
        self._prober = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-probe")

    def call(self, request: Callable[[], T]) -> T:
        """The result of `request`. Raises what it raises, and Unavailable at once while the circuit is open."""
        state = self._breaker.state
        if state == STATE_OPEN or (state == STATE_HALF_OPEN and not self._probing.acquire(blocking=False)):
            raise Unavailable(f"{self._name}: circuit open after {self._breaker.last_failure}")
        if state != STATE_HALF_OPEN:
            return self._try(request)
        try:
            return self._prober.submit(self._probe, request).result(_PROBE_S)
        except TimeoutError:
            raise Unavailable(f"{self._name} does not answer") from None

    def _try(self, request: Callable[[], T]) -> T:
        with self._breaker:
            try:
                return request()
            except (TimedOut, Refused):
                raise
            except Unavailable:
                # The backend may have closed a connection while it was idle, which its next user finds out. Requests are reads here,
                # so one retry is safe; a time-out has taken long enough.
                return request()

    def _probe(self, request: Callable[[], T]) -> T:
        try:
            return self._try(request)
        finally:
            self._probing.release()
