"""The partial: sums of events that share a minute and all five dimensions. What a block carries downstream.

Sums are exact 64-bit integers; one that would overflow raises, it never wraps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from infra.clock import MINUTE_MS
from infra.columns import Ints
from ingest.archived import Decision
from ingest.batch import Judged
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
ARROW = pl.DataFrame(schema=SCHEMA).to_arrow().schema
COUNTS = tuple(f"{name}s" for name in EVENT_TYPES)
_LIMIT = 2.0**62


def empty() -> pl.DataFrame:
    """No partials."""
    return pl.DataFrame(schema=SCHEMA)


def fold_events(judged: Sequence[Judged]) -> pa.RecordBatch:
    """What was counted of some judged events, as partials."""
    kept = [j.decisions == Decision.COUNTED for j in judged]

    def gathered(columns: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([c if k.all() else c[k] for c, k in zip(columns, kept, strict=True)])

    weight = gathered(j.weights for j in judged).astype(np.int64)
    lateness = gathered(j.lateness for j in judged)
    kind, cost = (gathered(j.events[name] for j in judged) for name in ("event_type", "cost_micros"))
    _refuse_overflow(float((cost * weight.astype(np.float64)).sum()))
    time_ms = gathered(j.events["time_ms"] for j in judged)
    keys = [time_ms - time_ms % MINUTE_MS]
    keys += [gathered(j.events[name] for j in judged) for name in KEYS if name != "window_ms"]
    amounts = [
        *(np.where(kind == TYPE_CODE[name], weight, 0) for name in EVENT_TYPES),
        cost * weight,
        lateness > Lateness.ON_TIME,
        lateness == Lateness.FLAGGED,
        weight > 1,
    ]
    columns = _grouped(keys, amounts)
    arrays = [pa.array(c.astype(f.type.to_pandas_dtype())) for c, f in zip(columns, ARROW, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW)


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
    columns = _grouped([column[name] for name in KEYS], [column[name] for name in (*SUMS, *extra)])
    return pl.DataFrame(
        [pl.Series(name, column).cast(kind) for (name, kind), column in zip(schema.items(), columns, strict=True)]
    )


def _grouped(keys: list[npt.NDArray[Any]], amounts: list[npt.NDArray[Any]]) -> list[Ints]:
    """One row for each key, with its sums, by column."""
    rows = rows_of(keys)
    first, sums = sum_by_key(rows, rows_of(amounts))
    return [*np.ascontiguousarray(rows[first].T), *np.ascontiguousarray(sums.T)]


def _refuse_overflow(total: float) -> None:
    """Raise unless the sum over all rows, an upper bound for each group, is far inside 64 bits."""
    if total >= _LIMIT:
        raise OverflowError(f"spend of {total:.3e} micros in one merge is beyond 64 bits")
