"""Sums to an answer: ratios, finality, order, pages. Pure, and by column."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from infra.columns import Bools, Ints
from query import cursor, sums
from query.bad_question import BadQuestion
from query.buckets import GRAINS
from query.plan import EXACT, HOT, Borders, Piece
from query.request import FOREIGN_CURSOR, MEASURES, RATIOS, Question
from query.signing import Signer
from query.sums import NAMES, Exact, Sums
from query.zones import UTC

FINALITY = ("provisional", "closed", "corrected", "reconciled")
"""The weakest first."""
_PROVISIONAL, _CLOSED, _CORRECTED, _RECONCILED = range(len(FINALITY))
_SHOWN = {name: pa.array(values, pa.large_string()) for name, values in NAMES.items()}
_SHOWN_FINALITY = pa.array(FINALITY, pa.large_string())
_TEXTS, _FINALITY_TEXTS = {name: np.array(values, object) for name, values in NAMES.items()}, np.array(FINALITY, object)
# What each of the names comes as in alphabetical order.
_PLACES = {name: np.argsort(np.argsort(np.array(values))) for name, values in NAMES.items()}
# By so much a measure is multiplied at most before it is divided.
_SCALE = 2 * 10_000


@dataclass(frozen=True)
class Ratio:
    """Values, and where there is none, since the divisor is 0."""

    values: npt.NDArray[Any]
    absent: Bools


@dataclass(frozen=True)
class Made:
    """All rows of an answer. `finality`: indices into FINALITY. `sorted_by`: what rows are ordered by, ascending, as numbers;
    `order` puts them so."""

    table: Sums
    ratios: dict[str, Ratio]
    finality: npt.NDArray[np.uint8]
    sorted_by: list[npt.NDArray[Any]]
    order: Ints

    def __len__(self) -> int:
        return len(self.table)

    def place(self, row: int) -> list[Any]:
        """What the row is ordered by."""
        found = (column[row] for column in self.sorted_by)
        return [value.item() if isinstance(value, np.generic) else value for value in found]


def rows(question: Question, table: Sums, borders: Borders, pieces: Sequence[Piece]) -> Made:
    """All rows of the answer in their order.

    Ratios are derived after summing: ctr and cvr to four decimals, money to whole micros, halves up.
    """
    if question.fill:
        table = sums.filled(question, table)
    ratios = _ratios(table)
    final = _finalities(question, table, borders, pieces)
    by = _sorted_by(question, table, ratios)
    return Made(table, ratios, final, by, _ordered(by))


def _ratios(table: Sums) -> dict[str, Ratio]:
    measures = {m: sums.roomy(column, _SCALE) for m, column in zip(MEASURES, table.measures, strict=True)}
    impressions, clicks = measures["impressions"], measures["clicks"]
    no_impressions, no_clicks = (np.asarray(column == 0, bool) for column in (impressions, clicks))

    def of(part: Exact, whole: Exact, absent: Bools) -> Exact:
        """part / whole to the nearest integer, halves up, without floats."""
        whole = np.where(absent, 1, whole)
        return np.asarray((2 * part + whole) // (2 * whole))

    found = {
        "ctr": Ratio(of(clicks * 10_000, impressions, no_impressions) / 10_000, no_impressions),
        "cvr": Ratio(of(measures["conversions"] * 10_000, clicks, no_clicks) / 10_000, no_clicks),
        "cpc_micros": Ratio(of(measures["spend_micros"], clicks, no_clicks), no_clicks),
        "cpm_micros": Ratio(of(measures["spend_micros"] * 1000, impressions, no_impressions), no_impressions),
    }
    assert tuple(found) == RATIOS
    return found


# -- finality ---------------------------------------------------------------------------------------------------


def reconciled_stretches(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """The stretches that exact tiers serve."""
    return [(p.start_ms, p.end_ms) for p in pieces if p.tier in EXACT]


def _finalities(question: Question, table: Sums, borders: Borders, pieces: Sequence[Piece]) -> npt.NDArray[np.uint8]:
    """How final each row is. A bucket is closed by the watermark of the tier that its newest events come from."""
    buckets, which = np.unique(table.buckets, return_inverse=True)
    starts, ends = question.extents(buckets)
    watermarks = np.full(len(buckets), _watermark_ms(borders.watermark_ms))
    for piece in pieces:
        if piece.tier == HOT:
            read_here = (starts < piece.end_ms) & (piece.start_ms < ends)
            watermarks[read_here] = _watermark_ms(borders.hot_watermark_ms)
    by_bucket = np.where(ends > watermarks, _PROVISIONAL, _CLOSED).astype(np.uint8)
    for start, end in _joined(reconciled_stretches(pieces)):
        by_bucket[(start <= starts) & (ends <= end)] = _RECONCILED
    found = by_bucket[which]
    found[(found == _CLOSED) & table.corrected] = _CORRECTED
    return found


def _watermark_ms(known: int | None) -> int:
    """Before the first watermark nothing is closed."""
    return -1 if known is None else known


def _joined(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches, in order, without what only divides them."""
    found: list[tuple[int, int]] = []
    for start, end in stretches:
        if found and start == found[-1][1]:
            start = found.pop()[0]
        found.append((start, end))
    return found


