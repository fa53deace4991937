"""`make plan-constants` measures what `adclick plan` rests on; `make bench-plan` holds its predictions against other loads.

Each load is live traffic: events sent at a rate, over two minutes of event time across a UTC midnight, so that an hour and a day close.
What it used is written to `.bench/plan.json`; the constants to `infra/planning/constants.toml`, as multiples of the bare loop of the
same run. With `--reuse` loads that are in the file are not run again.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from infra.planning.constants import FILE, Constants, Work, load_constants
from infra.planning.model import KEPT_DAYS, REGISTERS, stored_work
from infra.planning.traffic import Traffic
from infra.redis.client import Redis
from ingest.dedup.digest import DIGEST, DIGEST_BYTES
from ingest.dedup.segments import OpenSegment, segment_rows
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, generate_events
from tests.benchmarks.stack import ADCLICK, RESULTS, Bench, across_midnight, bench, cpu_s, save
from tests.flow import worker_environment

SPAN_S = 120
_FLUSH_S = 0.5
_BOUND = 0.2
"""How far a prediction may be from what was measured."""
_PATIENCE_S = 120.0
_MOST_BEHIND_S = 2.0
"""Ingest that is further behind reads a backlog: larger batches, fewer flushes, less CPU."""
_SEGMENT_IDS, _SEGMENT_BATCH = 2_000_000, 100_000
_BARE_TOPIC, _BARE_EVENTS = "bare", 1_000_000
_SOURCE = "make plan-constants"
_CPU_PARTS = ("ingest", "archive", "stream", "router", "kafka", "redis", "clickhouse")
_PROCESSES = {"query": "router"}
_TOPICS = (
    "ad_events",
    "ad_archive",
    "ad_blocks",
    "ad_minutes",
    "ad_hours",
    "ad_minute_state",
    "ad_hour_state",
    "ad_day_state",
)


@dataclass(frozen=True)
class PlannedLoad:
    """Events sent at a rate."""

    rate: int
    campaigns: int
    reconciles: bool = False
    """Whether the nightly run is measured, too."""

    @property
    def name(self) -> str:
        """Its key in the file of results."""
        return f"{self.rate}_events_per_s_{self.campaigns}_campaigns"

    @property
    def events(self) -> int:
        """In all."""
        return self.rate * SPAN_S


CALIBRATION = (
    PlannedLoad(10_000, 1_000),
    PlannedLoad(30_000, 1_000, reconciles=True),
    PlannedLoad(15_000, 100_000),
    PlannedLoad(30_000, 50),
)
HELD_OUT = (PlannedLoad(9_000, 200), PlannedLoad(20_000, 5_000), PlannedLoad(14_000, 50_000))


def traffic_of(load: PlannedLoad, constants: Constants) -> Traffic:
    """As the generator makes it by default."""
    shape = constants.assumption
    dimensions = tuple((int(shape(n)), shape(f"{n}_skew")) for n in ("ads", "publishers", "countries", "devices"))
    return Traffic(load.campaigns, shape("campaigns_skew"), dimensions)


def work_of(load: PlannedLoad, seconds: float, constants: Constants) -> Work:
    """What the load is, by the formulas of the plan: an hour and a day close at midnight, with half of the events; users of both halves
    are written by hour and by day."""
    traffic, half = traffic_of(load, constants), load.events / 2
    cells = traffic.cells(load.rate * _FLUSH_S) / _FLUSH_S * SPAN_S
    rows = 2 * traffic.rows(half) + 4 * traffic.occupied(half, REGISTERS)
    return Work(seconds, load.events, cells, rows, load.events * math.log(load.campaigns))


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(load: PlannedLoad) -> dict[str, Any]:
    """Run the load on a stack of its own."""
    span_ms = SPAN_S * 1000
    spec = Spec(
        events=load.events, start_ms=across_midnight(span_ms), span_ms=span_ms, campaigns=load.campaigns, late=0.001,
        malformed=0.0, future=0.0,
    )  # fmt: skip
    with bench() as stack:
        events = stack.work / "events.ndjson"
        made = generate_events(spec)
        write_lines(made, events)
        total = len(made.lines)
        fill_bare_topic(stack, made.lines.slice(0, _BARE_EVENTS).to_list())
        del made
        stack.start(1, 1)
        stack.wait_until_idle()
        bare = [bare_loop_us(stack)]
        redis, clickhouse = Redis(stack.settings.redis), ClickHouse(stack.settings.clickhouse, stack.settings.database)
        watched = stack.processes()
        used, written, idle_mb = _redis_bytes(redis), stack.written(), _resident_mb(watched)
        began, before = time.monotonic(), {name: cpu_s(process) for name, process in watched.items()}
        replay_files(stack.app, [events], Pace(rate=load.rate))
        sent_s = time.monotonic() - began
        lag = total - stack.consumed()
        events.unlink()
        _wait_until_done(stack, total, redis, clickhouse)
        seconds = time.monotonic() - began
        cpu = {name: cpu_s(process) - before[name] for name, process in watched.items()}
        report: dict[str, Any] = {
            "events": total, "seconds": round(seconds, 1), "sent_s": round(sent_s, 1), "lag_at_end": lag,
            "load_average": os.getloadavg()[0], "redis_bytes": _redis_bytes(redis) - used,
        }  # fmt: skip
        report |= {f"bytes_{name}": size - written.get(name, 0) for name, size in stack.written().items()}
        report |= {f"idle_mb_{_part_of(name)}": mb for name, mb in idle_mb.items()}
        report |= {f"mb_{_part_of(name)}": mb for name, mb in _resident_mb(watched).items()}
        for name, spent in cpu.items():
            key = f"cpu_s_{_part_of(name)}"
            report[key] = round(report.get(key, 0.0) + spent, 3)
        report |= _hot_bytes(redis) | _row_bytes(clickhouse)
        stack.stop()
        bare.append(bare_loop_us(stack))
        report |= {"bare_us": round(statistics.mean(bare), 3), "bare_us_before": bare[0], "bare_us_after": bare[1]}
        if load.reconciles:
            report |= _night(stack, spec.start_ms)
        return report


def fill_bare_topic(stack: Bench, lines: list[bytes]) -> None:
    """Give the bare loop a topic of its own, so that it can run before and after the load."""
    stack.admin.create({_BARE_TOPIC: (4, {})})
    producer = EventProducer(stack.settings.kafka_connection)
    for start in range(0, len(lines), _SEGMENT_BATCH):
        values = lines[start : start + _SEGMENT_BATCH]
        producer.send(_BARE_TOPIC, [None] * len(values), values)
        assert not producer.flush(60.0), "Kafka does not acknowledge events"


def bare_loop_us(stack: Bench) -> float:
    """CPU of the bare loop, microseconds an event: of the yardstick that machines are compared by."""
    argv = [sys.executable, "-m", "tests.benchmarks.bare", stack.settings.kafka, _BARE_TOPIC, str(_BARE_EVENTS)]
    figures = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return round(float(figures["cpu_s_per_million"]), 3)


def _part_of(process: str) -> str:
    kind = process.split("-")[0]
    return _PROCESSES.get(kind, kind)


def _redis_bytes(redis: Redis) -> int:
    return int(redis.call("INFO", "memory")["used_memory"])


def _resident_mb(watched: dict[str, psutil.Process]) -> dict[str, int]:
    return {name: process.memory_info().rss >> 20 for name, process in watched.items()}


def _wait_until_done(stack: Bench, total: int, redis: Redis, clickhouse: ClickHouse) -> None:
    """Until all is consumed, archived, packed and in ClickHouse, its users, too; then merges have five seconds."""
    parts = stack.settings.event_partitions

    def is_done() -> bool:
        ends = sum(stack.admin.ends(topics.ARCHIVE, parts)) - 2 * parts
        read = (stack.consumed(group, topics.ARCHIVE) >= ends for group in (topics.ARCHIVE_GROUP, topics.REACH_GROUP))
        if stack.consumed() < total or not all(read) or redis.scan_keys("adclick:hot:*:o:*"):
            return False
        tables = ("stream_hours", "stream_days")
        return all(clickhouse.rows(f"SELECT count() FROM {clickhouse.database}.{table}")[0][0] for table in tables)

    deadline = time.monotonic() + _PATIENCE_S
    while not is_done():
        if time.monotonic() > deadline:
            sys.exit("the pipeline did not come to its end")
        time.sleep(1)
    time.sleep(5)


def _hot_bytes(redis: Redis) -> dict[str, int]:
    """What Redis' own estimate says of packed minutes and of ids."""

    def usage(pattern: str) -> int:
        return sum(int(redis.call("MEMORY", "USAGE", key, "SAMPLES", "0") or 0) for key in redis.scan_keys(pattern))

    return {"hot_bytes": usage("adclick:hot:*"), "id_bytes": usage("adclick:dedup:*")}


