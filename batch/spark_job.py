"""How the recount of a day is spread over Spark: its session, which files a task reads, what tasks exchange, where sums are inserted.

The only module that imports pyspark. What a row adds is decided in `batch.recount`; which days are counted, and what becomes of
the result, in `batch.reconcile`. Spark schedules files and buckets on its workers, carries what they exchange, and repeats what
fails. Parquet is read, and columns are summed, in its Python workers: rows never pass through the JVM, where each would cost ten
times as much.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pwd
import re
import shlex
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext, StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from batch import archived_rows, corrections, move_tables, recount
from batch.archived_rows import Archives, RejectedIds
from batch.recount import Billed, UnbilledEvents
from batch.spark_master import defaults_file, foreign_variables, is_local
from infra import temp_dirs, user_cache
from infra.addresses import properties_of
from infra.clickhouse.client import ClickHouse, Connect
from infra.clock import day_start_ms
from infra.embedded import exit_reasons, java, lifeline
from infra.errors import AdclickError, Unavailable, UserError
from infra.settings import Settings
from ingest.archive.files import File
from ingest.events import EVENT_TYPES
from ingest.partials import BILLED

# pyspark warns of pandas 3, which nothing here uses.
warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")

JAVA_OPTIONS = "-XX:+UseParallelGC -XX:TieredStopAtLevel=1"
"""Java only carries bytes here: its second compiler would cost more than it saves."""
_TASK_BYTES = 32 << 20
_INSERTED_ROWS = 250_000
_ON_DISK = StorageLevel.DISK_ONLY
_FULL = "No space left on device|File too large|Disk quota exceeded"
# What passes between steps, by kind. Facts: numbers by name, which add up. Moves: tables of `batch.recount`. Places: of all rows
# with the hashes of their ids, then of rows whose hash repeats, then these rows.
_STEP_SCHEMA = "kind int, bucket int, payload binary"
_FACTS, _MOVES, _PLACES = range(3)
# Facts about another day: its start follows.
_LATE, _NEVER = "late ", "never "
_HASHES = struct.Struct("<II")
HOUR = pl.from_epoch("hour_ms", "ms").dt.cast_time_unit("ms").dt.replace_time_zone("UTC")
"""The column `time` of ClickHouse's tables."""


_LOG4J = """rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %c{{1}}: %m%n
"""


@dataclass(frozen=True)
class RunInput:
    """What a run has read of its day: rows in the archive, how many were copies, and a digest that ignores order."""

    rows: int
    copies: int
    digest: str
    unbilled: UnbilledEvents
    hours: int
    """Rows of exact hours, over all dimensions."""
    sums: dict[str, int]
    """Measure → its exact sum over the day."""


def start_session(settings: Settings, master: str, folder: Path, java_options: str = JAVA_OPTIONS) -> SparkSession:
    """A Spark session that keeps its chatter in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "spark-conf"
    conf.mkdir(exist_ok=True)
    # As options they would be on the command line of Java, which everybody on the machine may read.
    defaults = conf / "spark-defaults.conf"
    defaults.touch(mode=0o600)
    defaults.write_text(defaults_file(properties_of(settings.spark_properties)))
    (conf / "log4j2.properties").write_text(_LOG4J.format(log=(folder / "spark.log").resolve()))
    for name in foreign_variables(os.environ, master):
        del os.environ[name]
    os.environ |= {
        "SPARK_CONF_DIR": str(conf.resolve()),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "JAVA_HOME": str(java.home_for_spark(folder.resolve())),
        "POLARS_MAX_THREADS": "1",
        **java.LOCALE,
    }
    options = {
        "spark.master": master,
        "spark.app.name": "adclick reconcile",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": settings.spark_memory,
        "spark.driver.extraJavaOptions": " ".join([java_options, *_folder_options(folder)]),
        # Of a user without a home Spark makes a relative name, and refuses it.
        "spark.jars.ivy": str((folder / "ivy").resolve()),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "8",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
        "spark.sql.warehouse.dir": str((folder / "warehouse").resolve()),
        "spark.local.dir": str(folder.resolve()),
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
    }
    # Executors of a cluster must reach the driver: its host is then the machine's address, or what the properties say.
    if is_local(master):
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        options |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    log = folder / "spark.log"
    try:
        # A Java that is interrupted while it starts goes on for ever, and holds our standard output open.
        with _output_to(log), lifeline.no_children_after_failure():
            if not _user_has_name():
                _log_in(options)
            return SparkSession.builder.config(map=options).getOrCreate()
    except (PySparkException, Py4JError, OSError) as error:
        output = log.read_text(errors="replace") if log.exists() else ""
        # Where Java itself does not start, only its output says why.
        cause = (
            exit_reasons.find_cause(str(error) if isinstance(error, Py4JError) else output)
            or str(error).splitlines()[0]
        )
        raise AdclickError(
            f"Spark did not start: {cause}", hint="nothing was published; -v shows all of its output", output=output
        ) from error


def _user_has_name() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _log_in(options: Mapping[str, str]) -> None:
    """Start Spark's Java, and give its user a name: Hadoop asks the system for it, and fails for a uid that has none."""
    SparkContext._ensure_initialized(conf=SparkConf().setAll(list(options.items())))
    users = SparkContext._jvm.org.apache.hadoop.security.UserGroupInformation
    users.setLoginUser(users.createRemoteUser(f"uid-{os.getuid()}"))


