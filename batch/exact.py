"""The exact recount, in Spark: the only module that imports pyspark. What is counted, and how, is `batch.recount`'s.

Spark spreads files and buckets over its workers, carries what they exchange, and starts again what fails. Parquet is read, and
columns are summed, in its Python workers: rows never pass through the JVM, where each would cost ten times as much.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from batch import recount
from batch.recount import Letters
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, day_start_ms
from infra.embedded import java
from infra.errors import AdclickError, Unavailable, UserError
from infra.settings import Settings
from ingest import compaction

# pyspark warns of pandas 3, which nothing here uses.
warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")

_TASK_BYTES = 48 << 20
_ON_DISK = StorageLevel.DISK_ONLY
# What passes between steps. Places: of rows, with the hash of their ids, then of those that repeat, then those rows.
_MADE = "kind int, bucket int, payload binary"
_TOTALS, _MOVES, _PLACES, _UNBILLED = range(4)
_HASHES, _SUMS = struct.Struct("<II"), struct.Struct("<qQ")
_MOVES_ROW = ", ".join(f"{name} {'string' if kind == pl.String() else 'long'}" for name, kind in recount.MOVES.items())


class UnreadableFile(Exception):
    """A file of the archive cannot be read."""


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
    unbilled: dict[int, int]
    """Start of an earlier day → events of it that its run has not read."""


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
def running(settings: Settings, master: str) -> Iterator[SparkSession]:
    """A session in a folder of its own, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="adclick-spark-") as scratch:
        spark = session(settings, master, Path(scratch))
        try:
            yield spark
        finally:
            spark.stop()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Failures of Spark in one line, where the cause is known. Raises UserError, AdclickError."""
    try:
        yield
    except PySparkException as error:
        told = str(error)
        if unreadable := re.search(r"UnreadableFile: (.*)", told):
            raise UserError(
                f"cannot be read: {unreadable[1]}", hint="nothing was published; restore the file"
            ) from error
        if away := re.search(r"Unavailable: (.*)", told):
            raise Unavailable(away[1]) from error
        raise AdclickError(
            f"Spark: {told.splitlines()[0][:300]}", hint="nothing was published; -v shows all of it"
        ) from error


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


def files_of(root: Path, date: dt.date) -> list[Path]:
    """Files that may hold events of D−1 … D+1: folders from D−1 on, since too-late events lie where they arrived."""
    first = (date - dt.timedelta(days=1)).isoformat()
    folders = [f for f in root.glob("event_date=*") if f.name.split("=", 1)[1] >= first]
    return sorted(p for f in folders for p in compaction.current(f))


def count(
    spark: SparkSession, files: Sequence[Path], date: dt.date, letters: Letters, billed: Mapping[int, Sequence[int]]
) -> tuple[DataFrame, Input]:
    """The day's moves, as `recount.MOVES`, kept for as long as the session lasts; and what was read for them. Raises
    UnreadableFile.

    Files are read twice at most: once all of them, to count every row alone and to find ids that repeat; and once more those that
    hold such. Every step takes a task's files, or a bucket, at a time: nothing needs memory for a day, and nothing comes to
    the driver but totals.
    """
    day_ms = day_start_ms(date)
    tasks = _tasks(files)
    buckets = max(8, 2 * len(tasks))
    paths = [[str(file) for file in task] for task in tasks]
    given = spark.createDataFrame(list(enumerate(paths)), "task int, paths array<string>")
    known = spark.sparkContext.broadcast(letters)
    spread = given.repartitionByRange(len(tasks), "task")
    first = spread.mapInArrow(partial(_read, day_ms=day_ms, buckets=buckets, letters=known, billed=billed), _MADE)
    met = (
        first.repartition(buckets, "kind", "bucket")
        .groupBy("kind", "bucket")
        .applyInArrow(_meet, _MADE)
        .persist(_ON_DISK)
    )
    again = met.where(F.col("kind") == _PLACES).groupBy("bucket").applyInArrow(
        lambda key, table: _read_again(key, table, day_ms, buckets, known, paths), _MADE
    )  # fmt: skip
    mended = (
        again.groupBy("bucket").applyInArrow(lambda _, table: _mend(table, day_ms, buckets), _MADE).persist(_ON_DISK)
    )
    kept = met.where(F.col("kind") != _PLACES).unionByName(mended)
    totals = (
        kept.where(F.col("kind") == _TOTALS).groupBy("kind").applyInArrow(_add_up, "rows long, digest decimal(20,0)")
    )
    moves = kept.where(F.col("kind") == _MOVES).groupBy("bucket").applyInArrow(_merge, _MOVES_ROW).persist(_ON_DISK)
    with _explained():
        winners = moves.where(F.col("cause") == recount.EXACT).agg(F.sum("winners")).first()
        told = totals.first()
        later = (
            kept.where(F.col("kind") == _UNBILLED).groupBy("bucket").applyInArrow(_add_events, "day long, events long")
        )
        unbilled = {int(row["day"]): int(row["events"]) for row in later.toLocalIterator()}
    assert winners is not None
    rows, digest = (int(told[0]), int(told[1])) if told is not None else (0, 0)
    return moves, Input(rows, rows - int(winners[0] or 0), str(digest), unbilled)


def _tasks(files: Sequence[Path]) -> list[list[Path]]:
    """Files that are read together: of one folder mostly, and no more than fits well into memory."""
    tasks: list[list[Path]] = [[]]
    size = 0
    for file in files:
        more = file.stat().st_size
        if tasks[-1] and size + more > _TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(file)
        size += more
    return tasks


# -- what runs in Spark's Python workers: tables of (kind, bucket, payload) --------------------------------------


def _row(kind: int, bucket: int, payload: bytes) -> pa.RecordBatch:
    columns = [pa.array([kind], pa.int32()), pa.array([bucket], pa.int32()), pa.array([payload], pa.binary())]
    return pa.record_batch(columns, names=["kind", "bucket", "payload"])


def _table(rows: Iterable[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(rows, pa.schema({"kind": pa.int32(), "bucket": pa.int32(), "payload": pa.binary()}))


def _archived(paths: Sequence[str]) -> pl.DataFrame:
    """What the files of a task hold, in their order."""
    found = []
    for path in paths:
        try:
            found.append(pl.read_parquet(path, columns=list(recount.COLUMNS)))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UnreadableFile(f"{path}: {str(error).splitlines()[0]}") from error
    return pl.concat(found)


def _near(rows: pl.DataFrame, day_ms: int, letters: Letters) -> pl.DataFrame:
    """Those of D−1 … D+1, in their order, told apart."""
    return recount.told_apart(recount.near(rows, day_ms), letters)


def _read(
    batches: Iterator[pa.RecordBatch], day_ms: int, buckets: int, letters: Any, billed: Mapping[int, Sequence[int]]
) -> Iterator[pa.RecordBatch]:
    """Count a task's rows as if no id repeated, and tell the hashes of their ids and where they are."""
    for batch in batches:
        for task, paths in zip(batch["task"].to_pylist(), batch["paths"].to_pylist(), strict=True):
            archived = _archived(paths)
            for day, events in recount.unbilled(archived, billed).items():
                yield _row(_UNBILLED, day // DAY_MS, _SUMS.pack(events, 0))
            rows = _near(archived, day_ms, letters.value)
            yield from _counted(recount.alone(rows, day_ms), buckets)
            found = rows["hash"].to_numpy()
            place = (found >> np.uint64(40)).astype(np.int64) % buckets
            order = np.argsort(place.astype(np.uint16), kind="stable")
            edges = np.searchsorted(place[order], np.arange(buckets + 1))
            for bucket, (low, high) in enumerate(pairwise(edges.tolist())):
                if low < high:
                    here = order[low:high]
                    told = _HASHES.pack(task, high - low) + here.astype(np.uint32).tobytes() + found[here].tobytes()
                    yield _row(_PLACES, bucket, told)


def _counted(found: recount.Counted, buckets: int) -> Iterator[pa.RecordBatch]:
    yield _row(_TOTALS, 0, _SUMS.pack(found.totals.rows, found.totals.digest))
    moves = found.moves.with_columns(bucket=recount.bucket_of(found.moves, buckets))
    for (bucket,), part in moves.group_by("bucket"):
        yield _row(_MOVES, int(cast("int", bucket)), recount.as_bytes(part.drop("bucket")))


def _meet(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    """All that is of one bucket: of places, those whose hash is there twice, for each task; of the others, sums."""
    kind, bucket = key[0].as_py(), key[1].as_py()
    payloads = table["payload"].to_pylist()
    if kind in (_TOTALS, _UNBILLED):
        return _table([_row(kind, bucket, _SUMS.pack(*_sum(payloads)))])
    if kind == _MOVES:
        return _table([_row(kind, bucket, recount.as_bytes(recount.merged([recount.of_bytes(p) for p in payloads])))])
    tasks, places, found = list[int](), [], []
    for payload in payloads:
        task, count = _HASHES.unpack_from(payload)
        tasks.append(task)
        places.append(np.frombuffer(payload, np.uint32, count, _HASHES.size))
        found.append(np.frombuffer(payload, np.uint64, count, _HASHES.size + 4 * count))
    twice = recount.repeated(np.concatenate(found))
    edges = np.cumsum([0, *(len(p) for p in places)])
    told = [
        (task, here[twice[low:high]]) for task, here, (low, high) in zip(tasks, places, pairwise(edges), strict=True)
    ]
    return _table(_row(_PLACES, task, here.tobytes()) for task, here in told if len(here))


def _read_again(
    key: tuple[pa.Scalar, ...], table: pa.Table, day_ms: int, buckets: int, letters: Any, tasks: Sequence[Sequence[str]]
) -> pa.Table:
    """A task's rows whose ids may repeat, by bucket of their hash."""
    places = np.sort(np.concatenate([np.frombuffer(p, np.uint32) for p in table["payload"].to_pylist()]))
    rows = _near(_archived(tasks[key[0].as_py()]), day_ms, letters.value)[places]
    rows = rows.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    place = pl.Series("bucket", (rows["hash"].to_numpy() >> np.uint64(40)).astype(np.int64) % buckets)
    parts = rows.with_columns(place).group_by("bucket")
    return _table(_row(_PLACES, int(cast("int", b)), recount.as_bytes(part.drop("bucket"))) for (b,), part in parts)


def _mend(table: pa.Table, day_ms: int, buckets: int) -> pa.Table:
    """Rows of one bucket of ids, taken back and counted as what they are."""
    rows = pl.concat([recount.of_bytes(p) for p in table["payload"].to_pylist()])
    return _table(_counted(recount.correction(rows, day_ms), buckets))


def _merge(_key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    moves = recount.merged([recount.of_bytes(p) for p in table["payload"].to_pylist()])
    kinds = {name: pa.string() if kind == pl.String() else pa.int64() for name, kind in recount.MOVES.items()}
    return moves.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.schema(kinds))


def _sum(payloads: Iterable[bytes]) -> tuple[int, int]:
    totals = sum((recount.Totals(*_SUMS.unpack(p)) for p in payloads), recount.Totals())
    return totals.rows, totals.digest


def _add_up(_key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    rows, digest = _sum(table["payload"].to_pylist())
    return pa.table({"rows": pa.array([rows], pa.int64()), "digest": pa.array([Decimal(digest)], pa.decimal128(20, 0))})


def _add_events(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    events, _ = _sum(table["payload"].to_pylist())
    return pa.table(
        {"day": [key[0].as_py() * DAY_MS], "events": [events]}, pa.schema({"day": pa.int64(), "events": pa.int64()})
    )


def write(
    moves: DataFrame, url: str, database: str, run_id: str, hours: str = "exact_hours", ledger: str | None = "ledger"
) -> None:
    """Insert exact hours and the ledger's causes under a run id into these tables. Runs in Spark's Python workers, a batch at a
    time."""

    def insert(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        client = ClickHouse(url, database)
        count = 0
        for batch in batches:
            table = pa.Table.from_batches([batch])
            exact = pc.equal(table["cause"], recount.EXACT)
            # A dimension that only copies brought is no exact row, but its cause is a ledger row.
            counted = table.filter(pc.and_(exact, pc.greater(table["winners"], 0)))
            if counted.num_rows:
                sums = {m: counted[m].cast(pa.uint64()) for m in (*recount.MEASURES, "late", "late_events")}
                client.insert(hours, pa.table(_keys(counted, run_id) | sums))
            causes = table.filter(pc.invert(exact))
            if ledger is not None and causes.num_rows:
                told = {"cause": causes["cause"]} | {m: causes[m] for m in recount.MEASURES}
                client.insert(ledger, pa.table(_keys(causes, run_id) | told))
            count += batch.num_rows
        client.close()
        yield pa.record_batch([pa.array([count], pa.int64())], names=["n"])

    with _explained():
        moves.mapInArrow(insert, "n long").agg(F.sum("n")).first()


def _keys(table: pa.Table, run_id: str) -> dict[str, Any]:
    ids = {d: table[d].cast(pa.uint64()) for d in recount.IDS}
    return {
        "time": pc.cast(pc.divide(table["hour_ms"], 1000), pa.timestamp("s", "UTC")),
        **ids,
        "country": table["country"],
        "device": table["device"],
        "run_id": pa.array([run_id] * table.num_rows),
    }


def watch_progress(spark: SparkSession, tell: Callable[[int, int], None], done: Any) -> None:
    """Call `tell(finished, total)` tasks of the running stages until `done` is set. For a thread."""
    tracker = spark.sparkContext.statusTracker()
    while not done.wait(0.5):
        stages = [s for i in tracker.getActiveStageIds() if (s := tracker.getStageInfo(i)) is not None]
        if stages:
            tell(sum(s.numCompletedTasks for s in stages), sum(s.numTasks for s in stages))