def _row_bytes(clickhouse: ClickHouse) -> dict[str, Any]:
    """Rows and bytes of each table, merged; reconciled rows are those of the stream under another key."""
    base, found = clickhouse.database, dict[str, Any]()
    shared = "time, campaign_id, advertiser_id, ad_id, publisher_id, country, device"
    sums = "impressions, clicks, conversions, spend_micros, late, late_events, late_clicks"
    for grain in ("hours", "days"):
        clickhouse.command(
            f"INSERT INTO {base}.exact_{grain} ({shared}, run_id, {sums}) SELECT {shared}, '20261201-0123456789ab',"
            f" {', '.join(f'sum({name})' for name in sums.split(', '))} FROM {base}.stream_{grain} FINAL GROUP BY {shared}"
        )
    tables = (*KEPT_DAYS, "stream_reach_hours", "stream_reach_days")
    for table in tables:
        clickhouse.command(f"OPTIMIZE TABLE {base}.{table} FINAL")
        rows = clickhouse.rows(
            "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts"
            f" WHERE active AND database = '{base}' AND table = '{table}'"
        )
        found[f"rows_{table}"], found[f"disk_{table}"] = (int(value or 0) for value in rows[0])
    for table in ("exact_hours", "exact_days"):
        clickhouse.command(f"TRUNCATE TABLE {base}.{table}")
    return found


