"""A stack of a test's own, with the truth about what was sent to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.cli.app import App
from infra.clock import HOUR_MS, MINUTE_MS, iso
from infra.embedded.ports import USUAL_PORTS
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError, Unavailable
from infra.kafka import topics
from infra.settings import Settings
from ingest.synthetic.generator import SyntheticEvents
from query.client import Client
from query.demo.oracle import Oracle
from query.status import read_status
from tests.conftest import adclick
from tests.ports import unused_port

SPAN_MS = 26 * HOUR_MS


@dataclass
class Product:
    """A running stack, the events that were sent to it, and their truth."""

    folder: Folder
    events: SyntheticEvents
    start_ms: int
    kills: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """Settings that its processes are started with."""

    @property
    def app(self) -> App:
        """The context of a command on this stack."""
        return App(str(self.folder.path), False, False, True)

    @property
    def settings(self) -> Settings:
        """Settings of its clients."""
        return self.app.settings

    @property
    def oracle(self) -> Oracle:
        """Checks answers against the truth."""
        return Oracle(self.events.truth)

    def up(self, *words: str, **env: str) -> None:
        """Start it in the background."""
        if "ports" not in self.folder.state():
            # Not the usual ones: a stack that starts while this one's supervisor is dead would take them.
            self.folder.make()
            first = unused_port(len(USUAL_PORTS))
            self.folder.write_state({"ports": {name: first + n for n, name in enumerate(USUAL_PORTS)}})
        # By a relative path, as a person does.
        words = ("up", "--detach", "--dir", self.folder.path.name, *words)
        result = adclick(*words, cwd=self.folder.path.parent, **self.env | env)
        assert result.returncode == 0, result.stderr

    def kill(self, name: str) -> None:
        """SIGKILL one of its processes, if it runs."""
        process = self.folder.processes().get(name)
        if process is not None:
            process.kill()
            self.kills.append(name)

    def caught_up(self) -> bool:
        """Whether every event is ingested and the watermark is near the end."""
        # In this process: the command takes a second of a core, beside what the caller waits for.
        try:
            status = read_status(self.settings)
        except AdclickError:
            return False
        end = self.start_ms + SPAN_MS
        return status["topics"].get(topics.EVENTS) == 0 and (status["watermark"] or "") >= iso(end - 5 * MINUTE_MS)

    def shown_events(self) -> int:
        """How many events the answers have, of all campaigns."""
        campaigns = ",".join(map(str, self.oracle.campaigns()))
        parameters = [("campaign_id", campaigns), ("granularity", "total")]
        # Late copies and clocks that are slow put some events a little before the start.
        parameters += [("start", iso(self.start_ms - HOUR_MS)), ("end", iso(self.start_ms + SPAN_MS))]
        rows = Client(self.settings).get("/v1/metrics", parameters)["data"]
        return sum(row[name] for row in rows for name in COUNTS)

    def shows(self, count: int) -> bool:
        """Whether the answers have so many events. They have not while the router cannot answer in time, as on a busy machine right
        after its start."""
        try:
            return self.shown_events() == count
        except Unavailable:
            return False


COUNTS = ("impressions", "clicks", "conversions")
PATIENCE = 8.0
"""By how much longer than on an idle machine anything may take. Limits are there for what hangs, not for what is slow."""


_POLL_S = 0.2


def is_ready(http: str) -> bool:
    """Whether a router says that all of the pipeline is up; False while it does not answer."""
    try:
        return httpx.get(f"{http}/readyz", timeout=20, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[..., Any], seconds: float, what: str | Callable[[], str]) -> None:
    """Poll until the condition holds; fail after many times the seconds that it takes on an idle machine."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds * PATIENCE:.0f} s: {_text(what)}"
        time.sleep(_POLL_S)


def assert_stays(condition: Callable[..., Any], seconds: float, what: str | Callable[[], str]) -> None:
    """The condition holds, and goes on to hold for these seconds: time for what must not happen."""
    deadline = time.monotonic() + seconds
    while True:
        assert condition(), f"it did not stay so: {_text(what)}"
        if time.monotonic() >= deadline:
            return
        time.sleep(_POLL_S)


def _text(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()
