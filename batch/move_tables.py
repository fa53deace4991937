"""Moves: what rows add to a day's numbers, an amount by hour, all dimensions and cause. Pure."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import selectors

from infra.clickhouse.ledger_causes import DECIDED
from infra.clock import HOUR_MS
from infra.columnar import grouping
from infra.columnar.columns import Bools, Ints
from ingest import events
from ingest.archive.schema import DECISIONS, Decision
from ingest.partials import BILLED

IDS = ("campaign_id", "advertiser_id", "ad_id", "publisher_id")
NAMES = ("country", "device")
DIMENSIONS = (*IDS, *NAMES)
EXACT = "exact"
"""In the column `cause`: what the day holds. Every other value is a Cause of a correction."""
CODED = {
    "event_type": pl.Enum(events.EVENT_TYPES), "decision": pl.Enum(DECISIONS), "country": pl.Enum(events.COUNTRIES),
    "device": pl.Enum(events.DEVICES), "cause": pl.Enum((EXACT, *DECIDED)),
}  # fmt: skip
"""Columns of few names, which are handled as their positions."""
LATE = ("late", "late_events", "late_clicks")
"""Events that came late and count; of these, those that were late by their own partition, and the clicks among those."""
AMOUNTS = (*BILLED, *LATE)
_KEYS = ("hour_ms", *DIMENSIONS, "cause")
MOVES = pl.Schema(
    {"hour_ms": pl.Int64()}
    | dict.fromkeys(IDS, pl.Int64())
    | {name: CODED[name] for name in (*NAMES, "cause")}
    | dict.fromkeys(AMOUNTS, pl.Int64())
)


def merge_moves(moves: list[pl.DataFrame]) -> pl.DataFrame:
    """One row for each hour, dimensions and cause, without those that move nothing."""
    together = pl.concat(moves)
    return _summed(together, grouping.interleave([together[name].to_numpy() for name in AMOUNTS]))


def codes_of(names: pl.Series) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Positions of the names of one of the columns of CODED."""
    assert names.dtype == CODED[names.name], names.dtype
    return names.to_physical().to_numpy()


def exact_sums(rows: pl.DataFrame) -> pl.DataFrame:
    """The exact sums of rows that each count once."""
    lateness = rows["lateness"].to_numpy()
    late = (codes_of(rows["decision"]) == Decision.COUNTED) & (lateness > 0)
    keyed = rows.with_columns(cause=pl.lit(EXACT, CODED["cause"]))
    flagged = lateness == 2
    clicks = codes_of(rows["event_type"]) == events.TYPE_CODE["click"]
    return _of_rows(keyed, np.ones(len(rows), np.int64), [late, flagged, flagged & clicks])


def weighted_sums(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums of rows by `cause`, each as often as its `factor` says."""
    return _of_rows(rows, rows["factor"].cast(pl.Int64).to_numpy(), [np.zeros(len(rows), bool)] * len(LATE))


def _of_rows(rows: pl.DataFrame, factor: Ints, late: list[Bools]) -> pl.DataFrame:
    """`late`: whether each row counts in each sum of LATE."""
    kind = codes_of(rows["event_type"])
    amounts = [*(factor * (kind == n) for n in range(len(events.EVENT_TYPES))), factor * rows["cost_micros"].to_numpy()]
    keyed = rows.with_columns(
        hour_ms=pl.col("time_ms") // HOUR_MS * HOUR_MS, cause=pl.col("cause").cast(CODED["cause"])
    )
    return _summed(keyed, grouping.interleave([*amounts, *late]))


def _summed(rows: pl.DataFrame, amounts: Ints) -> pl.DataFrame:
    """The sums of `amounts`, (n, AMOUNTS), of rows with the same keys, without those that are all zero."""
    hours = rows["hour_ms"].to_numpy()
    columns = [
        hours // HOUR_MS - hours.min(initial=2**62) // HOUR_MS, *(rows[name].to_numpy() for name in IDS),
        *(codes_of(rows[name]) for name in (*NAMES, "cause")),
    ]  # fmt: skip
    first, sums = grouping.sum_by_key(grouping.pack_keys(columns), amounts)
    moved = sums.any(axis=1)
    named_sums = dict(zip(AMOUNTS, sums[moved].T, strict=True))
    return rows.select(_KEYS)[first[moved]].with_columns(pl.Series(name, sums) for name, sums in named_sums.items())


def mix_bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def rows_by_bucket(words: npt.NDArray[np.uint64], buckets: int) -> list[tuple[int, Ints]]:
    """(bucket, rows of it) for each that has any, by hashes."""
    place = (words >> np.uint64(40)).astype(np.int64) % buckets
    order = np.argsort(place.astype(np.uint16), kind="stable")
    edges = np.searchsorted(place[order], np.arange(buckets + 1)).tolist()
    return [(n, order[low:high]) for n, (low, high) in enumerate(pairwise(edges)) if low < high]


def moves_by_bucket(moves: pl.DataFrame, buckets: int) -> list[tuple[int, pl.DataFrame]]:
    """Moves by bucket. Equal hours and ids come into the same bucket, in every task."""
    words = np.zeros(len(moves), np.uint64)
    for name in ("hour_ms", *IDS):
        words = mix_bits(words ^ moves[name].to_numpy().astype(np.uint64))
    return [(bucket, moves[rows]) for bucket, rows in rows_by_bucket(words, buckets)]


def pack_table(table: pl.DataFrame) -> bytes:
    """A table as an Arrow stream, its numbers in as few bytes as they take."""
    into = io.BytesIO()
    wide = [name for name, kind in table.schema.items() if kind == pl.Int64()]
    table.with_columns(table[name].shrink_dtype() for name in wide).write_ipc_stream(into)
    return into.getvalue()


def unpack_table(raw: bytes) -> pl.DataFrame:
    """The table that `pack_table` encoded."""
    return pl.read_ipc_stream(io.BytesIO(raw)).with_columns(selectors.signed_integer().cast(pl.Int64))
