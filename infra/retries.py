"""Waiting for a backend: capped exponential pauses with full jitter, one line in the log when a wait begins, when its reason
changes, and when it is over. `WAITS` has what this process waits for at the moment."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import tenacity

from infra.errors import ClientBroken, Unavailable

T = TypeVar("T")
# How often a session with nothing to do tries whether what ended the ones before is over.
_PROBE_EVERY_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
WATCH = "watch"
"""Looking for clients that hang, and for topics that were made again."""
SIDE_WORK = frozenset({"reach", WATCH})
"""What workers do beside counting. While it waits, counting goes on."""


class Waits:
    """What threads of this process wait for, by backend; what side work waits for, by its name. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._reasons: dict[object, tuple[float, str, str]] = {}

    def begin(self, waiter: object, error: BaseException, side_work: str = "") -> None:
        """Note why `waiter` waits, in place of any earlier reason of its own. `side_work`: which of SIDE_WORK it does, if any."""
        name = side_work or getattr(error, "backend", "") or "pipeline"
        reason = f"{side_work}: {error}" if side_work else str(error)
        with self._lock:
            since, *_ = self._reasons.get(waiter, (self._clock(), "", ""))
            self._reasons[waiter] = (since, name, reason)

    def end(self, waiter: object) -> None:
        """Drop the reason of `waiter`: it waits no longer."""
        with self._lock:
            self._reasons.pop(waiter, None)

    def reasons(self, longer_than_s: float = 0.0) -> dict[str, str]:
        """backend → why this process waits for it, for longer than that; `pipeline` where it is none of the backends, and the name of
        side work that waits."""
        latest = self._clock() - longer_than_s
        with self._lock:
            return {name: reason for since, name, reason in self._reasons.values() if since <= latest}

    def holds_counting_up(self) -> bool:
        """Whether anything but side work waits."""
        return not self.reasons().keys() <= SIDE_WORK


WAITS = Waits()


def pause_s(failures: int, first_s: float = _FIRST_PAUSE_S, longest_s: float = _LONGEST_PAUSE_S) -> float:
    """How long to pause after so many failures in a row: anything up to a limit that doubles each time, up to a cap."""
    # Beyond 2**1023 a power of two is no float any more.
    return random.uniform(0.0, min(longest_s, first_s * 2.0 ** min(failures, 64)))


def patiently(call: Callable[[], T], stop: threading.Event, log: Any, *, cap_s: float = 5.0) -> T:
    """The result of `call`, tried until it no longer raises Unavailable; raises that once `stop` is set."""
    began, waiter, reason = time.monotonic(), object(), ""

    def note(attempt: tenacity.RetryCallState) -> None:
        nonlocal reason
        error = attempt.outcome.exception() if attempt.outcome is not None else None
        if error is None:
            return
        WAITS.begin(waiter, error)
        if _kind(error) != reason:
            reason = _kind(error)
            log.warning("waiting for a backend", why=str(error))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=cap_s),
        stop=tenacity.stop_when_event_set(stop),
        before_sleep=note,
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )
    try:
        result = retrying(call)
    finally:
        WAITS.end(waiter)
    if retrying.statistics.get("attempt_number", 1) > 1:
        log.info("the backend is back", seconds=round(time.monotonic() - began, 1))
    return result


def _kind(error: BaseException) -> str:
    """What makes two reasons different: not the numbers and names in their texts."""
    return f"{type(error).__name__} {getattr(error, 'backend', '')} {getattr(error, 'code', '')}"


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """The result of a blocking call of a client, in a thread that is given up when it does not return in time.

    Librdkafka 2.16 can lose the answer to a request of its own while the broker is away, and then waits for it for ever,
    whatever time-out it was given (seen in `send_offsets_to_transaction`). Raises ClientBroken: only a new client goes on.
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
        raise ClientBroken(f"the client did not {what} within {limit_s:.0f} s") from None
    if error is not None:
        raise error
    return cast(T, value)


class Sessions:
    """Runs one session after the other until `stop` is set, with a growing pause after each that ends with one of `losses`.

    A series of losses is logged when it begins, when its reason changes, and when it is over: once something has worked. That a
    session lasts says nothing: it may be waiting. All is called from the thread of `run`.

    Tenacity would not make it shorter: here failures are counted from the last time that something worked, not by attempts, and
    a stop ends the loop without an error.
    """

    def __init__(
        self,
        stop: threading.Event,
        log: Any,
        losses: tuple[type[BaseException], ...],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[int], float] = pause_s,
        side_work: str = "",
    ) -> None:
        """`side_work`: which of SIDE_WORK the sessions do, if any."""
        self._side_work = side_work
        self._stop, self._log, self._losses, self._clock, self._pause_s = stop, log, losses, clock, pause
        self._failures, self._began, self._reason, self._probe_at = 0, 0.0, "", 0.0

    def run(self, session: Callable[[], None]) -> None:
        """Blocks until `stop` is set. Raises what a session raises beside `losses`."""
        try:
            while not self._stop.is_set():
                try:
                    session()
                except self._losses as error:
                    self._stop.wait(self._pause_s(self._lost(error)))
        finally:
            WAITS.end(self)

    def works(self) -> None:
        """The session at hand has done what it is for: a series of losses is over. Cheap where there was none."""
        if not self._failures:
            return
        failures, self._failures, self._reason = self._failures, 0, ""
        WAITS.end(self)
        self._log.info("works again", failures=failures, seconds=round(self._clock() - self._began, 1))

    def maybe_probe(self, probe: Callable[[], object]) -> None:
        """For a session that has nothing to do: within a series of losses, now and then try what the session needs; where that
        works, the series is over. Raises what `probe` raises."""
        if self._failures and self._clock() >= self._probe_at:
            self._probe_at = self._clock() + _PROBE_EVERY_S
            probe()
            self.works()

    def postpone_probe(self) -> None:
        """The session has just become ready for work, which may come at once: probe no earlier than some seconds from now."""
        self._probe_at = self._clock() + _PROBE_EVERY_S

    def _lost(self, error: BaseException) -> int:
        if not self._failures:
            self._began = self._clock()
        self._failures += 1
        self.postpone_probe()
        WAITS.begin(self, error, self._side_work)
        if _kind(error) != self._reason:
            self._reason = _kind(error)
            self._log.warning("starting over", why=str(error), failures=self._failures)
        return self._failures
