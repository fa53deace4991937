"""The partial: sums of events that share a minute and all five dimensions. What a block carries downstream.

Sums are exact 64-bit integers; one that would overflow raises, it never wraps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from infra.clock import MINUTE_MS
from ingest.events import EVENT_TYPES, TYPE_CODE
from ingest.grouping import rows_of, sum_by_key
from ingest.lateness import Lateness

KEYS: dict[str, pl.DataType] = {
    "window_ms": pl.Int64(),
    "advertiser_id": pl.Int64(),
    "campaign_id": pl.Int64(),
    "ad_id": pl.Int64(),
    "publisher_id": pl.Int64(),
    "country": pl.UInt16(),
    "device": pl.UInt8(),
}
SUMS: dict[str, pl.DataType] = {
    "impressions": pl.Int64(),
    "clicks": pl.Int64(),
    "conversions": pl.Int64(),
    "spend_micros": pl.Int64(),
    "late": pl.Int64(),  # events late by their own partition, however little
    "late_events": pl.Int64(),  # of these, the ones late by more than five minutes
    "sampled": pl.Int64(),  # events that stand for more than themselves
}
SCHEMA = pl.Schema({**KEYS, **SUMS})
COUNTS = tuple(f"{name}s" for name in EVENT_TYPES)
_LIMIT = 2.0**62


def empty() -> pl.DataFrame:
    """No partials."""
    return pl.DataFrame(schema=SCHEMA)


def fold_events(events: pl.DataFrame) -> pl.DataFrame:
    """Accepted events to partials. Columns: those of `decode.COLUMNS`, and `weight` u32, `lateness` u8."""
    column = {name: events[name].to_numpy() for name in events.columns}
    weight, lateness = column["weight"].astype(np.int64), column["lateness"]
    _refuse_overflow(float(np.dot(column["cost_micros"].astype(np.float64), weight)))
    column["window_ms"] = column["time_ms"] // MINUTE_MS * MINUTE_MS
    amounts = [
        *(np.where(column["event_type"] == TYPE_CODE[kind], weight, 0) for kind in EVENT_TYPES),
        column["cost_micros"] * weight,
        lateness > Lateness.ON_TIME,
        lateness == Lateness.FLAGGED,
        weight > 1,
    ]
    return _grouped([column[name] for name in KEYS], amounts, SCHEMA)


def merge(frames: list[pl.DataFrame], *, grain_ms: int | None = None, extra: tuple[str, ...] = ()) -> pl.DataFrame:
    """Sum partials that share a key; with `grain_ms`, of the wider window that holds them. Order does not matter.

    `extra` names further integer columns to sum.
    """
    whole = pl.concat(frames) if frames else empty()
    column = {name: whole[name].to_numpy() for name in (*KEYS, *SUMS, *extra)}
    _refuse_overflow(float(column["spend_micros"].astype(np.float64).sum()))
    if grain_ms is not None:
        column["window_ms"] = column["window_ms"] // grain_ms * grain_ms
    schema = {**SCHEMA, **dict.fromkeys(extra, pl.Int64())}
    return _grouped([column[name] for name in KEYS], [column[name] for name in (*SUMS, *extra)], schema)


def _grouped(keys: list[Any], amounts: list[Any], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """One row for each key, with its sums."""
    rows = rows_of(keys)
    first, sums = sum_by_key(rows, rows_of(amounts))
    columns = [*np.ascontiguousarray(rows[first].T), *np.ascontiguousarray(sums.T)]
    return pl.DataFrame(
        [pl.Series(name, column).cast(kind) for (name, kind), column in zip(schema.items(), columns, strict=True)]
    )


def _refuse_overflow(total: float) -> None:
    """Raise unless the sum over all rows, an upper bound for each group, is far inside 64 bits."""
    if total >= _LIMIT:
        raise OverflowError(f"spend of {total:.3e} micros in one merge is beyond 64 bits")
