"""Ids that may repeat: which of their rows the exact count takes, and why the stream's number differs. Pure."""

from __future__ import annotations

import polars as pl

from batch.archived_rows import ELSEWHERE, rows_of_day
from batch.move_tables import AMOUNTS, DIMENSIONS, exact_sums, merge_moves, weighted_sums
from batch.recount import CAUSE, DECISION, FACTOR, WEIGHT, CountedRows, count_alone, row_totals
from infra.clickhouse.ledger_causes import Cause

# An event's own fields: what a copy of it has, too.
_FIELDS = ("time_ms", "event_type", *DIMENSIONS, "cost_micros")


def count_corrections(rows: pl.DataFrame, day_ms: int) -> CountedRows:
    """What to add to `count_alone` for ids that may repeat; `rows` are all rows of these ids, from D−1 … D+1."""
    counted, before = _settle_ids(rows, day_ms), count_alone(rows, day_ms)
    subtracted = before.moves.with_columns(-pl.col(*AMOUNTS))
    return CountedRows(merge_moves([counted.moves, subtracted]), counted.totals - before.totals)


def _settle_ids(rows: pl.DataFrame, day_ms: int) -> CountedRows:
    """All rows of some ids, counted as what they are: see `_with_corrections`."""
    rows = rows.unique(["partition", "offset"]).sort("event_id", "log_time_ms", "partition", "offset")
    rows = _with_corrections(_with_peers(rows))
    corrections = rows_of_day(rows.filter(pl.col("factor") != 0), day_ms)
    winners = rows_of_day(rows.filter("is_exact"), day_ms)
    return CountedRows(
        pl.concat([exact_sums(winners), weighted_sums(corrections)]), row_totals(rows_of_day(rows, day_ms))
    )  # fmt: skip


def _with_peers(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in order of their ids, each with what it is among the rows of its id.

    `is_exact`: the first row, which the exact count takes. `is_stream`: the first one that the stream of the run's own region counted, which stands for the id
    in its numbers; `stream_partition` is the partition of that row, null where the stream counted none. `same_event`: all fields are
    those of the exact row; `stream_same_event`: those of the stream's row are.
    """
    of_id = "id_number"
    is_exact = pl.col(of_id) != pl.col(of_id).shift(fill_value=-1)
    same = [pl.col(field).eq_missing(pl.col(field).first().over(of_id)) for field in _FIELDS]
    nth_counted = pl.col("counted").cum_sum().over(of_id)
    of_stream_row = pl.col("partition", "same_event").filter("is_stream").first().over(of_id).name.prefix("stream_")
    rows = rows.with_columns(
        counted=(DECISION == "counted") & ~ELSEWHERE, id_number=pl.col("event_id").rle_id().cast(pl.Int64)
    )
    rows = rows.with_columns(is_exact=is_exact, same_event=pl.all_horizontal(same), nth_counted=nth_counted)
    return rows.with_columns(is_stream=pl.col("counted") & (pl.col("nth_counted") == 1)).with_columns(of_stream_row)


def _with_corrections(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the `cause` of the correction that each brings about, and its `factor`: in rows like it, 0 for none.

    The first case that holds decides:

    | row | cause | factor |
    |---|---|---|
    | exact row of an id of which the stream counted nothing | by its decision | by its decision |
    | exact row, where the stream's row is another event | conflicting copy | 1 |
    | the stream's row, the same event | shed: its weight was a sample's | 1 − weight |
    | other counted row, another event | conflicting copy | −weight |
    | other counted row, in another partition than the stream's row | cross-partition duplicate | −weight |
    | other counted row | expired-horizon duplicate | −weight |
    """
    is_exact, same_event, counted = pl.col("is_exact"), pl.col("same_event"), pl.col("counted")
    elsewhere = pl.col("partition") != pl.col("stream_partition")
    cases: list[tuple[pl.Expr, pl.Expr, pl.Expr]] = [
        (is_exact & pl.col("stream_partition").is_null(), CAUSE, FACTOR),
        (is_exact & ~pl.col("stream_same_event"), pl.lit(Cause.CONFLICTING_COPY), pl.lit(1)),
        (pl.col("is_stream") & same_event, pl.lit(Cause.SHED), 1 - WEIGHT),
        (counted & ~same_event, pl.lit(Cause.CONFLICTING_COPY), -WEIGHT),
        (counted & elsewhere, pl.lit(Cause.CROSS_PARTITION), -WEIGHT),
        (counted, pl.lit(Cause.EXPIRED_HORIZON), -WEIGHT),
    ]
    cause, factor = pl.lit(Cause.SHED), pl.lit(0)
    for condition, cause_then, factor_then in reversed(cases):
        cause = pl.when(condition).then(cause_then).otherwise(cause)
        factor = pl.when(condition).then(factor_then).otherwise(factor)
    return rows.with_columns(cause=cause, factor=factor.cast(pl.Int64))
