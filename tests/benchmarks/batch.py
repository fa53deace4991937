"""`make bench-batch`: what the nightly recount costs, beside the same in plain Spark and in polars on one machine.

An archive of a day (10 million rows, 1 % of them copies, skewed as `make bench` is) is made, and then a larger one; each job runs in a process of its own, whose
CPU seconds are those of all its processes. Spark's start, measured by a job without rows, is told apart. The three must agree.
Figures go to `.bench/batch.json`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa

from infra.clock import DAY_MS, HOUR_MS, day_start_ms
from infra.file_store import FileStore
from ingest import events
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.schema import Decision
from ingest.synthetic.generator import zipf
from tests.benchmarks.stack import save

DAY = dt.date(2026, 11, 1)
DAY_MS_OF = day_start_ms(DAY)
_KEYS = ("campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device")
_PARTITIONS, _PER_FILE = 4, 250_000


def make_archive(root: Path, rows: int, seed: int = 1) -> None:
    """A day of rows, hour by hour; one in a hundred repeats an id of its hour, which the stream noticed three times in four."""
    rng = np.random.default_rng(seed)
    offsets = [0] * _PARTITIONS
    for hour in range(24):
        left, number = rows // 24, 0
        while left > 0:
            n = min(left, _PER_FILE)
            partition = number % _PARTITIONS
            first = offsets[partition]
            archive_worker.write_files(
                FileStore(str(root)), partition, first, first + n, _rows(rng, n, DAY_MS_OF + hour * HOUR_MS, first)
            )
            offsets[partition] += n
            left, number = left - n, number + 1


def _rows(rng: np.random.Generator, n: int, start_ms: int, first: int) -> pa.Table:
    raw = rng.bytes(16 * n)
    ids = np.frombuffer(raw, np.uint8).reshape(n, 16).copy()
    copies = rng.choice(n, n // 100, replace=False)
    copied = rng.integers(0, n, len(copies))
    ids[copies] = ids[copied]
    texts = pa.LargeStringArray.from_buffers(
        n, pa.py_buffer(np.arange(n + 1, dtype=np.int64) * 32), pa.py_buffer(ids.tobytes().hex().encode())
    )
    campaign = zipf(1_000, 1.1, n, rng) + 1
    event_type = rng.choice(3, n, p=[0.9, 0.09, 0.01]).astype(np.uint8)
    decision = np.full(n, Decision.COUNTED, np.uint8)
    decision[copies[: len(copies) * 3 // 4]] = Decision.COPY
    times = start_ms + np.sort(rng.integers(0, HOUR_MS, n))
    columns: dict[str, Any] = {
        "offset": first + np.arange(n), "log_time_ms": times + rng.integers(0, 5_000, n), "event_id": texts,
        "event_type": event_type, "time_ms": times, "campaign_id": campaign, "ad_id": campaign * 10 + zipf(10, 0.8, n, rng),
        "advertiser_id": campaign // 10, "publisher_id": (campaign * 37 + zipf(50, 1.0, n, rng)) % 500,
        "country": zipf(20, 1.0, n, rng).astype(np.uint16), "device": zipf(5, 1.2, n, rng).astype(np.uint8),
        "user": rng.integers(0, 1 << 40, n), "cost_micros": np.where(event_type == 1, rng.integers(1_000, 900_000, n), 0),
        "decision": decision, "weight": np.ones(n, np.uint32), "lateness": np.zeros(n, np.uint8),
        "copy_of": pa.nulls(n, pa.int64()),
    }  # fmt: skip
    same = (
        "time_ms",
        "event_type",
        "campaign_id",
        "ad_id",
        "advertiser_id",
        "publisher_id",
        "country",
        "device",
        "cost_micros",
    )
    for name in same:
        columns[name][copies] = columns[name][copied]
    return pa.table({name: columns[name] for name in archive_schema.SCHEMA.names}, schema=archive_schema.SCHEMA)


# -- the jobs, each in a process of its own ---------------------------------------------------------------------


def ours(root: Path, folder: Path, memory: str) -> list[int]:
    """The product's recount."""
    from batch import spark_job
    from batch.archived_rows import NO_REJECTED_IDS

    spark = _session(folder, memory)
    _, found = spark_job.recount_day(
        spark, [str(root)], archive_files.files_around(FileStore(str(root)), DAY), DAY, NO_REJECTED_IDS, {}
    )
    spark.stop()
    return [found.hours, *(found.sums[name] for name in ("clicks", "impressions", "spend_micros")), found.rows]