def _night(stack: Bench, start_ms: int) -> dict[str, Any]:
    """CPU of the nightly run of the first of the two days, and of all its processes; how many archived rows it read."""
    day = dt.datetime.fromtimestamp(start_ms / 1000, dt.UTC).date()
    words = [*ADCLICK, "reconcile", "--date", str(day), "--force", "--json", "-q"]
    spent, done = dict[int, float](), threading.Event()
    process = psutil.Popen(
        words, env=worker_environment(stack.settings, "night", ADCLICK_USER_SECRET="bench"), stdout=-3
    )
    peak = [0]

    def watch() -> None:
        while not done.wait(0.1):
            try:
                family = (process, *process.children(recursive=True))
                peak[0] = max(peak[0], sum(one.memory_info().rss for one in family))
                spent.update({one.pid: cpu_s(one) for one in family})
            except psutil.Error:
                continue

    watching = threading.Thread(target=watch)
    watching.start()
    code = process.wait(600)
    done.set()
    watching.join()
    return {"night_exit": code, "night_cpu_s": round(sum(spent.values()), 1), "night_peak_mb": peak[0] >> 20}


def measured(loads: tuple[PlannedLoad, ...], *, reuse: bool) -> dict[str, dict[str, Any]]:
    """Reports by name, of runs now or, with `reuse`, from the file."""
    file = RESULTS / "plan.json"
    reports: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for load in loads:
        if not reuse or load.name not in reports:
            print(f"{load.rate:,} events/s, {load.campaigns:,} campaigns, {SPAN_S} s", file=sys.stderr, flush=True)
            reports[load.name] = measure(load)
            save("plan", reports)
    return {load.name: reports[load.name] for load in loads}


def segment_sizes() -> dict[str, float]:
    """Of ids, by the segments themselves: in Redis, in a worker once closed, and while the segment is open."""
    random, before = np.random.default_rng(1), psutil.Process().memory_info().rss
    opened = [OpenSegment(_SEGMENT_IDS) for _ in range(4)]
    for segment in opened:
        for start in range(0, _SEGMENT_IDS, _SEGMENT_BATCH):
            digests = np.frombuffer(random.bytes(DIGEST_BYTES * _SEGMENT_BATCH), DIGEST)
            segment.add(segment_rows(digests, np.arange(start, start + _SEGMENT_BATCH)))
    open_gb = (psutil.Process().memory_info().rss - before) / len(opened) / 1e9
    closed, stored = opened[0].closed()
    kept = closed.filter.size + closed.sparse.nbytes
    return {
        "redis_id_bytes": len(stored) / _SEGMENT_IDS,
        "ingest_id_bytes": kept / _SEGMENT_IDS,
        "open_segment_gb": open_gb,
    }


# -- constants -----------------------------------------------------------------------------------------------------

# What each quantity may depend on, besides the time that passes.
_CPU_TERMS = {
    "ingest": ("second", "event", "spread"),
    "archive": ("second", "event"),
    "stream": ("second", "event", "cell", "spread"),
    "router": ("second",),
    "kafka": ("second", "event"),
    "redis": ("second", "event", "cell", "spread"),
    "clickhouse": ("second", "row"),
}
_TOPIC_TERMS, _FILE_TERMS = ("second", "event", "spread"), ("event", "spread")
# Of four loads: more would fit their noise.
_MOST_TERMS = 3


