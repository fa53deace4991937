"""Waiting for what is away, and for how long: capped exponential pauses with full jitter, and one line in the log when it
begins and ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import tenacity

from infra.errors import Fenced, Unavailable

T = TypeVar("T")
_STEADY_S = 30.0


def patiently(call: Callable[[], T], stop: threading.Event, log: Any, *, cap_s: float = 5.0) -> T:
    """The result of `call`, tried until it no longer raises Unavailable; raises that once `stop` is set."""
    began = time.monotonic()

    def say_once(attempt: tenacity.RetryCallState) -> None:
        if attempt.attempt_number == 1 and attempt.outcome is not None:
            log.warning("waiting for a backend", why=str(attempt.outcome.exception()))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=cap_s),
        stop=tenacity.stop_when_event_set(stop),
        before_sleep=say_once,
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )
    result = retrying(call)
    if retrying.statistics.get("attempt_number", 1) > 1:
        log.info("the backend is back", seconds=round(time.monotonic() - began, 1))
    return result


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """The result of a blocking call of a client, in a thread that is given up when it does not return in time.

    Librdkafka 2.16 can lose the answer to a request of its own while the broker is away, and then waits for it for ever,
    whatever time-out it was given (seen in `send_offsets_to_transaction`). Raises Fenced: only a new client goes on.
    """
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True, name=what).start()
    try:
        value, error = done.get(timeout=limit_s)
    except queue.Empty:
        raise Fenced(f"the client did not {what} within {limit_s:.0f} s") from None
    if error is not None:
        raise error
    return cast(T, value)


def in_sessions(
    session: Callable[[], None], stop: threading.Event, log: Any, losses: tuple[type[BaseException], ...]
) -> None:
    """Run `session` again and again until `stop` is set, with a growing pause after each of `losses`.

    A series of losses is told once, and its end.
    """
    failures = 0
    told = ""
    while not stop.is_set():
        began = time.monotonic()
        try:
            session()
        except losses as error:
            steady = time.monotonic() - began > _STEADY_S
            failures = 1 if steady else failures + 1
            why = f"{type(error).__name__}: {error}"
            if steady or why != told:
                log.warning("starting over", why=str(error), failures=failures)
                told = why
            stop.wait(min(10.0, 0.2 * 2**failures))