def _folder_options(folder: Path) -> list[str]:
    """Java's own folders, for a user without a home, and where nothing may be executed from the usual one."""
    options = {"java.io.tmpdir": java.unpack_folder(folder.resolve())}
    if user_cache.user_folder() is None:
        options["user.home"] = folder.resolve()
    return [shlex.quote(f"-D{name}={path}") for name, path in options.items()]


@contextlib.contextmanager
def open_session(settings: Settings, master: str) -> Iterator[SparkSession]:
    """A session in a folder of its own, for as long as the block lasts.

    An error in it becomes one line, where the cause is known. Raises UserError, AdclickError.
    """
    with explained(), temp_dirs.folder("adclick-spark-") as folder:
        spark = start_session(settings, master, folder)
        try:
            yield spark
        finally:
            spark.stop()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """An error of Spark or of its workers becomes one line, where the cause is known. Raises AdclickError, OSError."""
    try:
        yield
    except (PySparkException, Py4JError, OSError) as error:
        text = str(error)
        if unreadable := re.search(r"UnreadableFile: (.*)", text):
            raise UserError(unreadable[1], hint="nothing was published; restore the file") from error
        if away := re.search(r"infra\.errors\.(?:Unavailable|TimedOut|Refused|Denied): (.*)", text):
            raise Unavailable(away[1]) from error
        if re.search(_FULL, text):
            raise AdclickError(
                f"the disk of {tempfile.gettempdir()} is full", hint="nothing was published; make room, or set TMPDIR"
            ) from error
        if isinstance(error, OSError):
            raise
        raise AdclickError(
            f"Spark: {text.splitlines()[0][:300]}", hint="nothing was published; -v shows all of it"
        ) from error