def fit(samples: list[tuple[Work, float]], terms: tuple[str, ...]) -> dict[str, float]:
    """Factors of the terms, none negative, with the least squares of relative errors: the best of all subsets."""
    amounts = np.array([[work.seconds, work.events, work.cells, work.rows, work.spread] for work, _ in samples])
    columns = ("second", "event", "cell", "row", "spread")
    values = np.array([value for _, value in samples])
    best: tuple[float, dict[str, float]] = (np.inf, {})
    for count in range(1, min(_MOST_TERMS, len(terms)) + 1):
        for subset in itertools.combinations(terms, count):
            relative = amounts[:, [columns.index(term) for term in subset]] / values[:, None]
            factors = np.linalg.lstsq(relative, np.ones(len(values)), rcond=None)[0]
            error = float(np.sum((relative @ factors - 1) ** 2))
            if (factors >= 0).all() and error < best[0]:
                best = error, dict(zip(subset, map(float, factors), strict=True))
    return best[1]


def fitted(reports: dict[str, dict[str, Any]], constants: Constants) -> dict[str, dict[str, dict[str, float]]]:
    """section → name → fields, of all that is measured here."""
    loads = {load.name: load for load in CALIBRATION}
    works = {name: work_of(loads[name], report["seconds"], constants) for name, report in reports.items()}

    def samples(key: str, *, by_bare: bool = False) -> list[tuple[Work, float]]:
        return [(works[n], r[key] / (r["bare_us"] / 1e6 if by_bare else 1)) for n, r in reports.items()]

    def median(key: str, divisor: float = 1.0) -> float:
        return float(statistics.median(report[key] / divisor for report in reports.values()))

    cpu = {part: fit(samples(f"cpu_s_{part}", by_bare=True), terms) for part, terms in _CPU_TERMS.items()}
    # All but Spark's start is taken to grow with the day's rows, which is too much for days as small as these.
    nights = [r for r in reports.values() if "night_cpu_s" in r]
    by_row = [(r["night_cpu_s"] - constants.measure("spark_start_s")) / (r["events"] / 2) for r in nights]
    cpu["spark"] = {"event": statistics.median(s / r["bare_us"] * 1e6 for s, r in zip(by_row, nights, strict=True))}
    written = {topic: fit(samples(f"bytes_kafka_{topic}"), _TOPIC_TERMS) for topic in _TOPICS}
    written |= {"ad_events": fit(samples("bytes_kafka_ad_events"), _FILE_TERMS)}
    written |= {"archive": fit(samples("bytes_archive"), _FILE_TERMS)}
    written |= {"redis_log": fit(samples("bytes_redis"), ("second", "event", "cell"))}
    stored = {
        table: fit(
            [
                (stored_work(traffic_of(loads[n], constants), r[f"rows_{table}"]), r[f"disk_{table}"])
                for n, r in reports.items()
            ],
            ("row", "spread"),
        )
        for table in KEPT_DAYS
    }
    # Packed minutes of two windows: rows and cells of each.
    hot = []
    for name, report in reports.items():
        traffic, half = traffic_of(loads[name], constants), loads[name].events / 2
        hot.append((Work(cells=2 * traffic.cells(half), rows=2 * traffic.rows(half)), float(report["hot_bytes"])))
    packed = fit(hot, ("cell", "row"))
    registers = {n: 2 * traffic_of(loads[n], constants).occupied(loads[n].events / 2, REGISTERS) for n in reports}
    size = {
        "bare_loop_us": median("bare_us"),
        "spark_core_gb": max(r["night_peak_mb"] for r in nights) * 2**20 / 1e9 / psutil.cpu_count(),
        "redis_row_bytes": packed.get("row", 0.0),
        "redis_cell_bytes": packed.get("cell", 0.0),
        **{
            f"coupon_{grain}_bytes": statistics.median(
                r[f"disk_stream_reach_{grain}"] / registers[n] for n, r in reports.items()
            )
            for grain in ("hours", "days")
        },
        **segment_sizes(),
        **{
            f"{part}_process_gb": median(f"idle_mb_{part}", 1e9 / 2**20)
            for part in ("ingest", "archive", "stream", "router")
        },
    }
    return {
        "cpu": cpu,
        "written": written,
        "stored": stored,
        "size": {name: {"value": value} for name, value in size.items()},
    }


