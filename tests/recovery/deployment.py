"""Docs/runbooks.md, "A first deployment": processes started by hand, one by one, as on a cluster."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from infra.settings import Settings
from query.client import Client
from query.demo.oracle import Oracle
from query.demo.questions import DemoQuestion
from tests.conftest import ADCLICK
from tests.flow import Flow, worker_environment
from tests.ports import unused_port
from tests.product import is_ready, wait_until
from tests.recovery.load import backends, counting, installation

_WORKERS = ("ingest", "archive", "stream", "serve", "notify")


def deployment(work: Path) -> float:
    """From nothing but backends to the first exact answer over HTTP."""
    with backends(work) as folder:
        http = f"http://127.0.0.1:{unused_port()}"
        settings = installation(folder, made=False, http=http)
        with counting(settings, work) as running:
            began = time.monotonic()
            early = _run(settings, "ingest", code=1)
            assert "adclick migrate makes what is missing" in early, early
            for step in ("migrate", "doctor"):
                _run(settings, step)
                print(f"  {step}: done after {time.monotonic() - began:.1f} s", flush=True)
            for name in _WORKERS:
                _start(running, name, work)
            wait_until(lambda: is_ready(http), 60, "the router is ready: every part of the pipeline has reported")
            print(f"  five processes are ready after {time.monotonic() - began:.1f} s", flush=True)
            running.send()
            oracle, client = Oracle(running.events.truth), Client(settings)
            campaigns = tuple(oracle.campaigns())
            question = DemoQuestion(
                "all",
                ("campaign_id", campaigns),
                running.start_ms - 3_600_000,
                running.end_ms,
                "hour",
                ("campaign_id",),
            )
            wait_until(lambda: not oracle.check(client, question).difference, 60, "the answer over HTTP is exact")
            took_s = time.monotonic() - began
            running.wait_until_exact(60)
            running.wait_until_archived(60)
            assert '"problems": {}' in _run(settings, "status", "--json")
            assert running.restarts == []
            return took_s


def _run(settings: Settings, *words: str, code: int = 0) -> str:
    """Run a command that ends, with the settings as variables; returns what it printed."""
    result = subprocess.run(
        [*ADCLICK, *words], env=worker_environment(settings, "command"), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == code, f"{words} ended with {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def _start(running: Flow, name: str, work: Path) -> None:
    with (work / "log").open("ab") as log:
        running.workers[f"{name}-0"] = subprocess.Popen(
            [*ADCLICK, name], env=worker_environment(running.settings, f"{name}-0"), stdout=log, stderr=log
        )
