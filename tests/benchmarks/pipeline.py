"""`make bench`: the whole product at full speed over a prefilled topic, beside the bare loop in the same run.

Measured from the first event consumed until every event is archived, the router's answers are the truth, and the closed
hours and days are in ClickHouse. Figures are printed and written as flat JSON to `.bench/pipeline.json`; a run that is
not exact fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import polars as pl

from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.kafka import topics
from ingest.synthetic.generator import Spec
from query.client import Client
from query.demo.oracle import Oracle
from tests.benchmarks.dedup import dedup_cost
from tests.benchmarks.stack import Bench, Filled, across_midnight, bench, cpu_s, peak_mb, save

_WATCHED = 12
_PATIENCE_S = 600
_STORED = {"stream_hours": HOUR_MS, "stream_days": DAY_MS}
# What came late reaches the hours and days a flush or two after the minutes.
_SETTLED_S = 1.0
_SUMS = ("impressions", "clicks", "conversions", "spend_micros", "late_events", "late_clicks")


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=int(os.environ.get("EVENTS", "10000000")))
    parser.add_argument("--span-minutes", type=int, default=30)
    parser.add_argument("--campaigns", type=int, default=1_000)
    parser.add_argument("--duplicates", type=float, default=0.01)
    parser.add_argument("--ingest-workers", type=int, default=1)
    parser.add_argument("--stream-workers", type=int, default=1)
    options = parser.parse_args()
    span_ms = options.span_minutes * MINUTE_MS
    spec = Spec(
        events=options.events, start_ms=across_midnight(span_ms), span_ms=span_ms, campaigns=options.campaigns,
        duplicates=options.duplicates, late=0.001, malformed=0.0, future=0.0,
    )  # fmt: skip
    report = run(spec, options.ingest_workers, options.stream_workers)
    save("pipeline", report)
    exact = "exact" if report["exact"] else "NOT EXACT"
    print(f"{spec.events:,} events from {iso(spec.start_ms)} over {options.span_minutes} minutes: {exact}")
    App(None, False, False, True).table(["", ""], list(report.items()))
    sys.exit(0 if report["exact"] else 1)


def run(spec: Spec, ingest: int, stream: int) -> dict[str, Any]:
    """One run on a stack of its own, the bare loop first. What workers need to start is no cost of an event."""
    with bench() as stack:
        with stack.events_held_back():
            filled = stack.fill(spec)
            bare = bare_loop(stack, filled.total)
            stack.start(ingest, stream)
            start_cpu_s = stack.wait_until_idle()
        return measure(stack, filled, bare) | {"start_cpu_s": round(start_cpu_s, 1)}


def bare_loop(stack: Bench, total: int) -> dict[str, float]:
    """The yardstick, on the same topic and in the same minutes: machines are noisy, ratios are less so."""
    argv = [sys.executable, "-m", "tests.benchmarks.bare", stack.settings.kafka, topics.EVENTS, str(total)]
    found: dict[str, float] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return found


def measure(stack: Bench, filled: Filled, bare: dict[str, float]) -> dict[str, Any]:
    """Time and CPU from the first event consumed to the last one answered, stored and archived."""
    watched = stack.processes()
    while not (first := stack.consumed()):
        time.sleep(0.02)
    began, before = time.monotonic(), {n: cpu_s(p) for n, p in watched.items()}
    while stack.consumed() < filled.total:
        time.sleep(0.5)
    ingested = time.monotonic() - began
    oracle, client = Oracle(filled.truth), Client(stack.settings)
    campaigns = oracle.busiest(20)
    end_ms = filled.start_ms + filled.span_ms

    def is_true(campaign: int) -> bool:
        return oracle.total_is_exact(client, campaign, filled.start_ms - HOUR_MS, end_ms)

    # The lesser ones tell when all is there; asking for the big ones over and over would be the greater load.
    open_questions = campaigns[_WATCHED:]
    while open_questions and time.monotonic() - began < _PATIENCE_S:
        if is_true(open_questions[-1]):
            open_questions.pop()
        else:
            time.sleep(0.2)
    wait_published(stack, end_ms - MINUTE_MS)
    seconds = time.monotonic() - began
    parts = stack.settings.event_partitions
    while (
        sum(stack.admin.ends(topics.ARCHIVE, parts)) - stack.consumed(topics.ARCHIVE_GROUP, topics.ARCHIVE) > 2 * parts
    ):
        time.sleep(0.1)
    time.sleep(_SETTLED_S)
    counted = filled.total - first
    cpu = {n: (cpu_s(p) - before[n]) / counted * 1e6 for n, p in watched.items()}
    stored = all(wait_stored(stack, filled, table, grain_ms) for table, grain_ms in _STORED.items())
    exact = stored and not open_questions and all(map(is_true, campaigns))
    stages = {
        kind: sum(c for n, c in cpu.items() if n.split("-")[0] == kind) for kind in {n.split("-")[0] for n in cpu}
    }
    peaks = {n: peak_mb(p) for n, p in watched.items()}
    total = sum(cpu.values())
    report = {
        "events": counted, "exact": exact, "events_per_s": round(counted / seconds), "seconds": round(seconds, 2),
        "ingest_seconds": round(ingested, 2),
        "cpu_s_per_million": round(total, 2),
        "bare_cpu_s_per_million": round(bare["cpu_s_per_million"], 2),
        "ratio_to_bare": round(total / bare["cpu_s_per_million"], 2),
        "bare_events_per_s": round(bare["events_per_s"]),
        "events_per_s_to_bare": round(counted / seconds / bare["events_per_s"], 2),
        **{f"cpu_s_per_million_{n}": round(c, 3) for n, c in sorted(stages.items())},
        **{f"cpu_s_per_million_{n}": round(c, 3) for n, c in sorted(cpu.items()) if n not in stages},
        **{f"peak_mb_{n}": mb for n, mb in sorted(peaks.items())},
        "peak_mb_workers": sum(mb for n, mb in peaks.items() if n.split("-")[0] in ("ingest", "stream", "archive", "query")),
        **{f"bytes_per_event_{n}": round(b / filled.total, 1) for n, b in stack.written().items()},
        "generated_per_s": round(filled.generated_per_s), "replayed_per_s": round(filled.replayed_per_s),
        **latency(client, campaigns, filled),
    }  # fmt: skip
    dedup = dedup_cost(stack)
    sinks = stages["clickhouse"] + stages["redis"] - dedup["dedup_redis_us_per_id"]
    return report | dedup | {"sinks_cpu_s_per_million": round(sinks, 3)}


def wait_published(stack: Bench, closed_ms: int) -> None:
    """Wait until every shard says that ClickHouse has the hours and days that end by then."""
    client = ClickHouse(stack.settings.clickhouse, stack.settings.database)
    asked = (
        "SELECT count() FROM (SELECT tier, shard, max(watermark_ms) AS mark FROM"
        f" {client.database}.tier_borders GROUP BY tier, shard) WHERE mark >= intDiv({closed_ms}, grain) * grain"
    )
    asked = asked.replace("grain", f"if(tier = 'hours', {HOUR_MS}, {DAY_MS})")
    deadline = time.monotonic() + 60
    while client.rows(asked)[0][0] < 2 * stack.settings.block_partitions and time.monotonic() < deadline:
        time.sleep(0.1)


def wait_stored(stack: Bench, filled: Filled, table: str, grain_ms: int) -> bool:
    """Whether the windows that the events closed are the truth in ClickHouse, at last."""
    closed = filled.start_ms + filled.span_ms - MINUTE_MS
    window = pl.col("minute_ms") // grain_ms * grain_ms
    wanted = (
        filled.truth.counts.group_by(window.alias("window"))
        .agg(pl.sum(f"stream_{name}") for name in _SUMS)
        .filter(pl.col("window") + grain_ms <= closed)
        .sort("window")
        .rows()
    )
    client = ClickHouse(stack.settings.clickhouse, stack.settings.database)
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    asked = (
        f"SELECT toUnixTimestamp(time) * 1000 AS w, {sums} FROM {client.database}.{table} FINAL GROUP BY w ORDER BY w"
    )
    deadline = time.monotonic() + 60
    while True:
        found = {row[0]: tuple(row) for row in client.rows(asked)}
        if all(found.get(row[0]) == row for row in wanted):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def latency(client: Client, campaigns: list[int], filled: Filled) -> dict[str, float]:
    """Milliseconds over HTTP, one client, once everything is counted: an hour of minutes, seven days of hours."""
    time.sleep(5)
    end_ms = filled.start_ms + filled.span_ms
    asked = {
        "minutes": [("granularity", "minute"), ("start", iso(filled.start_ms)), ("end", iso(end_ms))],
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
