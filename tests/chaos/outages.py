"""`make outages`: each worker killed once, then each backend away for two minutes, and a Redis that answers and refuses for half a
minute in each of its ways, under load; which workers die of it, what is reported, and how long it takes until answers are fresh again.

OUTAGE (seconds), RATE (events/s) and SEED change it. Exit 1 when a killed worker's work is not visible again within 15 s,
when a worker died of an outage, memory grew beyond bounds, logs were flooded, what is away was not reported, or a number is wrong
in the end.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from batch import coverage
from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from query.keys import Keys
from query.status import read_status
from tests.chaos.campaign import WORDS, compare, send, wait_for_quiet
from tests.chaos.strikes import BACKENDS, WORKERS
from tests.chaos.watcher import Watcher, fates
from tests.conftest import adclick
from tests.product import PATIENCE, SPAN_MS, Product, wait_until
from tests.refusals import REFUSALS, Refusal, refusing

_BETWEEN_OUTAGES_S, _REFUSED_S = 45.0, 30.0
_TAKEN_OVER_S, _BETWEEN_KILLS_S = 15.0, 25.0
_KILLED = ("ingest-0", "stream-0", "ingest-1", "stream-1")
_MOST_LINES, _MOST_GROWTH_MB = 60, 400


@dataclass
class Outage:
    """One outage: how the workers fared, and what was reported halfway."""

    backend: str
    refusal: Refusal | None = None
    died: list[str] = field(default_factory=list)
    growth_mb: int = 0
    lines: int = 0
    reports: dict[str, Any] = field(default_factory=dict)
    fresh_after_s: float = float("inf")

    def faults(self) -> list[str]:
        """What ought not to be, one line each."""
        faults = [f"{name} died of it" for name in self.died]
        if self.growth_mb > _MOST_GROWTH_MB:
            faults.append(f"a worker grew by {self.growth_mb} MB")
        if self.lines > _MOST_LINES:
            faults.append(f"a worker wrote {self.lines} lines")
        word = "" if self.refusal is None else self.refusal.code
        if word not in self.reports["problems"].get(self.backend, "nothing"):
            faults.append(f"status does not name it: {self.reports['problems']}")
        if self.refusal is not None and self.reports["limited"] != 200:
            faults.append(f"a key with a limit is answered {self.reports['limited']}")
        if self.reports["readyz"] != 503:
            faults.append(f"readyz answers {self.reports['readyz']}")
        if f'adclick_backend_up{{backend="{self.backend}"}} 0.0' not in self.reports["metrics"]:
            faults.append("/metrics does not name it")
        if self.backend == "clickhouse" and not any("warm" in w for w in self.reports["warnings"]):
            faults.append("the answer has no warning")
        return [f"{self.name}: {fault}" for fault in faults]

    @property
    def name(self) -> str:
        """The backend, or its code of refusal."""
        return self.backend if self.refusal is None else self.refusal.code


@contextmanager
def away(folder: Folder, backend: str) -> Iterator[None]:
    """A backend that is away: its process is killed while the supervisor is halted."""
    supervisor = folder.supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGSTOP)
    try:
        folder.processes()[backend].kill()
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def strike(product: Product, backend: str, seconds: float, refusal: Refusal | None = None) -> Outage:
    """Take a backend away, or make it refuse. Ask halfway, also with a key whose rate is limited."""
    outage, folder = Outage(backend, refusal), product.folder
    keys = Keys(ClickHouse(product.settings.clickhouse, product.settings.database))
    _, token = keys.create("outages", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    pids = {name: pid for name, pid in folder.pids().items() if name in WORKERS}
    before = {name: _rss_mb(pid) for name, pid in pids.items()}
    lines = {name: _lines(folder, name) for name in pids}
    with away(folder, backend) if refusal is None else refusing(product.settings.redis, refusal):
        end = time.monotonic() + seconds
        time.sleep(seconds / 2)
        outage.reports = _ask(product, token)
        time.sleep(max(0.0, end - time.monotonic()))
        alive = {n for n, pid in pids.items() if psutil.pid_exists(pid) and _status(pid) != psutil.STATUS_ZOMBIE}
        outage.died = sorted(set(pids) - alive)
        outage.growth_mb = max(_rss_mb(pids[n]) - before[n] for n in alive)
        outage.lines = max(_lines(folder, n) - lines[n] for n in pids)
    return outage


def _ask(product: Product, token: str) -> dict[str, Any]:
    """What status, the routes of operations and an answer report; `limited`: the status of an answer to a key with a limit."""
    http = product.settings.http
    base = http if http.startswith("http") else f"http://{http}"
    reports: dict[str, Any] = {
        "problems": read_status(product.settings)["problems"],
        "readyz": httpx.get(f"{base}/readyz", timeout=20).status_code,
        "metrics": httpx.get(f"{base}/metrics", timeout=20).text,
        "warnings": [],
    }
    campaigns = ",".join(map(str, product.oracle.busiest(3)))
    parameters = [("campaign_id", campaigns), ("start", iso(product.start_ms)), ("end", "now"), ("granularity", "hour")]
    try:
        reports["warnings"] = Client(product.settings).get("/v1/metrics", parameters)["warnings"]
    except AdclickError as error:
        reports["warnings"] = [f"refused: {error}"]
    headers = {"Authorization": f"Bearer {token}"}
    limited = httpx.get(f"{base}/v1/metrics", params=httpx.QueryParams(tuple(parameters)), headers=headers, timeout=20)
    reports["limited"] = limited.status_code
    return reports


def _status(pid: int) -> str:
    return str(psutil.Process(pid).status())


def _rss_mb(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss >> 20)


def _lines(folder: Folder, name: str) -> int:
    return len(folder.log(name).read_bytes().splitlines())


def run(seconds: float, rate: int, seed: int, work: Path) -> list[str]:
    """Take each backend away, one after the other, under one replay; returns what was wrong."""
    end = now_ms() // MINUTE_MS * MINUTE_MS
    refused_s = min(seconds, _REFUSED_S)
    lasts_s = len(BACKENDS) * (seconds + _BETWEEN_OUTAGES_S) + len(REFUSALS) * (refused_s + _BETWEEN_OUTAGES_S)
    events = int(rate * (len(_KILLED) * _BETWEEN_KILLS_S + lasts_s + 20))
    spec = Spec(events=events, seed=seed, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=60, late=0.01)
    product = Product(Folder(work / "stack"), generate_events(spec), spec.start_ms, [])
    sent: list[tuple[float, int]] = []
    watcher, outages = Watcher(product, sent), list[tuple[float, Outage]]()
    print(f"seed {seed}: {events:,} events, {seconds:.0f} s without each of {', '.join(BACKENDS)}", flush=True)
    try:
        product.up(*WORDS)
        sender = threading.Thread(target=send, args=(product, rate, sent))
        reader = threading.Thread(target=watcher.run)
        sender.start()
        reader.start()
        wait_until(lambda: watcher.is_fresh, 20, "answers are fresh before the first kill")
        kills = []
        for name in _KILLED:
            product.kill(name)
            kills.append((time.monotonic(), name))
            time.sleep(_BETWEEN_KILLS_S)
        for backend in BACKENDS:
            outages.append((time.monotonic() + seconds, strike(product, backend, seconds)))
            print(f"  {backend} is back", flush=True)
            time.sleep(_BETWEEN_OUTAGES_S)
        for refusal in REFUSALS:
            outages.append((time.monotonic() + refused_s, strike(product, "redis", refused_s, refusal)))
            print(f"  redis no longer refuses with {refusal.code}", flush=True)
            time.sleep(_BETWEEN_OUTAGES_S)
        sender.join()
        wait_for_quiet(product)
        coverage.wait_for_archive(product.settings, 60 * PATIENCE, print)
        watcher.wait_for_last_answers()
        watcher.stop()
        reader.join()
        takeovers = {name: watcher.recovery_s(at) for at, name in kills}
        print("killed, fresh again after: " + ", ".join(f"{name} {s:.1f} s" for name, s in takeovers.items()))
        print(f"{'without':22} {'died':>5} {'grew MB':>8} {'lines':>6} {'fresh after s':>14}  reports")
        for ended, outage in outages:
            outage.fresh_after_s = watcher.recovery_s(ended)
            print(
                f"{outage.name:22} {len(outage.died):5} {outage.growth_mb:8} {outage.lines:6} {outage.fresh_after_s:14.1f}"
                f"  readyz {outage.reports['readyz']}; {outage.reports['problems']}; {outage.reports['warnings'][:2]}"
            )
        faults = [f"{name} was not taken over in time" for name, s in takeovers.items() if s > _TAKEN_OVER_S]
        faults += [fault for _, outage in outages for fault in outage.faults()]
        if not compare(product, watcher, fates(product)):
            faults.append("not every number is the truth")
        return faults
    finally:
        watcher.stop()
        adclick("down", "--dir", str(work / "stack"))


def main() -> None:
    """Read the environment and run."""
    seconds, rate = float(os.environ.get("OUTAGE") or 120), int(os.environ.get("RATE") or 1500)
    seed = int(os.environ.get("SEED") or now_ms() % 100_000)
    with tempfile.TemporaryDirectory(prefix="adclick-outages-") as work:
        faults = run(seconds, rate, seed, Path(work))
    print("\n".join(faults) or "no worker died, and all is exact")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
