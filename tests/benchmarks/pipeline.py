"""`make bench`: the whole pipeline at full speed over a prefilled topic.

Measured from the first event consumed until every event is archived and the router's answers are the truth. Prints
events/s and CPU seconds per million events by process, and writes them as flat JSON to `.bench/pipeline.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.console import App
from infra.embedded.state import Folder
from infra.kafka import Admin
from ingest.replay import Pace, replay_files
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, make
from query.command import Client
from query.questions import Truths
from tests.flow import worker_environment

_WATCHED = 12
ADCLICK = [sys.executable, "-m", "infra"]


def cpu_s(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=int(os.environ.get("EVENTS", "2000000")))
    parser.add_argument("--span-minutes", type=int, default=30)
    parser.add_argument("--ingest-workers", type=int, default=2)
    parser.add_argument("--stream-workers", type=int, default=2)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="adclick-bench-"))
    try:
        run(work, options.events, options.span_minutes * MINUTE_MS, options.ingest_workers, options.stream_workers)
    finally:
        subprocess.run([*ADCLICK, "down", "--dir", str(work / "stack"), "-q"], check=False)
        shutil.rmtree(work, ignore_errors=True)


def run(work: Path, events: int, span_ms: int, ingest_workers: int, stream_workers: int) -> None:
    """Prefill, start the workers, wait for the truth."""
    # Across a UTC midnight, and recent enough for its minutes to be held.
    midnight = now_ms() // DAY_MS * DAY_MS
    start = midnight - span_ms // 2
    if now_ms() - start > 23.7 * HOUR_MS or midnight + span_ms // 2 > now_ms():
        start = (now_ms() - 2 * HOUR_MS) // MINUTE_MS * MINUTE_MS
    made = make(Spec(events=events, start_ms=start, span_ms=span_ms, late=0.001, malformed=0.0, future=0.0))
    source = work / "events.ndjson"
    write_lines(made, source)
    stack = str(work / "stack")
    subprocess.run(
        [*ADCLICK, "up", "--detach", "--dir", stack, "--ingest-workers", "0", "--stream-workers", "0", "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    app = App(stack, False, False, True)
    replay_files(app, [source], Pace(), 0)
    bare = bare_loop(app)
    folder = Folder(Path(stack))
    workers = {
        name: subprocess.Popen(
            [*ADCLICK, name.split("-")[0], "-q"],
            env=worker_environment(app.settings, name, ADCLICK_USER_SECRET="bench"),
        )
        for kind, count in (("stream", stream_workers), ("ingest", ingest_workers))
        for name in (f"{kind}-{n}" for n in range(count))
    }
    try:
        report = measure(app, folder, workers, made, events, start, span_ms, bare)
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.wait(15)
    out = Path(".bench")
    out.mkdir(exist_ok=True)
    (out / "pipeline.json").write_text(json.dumps(report, indent=1) + "\n")


def bare_loop(app: App) -> dict[str, float]:
    """The yardstick, on the same topic and in the same minutes: machines are noisy, ratios are less so."""
    settings = app.settings
    total = sum(Admin(settings.kafka).ends("ad-events", settings.event_partitions))
    argv = [sys.executable, "-m", "tests.benchmarks.bare", settings.kafka, "ad-events", str(total)]
    found: dict[str, float] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return found


def measure(
    app: App,
    folder: Folder,
    workers: dict[str, Any],
    made: Any,
    events: int,
    start: int,
    span_ms: int,
    bare: dict[str, float],
) -> dict[str, Any]:
    """Time and CPU from the first event consumed to the last one answered and archived."""
    settings = app.settings
    admin = Admin(settings.kafka)
    total = sum(admin.ends("ad-events", settings.event_partitions))
    watched = {n: p for n, p in folder.processes().items() if n != "supervisor"}
    watched |= {kind: psutil.Process(w.pid) for kind, w in workers.items()}

    def consumed(group: str, topic: str) -> int:
        return sum(max(0, c.offset) for c in admin.committed(group, topic, settings.event_partitions))

    while not consumed("adclick-ingest", "ad-events"):
        time.sleep(0.02)
    began, before = time.monotonic(), {n: cpu_s(p) for n, p in watched.items()}
    first = consumed("adclick-ingest", "ad-events")
    while consumed("adclick-ingest", "ad-events") < total:
        time.sleep(0.5)
    ingested = time.monotonic() - began
    truths, client = Truths(made.truth), Client(settings)
    campaigns = truths.busiest(20)
    # The lesser ones tell when all is there; asking for the big ones over and over would be the greater load.
    open_questions = campaigns[_WATCHED:]

    def is_true(campaign: int) -> bool:
        return truths.total_is(client, campaign, start - HOUR_MS, start + span_ms)

    while open_questions and time.monotonic() - began < 600:
        if is_true(open_questions[-1]):
            open_questions.pop()
        else:
            time.sleep(0.2)
    seconds = time.monotonic() - began
    while sum(max(0, e) for e in admin.ends("ad-archive", 4)) - consumed("adclick-archive", "ad-archive") > 8:
        time.sleep(0.1)
    counted = total - first
    cpu = {n: (cpu_s(p) - before[n]) / counted * 1e6 for n, p in watched.items()}
    exact = not open_questions and all(map(is_true, campaigns))
    latencies = latency(client, campaigns, start, span_ms)
    rss = {f"rss_mb_{n}": p.memory_info().rss >> 20 for n, p in watched.items()}
    report: dict[str, Any] = {
        "events": counted, "exact": exact, "events_per_s": round(counted / seconds), "seconds": round(seconds, 2),
        "ingest_seconds": round(ingested, 2), "cpu_s_per_million": round(sum(cpu.values()), 2),
        "bare_cpu_s_per_million": round(bare["cpu_s_per_million"], 2),
        "bare_events_per_s": round(bare["events_per_s"]),
        "ratio_to_bare": round(sum(cpu.values()) / bare["cpu_s_per_million"], 2),
        **latencies,
        **{f"cpu_s_per_million_{n}": round(c, 2) for n, c in sorted(cpu.items())}, **rss,
        **{f"bytes_per_event_{n}": round(b / total, 1) for n, b in written(folder.path, settings.archive).items()},
    }  # fmt: skip
    print(
        f"{counted:,} events from {iso(start)} over {span_ms // MINUTE_MS} minutes: {'exact' if exact else 'NOT EXACT'}"
    )
    app.table(["", ""], list(report.items()))
    if not exact:
        sys.exit(1)
    return report


def written(stack: Path, archive: str) -> dict[str, int]:
    """Bytes on disk by what wrote them: each topic, Redis' log, ClickHouse, the archive."""

    def size(folder: Path, pattern: str = "*") -> int:
        return sum(f.stat().st_size for f in folder.rglob(pattern) if f.is_file())

    topics: dict[str, int] = {}
    for folder in sorted((stack / "kafka" / "data").glob("ad-*-*")):
        name = "kafka_" + folder.name.rsplit("-", 1)[0]
        topics[name] = topics.get(name, 0) + size(folder, "*.log")
    return topics | {
        "redis": size(stack / "redis"), "clickhouse": size(stack / "clickhouse"), "archive": size(Path(archive)),
    }  # fmt: skip


def latency(client: Client, campaigns: list[int], start: int, span_ms: int) -> dict[str, float]:
    """Milliseconds over HTTP, one client, once everything is counted: an hour of minutes, seven days of hours."""
    time.sleep(5)
    asked = {
        "minutes": [("granularity", "minute"), ("start", iso(start)), ("end", iso(start + span_ms))],
        "hours_7d": [("granularity", "hour"), ("start", "-7d"), ("end", "now")],
    }
    found: dict[str, float] = {}
    for name, parameters in asked.items():
        ms = []
        for number in range(200):
            began = time.perf_counter()
            client.get("/v1/metrics", [("campaign_id", str(campaigns[number % len(campaigns)])), *parameters])
            ms.append((time.perf_counter() - began) * 1000)
        ms.sort()
        found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = round(ms[100], 1), round(ms[197], 1)
    return found


if __name__ == "__main__":
    main()
