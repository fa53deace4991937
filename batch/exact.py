"""The exact recount, in Spark: the only module that imports pyspark.

Copies share an event_id. The earliest by (log time, partition, offset) among the events of D−1 … D+1 counts, so that
neighbouring days choose the same one. Everything else follows from the decision that each archived row carries.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS
from infra.embedded import java
from infra.errors import UserError
from infra.settings import Settings

# pyspark warns of pandas 3, which nothing here uses.
warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")

DIMENSIONS = ("campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device")
MEASURES = ("impressions", "clicks", "conversions", "spend_micros")
# Why the stream and the exact count differ, by what was decided about a row.
CAUSES = ("late", "shed", "doubt", "cross-partition-duplicate", "expired-horizon-duplicate")
_LOG4J = """rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %c{{1}}: %m%n
"""


@dataclass(frozen=True)
class Input:
    """What a run read of its day: rows in the archive, how many were copies, and a digest that ignores order."""

    rows: int
    copies: int
    digest: str


def session(settings: Settings, master: str, folder: Path) -> SparkSession:
    """A Spark session that keeps its chatter in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "spark-conf"
    conf.mkdir(exist_ok=True)
    (conf / "log4j2.properties").write_text(_LOG4J.format(log=(folder / "spark.log").resolve()))
    os.environ |= {
        "SPARK_CONF_DIR": str(conf.resolve()),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "JAVA_HOME": str(java.home_for_spark(folder.resolve())),
        "POLARS_MAX_THREADS": "1",
    }
    os.environ.pop("JAVA_TOOL_OPTIONS", None)  # Java would announce it on standard error
    builder = (
        SparkSession.builder.master(master)
        .appName("adclick reconcile")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", settings.spark_memory)
        .config("spark.driver.extraJavaOptions", "-XX:+UseParallelGC")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "8")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "100000")
        .config("spark.sql.warehouse.dir", str((folder / "warehouse").resolve()))
        .config("spark.local.dir", str(folder.resolve()))
    )
    if master.startswith("local"):
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    with _errors_to(folder / "spark.log"):
        return builder.getOrCreate()


@contextlib.contextmanager
def _errors_to(file: Path) -> Iterator[None]:
    """Standard error goes to a file meanwhile: the Java process that is started inherits it, and keeps it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def files_of(root: Path, date: dt.date) -> list[str]:
    """Files that may hold events of D−1 … D+1: folders from D−1 on, since too-late events lie where they arrived."""
    first = (date - dt.timedelta(days=1)).isoformat()
    folders = [f for f in root.glob("event_date=*") if f.name.split("=", 1)[1] >= first]
    return sorted(str(p) for f in folders for p in f.rglob("p*.parquet"))


def read(spark: SparkSession, root: Path, date: dt.date) -> DataFrame:
    """Archived rows of D−1 … D+1, ranked among the copies of their id; a row found in two files once.

    Adds `rank` (1 counts), `first_partition`, and `hour_ms`. Raises UserError when nothing is archived.
    """
    files = files_of(root, date)
    if not files:
        raise UserError(f"nothing is archived for {date}", hint=f"looked below {root}")
    day_ms = int(dt.datetime.combine(date, dt.time(), dt.UTC).timestamp()) * 1000
    near = F.col("time_ms").between(day_ms - DAY_MS, day_ms + 2 * DAY_MS - 1)
    rows = spark.read.parquet(*files).where(near)
    same = Window.partitionBy("event_id").orderBy("log_time_ms", "partition", "offset")
    before = F.struct("partition", "offset")
    seen_twice = F.coalesce(F.lag(before).over(same) == before, F.lit(False))
    marked = rows.withColumn("again", seen_twice).where(~F.col("again"))
    ranked = marked.withColumn("rank", F.row_number().over(same)).withColumn(
        "first_partition", F.first("partition").over(same)
    )
    return ranked.where(F.col("time_ms").between(day_ms, day_ms + DAY_MS - 1)).withColumn(
        "hour_ms", F.col("time_ms") - F.col("time_ms") % HOUR_MS
    )


def aggregate(rows: DataFrame) -> DataFrame:
    """Exact sums by hour and all dimensions, and by what each cause moves them: `CAUSE|measure` columns.

    A cause's columns are what must be added to the stream's numbers, so they add up to exact − stream.
    """
    wins, counted = F.col("rank") == 1, F.col("decision") == "counted"
    amounts = {
        "impressions": (F.col("event_type") == "impression").cast("long"),
        "clicks": (F.col("event_type") == "click").cast("long"),
        "conversions": (F.col("event_type") == "conversion").cast("long"),
        "spend_micros": F.col("cost_micros"),
    }
    weight = F.col("weight").cast("long")
    moves = {
        "late": F.when(wins & (F.col("decision") == "too-late"), 1),
        "shed": F.when(wins & (F.col("decision") == "shed"), 1).when(wins & counted, 1 - weight),
        "doubt": F.when(wins & (F.col("decision") == "doubt"), 1),
        "cross-partition-duplicate": F.when(
            ~wins & counted & (F.col("partition") != F.col("first_partition")), -weight
        ),
        "expired-horizon-duplicate": F.when(
            ~wins & counted & (F.col("partition") == F.col("first_partition")), -weight
        ),
    }
    sums = [F.sum(F.when(wins, amount).otherwise(0)).alias(name) for name, amount in amounts.items()]
    accepted_late = wins & counted & (F.col("lateness") > 0)
    sums.append(F.sum(accepted_late.cast("long")).alias("late"))
    sums.append(F.sum((wins & (F.col("lateness") == 2)).cast("long")).alias("late_events"))
    for cause, sign in moves.items():
        factor = F.coalesce(sign.cast("long"), F.lit(0))
        sums += [F.sum(factor * amount).alias(f"{cause}|{name}") for name, amount in amounts.items()]
    sums.append(F.sum(wins.cast("long")).alias("winners"))
    sums.append(F.sum(F.lit(1)).alias("members"))
    sums.append(F.sum(F.xxhash64("event_id", "partition", "offset").cast("decimal(38,0)")).alias("digest"))
    keys = [F.col(d).cast("string").alias(d) if d in ("country", "device") else F.col(d) for d in DIMENSIONS]
    return rows.groupBy("hour_ms", *keys).agg(*sums)


def summarize(sums: DataFrame) -> Input:
    """Totals of the run's input."""
    row = sums.agg(F.sum("members").alias("n"), F.sum("winners").alias("w"), F.sum("digest").alias("d")).first()
    assert row is not None
    return Input(int(row["n"] or 0), int((row["n"] or 0) - (row["w"] or 0)), str(row["d"] or 0))