def weakest(made: Made, question: Question, borders: Borders, pieces: Sequence[Piece]) -> str:
    """The finality of the whole."""
    if len(made):
        return FINALITY[int(made.finality.min())]
    exact = _joined(reconciled_stretches(pieces))
    if any(start <= question.start_ms and question.end_ms <= end for start, end in exact):
        return "reconciled"
    by_tier = [(p, borders.hot_watermark_ms if p.tier == HOT else borders.watermark_ms) for p in pieces]
    closed = _joined([(p.start_ms, p.end_ms) for p, watermark in by_tier if p.end_ms <= _watermark_ms(watermark)])
    whole = any(start <= question.start_ms and question.end_ms <= end for start, end in closed)
    return "closed" if whole else "provisional"


# -- order and pages --------------------------------------------------------------------------------------------


def _sorted_by(question: Question, table: Sums, ratios: dict[str, Ratio]) -> list[npt.NDArray[Any]]:
    """The column that is asked for, and then what tells rows apart. Absent ratios come last, whichever way."""
    groups = {g: _PLACES[g][c] if g in NAMES else c for g, c in zip(question.group_by, table.groups, strict=True)}
    by: list[npt.NDArray[Any]] = [table.buckets, *groups.values()]
    sign = -1 if question.descending else 1
    if question.order in RATIOS:
        ratio = ratios[question.order]
        return [ratio.absent.astype(np.int64), np.where(ratio.absent, 0, sign * ratio.values), *by]
    if question.order:
        columns = {"time": table.buckets, **groups, **dict(zip(MEASURES, table.measures, strict=True))}
        return [sign * columns[question.order], *by]
    return by


def _ordered(by: Sequence[npt.NDArray[Any]]) -> Ints:
    order = np.arange(len(by[0]))
    for column in reversed(by):
        order = order[np.argsort(column[order], kind="stable")]
    return order


def page(question: Question, made: Made, signer: Signer) -> tuple[Page, str | None]:
    """The rows after the cursor, at most `limit`, and the next cursor.

    A cursor says behind which row, by all that rows are ordered by, the next page begins: it stays right while rows come, go
    and change. A row that moves across it meanwhile may be seen twice or not at all; no other is. Raises BadQuestion on a foreign one.
    """
    first = 0
    if question.cursor is not None:
        behind, order = _place_behind(question, signer), made.order
        first = bisect.bisect_right(range(len(order)), behind, key=lambda at: made.place(int(order[at])))
    end = first + question.limit
    shown = Page(question, made, made.order[first:end])
    if len(made) <= end:
        return shown, None
    return shown, cursor.issue(question, made.place(int(made.order[end - 1])), signer)


def _place_behind(question: Question, signer: Signer) -> list[Any]:
    behind = cursor.read(question.cursor or "", signer)
    if behind is None or behind.question != cursor.digest(question):
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return behind.place


