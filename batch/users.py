"""The users of a day's archived events: about how many there are, and the registers of each hour, counted by Spark."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from batch import archived_rows, recount
from batch.spark_job import HOUR, INSERTED_ROWS, ON_DISK, insert_in_workers, insert_rows, spread_tasks, tasks_of
from infra.clickhouse.client import ClickHouse
from infra.clock import day_start_ms
from infra.file_store import FileStore
from ingest.archive.files import File
from stream.reach.registers import MAX_RANK, PRECISION, REGISTERS

_COLUMNS = "hour_ms long, campaign_id long, advertiser_id long, user long, is_copy boolean"
_KEYS = ("campaign_id", "hour_ms", "advertiser_id")
_SKETCHES = f"""
    SELECT campaign_id, advertiser_id, hll_sketch_estimate(hll_sketch_agg(user, {recount.USERS_LOG2})) AS users
    FROM {{rows}} GROUP BY campaign_id, advertiser_id"""
# The greatest coupon (`stream.reach.registers`) of each register. A later copy that the stream has counted, as that of another
# partition, has the same user as the event, unless it is another event under its id.
_COUPONS = f"""
    SELECT {", ".join(_KEYS)}, max(coupon) AS coupons
    FROM (
        SELECT {", ".join(_KEYS)}, user & {REGISTERS - 1} AS register,
            user & {REGISTERS - 1} | shiftleft({MAX_RANK} - if(rest = 0, 0, length(bin(rest))), {PRECISION}) AS coupon
        FROM (SELECT *, shiftright(user, {PRECISION}) AS rest FROM {{rows}} WHERE NOT is_copy)
        DISTRIBUTE BY {", ".join(_KEYS)})
    GROUP BY {", ".join(_KEYS)}, register SORT BY {", ".join(_KEYS)}"""


def write_users(
    spark: Any, archive: str, files: Sequence[File], date: dt.date, url: str, database: str, run_id: str, *, reach: bool
) -> None:
    """Insert the day's users under a run id: about how many each campaign and advertiser has, and with `reach` the registers of
    each hour. `spark`: a session of `batch.spark_job`.

    The first is a HyperLogLog sketch (Flajolet et al. 2007; Apache DataSketches): a standard error of `recount.USERS_ERROR`.
    """
    day_ms = day_start_ms(date)
    tasks = [[file.name for file in task] for task in tasks_of(files)]

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        store = FileStore(archive)
        for names in (names for batch in batches for names in batch["names"].to_pylist()):
            rows = archived_rows.read_users(store, names, day_ms)
            yield from rows.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()

    def insert_sketches(client: ClickHouse, batches: Iterator[pa.RecordBatch]) -> None:
        for batch in batches:
            rows = pl.DataFrame(pl.from_arrow(batch)).cast(pl.UInt64)
            insert_rows(client, "exact_users", rows.with_columns(date=pl.lit(date), run_id=pl.lit(run_id)))

    def insert_registers(client: ClickHouse, batches: Iterator[pa.RecordBatch]) -> None:
        for coupons in _whole_keys(batches):
            rows = coupons.group_by(_KEYS, maintain_order=True).agg(pl.col("coupons").cast(pl.UInt32))
            ids = pl.col("campaign_id", "advertiser_id").cast(pl.UInt64)
            named = rows.with_columns(ids, HOUR.alias("time"), run_id=pl.lit(run_id)).drop("hour_ms")
            insert_rows(client, "exact_reach_hours", named)

    user_rows = spread_tasks(spark, tasks).mapInArrow(read, _COLUMNS).persist(ON_DISK)
    insert_in_workers(spark.sql(_SKETCHES, rows=user_rows), url, database, insert_sketches)
    if reach:
        insert_in_workers(spark.sql(_COUPONS, rows=user_rows), url, database, insert_registers)
    user_rows.unpersist()


def _whole_keys(batches: Iterator[pa.RecordBatch]) -> Iterator[pl.DataFrame]:
    """Coupons in the order of their keys, in tables of about INSERTED_ROWS: all of a key are in one of them."""
    waiting, count = list[pl.DataFrame](), 0
    for batch in batches:
        waiting.append(pl.DataFrame(pl.from_arrow(batch)))
        count += len(waiting[-1])
        if count >= INSERTED_ROWS:
            rows = pl.concat(waiting)
            last = rows.select(_KEYS).row(-1, named=True)
            is_last = pl.all_horizontal(pl.col(name) == value for name, value in last.items())
            yield rows.filter(~is_last)
            waiting = [rows.filter(is_last)]
            count = len(waiting[0])
    if count:
        yield pl.concat(waiting)
