"""What every worker does as a process: its name, its end by signal, garbage collection, and what it does every so often."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import threading
import time
from typing import Protocol

from infra import logs, migration
from infra.cli.app import App
from infra.priority import give_way
from infra.settings import Settings
from infra.wait_reports import reporting

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker(Protocol):
    """A worker that runs in one thread."""

    def run(self) -> None:
        """Blocks until `stop` is called."""

    def stop(self) -> None:
        """Called from a signal handler: finish the work at hand."""


def worker_name(kind: str) -> str:
    """The supervisor's name for this process, or one that no other process has.

    A worker's transactional id carries it. In containers that share a host's name every worker may be process 1.
    """
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return os.environ.get("ADCLICK_WORKER") or f"{kind}-{unique}"


def start_worker(app: App, kind: str, niceness: int) -> str:
    """The first steps of a worker's command, before it has other threads: its log, its priority, waiting for the topics.
    Returns the worker's name. Raises UserError without topics."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(niceness)
    migration.wait_for_topics(app.settings, logs.get(kind))
    return worker_name(kind)


def run_until_signal(worker: Worker, settings: Settings, name: str) -> None:
    """Run a worker in this thread; SIGTERM and Ctrl-C stop it in order."""
    stop_on_signals(worker)
    freeze_heap()
    with reporting(settings, name):
        worker.run()


def stop_on_signals(worker: Worker) -> None:
    """Let SIGTERM and Ctrl-C stop a worker in order."""
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: worker.stop())


def freeze_heap() -> None:
    """Keep garbage collection short, once start-up is done: leave out what that has made, and collect less often.

    A batch or a flush makes thousands of objects, none of them part of a cycle: do not walk them over and over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)


class StopSignal:
    """SIGTERM or Ctrl-C, for the tasks of the running loop and for threads."""

    def __init__(self) -> None:
        """Called within the loop."""
        self.for_threads = threading.Event()
        self._for_tasks = asyncio.Event()
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._set)

    def _set(self) -> None:
        self.for_threads.set()
        self._for_tasks.set()

    @property
    def came(self) -> bool:
        """Whether the process was told to stop."""
        return self._for_tasks.is_set()

    async def wait(self, seconds: float) -> None:
        """Until it comes, but no longer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._for_tasks.wait(), seconds)


class Every:
    """Says when something is due that is done every so many seconds, at first after as many."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time again; begins the next period if so."""
        now = time.monotonic()
        if now - self._last <= self._seconds:
            return False
        self._last = now
        return True