def naive(root: Path, folder: Path, memory: str) -> list[int]:
    """What Spark's documentation would have one write."""
    from pyspark.sql import functions as F  # noqa: N812

    spark = _session(folder, memory, "-XX:+UseParallelGC")
    rows = spark.read.parquet(*(str(p) for p in root.rglob("p*.parquet")))
    near = rows.where(F.col("time_ms").between(DAY_MS_OF - DAY_MS, DAY_MS_OF + 2 * DAY_MS - 1))
    once = near.dropDuplicates(["event_id"])
    hours = once.withColumn("hour_ms", F.col("time_ms") - F.col("time_ms") % HOUR_MS).groupBy("hour_ms", *_KEYS).agg(
        *(F.sum((F.col("event_type") == kind).cast("long")).alias(kind) for kind in events.EVENT_TYPES),
        F.sum("cost_micros").alias("spend"),
    )  # fmt: skip
    total = hours.agg(F.count("*"), F.sum("click"), F.sum("impression"), F.sum("spend")).first()
    found = rows.count()
    spark.stop()
    return [*map(int, total), found]


def alone(root: Path, _folder: Path, _memory: str) -> list[int]:
    """Polars in one process, hour by hour: as all copies of an id lie in one hour here, and only then, that is exact."""
    kinds = {kind: (pl.col("event_type").cast(pl.String) == kind).sum().alias(kind) for kind in events.EVENT_TYPES}
    found = [0] * 5
    for hour in sorted(root.glob("event_date=*/hour=*")):
        rows = pl.scan_parquet(sorted(hour.glob("p*.parquet")))
        hours = rows.unique("event_id", keep="any").group_by(*_KEYS).agg(
            *kinds.values(), pl.sum("cost_micros").alias("spend")
        )  # fmt: skip
        sums = hours.select(pl.len(), pl.sum("click"), pl.sum("impression"), pl.sum("spend")).collect().row(0)
        one = (*sums, rows.select(pl.len()).collect().item())
        found = [a + int(b) for a, b in zip(found, one, strict=True)]
    return found


def nothing(root: Path, folder: Path, memory: str) -> list[int]:
    """Spark's start: a session, and one step in a Python worker."""
    spark = _session(folder, memory)
    spark.range(2).repartition(2).mapInArrow(lambda batches: batches, "id long").count()
    spark.stop()
    return []


def _session(folder: Path, memory: str, java_options: str | None = None) -> Any:
    from batch import spark_job
    from infra.settings import Settings

    settings = Settings.model_validate({"spark_memory": memory})
    return spark_job.start_session(settings, "local[*]", folder, java_options or spark_job.JAVA_OPTIONS)


JOBS = {job.__name__: job for job in (nothing, ours, naive, alone)}


def measured(name: str, root: Path, memory: str) -> dict[str, Any]:
    """CPU seconds, wall seconds, and the peak of resident memory of a job and all its processes.

    Nobody waits for Spark's processes, so that the operating system adds them to nobody's: they are looked at while they run.
    """
    with tempfile.TemporaryDirectory(prefix="adclick-batch-") as folder:
        began = time.monotonic()
        words = [sys.executable, "-m", "tests.benchmarks.batch", "--job", name, "--root", str(root), "--memory", memory, "--folder", folder]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            peak, cpu, done = [0], dict[int, float](), threading.Event()
            watching = threading.Thread(target=_watch, args=(process.pid, peak, cpu, done))
            watching.start()
            raw, _ = process.communicate()
            done.set()
            watching.join()
        if process.returncode:
            sys.exit(f"{name} failed")
        return {
            "cpu_s": round(sum(cpu.values()), 1), "s": round(time.monotonic() - began, 1), "rss_mb": peak[0] >> 20,
            "found": json.loads(raw),
        }  # fmt: skip


def _watch(pid: int, peak: list[int], cpu: dict[int, float], done: threading.Event) -> None:
    while not done.wait(0.1):
        total = 0
        try:
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                total += process.memory_info().rss
                cpu[process.pid] = sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--most-rows", type=int, default=50_000_000, help="the larger archive; 0 for none")
    parser.add_argument("--job", choices=JOBS)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--memory", default="2g")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job](options.root, options.folder, options.memory)))
        return
    report: dict[str, Any] = {"rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="adclick-archive-") as work:
        root = Path(work) / "small"
        make_archive(root, options.rows)
        found = {name: measured(name, root, options.memory) for name in JOBS}
        start = found["nothing"]["cpu_s"]
        report["start_cpu_s"] = start
        for name, key in (("ours", "cpu_s_10m"), ("naive", "naive_cpu_s_10m"), ("alone", "polars_cpu_s_10m")):
            report[key] = round(found[name]["cpu_s"] - (0 if name == "alone" else start), 1)
            report[f"{name}_s"], report[f"{name}_rss_mb"] = found[name]["s"], found[name]["rss_mb"]
        report["exact"] = found["ours"]["found"] == found["naive"]["found"] == found["alone"]["found"]
        if options.most_rows:
            large = Path(work) / "large"
            make_archive(large, options.most_rows)
            most = measured("ours", large, "1g")
            report |= {"cpu_s_50m": round(most["cpu_s"] - start, 1), "rss_mb_50m": most["rss_mb"], "s_50m": most["s"]}
            report["exact"] &= most["found"] == measured("alone", large, "1g")["found"]
    save("batch", report)
    for name, value in report.items():
        print(f"{name:24} {value}")
    if not report["exact"]:
        sys.exit("the jobs disagree")


if __name__ == "__main__":
    main()