def write_constants(values: dict[str, dict[str, dict[str, float]]]) -> None:
    """Replace what comes from here in the file of constants, and leave everything else in it as it is."""
    text = FILE.read_text()
    document, head = tomllib.loads(text), text[: text.index("\n[") + 1]
    for section, entries in values.items():
        for name, fields in entries.items():
            entry = document[section][name]
            if entry["source"] != _SOURCE:
                continue
            kept = {key: value for key, value in entry.items() if not isinstance(value, float)}
            document[section][name] = (
                kept | {"measured": dt.datetime.now(dt.UTC).date()} | {k: float(f"{v:.4g}") for k, v in fields.items()}
            )
    blocks = [
        "\n".join([f"[{section}.{name}]", *(f"{key} = {_toml(value)}" for key, value in entry.items())])
        for section, entries in document.items()
        for name, entry in entries.items()
    ]
    FILE.write_text(head.rstrip() + "\n\n" + "\n\n".join(blocks) + "\n")


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


# -- comparing -----------------------------------------------------------------------------------------------------


def predictions(load: PlannedLoad, report: dict[str, Any], constants: Constants) -> list[tuple[str, float, float, str]]:
    """(quantity, predicted, measured, unit), by the constants and the run's own bare loop alone."""
    work, traffic, half = work_of(load, report["seconds"], constants), traffic_of(load, constants), load.events / 2
    a_million = report["bare_us"] / load.events
    rows = []
    for part in _CPU_PARTS:
        rows.append(
            (
                f"CPU, {part}",
                constants.cpu[part].of(work) * a_million,
                report[f"cpu_s_{part}"] / load.events * 1e6,
                "s a million",
            )
        )
    rows.insert(0, ("CPU, all", sum(r[1] for r in rows), sum(r[2] for r in rows), "s a million"))
    size = constants.measure
    hot = 2 * (traffic.rows(half) * size("redis_row_bytes") + traffic.cells(half) * size("redis_cell_bytes"))
    rows.append(
        ("Redis, memory", (hot + load.events * size("redis_id_bytes")) / 1e6, report["redis_bytes"] / 1e6, "MB")
    )
    for name in (*_TOPICS, "redis_log", "archive"):
        key = {"redis_log": "bytes_redis", "archive": "bytes_archive"}.get(name, f"bytes_kafka_{name}")
        rows.append(
            (f"disk, {name.replace('_', '-')}", constants.written[name].of(work) / 1e6, report[key] / 1e6, "MB")
        )
    for table in KEPT_DAYS:
        stored = constants.stored[table].of(stored_work(traffic, traffic.rows(half))) / 1e6
        rows.append((f"disk, {table}", stored, report[f"disk_{table}"] / 1e6, "MB"))
    return rows


def compare(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Print a table for each load. Returns what is wrong: sums of CPU, Redis' memory or disks that are further off than the bound, and
    loads that were not live."""
    constants, problems, flat = load_constants(), list[str](), dict[str, Any]()
    for load in (load for load in (*CALIBRATION, *HELD_OUT) if load.name in reports):
        report = reports[load.name]
        behind_s, shown = report["lag_at_end"] / load.rate, []
        print(
            f"\n{load.rate:,} events/s, {load.campaigns:,} campaigns, bare loop {report['bare_us']} us,"
            f" load average {report['load_average']:.0f}, behind by {behind_s:.1f} s"
        )
        for name, predicted, real, unit in predictions(load, report, constants):
            error = predicted / real - 1 if real else 0.0
            shown.append((name, f"{predicted:.3g}", f"{real:.3g}", unit, f"{error:+.0%}"))
            flat[f"{load.name}_{name}"] = round(error, 3)
            if abs(error) > _BOUND and name not in {f"CPU, {part}" for part in _CPU_PARTS}:
                problems.append(f"{load.name}: {name} is off by {error:+.0%}")
        App(None, False, False, True).table(["", "predicted", "measured", "", "off by"], shown)
        if behind_s > _MOST_BEHIND_S:
            problems.append(
                f"{load.name}: ingest was behind by {behind_s:.1f} s, so it was no live load: run it on a quieter machine"
            )
    save("plan-errors", flat)
    return problems


def main() -> None:
    """Measure, and fit or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("constants", "compare"))
    parser.add_argument("--reuse", action="store_true", help="loads that are in .bench/plan.json are not run again")
    options = parser.parse_args()
    if options.what == "constants":
        reports = measured(CALIBRATION, reuse=options.reuse)
        write_constants(fitted(reports, load_constants()))
        load_constants.cache_clear()
        compare(reports)
    elif problems := compare(measured(HELD_OUT, reuse=options.reuse)):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
