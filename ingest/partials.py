"""The partial: sums of events that share a minute and all five dimensions. What a block carries downstream.

Sums are exact 64-bit integers; one that would overflow raises, it never wraps.
"""

from __future__ import annotations

import polars as pl

from infra.clock import MINUTE_MS
from ingest.events import EVENT_TYPES, TYPE_CODE
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
    weight = pl.col("weight").cast(pl.Int64)
    late = pl.col("lateness") > Lateness.ON_TIME
    _refuse_overflow(events.select((pl.col("cost_micros").cast(pl.Float64) * pl.col("weight")).sum()).item())
    return (
        events.group_by(
            (pl.col("time_ms") // MINUTE_MS * MINUTE_MS).alias("window_ms"),
            *(name for name in KEYS if name != "window_ms"),
        )
        .agg(
            *(
                pl.when(pl.col("event_type") == TYPE_CODE[kind]).then(weight).otherwise(0).sum().alias(name)
                for kind, name in zip(EVENT_TYPES, COUNTS, strict=True)
            ),
            (pl.col("cost_micros") * weight).sum().alias("spend_micros"),
            late.sum().cast(pl.Int64).alias("late"),
            (pl.col("lateness") == Lateness.FLAGGED).sum().cast(pl.Int64).alias("late_events"),
            (weight > 1).sum().cast(pl.Int64).alias("sampled"),
        )
        .cast(SCHEMA)
    )


def merge(frames: list[pl.DataFrame], *, grain_ms: int | None = None, extra: tuple[str, ...] = ()) -> pl.DataFrame:
    """Sum partials that share a key; with `grain_ms`, of the wider window that holds them. Order does not matter.

    `extra` names further integer columns to sum.
    """
    whole = pl.concat(frames) if frames else empty()
    sums = [*SUMS, *extra]
    _refuse_overflow(float(whole.get_column("spend_micros").cast(pl.Float64).sum()))
    window = pl.col("window_ms") if grain_ms is None else pl.col("window_ms") // grain_ms * grain_ms
    return whole.group_by(window.alias("window_ms"), *(n for n in KEYS if n != "window_ms")).agg(pl.col(sums).sum())


def _refuse_overflow(total: float) -> None:
    """Raise unless the sum over all rows, an upper bound for each group, is far inside 64 bits."""
    if total >= _LIMIT:
        raise OverflowError(f"spend of {total:.3e} micros in one merge is beyond 64 bits")
