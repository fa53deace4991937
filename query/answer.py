"""Sums from several tiers to one answer: merged by bucket and group, with finality and ratios. Pure, and by column.

A table of sums has the columns `_bucket` (start of the bucket, epoch ms), those of the question's `group_by`, MEASURES as
128-bit integers, and `_corrected` and `_sampled`, which tell whether any of it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from ingest.events import COUNTRIES, DEVICES
from query.plan import EXACT, Borders, Piece
from query.request import GRAINS, MEASURES, RATIOS, BadQuestion, Question
from query.signing import Signer

FINALITY = ("provisional", "closed", "corrected", "reconciled")
_SUM = pl.Int128()
_FINALITIES = pl.Enum(FINALITY)
_FINALITY = {name: pl.lit(name, _FINALITIES) for name in FINALITY}
_LITERALS: dict[type, Any] = {int: pl.Int128, float: pl.Float64, str: pl.String}
NAMES = {"country": COUNTRIES, "device": DEVICES}
"""Dimensions of strings, and the values that they may have."""


def schema(group_by: Sequence[str]) -> pl.Schema:
    """Types of the columns of a table of sums."""
    groups = {g: pl.String() if g in NAMES else pl.Int64() for g in group_by}
    sums = dict.fromkeys(MEASURES, _SUM)
    return pl.Schema({"_bucket": pl.Int64(), **groups, **sums, "_corrected": pl.Boolean(), "_sampled": pl.Boolean()})


def merged(question: Question, tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One row for each bucket and group."""
    if not tables:
        return pl.DataFrame(schema=schema(question.group_by))
    if len(tables) == 1:
        return tables[0]
    return summed(pl.concat(tables), question.group_by)


def summed(rows: pl.DataFrame, group_by: Sequence[str]) -> pl.DataFrame:
    """Sums of a table whose keys repeat."""
    return rows.group_by("_bucket", *group_by).agg(pl.col(*MEASURES).sum(), pl.col("_corrected", "_sampled").any())


