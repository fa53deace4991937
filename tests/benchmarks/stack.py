"""A private stack with a prefilled topic, and what its processes use: what all benchmarks begin with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from infra.cli.app import App
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.client import make_producer
from infra.settings import Settings
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, Truth, generate_events
from tests.flow import worker_environment

ADCLICK = [sys.executable, "-m", "infra"]
RESULTS = Path(".bench")
# Events that are made in memory: 600 bytes each.
_AT_ONCE = 10_000_000
# The longest that brokers allow by default, and for workers to start.
_HELD_BACK_MS, _START_S = 900_000, 180.0
_LOOK_S, _QUIET_LOOKS, _QUIET_CORES = 2.0, 4, 0.6


@dataclass(frozen=True)
class Filled:
    """What the topic holds: `total` messages that begin at `start_ms` and cover `span_ms`."""

    truth: Truth
    total: int
    start_ms: int
    span_ms: int
    generated_per_s: float
    replayed_per_s: float


class Bench:
    """A stack without workers until they are started here."""

    def __init__(self, work: Path) -> None:
        self.work, self.stack = work, work / "stack"
        words = [
            "up",
            "--dir",
            str(self.stack),
            "--ingest-workers",
            "0",
            "--stream-workers",
            "0",
            "--notify-workers",
            "0",
            "-q",
        ]
        # Not detached: in one session with the workers that are started here, as all are that the supervisor starts.
        self._supervisor = subprocess.Popen([*ADCLICK, *words], stdout=subprocess.DEVNULL, process_group=0)
        folder = Folder(self.stack)
        while not folder.ready():
            assert self._supervisor.poll() is None, "the stack did not start"
            time.sleep(0.1)
        self.app = App(str(self.stack), False, False, True)
        self.settings: Settings = self.app.settings
        self.admin = Admin(self.settings.kafka_connection)
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def fill(self, spec: Spec) -> Filled:
        """Make events and send them, as `adclick generate` and `adclick replay` do; many in slices of the span."""
        generating, replaying, total, truths = 0.0, 0.0, 0, list[Truth]()
        for part in slices(spec):
            began = time.monotonic()
            made = generate_events(part)
            write_lines(made, self.work / "events.ndjson")
            # Its sums by minute and campaign are all that is asked for here, and far fewer than by all dimensions.
            truths.append(Truth(_narrowed(made.truth.counts), made.truth.dead))
            total += len(made.lines)
            del made
            generated = time.monotonic()
            replay_files(self.app, [self.work / "events.ndjson"], Pace())
            generating, replaying = generating + generated - began, replaying + time.monotonic() - generated
            (self.work / "events.ndjson").unlink()
        truth = Truth(_narrowed(pl.concat(t.counts for t in truths)), pl.concat(t.dead for t in truths))
        return Filled(truth, total, spec.start_ms, spec.span_ms, total / generating, total / replaying)

    @contextmanager
    def events_held_back(self) -> Iterator[None]:
        """Readers of committed messages get no event that is sent from now on, until this ends: an open transaction is before them."""
        gate = make_producer(
            self.settings.kafka_connection, {"transactional.id": "gate", "transaction.timeout.ms": _HELD_BACK_MS}
        )
        gate.init_transactions(30)
        gate.begin_transaction()
        for partition in range(self.settings.event_partitions):
            gate.produce(topics.EVENTS, b"{}", partition=partition)
        gate.flush()
        try:
            yield
        finally:
            gate.abort_transaction(30)

    def wait_until_idle(self) -> float:
        """Wait until workers have taken over what is theirs; returns how many CPU seconds all processes have used for that."""
        watched, quiet, deadline = self.processes().values(), 0, time.monotonic() + _START_S
        used = first = sum(map(cpu_s, watched))
        while quiet < _QUIET_LOOKS:
            assert time.monotonic() < deadline, "workers are not idle though there is nothing to do"
            assert all(w.poll() is None for w in self._workers.values()), "a worker has stopped"
            time.sleep(_LOOK_S)
            before, used = used, sum(map(cpu_s, watched))
            quiet = quiet + 1 if used - before < _QUIET_CORES * _LOOK_S else 0
        return used - first

    def start(self, ingest: int, stream: int) -> None:
        """Start workers; they are watched from now on."""
        for kind, count in (("stream", stream), ("ingest", ingest)):
            for name in (f"{kind}-{n}" for n in range(count)):
                environment = worker_environment(self.settings, name, ADCLICK_USER_SECRET="bench")
                # As the supervisor starts them.
                self._workers[name] = subprocess.Popen([*ADCLICK, kind, "-q"], env=environment, process_group=0)

    def stop(self) -> None:
        """Stop the workers that were started."""
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.wait(15)
        self._workers.clear()

    def close(self) -> None:
        """Stop everything."""
        self.stop()
        self._supervisor.terminate()
        self._supervisor.wait(60)

    def processes(self) -> dict[str, psutil.Process]:
        """All that the product is made of here."""
        stack = {n: p for n, p in Folder(self.stack).processes().items() if n != "supervisor"}
        return stack | {name: psutil.Process(worker.pid) for name, worker in self._workers.items()}

    def consumed(self, group: str = topics.INGEST_GROUP, topic: str = topics.EVENTS) -> int:
        """How many offsets of a topic a group has committed."""
        committed = self.admin.committed(group, topic, self.settings.event_partitions)
        return sum(max(0, c.offset) for c in committed)

    def written(self) -> dict[str, int]:
        """Bytes on disk by what wrote them: each topic, Redis' log, ClickHouse, the archive."""

        def size(folder: Path, pattern: str = "*") -> int:
            return sum(f.stat().st_size for f in folder.rglob(pattern) if f.is_file())

        found: dict[str, int] = {}
        for folder in sorted((self.stack / "kafka" / "data").glob("ad-*-*")):
            name = "kafka_" + folder.name.rsplit("-", 1)[0].replace("-", "_")
            found[name] = found.get(name, 0) + size(folder, "*.log")
        others = {"redis": self.stack / "redis", "clickhouse": self.stack / "clickhouse"}
        return found | {n: size(f) for n, f in others.items()} | {"archive": size(Path(self.settings.archive))}


