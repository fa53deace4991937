"""The registers of a day's users, by hour, campaign and advertiser, made by column in Spark's Python workers.

A later copy that the stream has counted, as that of another partition, adds no user, unless it is another event under the same id.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from batch import archived_rows, move_tables
from batch.archived_rows import COUPON_KEYS, Archives
from batch.spark_job import HOUR, insert_in_workers, insert_rows, spread_tasks, tasks_of
from infra.clickhouse.client import ClickHouse, Connect
from infra.clock import day_start_ms
from ingest.archive.files import File

_SCHEMA = "bucket int, payload binary"


def write_reach(
    spark: Any, archives: Sequence[str], files: Sequence[File], date: dt.date, connect: Connect, run_id: str
) -> None:
    """Insert the registers of the day's archived events under a run id, and last that they are all there. `spark`: a session of
    `batch.spark_job`, whose errors it raises."""
    day_ms = day_start_ms(date)
    tasks = [[file.reference for file in task] for task in tasks_of(files)]
    buckets = max(8, 2 * len(tasks))

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        stores = Archives(archives)
        for names in (names for batch in batches for names in batch["names"].to_pylist()):
            coupons = archived_rows.read_coupons(stores, names, day_ms)
            for bucket, rows in move_tables.rows_by_bucket(_hash_keys(coupons), buckets):
                yield from _packed(bucket, coupons[rows]).to_batches()

    def unite(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        coupons = pl.concat([move_tables.unpack_table(p) for p in table["payload"].to_pylist()])
        return _packed(key[0].as_py(), archived_rows.greatest_coupons(coupons))

    def insert(client: ClickHouse, batches: Iterator[pa.RecordBatch]) -> None:
        for payload in (payload for batch in batches for payload in batch["payload"]):
            coupons = move_tables.unpack_table(payload.as_buffer())
            rows = coupons.group_by(COUPON_KEYS).agg(pl.col("coupons").sort()).sort(COUPON_KEYS)
            ids = pl.col("campaign_id", "advertiser_id").cast(pl.UInt64)
            named = rows.with_columns(ids, HOUR.alias("time"), run_id=pl.lit(run_id)).drop("hour_ms")
            insert_rows(client, "exact_reach_hours", named)

    parts = spread_tasks(spark, tasks).mapInArrow(read, _SCHEMA)
    insert_in_workers(parts.groupBy("bucket").applyInArrow(unite, _SCHEMA), connect, insert)
    insert_rows(connect(), "exact_reach_runs", pl.DataFrame({"run_id": [run_id], "date": [date]}))


def _hash_keys(coupons: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.uint64]]:
    words = np.zeros(len(coupons), np.uint64)
    for name in COUPON_KEYS:
        words = move_tables.mix_bits(words ^ coupons[name].to_numpy().astype(np.uint64))
    return words


def _packed(bucket: int, coupons: pl.DataFrame) -> pa.Table:
    payload = move_tables.pack_table(coupons)
    return pa.table({"bucket": pa.array([bucket], pa.int32()), "payload": pa.array([payload], pa.binary())})
