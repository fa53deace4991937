"""Faults that are injected into a running stack: each ends by itself, at moments drawn from a seed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

from tests.flow import worker_environment
from tests.product import Product

WORKERS = ("ingest-0", "ingest-1", "archive-0", "stream-0", "stream-1")
BACKENDS = ("kafka", "redis", "clickhouse")
# What is done, how often out of a hundred, and to what.
_KINDS = (
    ("kill", 40, (*WORKERS, *BACKENDS, "query-0")),
    ("stop", 15, WORKERS),
    ("pause", 15, (*WORKERS, *BACKENDS, "query-0")),
    ("outage", 15, BACKENDS),
    ("extra worker", 10, ("ingest", "stream")),
    ("supervisor", 5, ("supervisor",)),
)
# Longer than a session (6 s) and than an open transaction (8 s).
_STOP_S, _EXTRA_S = (9.0, 15.0), (10.0, 20.0)
# As a process on a machine with too much to do: shorter than a session, longer than anything that two looks lie apart.
_PAUSE_S = (0.1, 3.0)
# Sooner than any backend can start.
_KILL_EVERY_S = 0.1
_SUPERVISOR_AWAY_S = 1.0


@dataclass(frozen=True)
class Strike:
    """One fault, `at_s` after the start; `seconds`: how long it lasts, 0 for one of a moment."""

    at_s: float
    kind: str
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind} {self.target}{lasting}"


def plan(count: int, over_s: float, rng: random.Random, outage_s: tuple[float, float]) -> list[Strike]:
    """Draw `count` strikes over `over_s` seconds, each kind at least once if there are enough."""
    kinds = [k for k, *_ in _KINDS][:count]
    kinds += rng.choices([k for k, *_ in _KINDS], [weight for _, weight, _ in _KINDS], k=count - len(kinds))
    rng.shuffle(kinds)
    targets = {kind: names for kind, _, names in _KINDS}
    lasting = {"stop": _STOP_S, "pause": _PAUSE_S, "outage": outage_s, "extra worker": _EXTRA_S}
    moments = sorted(rng.uniform(3.0, over_s) for _ in kinds)
    return [
        Strike(at, kind, rng.choice(targets[kind]), rng.uniform(*lasting[kind]) if kind in lasting else 0.0)
        for at, kind in zip(moments, kinds, strict=True)
    ]


class Striker:
    """Carries a plan out. Strikes may overlap, but for the supervisor's, which has the stack to itself."""

    def __init__(self, product: Product, words: tuple[str, ...]) -> None:
        self._product, self._words = product, words
        self._lasting: list[threading.Thread] = []
        self._stop = threading.Event()
        self.carried_out: list[tuple[float, float, Strike]] = []
        """(began, ended, strike), in clock time of `time.monotonic`."""
        self.failures: list[str] = []
        """Strikes that could not be carried out."""

    def run(self, strikes: list[Strike]) -> None:
        """Carry out all strikes; blocks until the last one has ended."""
        start = time.monotonic()
        for strike in strikes:
            if self._stop.wait(max(0.0, start + strike.at_s - time.monotonic())):
                break
            print(f"{time.monotonic() - start:6.0f} s  {strike}", flush=True)
            if strike.kind == "supervisor":
                for thread in self._lasting:
                    thread.join()
            if strike.seconds:
                thread = threading.Thread(target=self._carry_out, args=(strike,))
                thread.start()
                self._lasting.append(thread)
            else:
                self._carry_out(strike)
        for thread in self._lasting:
            thread.join()

    def stop(self) -> None:
        """Skip the strikes to come, and end those under way."""
        self._stop.set()

    def _carry_out(self, strike: Strike) -> None:
        began = time.monotonic()
        try:
            self._strike(strike)
        except Exception as error:
            self.failures.append(f"{strike}: {error!r}")
        self.carried_out.append((began, time.monotonic(), strike))

    def _strike(self, strike: Strike) -> None:
        {"kill": self._kill, "stop": self._halt, "pause": self._halt, "outage": self._outage, "extra worker": self._extra,
         "supervisor": self._supervisor}[strike.kind](strike)  # fmt: skip

    def _send(self, name: str, number: signal.Signals) -> psutil.Process | None:
        """Signal the process of that name, if it runs. Never by its pid file alone: a pid is soon that of another process."""
        process = self._product.folder.processes().get(name)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return process

    def _kill(self, strike: Strike) -> None:
        self._send(strike.target, signal.SIGKILL)

    def _halt(self, strike: Strike) -> None:
        process = self._send(strike.target, signal.SIGSTOP)
        self._stop.wait(strike.seconds)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _outage(self, strike: Strike) -> None:
        """Nothing answers at the backend's port for long: it is killed as often as its supervisor starts it."""
        end = time.monotonic() + strike.seconds
        while time.monotonic() < end and not self._stop.wait(_KILL_EVERY_S):
            self._send(strike.target, signal.SIGKILL)

    def _extra(self, strike: Strike) -> None:
        """One more worker, for a while; it leaves its group before it ends."""
        secret = str(self._product.folder.state()["user_secret"])
        name = f"{strike.target}-extra-{int(strike.at_s)}"
        variables = worker_environment(self._product.settings, name, ADCLICK_USER_SECRET=secret) | self._product.env
        log = self._product.folder.log(f"{strike.target}-extra").open("ab")
        with log, subprocess.Popen([sys.executable, "-m", "infra", strike.target], env=variables, stderr=log) as worker:
            self._stop.wait(strike.seconds)
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()

    def _supervisor(self, _strike: Strike) -> None:
        self._send("supervisor", signal.SIGKILL)
        self._stop.wait(_SUPERVISOR_AWAY_S)
        self._product.up(*self._words)