def write(sums: DataFrame, url: str, database: str, run_id: str) -> int:
    """Insert exact hours and the ledger's causes under a run id; returns how many dimensions there are.

    Runs in Spark's Python workers, a batch at a time: nothing is collected at the driver.
    """
    names = [c for c in sums.columns if c not in ("members", "digest")]

    def insert(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        client = ClickHouse(url, database)
        for batch in batches:
            table = pa.Table.from_batches([batch])
            _insert_hours(client, table, run_id)
            _insert_causes(client, table, run_id)
            yield pa.record_batch([pa.array([table.num_rows], pa.int64())], names=["n"])
        client.close()

    row = sums.select(*names).mapInArrow(insert, "n long").agg(F.sum("n")).first()
    return int(row[0] or 0) if row is not None else 0


def _keys(table: pa.Table, run_id: str) -> dict[str, Any]:
    seconds = pc.cast(pc.divide(table["hour_ms"], 1000), pa.timestamp("s", "UTC"))
    ids = {d: table[d].cast(pa.uint64()) for d in DIMENSIONS if d not in ("country", "device")}
    return {
        "time": seconds,
        **ids,
        "country": table["country"],
        "device": table["device"],
        "run_id": pa.array([run_id] * table.num_rows),
    }


def _insert_hours(client: ClickHouse, table: pa.Table, run_id: str) -> None:
    # A dimension that only copies brought is no exact row, but its cause is a ledger row.
    kept = table.filter(pc.greater(table["winners"], 0))
    if kept.num_rows:
        sums = {m: kept[m].cast(pa.uint64()) for m in (*MEASURES, "late", "late_events")}
        client.insert("exact_hours", pa.table(_keys(kept, run_id) | sums))


def _insert_causes(client: ClickHouse, table: pa.Table, run_id: str) -> None:
    for cause in CAUSES:
        moved = [table[f"{cause}|{m}"] for m in MEASURES]
        any_move = pc.not_equal(moved[0], 0)
        for column in moved[1:]:
            any_move = pc.or_(any_move, pc.not_equal(column, 0))
        part = table.filter(any_move)
        if part.num_rows:
            sums = {m: part[f"{cause}|{m}"] for m in MEASURES}
            client.insert("ledger", pa.table(_keys(part, run_id) | {"cause": pa.array([cause] * part.num_rows)} | sums))


def watch_progress(spark: SparkSession, tell: Callable[[int, int], None], done: Any) -> None:
    """Call `tell(finished, total)` tasks of the running stages until `done` is set. For a thread."""
    tracker = spark.sparkContext.statusTracker()
    while not done.wait(0.5):
        stages = [s for i in tracker.getActiveStageIds() if (s := tracker.getStageInfo(i)) is not None]
        if stages:
            tell(sum(s.numCompletedTasks for s in stages), sum(s.numTasks for s in stages))