# -- as it is shown ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """Rows `which` of an answer, as they are shown."""

    question: Question
    made: Made
    which: Ints

    def __len__(self) -> int:
        return len(self.which)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """With `_bucket`, `_sampled` and the columns of `meta`."""
        table, which = self.made.table, self.which
        buckets = table.buckets[which]
        labels, place = _labels(self.question, buckets)
        groups = zip(self.question.group_by, (g[which] for g in table.groups), strict=True)
        return pl.DataFrame(
            {
                "_bucket": buckets,
                "time": _taken(pa.array(labels, pa.large_string()), place),
                **{g: _taken(_SHOWN[g], values) if g in NAMES else values for g, values in groups},
                **{m: _amounts(column[which]) for m, column in zip(MEASURES, table.measures, strict=True)},
                **{
                    name: _shares(r) if name in ("ctr", "cvr") else _amounts(r.values, r.absent)
                    for name, r in self._ratios().items()
                },
                "finality": _taken(_SHOWN_FINALITY, self.made.finality[which]),
                "_sampled": table.sampled[which],
            }
        )

    @property
    def shown(self) -> pl.DataFrame:
        """With the columns of `meta` alone."""
        return self.frame[[name for name in self.frame.columns if not name.startswith("_")]]

    def json(self) -> bytes:
        """A list of objects, as `shown` would write it: at a tenth of the cost, for the few rows that most answers have."""
        table, which = self.made.table, self.which
        labels, place = _labels(self.question, table.buckets[which])
        groups = zip(self.question.group_by, (g[which] for g in table.groups), strict=True)
        columns: dict[str, list[Any]] = {
            "time": np.array(labels, object)[place].tolist(),
            **{g: (_TEXTS[g][values] if g in NAMES else values).tolist() for g, values in groups},
            **{m: column[which].tolist() for m, column in zip(MEASURES, table.measures, strict=True)},
            **{name: _or_none(ratio) for name, ratio in self._ratios().items()},
            "finality": _FINALITY_TEXTS[self.made.finality[which]].tolist(),
        }
        return msgspec.json.encode([*map(_row_type(tuple(columns)), *columns.values())])

    def _ratios(self) -> dict[str, Ratio]:
        ratios = self.made.ratios
        return {name: Ratio(ratios[name].values[self.which], ratios[name].absent[self.which]) for name in RATIOS}


@lru_cache
def _row_type(names: tuple[str, ...]) -> type[msgspec.Struct]:
    return msgspec.defstruct("Row", [(name, Any) for name in names])


def _or_none(ratio: Ratio) -> list[Any]:
    values: list[Any] = ratio.values.tolist()
    if not ratio.absent.any():
        return values
    return [None if absent else value for value, absent in zip(values, ratio.absent.tolist(), strict=True)]


def _labels(question: Question, buckets: Ints) -> tuple[list[str], Ints]:
    """How the buckets are written, each once, and which of them each row has."""
    distinct, place = np.unique(buckets, return_inverse=True)
    if question.zone is UTC and question.grain in GRAINS:
        texts = np.datetime_as_string(distinct.astype("M8[ms]"), unit="s").tolist()
        return [f"{text}Z" for text in texts], place
    return [question.label(bucket) for bucket in distinct.tolist()], place


def _taken(texts: pa.Array, which: npt.NDArray[Any]) -> pl.Series:
    return pl.Series(pl.from_arrow(texts.take(pa.array(which))))


def _amounts(values: Exact, absent: Bools | None = None) -> pl.Series:
    if values.dtype != object:
        return pl.Series(pl.from_arrow(pa.array(values, mask=absent)) if absent is not None else values)
    told = values.tolist() if absent is None else [None if a else v for v, a in zip(values, absent, strict=True)]
    fits = max((v for v in told if v is not None), default=0) < 2**63
    return pl.Series(told, dtype=pl.Int64 if fits else pl.Int128)


def _shares(ratio: Ratio) -> pl.Series:
    return pl.Series(pl.from_arrow(pa.array(ratio.values.astype(np.float64), mask=ratio.absent)))


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
