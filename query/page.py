"""A page: the rows that one answer shows, and the cursor of the next. By column."""

from __future__ import annotations

import bisect
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from infra.columnar.columns import Bools, Ints
from ingest.lateness import ACCEPTED_UP_TO_MS
from query import cursor
from query.bad_question import BadQuestion
from query.buckets import GRAINS, label_of
from query.cursor import FOREIGN_CURSOR, UNKNOWN_CURSOR
from query.directory.snapshot import KIND_OF_DIMENSION, Names, name_column
from query.finality import FINALITY
from query.question import CHANGES, MEASURES, PREVIOUS, RATIOS, Question
from query.ratios import Ratio
from query.rows import Rows
from query.signing import Signer
from query.sums import NAMES, Exact
from query.zones import UTC

# More labels than this at once are formatted by column.
_CACHED_LABELS = 4_096
_NAMES_ARROW = {name: pa.array(values, pa.large_string()) for name, values in NAMES.items()}
_NAMES_NUMPY = {name: np.array(values, object) for name, values in NAMES.items()}
_FINALITY_ARROW, _FINALITY_NUMPY = pa.array(FINALITY, pa.large_string()), np.array(FINALITY, object)


@dataclass(frozen=True)
class Page:
    """Rows of an answer, by their numbers, as they are shown. `names`: what ids are labelled with; None: not at all."""

    question: Question
    rows: Rows
    row_numbers: Ints
    names: Names | None = None

    def __len__(self) -> int:
        return len(self.row_numbers)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """With `_bucket`, `_settled_ms`, `_sampled` and the columns of `meta`."""
        table, numbers = self.rows.sums, self.row_numbers
        buckets = table.buckets[numbers]
        labels, settled, settled_ms, label_numbers = _labels(self.question, buckets)
        return pl.DataFrame(
            {
                "_bucket": buckets,
                "time": _texts(pa.array(labels, pa.large_string()), label_numbers),
                **self._group_series(),
                **{m: _amounts(column[numbers]) for m, column in zip(MEASURES, table.measures, strict=True)},
                **{
                    name: _shares(r) if is_share(name) else _amounts(r.values, r.absent)
                    for name, r in self._ratios().items()
                },
                "finality": _texts(_FINALITY_ARROW, self.rows.finality[numbers]),
                "settled_until": _texts(pa.array(settled, pa.large_string()), label_numbers),
                "_settled_ms": settled_ms[label_numbers],
                "_sampled": table.sampled[numbers],
            }
        )

    @property
    def shown(self) -> pl.DataFrame:
        """With the columns of `meta` alone."""
        return self.frame[[name for name in self.frame.columns if not name.startswith("_")]]

    def json(self) -> bytes:
        """A list of objects, as `shown` would write it: at a tenth of the cost, for the few rows that most answers have."""
        columns = self._columns()
        return msgspec.json.encode([*map(_row_type(tuple(columns)), *columns.values())])

    def amounts(self) -> dict[str, Any]:
        """The first row without its time and groups."""
        hidden = ("time", *self.question.group_by)
        return {name: values[0] for name, values in self._columns().items() if name not in hidden}

    def _columns(self) -> dict[str, list[Any]]:
        table, numbers = self.rows.sums, self.row_numbers
        labels, settled, _, label_numbers = _labels(self.question, table.buckets[numbers])
        return {
            "time": np.array(labels, object)[label_numbers].tolist(),
            **self._group_lists(),
            **{m: column[numbers].tolist() for m, column in zip(MEASURES, table.measures, strict=True)},
            **{name: _or_none(ratio) for name, ratio in self._ratios().items()},
            "finality": _FINALITY_NUMPY[self.rows.finality[numbers]].tolist(),
            "settled_until": np.array(settled, object)[label_numbers].tolist(),
        }

    def _groups(self) -> Iterator[tuple[str, Ints]]:
        return zip(self.question.group_by, (g[self.row_numbers] for g in self.rows.sums.groups), strict=True)

    def _group_series(self) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for name, values in self._groups():
            columns[name] = _texts(_NAMES_ARROW[name], values) if name in NAMES else values
            if self.names is not None and name in KIND_OF_DIMENSION:
                texts, numbers = self.names.of(name, values)
                columns[name_column(name)] = _texts(pa.array(texts, pa.large_string()), numbers)
        return columns

    def _group_lists(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for name, values in self._groups():
            columns[name] = (_NAMES_NUMPY[name][values] if name in NAMES else values).tolist()
            if self.names is not None and name in KIND_OF_DIMENSION:
                texts, numbers = self.names.of(name, values)
                columns[name_column(name)] = np.array(texts, object)[numbers].tolist()
        return columns

    def _ratios(self) -> dict[str, Ratio]:
        """Ratios, users, and what of an earlier range is beside the rows: what may be absent."""
        numbers = self.row_numbers
        return {n: Ratio(column.values[numbers], column.absent[numbers]) for n, column in self.rows.beside.items()}


def cut_page(question: Question, rows: Rows, signer: Signer, names: Names | None = None) -> tuple[Page, str | None]:
    """The rows after the question's cursor, at most `limit`, and the cursor of the next page.

    A cursor says behind which row, by all that rows are ordered by, the next page begins: it stays right while rows come, go
    and change. A row that moves across it meanwhile may be seen twice or not at all; no other is. Raises BadQuestion for the
    cursor of another question.
    """
    first = 0
    if question.cursor is not None:
        behind, order = _cursor_key(question, signer), rows.order
        first = bisect.bisect_right(range(len(order)), behind, key=lambda at: rows.sort_key(int(order[at])))
    end = first + question.limit
    page = Page(question, rows, rows.order[first:end], names)
    if len(rows) <= end:
        return page, None
    return page, cursor.issue_cursor(question, rows.sort_key(int(rows.order[end - 1])), signer)


def _cursor_key(question: Question, signer: Signer) -> list[Any]:
    """The sort key of the last row of the page before."""
    previous = cursor.read_cursor(question.cursor or "", signer)
    if previous is None:
        raise BadQuestion("cursor", UNKNOWN_CURSOR)
    if previous.question != cursor.digest_question(question):
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return previous.sort_key


def describe_columns(question: Question) -> list[dict[str, str]]:
    """Names and types of the columns of an answer, as its `meta` has them."""
    columns = [("time", "datetime")]
    for group in question.group_by:
        columns.append((group, "string" if group in NAMES else "integer"))
        columns += [(name_column(group), "string")] if question.names and group in KIND_OF_DIMENSION else []
    columns += [(m, "integer") for m in MEASURES]
    columns += [(r, "integer" if r.endswith("micros") else "number") for r in RATIOS]
    columns += [("users", "integer"), ("frequency", "number")] if question.users else []
    if question.compare is not None:
        columns += [(name, "number" if is_share(name) else "integer") for name in (*PREVIOUS, *CHANGES)]
    columns += [("finality", "string"), ("settled_until", "datetime")]
    return [{"name": name, "type": kind} for name, kind in columns]


def is_share(name: str) -> bool:
    """Whether a column has fractions, not integers."""
    return name.startswith("change_") or name == "frequency" or name.removeprefix("previous_") in ("ctr", "cvr")


@lru_cache
def _row_type(names: tuple[str, ...]) -> type[msgspec.Struct]:
    return msgspec.defstruct("Row", [(name, Any) for name in names])


def _or_none(ratio: Ratio) -> list[Any]:
    values: list[Any] = ratio.values.tolist()
    if not ratio.absent.any():
        return values
    return [None if absent else value for value, absent in zip(values, ratio.absent.tolist(), strict=True)]


def _labels(question: Question, buckets: Ints) -> tuple[list[str], list[str], Ints, Ints]:
    """Of the buckets, each once: the labels, until when they settle as labels and in epoch ms; and the number of each row's label.

    A bucket settles when its last minute accepts no late event any more.
    """
    distinct, label_numbers = np.unique(buckets, return_inverse=True)
    settled_ms = question.extents(distinct)[1] + ACCEPTED_UP_TO_MS
    if len(distinct) > _CACHED_LABELS and question.zone is UTC and question.grain in GRAINS:
        texts, settled = (
            np.datetime_as_string(ms.astype("M8[ms]"), unit="s").tolist() for ms in (distinct, settled_ms)
        )
        return [f"{text}Z" for text in texts], [f"{text}Z" for text in settled], settled_ms, label_numbers
    zone = question.zone
    labels, settled = ([_label(ms, zone) for ms in moments.tolist()] for moments in (distinct, settled_ms))
    return labels, settled, settled_ms, label_numbers


# Formatting a time costs a microsecond, and a dashboard asks for the same ones each second.
@lru_cache(maxsize=32_768)
def _label(time_ms: int, zone: zoneinfo.ZoneInfo) -> str:
    return label_of(time_ms, zone)


def _texts(texts: pa.Array, numbers: npt.NDArray[Any]) -> pl.Series:
    return pl.Series(pl.from_arrow(texts.take(pa.array(numbers))))


def _amounts(values: Exact, absent: Bools | None = None) -> pl.Series:
    if values.dtype != object:
        return pl.Series(pl.from_arrow(pa.array(values, mask=absent)) if absent is not None else values)
    amounts = values.tolist() if absent is None else [None if a else v for v, a in zip(values, absent, strict=True)]
    fits = max((v for v in amounts if v is not None), default=0) < 2**63
    return pl.Series(amounts, dtype=pl.Int64 if fits else pl.Int128)


def _shares(ratio: Ratio) -> pl.Series:
    return pl.Series(pl.from_arrow(pa.array(ratio.values.astype(np.float64), mask=ratio.absent)))
