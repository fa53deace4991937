"""Rows of the archive as the recount reads them: which columns, of which days, and the hashes of their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from batch.move_tables import CODED, DIMENSIONS
from infra.clock import DAY_MS, HOUR_MS
from infra.columnar.columns import Ints
from infra.file_store import FileStore
from ingest.archive import files as archive_files
from stream.reach.registers import REGISTERS, coupons_of

COLUMNS = (
    "event_id", "partition", "offset", "log_time_ms", "time_ms", "event_type", *DIMENSIONS, "cost_micros", "decision",
    "weight", "lateness",
)  # fmt: skip
"""What is read of a row."""
PARTITIONS_APART = 4096
"""More than a region has partitions: those of the n-th other region are numbered from n times this on."""
ELSEWHERE = pl.col("partition") >= PARTITIONS_APART
"""Whether a row is of another region: this region's stream never had it, whatever that of the other one decided."""
COUPON_KEYS = ("campaign_id", "hour_ms", "advertiser_id")


@dataclass(frozen=True)
class RejectedIds:
    """Ids of dead letters, as sorted hashes, and when each was first rejected (epoch ms)."""

    hashes: npt.NDArray[np.uint64]
    times_ms: npt.NDArray[np.int64]


NO_REJECTED_IDS = RejectedIds(np.zeros(0, np.uint64), np.zeros(0, np.int64))


class Archives:
    """The archives that a run reads: that of its own region, and those of the regions that it bills with its own, in the order of their
    numbers. Every process opens its own."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._stores = [FileStore(address) for address in addresses]

    def locate(self, reference: str) -> tuple[FileStore, str, int]:
        """The store, the name in it and the region of a file, by `File.reference`."""
        region, _, name = reference.partition(":")
        return self._stores[int(region)], name, int(region)

    def read_columns(self, reference: str, columns: Sequence[str]) -> pl.DataFrame:
        """Columns of a file. Raises UnreadableFile, Unavailable."""
        store, name, _ = self.locate(reference)
        return archive_files.read_columns(store, name, columns)


def read_rows(archives: Archives, references: Sequence[str]) -> pl.DataFrame:
    """What files hold, in their order, with names as positions, and partitions of other regions apart. Raises UnreadableFile."""
    parts = []
    for reference in references:
        store, name, region = archives.locate(reference)
        rows = archive_files.read_columns(store, name, COLUMNS)
        try:
            parts.append(with_codes(of_region(rows, region)))
        except pl.exceptions.PolarsError as error:
            raise archive_files.unreadable_file(store, name, error, "is it of a newer version?") from error
    return pl.concat(parts)


def of_region(rows: pl.DataFrame, region: int) -> pl.DataFrame:
    """Rows with the partitions of a region; 0 is the own one."""
    return rows.with_columns(pl.col("partition") + region * PARTITIONS_APART) if region else rows


def read_users(archives: Archives, references: Sequence[str], day_ms: int) -> pl.DataFrame:
    """Which users the day's events in some files name: distinct rows of (campaign_id, advertiser_id, user)."""
    keys = ("campaign_id", "advertiser_id", "user")
    rows = pl.concat(archives.read_columns(reference, ("time_ms", *keys)) for reference in references)
    return rows_of_day(rows, day_ms).select(keys).drop_nulls("user").unique()


def read_coupons(archives: Archives, references: Sequence[str], day_ms: int) -> pl.DataFrame:
    """The registers of the day's users that some files name, without those of copies: rows of COUPON_KEYS and `coupons`."""
    columns = ("time_ms", "campaign_id", "advertiser_id", "user", "decision")
    rows = pl.concat(with_codes(archives.read_columns(reference, columns)) for reference in references)
    rows = rows_of_day(rows.filter(pl.col("user").is_not_null() & (pl.col("decision") != "copy")), day_ms)
    coupons = pl.Series("coupons", coupons_of(rows["user"].to_numpy()))
    return greatest_coupons(rows.with_columns(coupons, hour_ms=pl.col("time_ms") // HOUR_MS * HOUR_MS))


def greatest_coupons(rows: pl.DataFrame) -> pl.DataFrame:
    """The greatest of `coupons` of each register, by COUPON_KEYS."""
    register = (pl.col("coupons") & REGISTERS - 1).alias("register")
    return rows.group_by(*COUPON_KEYS, register).agg(pl.col("coupons").max()).drop("register")


def with_codes(rows: pl.DataFrame) -> pl.DataFrame:
    """Archived rows with their names as positions. Raises polars' InvalidOperationError for a name that is not known."""
    return rows.with_columns(pl.col(name).cast(kind) for name, kind in CODED.items() if name in rows.columns)


def rows_near(rows: pl.DataFrame, day_ms: int) -> Ints:
    """Which rows' copies may count for a day: those of the day before, of the day, and of the day after."""
    return _between(rows, day_ms - DAY_MS, day_ms + 2 * DAY_MS)


def take_rows(rows: pl.DataFrame, places: Ints) -> pl.DataFrame:
    """Rows at these places, in their order, each at most once."""
    return rows if len(places) == len(rows) else rows[places]


def with_hashes(rows: pl.DataFrame, rejected: RejectedIds) -> pl.DataFrame:
    """Rows with the `hash` of their id, and `sent_again`: whether the event had been a dead letter before."""
    hashed = id_hashes(rows)
    again = np.zeros(len(rows), bool)
    if len(rejected.hashes):
        at = np.minimum(np.searchsorted(rejected.hashes, hashed), len(rejected.hashes) - 1)
        again = (rejected.hashes[at] == hashed) & (rejected.times_ms[at] <= rows["log_time_ms"].to_numpy())
    return rows.with_columns(hash=pl.Series(hashed), sent_again=pl.Series(again))


def id_hashes(rows: pl.DataFrame) -> npt.NDArray[np.uint64]:
    """64 bits for each id, the same wherever they are computed."""
    return rows["event_id"].hash(seed=1).to_numpy()


def repeated_hashes(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Mark hashes that occur more than once."""
    order = np.argsort(hashes)
    equals_next = hashes[order[1:]] == hashes[order[:-1]]
    twice = np.zeros(len(hashes), bool)
    twice[order[1:]] = equals_next
    twice[order[:-1]] |= equals_next
    return twice


def _between(rows: pl.DataFrame, from_ms: int, to_ms: int) -> Ints:
    times = rows["time_ms"].to_numpy()
    return np.flatnonzero((times >= from_ms) & (times < to_ms))


def rows_of_day(rows: pl.DataFrame, day_ms: int) -> pl.DataFrame:
    """The rows whose events are of a day."""
    return take_rows(rows, _between(rows, day_ms, day_ms + DAY_MS))
