"""A stack that tests own, the truth about what was sent to it, and a way to kill its parts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from infra.clock import HOUR_MS, MINUTE_MS, iso
from infra.console import App
from infra.embedded.state import Folder
from infra.settings import Settings
from ingest.synthetic.generator import Made
from query.questions import Truths
from tests.conftest import adclick

SPAN_MS = 26 * HOUR_MS


@dataclass
class Product:
    """A running stack with known truth in it."""

    folder: Folder
    made: Made
    start_ms: int
    kills: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """Settings that its processes are started with."""

    @property
    def app(self) -> App:
        """An invocation against this stack."""
        return App(str(self.folder.path), False, False, True)

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return self.app.settings

    @property
    def truths(self) -> Truths:
        """What its answers must be."""
        return Truths(self.made.truth)

    def up(self, *words: str, **env: str) -> None:
        """Start it in the background."""
        # By a relative path, as a person does.
        words = ("up", "--detach", "--dir", self.folder.path.name, *words)
        done = adclick(*words, cwd=self.folder.path.parent, **self.env | env)
        assert done.returncode == 0, done.stderr

    def kill(self, name: str) -> None:
        """SIGKILL one of its processes, if it runs."""
        process = self.folder.processes().get(name)
        if process is not None:
            process.kill()
            self.kills.append(name)

    def caught_up(self) -> bool:
        """Whether every event is ingested and the watermark is near the end."""
        done = adclick("status", "--json", "--dir", str(self.folder.path))
        state = json.loads(done.stdout or "{}")
        behind = state.get("topics", {}).get("ad-events", 1)
        end = self.start_ms + SPAN_MS
        return bool(behind == 0 and (state.get("watermark") or "") >= iso(end - 5 * MINUTE_MS))


PATIENCE = 8.0
"""By how much longer than on an idle machine anything may take. Limits are there for what hangs, not for what is slow."""


def wait_until(true: Any, seconds: float, what: str) -> None:
    """Ask until it is true; fail after many times the seconds that it takes on an idle machine."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds * PATIENCE:.0f} s: {what}"
        time.sleep(0.2)
