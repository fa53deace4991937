"""Workers as processes on the session's backends, under a namespace of their own, with the truth about what they were sent."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import SecretStr

from infra.clock import HOUR_MS, iso, now_ms
from infra.embedded.supervisor import WORKER_ENV
from infra.errors import AdclickError, Unavailable
from infra.file_store import FileStore
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.dead_letters import letters as dead_letters
from ingest.events import Reason
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from query import formats
from query.demo.oracle import Oracle, compare_dead_letters
from query.demo.questions import DemoQuestion
from query.question import parse_question
from query.router import Router
from tests.conftest import product_environment
from tests.fork_server import ForkedProcess, fork_server
from tests.product import COUNTS, PATIENCE, assert_stays, wait_until

STEP = 5_000


class RouterClient:
    """A client of a router in this process, with the interface of the HTTP client."""

    def __init__(self, settings: Settings) -> None:
        self._router = Router(settings)
        self.warnings: list[str] = []
        """Of the last answer."""

    def get(self, _path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The answer, as a JSON document. On a busy machine a store may not answer in time; then it asks again, as a client does."""
        deadline = time.monotonic() + 10 * PATIENCE
        while True:
            try:
                answer = self._router.answer(parse_question(parameters, now_ms(), self._router.retention))
                break
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        encoded = formats.encode_document(answer, formats.encode_rows(answer, "json"), "USD")
        document: dict[str, Any] = json.loads(encoded)
        self.warnings = [str(warning) for warning in document["warnings"]]
        return document


def environment(settings: Settings) -> dict[str, str]:
    """Settings as variables of a process."""
    variables = {}
    for name, value in settings.model_dump().items():
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        variables[f"ADCLICK_{name.upper()}"] = str(plain)
    return variables


def worker_environment(settings: Settings, name: str, **more: str) -> dict[str, str]:
    """All variables of a worker's process: these settings, and none that this process has."""
    return product_environment() | WORKER_ENV | environment(settings) | {"ADCLICK_WORKER": name} | more


