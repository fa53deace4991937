"""A circuit breaker before each backend, through `circuitbreaker`: what fails again and again is left alone for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from circuitbreaker import STATE_HALF_OPEN, STATE_OPEN, CircuitBreaker

from infra.errors import Refused, TimedOut, Unavailable

T = TypeVar("T")
_FAILURES, _LEFT_ALONE_S = 3, 2
# Whoever finds out whether a backend is there again waits for it no longer than this.
_PROBED_S = 0.25


def _is_failure(kind: type[BaseException], _error: BaseException | None) -> bool:
    """Whether an exception counts towards opening. A backend that refuses has answered: it may refuse a write, and still read."""
    return issubclass(kind, Unavailable) and not issubclass(kind, Refused)


class Guard:
    """Of one backend. Thread-safe: counts may be off by one under a race, which delays opening by a call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._breaker = CircuitBreaker(_FAILURES, _LEFT_ALONE_S, _is_failure, name)
        # One question finds out whether it is back; the others do not wait for that, and it not for long.
        self._probing = threading.Lock()
        self._prober = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-probe")

    def call(self, ask: Callable[[], T]) -> T:
        """The answer. Raises Unavailable, at once while the breaker is open."""
        state = self._breaker.state
        if state == STATE_OPEN or (state == STATE_HALF_OPEN and not self._probing.acquire(blocking=False)):
            raise Unavailable(f"{self._name} is left alone for a moment: {self._breaker.last_failure}")
        if state != STATE_HALF_OPEN:
            return self._asked(ask)
        try:
            return self._prober.submit(self._probe, ask).result(_PROBED_S)
        except TimeoutError:
            raise Unavailable(f"{self._name} does not answer") from None

    def _asked(self, ask: Callable[[], T]) -> T:
        with self._breaker:
            try:
                return ask()
            except (TimedOut, Refused):
                raise
            except Unavailable:
                # A connection that the backend closed while it lay idle is found broken by whoever uses it next. All that is
                # asked here are questions, so asking again is safe; but not what has been waited for already.
                return ask()

    def _probe(self, ask: Callable[[], T]) -> T:
        try:
            return self._asked(ask)
        finally:
            self._probing.release()
