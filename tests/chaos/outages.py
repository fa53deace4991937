"""`make outages`: each worker killed once, then each backend away for two minutes, and a Redis that answers and refuses for half a
minute in each of its ways, under load; who dies of it, who says what, and how long it takes until answers are fresh again.

OUTAGE (seconds), RATE (events/s) and SEED change it. Exit 1 when a killed worker's work is not visible again within 15 s,
when a worker died of an outage, memory grew beyond bounds, logs were flooded, nobody said what is away, or a number is wrong
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

from infra import pipeline_state
from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS, iso, now_ms
from infra.embedded.state import Folder
from infra.errors import AdclickError
from ingest.synthetic.generator import Spec, make
from query.client import Client
from query.keys import Keys
from tests.chaos.campaign import WORDS, compare, send, wait_for_quiet
from tests.chaos.strikes import BACKENDS, WORKERS
from tests.chaos.watcher import Watcher, fates
from tests.conftest import adclick
from tests.product import SPAN_MS, Product
from tests.refusals import REFUSALS, Refusal, refusing

_SETTLED_S, _REFUSED_S = 45.0, 30.0
_TAKEN_OVER_S, _BETWEEN_KILLS_S = 15.0, 25.0
_KILLED = ("ingest-0", "stream-0", "ingest-1", "stream-1")
_MOST_LINES, _MOST_GROWTH_MB = 60, 400


@dataclass
class Seen:
    """What was seen of one outage."""

    backend: str
    refusal: Refusal | None = None
    died: list[str] = field(default_factory=list)
    growth_mb: int = 0
    lines: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    fresh_after_s: float = float("inf")

    def faults(self) -> list[str]:
        """What ought not to be."""
        found = [f"{name} died of it" for name in self.died]
        if self.growth_mb > _MOST_GROWTH_MB:
            found.append(f"a worker grew by {self.growth_mb} MB")
        if self.lines > _MOST_LINES:
            found.append(f"a worker wrote {self.lines} lines")
        word = "" if self.refusal is None else self.refusal.code
        if word not in self.told["problems"].get(self.backend, "nothing"):
            found.append(f"status does not name it: {self.told['problems']}")
        if self.refusal is not None and self.told["limited"] != 200:
            found.append(f"a key with a limit is answered {self.told['limited']}")
        if self.told["readyz"] != 503:
            found.append(f"readyz answers {self.told['readyz']}")
        if f'adclick_backend_up{{backend="{self.backend}"}} 0.0' not in self.told["metrics"]:
            found.append("/metrics does not name it")
        if self.backend == "clickhouse" and not any("warm" in w for w in self.told["warnings"]):
            found.append("the answer has no warning")
        return [f"{self.name}: {f}" for f in found]

    @property
    def name(self) -> str:
        """What was the matter."""
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


def strike(product: Product, backend: str, seconds: float, refusal: Refusal | None = None) -> Seen:
    """Take a backend away, or make it refuse. Look halfway, also with a key whose rate is limited."""
    seen, folder = Seen(backend, refusal), product.folder
    keys = Keys(ClickHouse(product.settings.clickhouse, product.settings.database))
    _, token = keys.create("outages", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    pids = {name: pid for name, pid in folder.pids().items() if name in WORKERS}
    before = {name: _rss_mb(pid) for name, pid in pids.items()}
    lines = {name: _lines(folder, name) for name in pids}
    with away(folder, backend) if refusal is None else refusing(product.settings.redis, refusal):
        end = time.monotonic() + seconds
        time.sleep(seconds / 2)
        seen.told = _told(product, token)
        time.sleep(max(0.0, end - time.monotonic()))
        alive = {n for n, pid in pids.items() if psutil.pid_exists(pid) and _status(pid) != psutil.STATUS_ZOMBIE}
        seen.died = sorted(set(pids) - alive)
        seen.growth_mb = max(_rss_mb(pids[n]) - before[n] for n in alive)
        seen.lines = max(_lines(folder, n) - lines[n] for n in pids)
    return seen


def _told(product: Product, token: str) -> dict[str, Any]:
    http = product.settings.http
    base = http if http.startswith("http") else f"http://{http}"
    told: dict[str, Any] = {
        "problems": pipeline_state.collect(product.settings)["problems"],
        "readyz": httpx.get(f"{base}/readyz", timeout=20).status_code,
        "metrics": httpx.get(f"{base}/metrics", timeout=20).text,
        "warnings": [],
    }
    campaigns = ",".join(map(str, product.truths.busiest(3)))
    asked = [("campaign_id", campaigns), ("start", iso(product.start_ms)), ("end", "now"), ("granularity", "hour")]
    try:
        told["warnings"] = Client(product.settings).get("/v1/metrics", asked)["warnings"]
    except AdclickError as error:
        told["warnings"] = [f"refused: {error}"]
    headers = {"Authorization": f"Bearer {token}"}
    limited = httpx.get(f"{base}/v1/metrics", params=httpx.QueryParams(tuple(asked)), headers=headers, timeout=20)
    told["limited"] = limited.status_code
    return told


def _status(pid: int) -> str:
    return str(psutil.Process(pid).status())


def _rss_mb(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss >> 20)


def _lines(folder: Folder, name: str) -> int:
    return len(folder.log(name).read_bytes().splitlines())


def run(seconds: float, rate: int, seed: int, work: Path) -> list[str]:
    """One outage of each backend, one after the other, under one replay; returns what was wrong."""
    end = now_ms() // MINUTE_MS * MINUTE_MS
    refused_s = min(seconds, _REFUSED_S)
    lasts_s = len(BACKENDS) * (seconds + _SETTLED_S) + len(REFUSALS) * (refused_s + _SETTLED_S)
    events = int(rate * (len(_KILLED) * _BETWEEN_KILLS_S + lasts_s + 20))
    spec = Spec(events=events, seed=seed, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=60, late=0.01)
    product = Product(Folder(work / "stack"), make(spec), spec.start_ms, [])
    sent: list[tuple[float, int]] = []
    watcher, outages = Watcher(product, sent), list[tuple[float, Seen]]()
    print(f"seed {seed}: {events:,} events, {seconds:.0f} s without each of {', '.join(BACKENDS)}", flush=True)
    try:
        product.up(*WORDS)
        sender = threading.Thread(target=send, args=(product, rate, sent))
        reader = threading.Thread(target=watcher.run)
        sender.start()
        reader.start()
        time.sleep(20)
        kills = []
        for name in _KILLED:
            product.kill(name)
            kills.append((time.monotonic(), name))
            time.sleep(_BETWEEN_KILLS_S)
        for backend in BACKENDS:
            outages.append((time.monotonic() + seconds, strike(product, backend, seconds)))
            print(f"  {backend} is back", flush=True)
            time.sleep(_SETTLED_S)
        for refusal in REFUSALS:
            outages.append((time.monotonic() + refused_s, strike(product, "redis", refused_s, refusal)))
            print(f"  redis no longer refuses with {refusal.code}", flush=True)
            time.sleep(_SETTLED_S)
        sender.join()
        wait_for_quiet(product)
        time.sleep(8)
        watcher.stop()
        reader.join()
        taken = {name: watcher.recovery_s(at) for at, name in kills}
        print("killed, fresh again after: " + ", ".join(f"{name} {s:.1f} s" for name, s in taken.items()))
        print(f"{'without':22} {'died':>5} {'grew MB':>8} {'lines':>6} {'fresh after s':>14}  said")
        for ended, seen in outages:
            seen.fresh_after_s = watcher.recovery_s(ended)
            print(
                f"{seen.name:22} {len(seen.died):5} {seen.growth_mb:8} {seen.lines:6} {seen.fresh_after_s:14.1f}"
                f"  readyz {seen.told['readyz']}; {seen.told['problems']}; {seen.told['warnings'][:2]}"
            )
        faults = [f"{name} was not taken over in time" for name, s in taken.items() if s > _TAKEN_OVER_S]
        faults += [f for _, seen in outages for f in seen.faults()]
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
    print("\n".join(faults) or "nobody died, and all is exact")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