class Flow:
    """Workers, the events they were sent, and a comparison of answers with the truth."""

    def __init__(self, settings: Settings, events: SyntheticEvents, start_ms: int, span_ms: int, log: Path) -> None:
        # Workers lose their places in the group sooner, so that tests need not wait.
        self.settings = settings.model_copy(update={"session_timeout_ms": 2_500, "silent_after_ms": 1_500})
        self.events, self.start_ms, self.end_ms = events, start_ms, start_ms + span_ms
        self._oracle = Oracle(events.truth)
        self._log, self._sent = log, 0
        self.workers = dict[str, ForkedProcess | subprocess.Popen[bytes]]()
        self._warnings: list[str] = []
        self.restarts: list[str] = []
        """The workers that stopped with an error and were started again, as the supervisor does."""
        self.variables = dict[str, str]()
        """Variables of workers that are started from now on, beside their settings."""

    def start(self, name: str, fault: str = "", **more: str) -> ForkedProcess:
        """Start a worker, e.g. `ingest-0`, with a fault armed or none."""
        variables = worker_environment(self.settings, name, ADCLICK_FAULT=fault, **self.variables | more)
        worker = fork_server().start([name.split("-")[0]], variables, self._log)
        self.workers[name] = worker
        return worker

    def stop(self, name: str) -> None:
        """End a worker as its supervisor does, if it runs, and wait until it has ended."""
        self.workers[name].send_signal(signal.SIGTERM)
        wait_until(lambda: self.workers[name].poll() is not None, 10, f"{name} ends")

    def send(self, count: int | None = None) -> None:
        """Send the next messages, all by default."""
        stop = len(self.events.lines) if count is None else self._sent + count
        producer = EventProducer(self.settings.kafka_connection)
        keys = [None if k is None else k.encode() for k in self.events.keys[self._sent : stop].to_list()]
        producer.send(self.settings.topic(EVENTS), keys, self.events.lines[self._sent : stop].to_list())
        assert producer.flush(30) == 0
        self._sent = stop

    def wait_until_killed(self, name: str, seconds: float = 40) -> None:
        """Wait until a fault has ended the worker."""
        code = self.workers[name].wait(seconds * PATIENCE)
        assert code == -signal.SIGKILL, f"{name} ended with {code}\n{self._describe_workers()}"

    def wait_until_halted(self, name: str, seconds: float = 40) -> None:
        """Wait until a fault has halted the worker."""
        status = Path(f"/proc/{self.workers[name].pid}/stat")
        wait_until(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "T", seconds, f"{name} is halted")

    def first_difference(self) -> str:
        """The first difference between answers and truth, of the total, hours in all dimensions and minutes by campaign; empty for none."""
        oracle, client = self._oracle, RouterClient(self.settings)
        campaigns = tuple(oracle.campaigns())
        dimensions = ("campaign_id", "ad_id", "publisher_id", "country", "device")
        # The total is cheap, and nearly always tells that all is not there yet.
        for grain, group_by in (("total", ()), ("hour", dimensions), ("minute", ("campaign_id",))):
            question = DemoQuestion(
                grain, ("campaign_id", campaigns), self.start_ms - HOUR_MS, self.end_ms, grain, group_by
            )
            verdict = oracle.check(client, question)
            if verdict.difference:
                self._warnings = client.warnings
                return f"{grain}: {verdict.difference} (warnings: {client.warnings})"
        return ""

    def is_wrong(self) -> bool:
        """Whether an answer differs from the truth, and does not say that something is missing: a store may be slow for a moment."""
        return bool(self.first_difference()) and not self._warnings

    def shown_events(self, campaigns: tuple[int, ...], start_ms: int) -> int:
        """How many events of campaigns since a moment the answers have."""
        # An event may be some minutes ahead of the clock.
        end = iso(now_ms() + HOUR_MS)
        parameters = [("campaign_id", ",".join(map(str, campaigns))), ("start", iso(start_ms)), ("end", end)]
        rows = RouterClient(self.settings).get("", [*parameters, ("granularity", "total")])["data"]
        return sum(row[name] for row in rows for name in COUNTS)

    def parameters(self) -> list[tuple[str, str]]:
        """The parameters of a question about all campaigns and the whole range; it lacks a granularity."""
        campaigns = ",".join(map(str, self._oracle.campaigns()))
        return [("campaign_id", campaigns), ("start", iso(self.start_ms - HOUR_MS)), ("end", iso(self.end_ms))]

    def wait_until_something_is_shown(self, *, or_one_ends: bool = False) -> None:
        """Wait until answers have rows: the workers are at work then. Or until a worker has ended."""
        client = RouterClient(self.settings)

        def is_shown() -> bool:
            ended = or_one_ends and any(worker.poll() is not None for worker in self.workers.values())
            return bool(ended or client.get("", self.parameters())["rows"])

        wait_until(is_shown, 40, self._describe_workers)

    def wait_until_archived(self, seconds: float) -> None:
        """Wait until the archive has each valid event of the topic once, whatever its files repeat."""
        dead = self.events.truth.dead.filter(pl.col("reason") != "too-late").height
        valid = len(self.events.lines) - dead
        keys, store = ["partition", "offset"], FileStore(self.settings.archive)

        def archived() -> int:
            files = archive_files.parse_names(store.files())
            if not files:
                return 0
            rows = pl.concat(
                archive_files.read_columns(store, f.name, [*keys, "event_id", "decision"]).with_columns(
                    pl.col("decision").cast(pl.String)
                )
                for f in files
            )
            assert rows.unique().height == rows.unique(keys).height
            return rows.unique(keys).height

        wait_until(lambda: archived() >= valid, seconds, lambda: f"{valid} archived, and not {archived()}")
        assert archived() == valid

    def restart_stopped(self) -> None:
        """Start the workers again that have stopped with an error of their own."""
        for name, worker in list(self.workers.items()):
            if (worker.poll() or 0) > 0:
                self.restarts.append(name)
                self.start(name)

    def _is_exact(self) -> bool:
        self.restart_stopped()
        return not self.first_difference()

    def _describe_difference(self) -> str:
        return f"{self.first_difference()}\n{self._describe_workers()}"

    def _describe_workers(self) -> str:
        """What the workers do, the beginning of a crash in their log, and its end."""
        states = {name: "runs" if w.poll() is None else f"exit code {w.poll()}" for name, w in self.workers.items()}
        lines = self._log.read_text(errors="replace").splitlines()
        crash = next((n for n, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
        log = "\n".join(line[:300] for line in [*lines[crash : crash + 60], *lines[-30:]])
        return f"workers: {states}, started again: {self.restarts}\n{log}"

    def wait_until_exact(self, seconds: float) -> None:
        """Wait until all answers and dead letters are the truth, and see that answers stay so."""
        wait_until(self._is_exact, seconds, self._describe_difference)
        assert_stays(lambda: not self.is_wrong(), 1.0, self._describe_difference)
        wait_until(self._is_exact, seconds, self._describe_difference)
        # What was set aside is no verdict on an event.
        letters = [(x.value, x.headers["reason"]) for x in self._letters() if x.headers["reason"] != Reason.UNREADABLE]
        assert not compare_dead_letters(self.events.truth, self.events.lines, letters)

    def _letters(self) -> list[dead_letters.Letter]:
        """All dead letters. On a busy machine a broker may not answer in time; then it is asked again."""
        deadline = time.monotonic() + 10 * PATIENCE
        while True:
            try:
                return list(dead_letters.read_letters(self.settings))
            except AdclickError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


@contextmanager
def flow(settings: Settings, folder: Path, start_ms: int | None = None, **spec: Any) -> Iterator[Flow]:
    """A flow whose workers end with it; its events begin five hours ago, or at `start_ms`."""
    span_ms = 3 * HOUR_MS
    start_ms = (now_ms() - 5 * HOUR_MS) // HOUR_MS * HOUR_MS if start_ms is None else start_ms
    usual = {"events": STEP, "campaigns": 40, "late": 0.01, "malformed": 0.005, "duplicates": 0.05, "seed": 5} | spec
    running = Flow(
        settings, generate_events(Spec(start_ms=start_ms, span_ms=span_ms, **usual)), start_ms, span_ms, folder / "log"
    )
    try:
        yield running
    finally:
        for worker in running.workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait(10 * PATIENCE)
