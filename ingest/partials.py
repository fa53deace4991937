"""The partial: sums of events that share a minute and all five dimensions. What a block carries downstream.

Sums are exact 64-bit integers; one that would overflow raises, it never wraps. Columns are held in the smallest type that
holds them: some 25 bytes a row, where eight each would be 120.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.clock import MINUTE_MS
from infra.columnar.columns import Bools, Ints
from infra.columnar.grouping import interleave, order_by_place, pack_keys, sum_by_key
from ingest.archive.schema import Decision
from ingest.events import EVENT_TYPES, TYPE_CODE
from ingest.judge import JudgedBatch
from ingest.lateness import Lateness

Column = npt.NDArray[Any]

WINDOW = "window_ms"
KEYS = (WINDOW, "advertiser_id", "campaign_id", "ad_id", "publisher_id", "country", "device")
COUNTS = tuple(f"{name}s" for name in EVENT_TYPES)
BILLED = (*COUNTS, "spend_micros")
"""The sums that are billed by: what the nightly job recomputes and publishes."""
MEASURES = (*BILLED, "late_events", "late_clicks")
"""The sums that answers show."""
SUMS = (
    *BILLED,
    "late",  # events late by their own partition, however little
    "late_events",  # of these, the ones late by more than five minutes
    "late_clicks",  # of those, the clicks
    "sampled",  # events that stand for more than themselves
)
_LIMIT = 2.0**62
_PLACE = (WINDOW, "campaign_id")
_DENSE = 4_096


@dataclass(frozen=True)
class Partials:
    """Rows by column: KEYS, SUMS, and what a stage adds. A column of one value takes no memory (its stride is 0)."""

    columns: dict[str, Column]

    @classmethod
    def of(cls, columns: Mapping[str, Column]) -> Partials:
        """Columns of any integer types; none is negative, but for windows."""
        return cls({name: _narrow(column, name) for name, column in columns.items()})

    @classmethod
    def of_arrow(cls, rows: pa.Table) -> Partials:
        """Partials from the columns of a block or chunk. Sums that it lacks are 0."""
        present, zero = set(rows.column_names), _constant(np.uint8(0), rows.num_rows)
        names = dict.fromkeys((*KEYS, *SUMS, *rows.column_names))
        return cls.of({name: rows.column(name).to_numpy() if name in present else zero for name in names})

    @classmethod
    def joined(cls, parts: Sequence[Partials]) -> Partials:
        """The rows of several parts, one after the other; all have the same columns."""
        full = [part for part in parts if len(part)] or list(parts[:1])
        if len(full) == 1:
            return full[0]
        if not full:
            return empty_partials()
        return cls({name: _concatenated([part.columns[name] for part in full]) for name in full[0].columns})

    def __len__(self) -> int:
        return len(self.columns[WINDOW])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def take(self, rows: slice | Ints | Bools) -> Partials:
        """The rows at these places, in the order of `rows`."""
        return Partials({name: _picked(column, rows) for name, column in self.columns.items()})

    def with_column(self, name: str, column: Column) -> Partials:
        """The same rows with one column added or replaced."""
        return Partials({**self.columns, name: _narrow(column, name)})

    def only(self, names: Iterable[str]) -> Partials:
        """The same rows with these columns alone."""
        return Partials({name: self.columns[name] for name in names})

    def without_zero_sums(self) -> Partials:
        """Without the sums that are 0 in all rows: what a block or chunk has. `of_arrow` adds them again."""
        return self.only(n for n, column in self.columns.items() if n not in SUMS or not _is_zero(column))

    def arrow(self) -> pa.RecordBatch:
        """All columns. Those of one value are copied, and take memory."""
        arrays = [pa.array(np.ascontiguousarray(column)) for column in self.columns.values()]
        return pa.RecordBatch.from_arrays(arrays, names=list(self.columns))


def _constant(value: Any, size: int) -> Column:
    """As numpy.broadcast_to, which takes ten times as long."""
    scalar = np.asarray(value)
    return np.ndarray((size,), scalar.dtype, scalar, 0, (0,))


def _is_constant(column: Column) -> bool:
    return column.strides == (0,) and len(column) > 0


def _is_zero(column: Column) -> bool:
    return not len(column) or (_is_constant(column) and not column[0])


def _narrow(column: Column, name: str) -> Column:
    if not len(column):
        return np.empty(0, np.int64 if name == WINDOW else np.uint8)
    if _is_constant(column):
        low = top = int(column[0])
    else:
        low, top = int(column.min()), int(column.max())
    kind = np.dtype(np.int64) if name == WINDOW else np.min_scalar_type(top)
    return _constant(np.array(top, kind), len(column)) if low == top else column.astype(kind, copy=False)


def _picked(column: Column, rows: slice | Ints | Bools) -> Column:
    if isinstance(rows, slice) or not _is_constant(column):
        return column[rows]
    return _constant(column[:1][0], int(rows.sum()) if rows.dtype == np.bool_ else len(rows))


def _concatenated(columns: list[Column]) -> Column:
    first = columns[0][0]
    if all(_is_constant(column) and column[0] == first for column in columns):
        return _constant(first, sum(map(len, columns)))
    return np.concatenate(columns)


def empty_partials() -> Partials:
    """Partials without a row, with all columns."""
    return Partials.of({name: np.empty(0, np.int64) for name in (*KEYS, *SUMS)})


def fold_events(judged: Sequence[JudgedBatch]) -> Partials:
    """What was counted of some judged events."""
    kept = [j.decisions == Decision.COUNTED for j in judged]

    def gathered(columns: Iterable[Column]) -> Column:
        return np.concatenate([c if k.all() else c[k] for c, k in zip(columns, kept, strict=True)])

    weight = gathered(j.weights for j in judged).astype(np.int64)
    lateness = gathered(j.lateness for j in judged)
    kind, cost = (gathered(j.events[name] for j in judged) for name in ("event_type", "cost_micros"))
    _refuse_overflow(float((cost * weight.astype(np.float64)).sum()))
    time_ms = gathered(j.events["time_ms"] for j in judged)
    keys = {name: gathered(j.events[name] for j in judged) for name in KEYS if name != WINDOW}
    flagged = lateness == Lateness.FLAGGED
    amounts = [
        *(np.where(kind == TYPE_CODE[name], weight, 0) for name in EVENT_TYPES),
        cost * weight,
        lateness > Lateness.ON_TIME,
        flagged,
        flagged & (kind == TYPE_CODE["click"]),
        weight > 1,
    ]
    return _grouped({WINDOW: time_ms - time_ms % MINUTE_MS, **keys}, dict(zip(SUMS, amounts, strict=True)))


def merge_partials(parts: Sequence[Partials]) -> Partials:
    """Sum rows that share a key. Their order does not matter; what comes out is `ordered`."""
    whole = Partials.joined(parts) if parts else empty_partials()
    _refuse_overflow(float(whole["spend_micros"].sum(dtype=np.float64)))
    sums = {name: column for name, column in whole.columns.items() if name not in KEYS}
    return _grouped({name: whole[name] for name in KEYS}, sums)


def widened(partials: Partials, grain_ms: int) -> Partials:
    """The same rows, each in the wider window that holds it."""
    window = partials[WINDOW]
    return partials.with_column(WINDOW, window - window % grain_ms)


def by_campaign(rows: Partials) -> Partials:
    """The sums by window, campaign and advertiser; the other dimensions are 0."""
    zero = _constant(np.uint8(0), len(rows))
    other = [name for name in KEYS if name not in (*_PLACE, "advertiser_id")]
    return merge_partials([Partials({**rows.columns, **dict.fromkeys(other, zero)})]) if len(rows) else rows


def ordered(partials: Partials) -> Partials:
    """In the order of windows and campaigns."""
    place, places = _places(partials)
    return partials if (place[1:] >= place[:-1]).all() else partials.take(order_by_place(place, places)[0])


def among(rows: Partials, others: Partials) -> Partials:
    """The rows of `rows`, which has each key once, whose keys occur in `others`."""
    both = Partials.joined([others.only(KEYS), rows.only(KEYS)])
    keys = pack_keys([_since_first(both[WINDOW]), *(both[name] for name in KEYS[1:])])
    first, _ = sum_by_key(keys, np.empty((len(both), 0), np.int64))
    kept = np.ones(len(rows), np.bool_)
    kept[first[first >= len(others)] - len(others)] = False
    return rows.take(kept)


def _grouped(keys: dict[str, Column], amounts: dict[str, Column]) -> Partials:
    narrow = Partials.of(keys)
    summed = {name: column for name, column in amounts.items() if len(column) and column.any()}
    size = len(narrow)
    table = interleave(list(summed.values())) if summed else np.empty((size, 0), np.int64)
    within = pack_keys([narrow[name] for name in KEYS if name not in _PLACE])
    first, sums = sum_by_key(within, table, order_by_place(*_places(narrow)))
    columns = {name: _picked(column, first) for name, column in narrow.columns.items()}
    zero = _constant(np.uint8(0), len(first))
    columns |= dict.fromkeys(amounts, zero)
    columns |= dict(zip(summed, np.ascontiguousarray(sums.T), strict=True))
    return Partials.of(columns)


def _places(partials: Partials) -> tuple[Ints, int]:
    """The place of each row in the order of windows and campaigns, and how many there are, with or without rows."""
    windows, minutes = _numbered(_since_first(partials[WINDOW]) // MINUTE_MS)
    campaigns, known = _numbered(partials["campaign_id"])
    return windows * known + campaigns, minutes * known


def _numbered(column: Column) -> tuple[Ints, int]:
    """A number for each value, in the order of the values, and a bound for the numbers: at most about the count of rows."""
    count = int(column.max()) + 1 if len(column) else 1
    if _is_constant(column):
        return np.zeros(len(column), np.int64), 1
    if count <= max(_DENSE, len(column)):
        return column.astype(np.int64, copy=False), count
    distinct, numbers = np.unique(column, return_inverse=True)
    return numbers, len(distinct)


def _since_first(window: Column) -> Column:
    return window - window.min() if len(window) else window


def _refuse_overflow(total: float) -> None:
    """Raise unless the sum over all rows, an upper bound for each group, is far inside 64 bits."""
    if total >= _LIMIT:
        raise OverflowError(f"spend of {total:.3e} micros in one merge is beyond 64 bits")