def reconciled_stretches(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """The stretches that exact tiers serve."""
    return [(p.start_ms, p.end_ms) for p in pieces if p.tier in EXACT]


def _covered(start: int, end: int, stretches: Sequence[tuple[int, int]]) -> bool:
    at = start
    for low, high in stretches:
        if low <= at < high:
            at = high
    return at >= end


def finality(question: Question, bucket: int, borders: Borders, exact: Sequence[tuple[int, int]]) -> str:
    """How final a bucket is, before it is known whether any of it was corrected."""
    end = question.bucket_end(bucket)
    if exact and _covered(bucket, end, exact):
        return "reconciled"
    return "provisional" if borders.watermark_ms is None or end > borders.watermark_ms else "closed"


def _half_up(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """part / whole to the nearest integer, halves up, without floats; null where the divisor is 0."""
    return pl.when(whole != 0).then((2 * part + whole) // (2 * whole))


def _four_decimals(part: str, whole: str) -> pl.Expr:
    # Divided by a constant, polars multiplies by its reciprocal, which is not the nearest float.
    return (_half_up(pl.col(part) * 10_000, pl.col(whole)).cast(pl.Float64) / 10_000).round(4)


_RATIO_COLUMNS = {
    "ctr": _four_decimals("clicks", "impressions"),
    "cvr": _four_decimals("conversions", "clicks"),
    "cpc_micros": _half_up(pl.col("spend_micros"), pl.col("clicks")),
    "cpm_micros": _half_up(pl.col("spend_micros") * 1000, pl.col("impressions")),
}
assert tuple(_RATIO_COLUMNS) == RATIOS


def rows(question: Question, table: pl.DataFrame, borders: Borders, pieces: Sequence[Piece]) -> pl.DataFrame:
    """All rows of the answer in their order, with the columns of `meta` and `_bucket` and `_sampled`.

    Ratios are derived after summing: ctr and cvr to four decimals, money to whole micros, halves up.
    """
    if question.fill:
        table = _filled(question, table)
    label, final = _told(question, table, borders, reconciled_stretches(pieces))
    corrected = (final == _FINALITY["closed"]) & pl.col("_corrected")
    made = table.select(
        "_bucket", label.alias("time"), *question.group_by, *MEASURES,
        *(e.alias(name) for name, e in _RATIO_COLUMNS.items()),
        pl.when(corrected).then(_FINALITY["corrected"]).otherwise(final).alias("finality"), "_sampled",
    )  # fmt: skip
    columns, descending = zip(*_order(question), strict=True)
    # Absent ratios come last, whichever way.
    return made.sort(columns, descending=descending, nulls_last=True)


def _told(
    question: Question, table: pl.DataFrame, borders: Borders, exact: Sequence[tuple[int, int]]
) -> tuple[pl.Expr, pl.Expr]:
    """How each row's bucket is shown, and how final it is as long as nothing of it was corrected."""
    bucket, size = pl.col("_bucket"), GRAINS.get(question.grain)
    if size is not None and question.utc_days and not exact:
        if borders.watermark_ms is None:
            final = _FINALITY["provisional"]
        else:
            open_ = bucket + size > borders.watermark_ms
            final = pl.when(open_).then(_FINALITY["provisional"]).otherwise(_FINALITY["closed"])
        return pl.from_epoch(bucket, time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), final
    held = table["_bucket"].unique().to_list()
    if not held:
        return pl.lit("", pl.String), _FINALITY["closed"]
    labels, finals = [question.label(b) for b in held], [finality(question, b, borders, exact) for b in held]
    return (
        bucket.replace_strict(held, labels, return_dtype=pl.String),
        bucket.replace_strict(held, finals, return_dtype=_FINALITIES),
    )


def _filled(question: Question, table: pl.DataFrame) -> pl.DataFrame:
    """With a row of zeros for each bucket in which a group that is there has none."""
    buckets = pl.DataFrame({"_bucket": question.buckets()}, schema={"_bucket": pl.Int64})
    groups = table.select(question.group_by).unique()
    wanted = buckets.join(groups, how="cross") if question.group_by else buckets
    keys = ["_bucket", *question.group_by]
    zeros = [pl.lit(0, _SUM).alias(m) for m in MEASURES] + [pl.lit(False).alias(f) for f in ("_corrected", "_sampled")]
    return pl.concat([table, wanted.join(table, on=keys, how="anti").with_columns(zeros).select(table.columns)])


def page(question: Question, made: pl.DataFrame, signer: Signer) -> tuple[pl.DataFrame, str | None]:
    """The rows after the cursor, at most `limit`, and the next cursor. Raises BadQuestion on a foreign one.

    A cursor says behind which row, by all that rows are ordered by, the next page begins: it stays right while rows come, go
    and change. A row that moves across it meanwhile may be seen twice or not at all; no other is.
    """
    if question.cursor is not None:
        made = made.filter(_behind(question, _read_cursor(question, signer)))
    shown = made.head(question.limit)
    if len(made) <= question.limit:
        return shown, None
    last = shown.row(-1, named=True)
    return shown, signer.sign({"q": _fingerprint(question), "k": [last[column] for column, _ in _order(question)]})


def _order(question: Question) -> list[tuple[str, bool]]:
    """(column, descending) of all that rows are ordered by."""
    by = [(name, False) for name in ("_bucket", *question.group_by)]
    if not question.order:
        return by
    return [("_bucket" if question.order == "time" else question.order, question.descending), *by]


def _behind(question: Question, last: Sequence[Any]) -> pl.Expr:
    """Whether a row comes after one with these values."""
    found = pl.lit(False)
    for (name, descending), value in reversed(list(zip(_order(question), last, strict=True))):
        column = pl.col(name)
        if value is None:
            further, same = pl.lit(False), column.is_null()
        else:
            wanted = pl.lit(value, dtype=_LITERALS[type(value)])
            further = ((column < wanted) if descending else (column > wanted)) | column.is_null()
            same = column == wanted
        found = further.fill_null(True) | (same.fill_null(False) & found)
    return found


def _fingerprint(question: Question) -> str:
    told = [
        question.campaigns, question.advertiser, question.scope and sorted(question.scope), question.grain,
        question.group_by, question.filters, question.zone.key, question.fill, question.order, question.descending,
    ]  # fmt: skip
    return json.dumps(told, separators=(",", ":"))


def _read_cursor(question: Question, signer: Signer) -> list[Any]:
    found = signer.read(question.cursor or "")
    if found is None or found.get("q") != _fingerprint(question):
        raise BadQuestion("cursor", "this cursor does not belong to this question; start without one")
    return list(found["k"])


def weakest(made: pl.DataFrame, question: Question, borders: Borders, pieces: Sequence[Piece]) -> str:
    """The finality of the whole."""
    if len(made):
        return str(made["finality"].min())
    exact = reconciled_stretches(pieces)
    if _covered(question.start_ms, question.end_ms, exact):
        return "reconciled"
    open_ = borders.watermark_ms is None or question.end_ms > borders.watermark_ms
    return "provisional" if open_ else "closed"


def meta(question: Question) -> list[dict[str, str]]:
    """Names and types of the columns."""
    columns = [("time", "datetime"), *((g, "string" if g in NAMES else "integer") for g in question.group_by)]
    columns += [(m, "integer") for m in MEASURES]
    columns += [
        ("ctr", "number"),
        ("cvr", "number"),
        ("cpc_micros", "integer"),
        ("cpm_micros", "integer"),
        ("finality", "string"),
    ]
    return [{"name": name, "type": kind} for name, kind in columns]