@contextlib.contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Standard output and error go to a file meanwhile: the Java process that is started inherits them, and keeps them."""
    own = dict[int, int]()
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is not None:  # it is where the descriptor was closed
            stream.flush()
            own[number] = os.dup(number)
    with file.open("ab") as log:
        for number in own:
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for number, descriptor in own.items():
            os.dup2(descriptor, number)
            os.close(descriptor)


def recount_day(
    spark: SparkSession,
    archives: Sequence[str],
    files: Sequence[File],
    date: dt.date,
    rejected: RejectedIds,
    billed: Billed,
) -> tuple[DataFrame, RunInput]:
    """The day's moves, for `write_moves`, kept for as long as the session lasts; and what was read for them. Raises UserError for a file
    that cannot be read. Spark's workers must find the `archives` by the same names.

    Files are read twice at most: once all of them, to count every row alone and to find ids that repeat; and once more those that
    hold such. Every step takes a task's files, or a bucket, at a time: nothing needs memory for a day, and nothing comes to
    the driver but totals.
    """
    day_ms = day_start_ms(date)
    tasks = tasks_of(files)
    buckets = max(8, 2 * len(tasks))
    names = [[file.reference for file in task] for task in tasks]
    rejected_by_worker = spark.sparkContext.broadcast(rejected)
    read = spread_tasks(spark, names).mapInArrow(
        partial(_read, archives=archives, day_ms=day_ms, buckets=buckets, rejected=rejected_by_worker, billed=billed), _STEP_SCHEMA
    ).persist(_ON_DISK)  # fmt: skip
    places = F.col("kind") == _PLACES
    mended = (
        read.where(places).groupBy("bucket").applyInArrow(_meet, _STEP_SCHEMA)
        .groupBy("bucket").applyInArrow(lambda key, table: _read_again(key, table, buckets, rejected_by_worker, archives, names), _STEP_SCHEMA)
        .groupBy("bucket").applyInArrow(lambda _, table: _mend(table, day_ms, buckets), _STEP_SCHEMA)
    )  # fmt: skip
    counted = read.where(~places).unionByName(mended).groupBy("kind", "bucket").applyInArrow(_add_up, _STEP_SCHEMA)
    counted = counted.persist(_ON_DISK)
    facts = Counter[str]()
    for row in counted.where(F.col("kind") == _FACTS).select("payload").toLocalIterator():
        facts.update(json.loads(row[0]))
    sums = {measure: facts[measure] for measure in BILLED}
    winners = sum(sums[measure] for measure in BILLED[: len(EVENT_TYPES)])
    unbilled = UnbilledEvents(_by_day(facts, _LATE), _by_day(facts, _NEVER))
    run_input = RunInput(
        facts["rows"], facts["rows"] - winners, str(facts["digest"] % 2**64), unbilled, facts["hours"], sums
    )  # fmt: skip
    return counted.where(F.col("kind") == _MOVES), run_input


def _by_day(facts: Mapping[str, int], name: str) -> dict[int, int]:
    return {int(fact.removeprefix(name)): n for fact, n in facts.items() if fact.startswith(name)}


def tasks_of(files: Sequence[File]) -> list[list[File]]:
    """Files that are read together: of one folder mostly, and no more than fits well into memory."""
    tasks: list[list[File]] = [[]]
    size = 0
    for file in files:
        if tasks[-1] and size + file.stored.bytes > _TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(file)
        size += file.stored.bytes
    return tasks


def spread_tasks(spark: SparkSession, tasks: Sequence[Sequence[str]]) -> DataFrame:
    """Rows of (task, references of its files), each for a worker of its own."""
    task_rows = spark.createDataFrame(list(enumerate(tasks)), "task int, names array<string>")
    return task_rows.repartitionByRange(len(tasks), "task")


# -- what runs in Spark's Python workers: tables of (kind, bucket, payload) --------------------------------------


def _row(kind: int, bucket: int, payload: bytes) -> pa.RecordBatch:
    columns = [pa.array([kind], pa.int32()), pa.array([bucket], pa.int32()), pa.array([payload], pa.binary())]
    return pa.record_batch(columns, names=["kind", "bucket", "payload"])


def _table(rows: Iterable[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(rows, pa.schema({"kind": pa.int32(), "bucket": pa.int32(), "payload": pa.binary()}))


def _read(
    batches: Iterator[pa.RecordBatch],
    archives: Sequence[str],
    day_ms: int,
    buckets: int,
    rejected: Any,
    billed: Billed,
) -> Iterator[pa.RecordBatch]:
    """Count a task's rows as if no id repeated, and yield the hashes of their ids with their places."""
    stores = Archives(archives)
    for batch in batches:
        for task, names in zip(batch["task"].to_pylist(), batch["names"].to_pylist(), strict=True):
            archived = archived_rows.read_rows(stores, names)
            unbilled = recount.count_unbilled(archived, billed, day_ms)
            yield _fact(task, {f"{_LATE}{day}": events for day, events in unbilled.late.items()})
            yield _fact(task, {f"{_NEVER}{day}": events for day, events in unbilled.never.items()})
            near = archived_rows.rows_near(archived, day_ms)
            rows = archived_rows.with_hashes(archived_rows.take_rows(archived, near), rejected.value)
            yield from _counted(recount.count_alone(rows, day_ms), buckets)
            hashes = rows["hash"].to_numpy()
            for bucket, rows_of_bucket in move_tables.rows_by_bucket(hashes, buckets):
                places = near[rows_of_bucket].astype(np.uint32).tobytes()
                yield _row(
                    _PLACES, bucket, _HASHES.pack(task, len(rows_of_bucket)) + places + hashes[rows_of_bucket].tobytes()
                )


