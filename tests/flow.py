"""Workers as processes on the session's backends, under a namespace of their own, with the truth about what they were sent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import SecretStr

from infra.clock import HOUR_MS, iso, now_ms
from infra.embedded.supervisor import WORKER_ENV
from infra.file_store import FileStore
from infra.kafka import EventProducer
from infra.settings import Settings
from infra.topics import EVENTS
from ingest import archive_files, dead_letters
from ingest.synthetic.generator import Made, Spec, make
from query import formats
from query.questions import Ask, Truths, dead_letters_differ
from query.request import parse
from query.router import Router
from tests.conftest import product_environment
from tests.product import PATIENCE, wait_until

STEP = 5_000


class Direct:
    """Asks a router in this process, where others ask over HTTP."""

    def __init__(self, settings: Settings) -> None:
        self._router = Router(settings)

    def get(self, _path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The answer."""
        found = self._router.answer(parse(parameters, now_ms(), self._router.held))
        told: dict[str, Any] = json.loads(formats.document(found, formats.rows_alone(found, "json"), "USD"))
        return told


def environment(settings: Settings) -> dict[str, str]:
    """Settings as a process is given them."""
    told = {}
    for key, value in settings.model_dump().items():
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        told[f"ADCLICK_{key.upper()}"] = str(plain)
    return told


def worker_environment(settings: Settings, name: str, **more: str) -> dict[str, str]:
    """All that a worker's process is given: these settings, and none that this process has."""
    return product_environment() | WORKER_ENV | environment(settings) | {"ADCLICK_WORKER": name} | more


class Flow:
    """Workers, what they were sent, and whether the answers are the truth."""

    def __init__(self, settings: Settings, made: Made, start_ms: int, span_ms: int, log: Path) -> None:
        # Places are lost sooner, so that tests need not wait.
        self.settings = settings.model_copy(update={"session_timeout_ms": 1_500, "silent_after_ms": 1_500})
        self.made, self.start_ms, self.end_ms = made, start_ms, start_ms + span_ms
        self._log, self._sent = log, 0
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, fault: str = "", **more: str) -> subprocess.Popen[bytes]:
        """Start a worker, e.g. `ingest-0`, with a fault armed or none."""
        told = worker_environment(self.settings, name, ADCLICK_FAULT=fault, **more)
        with self._log.open("ab") as log:
            worker = subprocess.Popen([sys.executable, "-m", "infra", name.split("-")[0]], env=told, stderr=log)
        self.workers[name] = worker
        return worker

    def send(self, count: int | None = None) -> None:
        """Send the next messages, all by default."""
        stop = len(self.made.lines) if count is None else self._sent + count
        producer = EventProducer(self.settings.kafka)
        keys = [None if k is None else k.encode() for k in self.made.keys[self._sent : stop].to_list()]
        producer.send(self.settings.topic(EVENTS), keys, self.made.lines[self._sent : stop].to_list())
        assert producer.flush(30) == 0
        self._sent = stop

    def died(self, name: str, seconds: float = 40) -> None:
        """Wait until a fault has ended the worker."""
        assert self.workers[name].wait(seconds * PATIENCE) == -signal.SIGKILL, "the fault point was not reached"

    def stopped(self, name: str, seconds: float = 40) -> None:
        """Wait until a fault has halted the worker."""
        status = Path(f"/proc/{self.workers[name].pid}/stat")
        wait_until(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "T", seconds, f"{name} stops")

    def wrong(self) -> str:
        """The first difference between answers and truth: hours in all dimensions, minutes by campaign."""
        truths, client = Truths(self.made.truth), Direct(self.settings)
        campaigns = tuple(truths.campaigns())
        dimensions = ("campaign_id", "ad_id", "publisher_id", "country", "device")
        for grain, group_by in (("hour", dimensions), ("minute", ("campaign_id",))):
            ask = Ask(grain, ("campaign_id", campaigns), self.start_ms - HOUR_MS, self.end_ms, grain, group_by)
            verdict = truths.check(client, ask)
            if verdict.wrong:
                return f"{grain}: {verdict.wrong}"
        return ""

    def total(self, campaigns: tuple[int, ...], start_ms: int) -> int:
        """Impressions, clicks and conversions of campaigns since a moment, as the router answers."""
        # An event may be some minutes ahead of the clock.
        end = iso(now_ms() + HOUR_MS)
        asked = [("campaign_id", ",".join(map(str, campaigns))), ("start", iso(start_ms)), ("end", end)]
        rows = Direct(self.settings).get("", [*asked, ("granularity", "total")])["data"]
        return sum(row[name] for row in rows for name in ("impressions", "clicks", "conversions"))

    def asked(self) -> list[tuple[str, str]]:
        """The parameters that ask for everything."""
        everyone = ",".join(map(str, Truths(self.made.truth).campaigns()))
        return [("campaign_id", everyone), ("start", iso(self.start_ms - HOUR_MS)), ("end", iso(self.end_ms))]

    def true_in_part(self) -> None:
        """Wait until something is shown: the workers are at work."""
        router = Direct(self.settings)
        wait_until(lambda: router.get("", self.asked())["rows"], 40, "something is shown")

    def archived_within(self, seconds: float) -> None:
        """Wait until the archive holds each valid event of the topic once, whatever its files repeat."""
        dead = self.made.truth.dead.filter(pl.col("reason") != "too-late").height
        wanted = len(self.made.lines) - dead
        keys, store = ["partition", "offset"], FileStore(self.settings.archive)

        def held() -> int:
            files = archive_files.named(store.files())
            if not files:
                return 0
            rows = pl.concat(
                archive_files.read(store, f.name, [*keys, "event_id", "decision"]).with_columns(
                    pl.col("decision").cast(pl.String)
                )
                for f in files
            )
            assert rows.unique().height == rows.unique(keys).height
            return rows.unique(keys).height

        wait_until(lambda: held() >= wanted, seconds, f"{wanted} archived")
        assert held() == wanted

    def true_within(self, seconds: float) -> None:
        """Wait until everything is the truth, and see that it stays so."""
        deadline = time.monotonic() + seconds * PATIENCE
        while wrong := self.wrong():
            assert time.monotonic() < deadline, wrong
            time.sleep(0.5)
        for _ in range(2):
            time.sleep(0.5)
            wrong = self.wrong()
            assert not wrong, f"it was the truth, and then: {wrong}"
        letters = [(x.value, x.headers["reason"]) for x in dead_letters.read(self.settings)]
        assert not dead_letters_differ(self.made.truth, self.made.lines, letters)


@contextmanager
def flow(settings: Settings, folder: Path, start_ms: int | None = None, **spec: Any) -> Iterator[Flow]:
    """A flow whose workers end with it; its events begin five hours ago, or at `start_ms`."""
    span_ms = 3 * HOUR_MS
    start_ms = (now_ms() - 5 * HOUR_MS) // HOUR_MS * HOUR_MS if start_ms is None else start_ms
    given = {"events": STEP, "campaigns": 40, "late": 0.01, "malformed": 0.005, "duplicates": 0.05, "seed": 5} | spec
    running = Flow(settings, make(Spec(start_ms=start_ms, span_ms=span_ms, **given)), start_ms, span_ms, folder / "log")
    try:
        yield running
    finally:
        for worker in running.workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait(10)