def slices(spec: Spec) -> list[Spec]:
    """Equal parts of the span, one after the other, each of as many events as are made at once."""
    count = max(1, round(spec.events / _AT_ONCE))
    edges, span_ms = [spec.events * n // count for n in range(count + 1)], spec.span_ms // count
    return [
        replace(spec, events=b - a, seed=spec.seed + n, start_ms=spec.start_ms + n * span_ms, span_ms=span_ms)
        for n, (a, b) in enumerate(pairwise(edges))
    ]


def _narrowed(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.group_by("minute_ms", "campaign_id").agg(pl.col("^(stream|batch)_.*$").sum())


@contextmanager
def bench() -> Iterator[Bench]:
    """A stack that is gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix="adclick-bench-"))
    made = None
    try:
        made = Bench(work)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(work, ignore_errors=True)


def across_midnight(span_ms: int) -> int:
    """When events over `span_ms` begin that cross a UTC midnight, and whose minutes are held; else they end an hour ago. Questions reach
    an hour further back."""
    midnight = now_ms() // DAY_MS * DAY_MS
    start = (midnight - span_ms // 2) // MINUTE_MS * MINUTE_MS
    if now_ms() - start > 22.6 * HOUR_MS or start + span_ms > now_ms():
        return (now_ms() - HOUR_MS - max(span_ms, HOUR_MS)) // MINUTE_MS * MINUTE_MS
    return start


def cpu_s(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def peak_mb(process: psutil.Process) -> int:
    """The most memory that a process has had."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    return 0


def save(name: str, report: dict[str, Any]) -> None:
    """As flat JSON into .bench."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