def _fact(bucket: int, facts: Mapping[str, int]) -> pa.RecordBatch:
    return _row(_FACTS, bucket, json.dumps(facts).encode())


def _counted(counted: recount.CountedRows, buckets: int) -> Iterator[pa.RecordBatch]:
    yield _fact(0, {"rows": counted.totals.rows, "digest": counted.totals.digest})
    for bucket, moves in move_tables.moves_by_bucket(counted.moves, buckets):
        yield _row(_MOVES, bucket, move_tables.pack_table(moves))


def _meet(_key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    """The places, by task, of rows whose hash occurs twice in one bucket of hashes."""
    tasks, places, hashes = list[int](), [], []
    for payload in table["payload"].to_pylist():
        task, count = _HASHES.unpack_from(payload)
        tasks.append(task)
        places.append(np.frombuffer(payload, np.uint32, count, _HASHES.size))
        hashes.append(np.frombuffer(payload, np.uint64, count, _HASHES.size + 4 * count))
    twice = archived_rows.repeated_hashes(np.concatenate(hashes))
    edges = np.cumsum([0, *(len(p) for p in places)])
    repeated_places = [
        (task, places_of_task[twice[low:high]])
        for task, places_of_task, (low, high) in zip(tasks, places, pairwise(edges), strict=True)
    ]
    return _table(
        _row(_PLACES, task, places_of_task.tobytes()) for task, places_of_task in repeated_places if len(places_of_task)
    )


def _read_again(
    key: tuple[pa.Scalar, ...],
    table: pa.Table,
    buckets: int,
    rejected: Any,
    archives: Sequence[str],
    tasks: Sequence[Sequence[str]],
) -> pa.Table:
    """A task's rows whose ids may repeat, by bucket of their hash."""
    places = np.sort(np.concatenate([np.frombuffer(p, np.uint32) for p in table["payload"].to_pylist()]))
    archived = archived_rows.read_rows(Archives(archives), tasks[key[0].as_py()])
    rows = archived_rows.with_hashes(archived_rows.take_rows(archived, places), rejected.value)
    parts = move_tables.rows_by_bucket(rows["hash"].to_numpy(), buckets)
    return _table(
        _row(_PLACES, bucket, move_tables.pack_table(rows[rows_of_bucket])) for bucket, rows_of_bucket in parts
    )


def _mend(table: pa.Table, day_ms: int, buckets: int) -> pa.Table:
    """Subtract the rows of one bucket of ids, and count them for what they are."""
    rows = pl.concat([move_tables.unpack_table(p) for p in table["payload"].to_pylist()])
    return _table(_counted(corrections.count_corrections(rows, day_ms), buckets))


def _add_up(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
    """All moves of one bucket as one table, and facts of what is exact in them."""
    kind, bucket = key[0].as_py(), key[1].as_py()
    if kind == _FACTS:
        return table
    moves = move_tables.merge_moves([move_tables.unpack_table(p) for p in table["payload"].to_pylist()])
    exact = moves.filter(pl.col("cause") == move_tables.EXACT)
    facts = {measure: int(exact[measure].sum()) for measure in BILLED}
    return _table([_row(_MOVES, bucket, move_tables.pack_table(moves)), _fact(bucket, facts | {"hours": len(exact)})])


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pl.DataFrame]:
    """Moves in tables of at least _INSERTED_ROWS rows, but for the last."""
    waiting, count = list[pl.DataFrame](), 0
    for payload in (payload for batch in batches for payload in batch["payload"]):
        waiting.append(move_tables.unpack_table(payload.as_buffer()))
        count += len(waiting[-1])
        if count >= _INSERTED_ROWS:
            yield pl.concat(waiting)
            waiting, count = [], 0
    if waiting:
        yield pl.concat(waiting)


def insert_in_workers(
    rows: DataFrame, connect: Connect, take: Callable[[ClickHouse, Iterator[pa.RecordBatch]], None]
) -> None:
    """Have each of Spark's Python workers take its part of the rows, with a client of its own."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        client = connect()
        take(client, batches)
        client.close()
        yield pa.record_batch([pa.array([0], pa.int64())], names=["n"])

    rows.mapInArrow(run, "n long").agg(F.sum("n")).first()


def insert_rows(client: ClickHouse, table: str, rows: pl.DataFrame) -> None:
    if len(rows):
        client.insert(table, rows.to_arrow(compat_level=pl.CompatLevel.oldest()))


def write_moves(
    moves: DataFrame, connect: Connect, run_id: str, hours: str = "exact_hours", ledger: str | None = "ledger"
) -> None:
    """Insert exact hours and the ledger's causes under a run id into these tables. Runs in Spark's Python workers, some buckets at
    a time."""

    def insert(client: ClickHouse, batches: Iterator[pa.RecordBatch]) -> None:
        for moves_part in _gathered(batches):
            named = moves_part.with_columns(
                pl.col(move_tables.IDS).cast(pl.UInt64),
                pl.col(*move_tables.NAMES, "cause").cast(pl.String),
                HOUR.alias("time"),
                pl.lit(run_id).alias("run_id"),
            ).drop("hour_ms")
            exact = named.filter(pl.col("cause") == move_tables.EXACT).drop("cause")
            insert_rows(client, hours, exact.with_columns(pl.col(move_tables.AMOUNTS).cast(pl.UInt64)))
            if ledger is not None:
                insert_rows(client, ledger, named.filter(pl.col("cause") != move_tables.EXACT).drop(move_tables.LATE))

    insert_in_workers(moves, connect, insert)


def write_users(
    spark: SparkSession, archives: Sequence[str], files: Sequence[File], date: dt.date, connect: Connect, run_id: str
) -> None:
    """Insert about how many distinct users of each campaign and advertiser the day's archived events name, under a run id.

    A HyperLogLog sketch (Flajolet et al. 2007; Apache DataSketches): a standard error of `recount.USERS_ERROR`.
    """
    day_ms = day_start_ms(date)
    tasks = [[file.reference for file in task] for task in tasks_of(files)]

    def named(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        stores = Archives(archives)
        for names in (names for batch in batches for names in batch["names"].to_pylist()):
            yield from (
                archived_rows.read_users(stores, names, day_ms)
                .to_arrow(compat_level=pl.CompatLevel.oldest())
                .to_batches()
            )

    user_rows = spread_tasks(spark, tasks).mapInArrow(named, "campaign_id long, advertiser_id long, user long")
    sketched = user_rows.groupBy("campaign_id", "advertiser_id").agg(
        F.hll_sketch_estimate(F.hll_sketch_agg("user", recount.USERS_LOG2)).alias("users")
    )

    def insert(client: ClickHouse, batches: Iterator[pa.RecordBatch]) -> None:
        for batch in batches:
            rows = pl.DataFrame(pl.from_arrow(batch)).cast(pl.UInt64)
            insert_rows(client, "exact_users", rows.with_columns(date=pl.lit(date), run_id=pl.lit(run_id)))

    insert_in_workers(sketched, connect, insert)


def watch_progress(spark: SparkSession, report: Callable[[int, int], None], done: Any) -> None:
    """Call `report(finished, total)` with the tasks of all stages that have begun since, until `done` is set. For a thread."""
    tracker, seen = spark.sparkContext.statusTracker(), dict[int, tuple[int, int]]()
    while not done.wait(0.5):
        for number in {*seen, *tracker.getActiveStageIds()}:
            if (stage := tracker.getStageInfo(number)) is not None:
                seen[number] = stage.numCompletedTasks, stage.numTasks
        if seen:
            report(sum(finished for finished, _ in seen.values()), sum(total for _, total in seen.values()))
