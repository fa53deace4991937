"""Tables of sums, by column: one for each piece, merged into one for the question. Pure.

In numpy, and in the calling thread: a question has few rows, and handing each step to a pool of threads would take longer than the
step. Amounts are 64-bit integers, and Python's own where a sum might not fit: the same expressions, slower, and as exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Bools, Ints
from ingest.events import COUNTRIES, DEVICES
from query.bad_question import BadQuestion
from query.question import MEASURES, Question

Exact = npt.NDArray[Any]
"""Integers: of 64 bits, or of any size (dtype object)."""
NAMES = {"country": COUNTRIES, "device": DEVICES}
"""The dimensions of strings, and the values of each; columns hold the position of a value."""
MAX_FILLED_ROWS = 500_000
"""With `fill=zero`: a few hundred megabytes while they are sorted."""
_MAX_INT64 = 2**63 - 1
ENCODING = hashlib.sha256(repr((MEASURES, NAMES)).encode()).hexdigest()[:16]
"""What encoded sums mean: which measures they have, and which values their positions stand for. Part of the key of cached ones."""
# The type of an encoded column whose integers may have more than 64 bits.
_WIDE = "wide"


@dataclass(frozen=True)
class Sums:
    """A row for each bucket and group: the start of the bucket (epoch ms), the values of `group_by`, the sums of MEASURES, and
    whether any event in it corrected a closed window, or was sampled."""

    buckets: Ints
    groups: tuple[Ints, ...]
    measures: tuple[Exact, ...]
    corrected: Bools
    sampled: Bools

    def __len__(self) -> int:
        return len(self.buckets)

    @property
    def keys(self) -> tuple[Ints, ...]:
        """The columns that tell rows apart."""
        return (self.buckets, *self.groups)


def empty_sums(question: Question) -> Sums:
    """A table without rows, with the columns of the question."""
    numbers, flags = np.zeros(0, np.int64), np.zeros(0, bool)
    return Sums(numbers, (numbers,) * len(question.group_by), (numbers,) * len(MEASURES), flags, flags)


def merge_pieces(question: Question, tables: Sequence[Sums]) -> Sums:
    """The tables of all pieces as one: a row for each bucket and group."""
    tables = [table for table in tables if len(table)]
    if len(tables) <= 1:
        return tables[0] if tables else empty_sums(question)
    rows = concatenate(tables)
    # Pieces meet at whole hours: no minute or hour is in two of them.
    return rows if question.grain in ("minute", "hour") else sum_equal_keys(rows)


def sort_by_keys(keys: Sequence[Ints]) -> tuple[Ints, list[Ints], Bools]:
    """The order of some keys, which are of one row or more, the keys in it, and in which rows of it another key begins."""
    order: Ints = np.lexsort(keys[::-1])
    ordered = [key[order] for key in keys]
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any([key[1:] != key[:-1] for key in ordered], axis=0)
    return order, ordered, is_new


def sum_equal_keys(table: Sums) -> Sums:
    """A table whose keys may repeat as one whose keys do not, in the order of its keys."""
    if not len(table):
        return table
    order, keys, is_new = sort_by_keys(table.keys)
    starts = np.flatnonzero(is_new)
    return Sums(
        keys[0][starts],
        tuple(key[starts] for key in keys[1:]),
        tuple(np.add.reduceat(widen(m, len(table))[order], starts) for m in table.measures),
        np.logical_or.reduceat(table.corrected[order], starts),
        np.logical_or.reduceat(table.sampled[order], starts),
    )


def fill_buckets(question: Question, table: Sums) -> Sums:
    """The table with a row of zeros for each bucket in which one of its groups has none. Raises BadQuestion where these are more
    than MAX_FILLED_ROWS."""
    buckets = np.array(question.buckets(), np.int64)
    groups, group_numbers = _distinct_groups(question, table)
    group_count = len(groups[0]) if groups else 1
    rows = len(buckets) * group_count
    if rows > MAX_FILLED_ROWS:
        raise BadQuestion(
            "fill",
            f"fill=zero would make {rows:,} rows, and the limit is {MAX_FILLED_ROWS:,}; "
            "retry with a coarser granularity, a shorter range or fewer groups",
        )
    missing = np.ones((len(buckets), group_count), bool)
    missing[np.searchsorted(buckets, table.buckets), group_numbers] = False
    bucket, group = np.nonzero(missing)
    zeros, flags = np.zeros(len(bucket), np.int64), np.zeros(len(bucket), bool)
    empty_buckets = Sums(buckets[bucket], tuple(g[group] for g in groups), (zeros,) * len(table.measures), flags, flags)
    return concatenate([table, empty_buckets])


def widen(column: Exact, factor: int) -> Exact:
    """The column, of Python's integers where `factor` times its largest value would not fit into 64 bits."""
    fits = column.dtype == object or int(column.max(initial=0)) <= _MAX_INT64 // max(1, factor)
    return column if fits else column.astype(object)


def of_halves(low: npt.NDArray[Any], high: npt.NDArray[Any], bits: int) -> Exact:
    """high · 2^bits + low; neither half is negative."""
    # A half may itself be a sum, and have more than `bits` bits.
    if bits < 63 and int(high.max(initial=0)) < 1 << (62 - bits) and int(low.max(initial=0)) < 1 << 62:
        return np.asarray((high.astype(np.int64) << bits) + low.astype(np.int64))
    return np.asarray(high.astype(object) * (1 << bits) + low.astype(object))


def sum_all(table: Sums, bucket_ms: int) -> Sums:
    """One row, of zeros where there is none: the sums of all rows, in a bucket that begins at `bucket_ms`."""
    totals = [widen(measure, len(table)).sum() for measure in table.measures]
    return Sums(
        np.array([bucket_ms], np.int64), (), tuple(np.array([total]) for total in totals),
        np.array([table.corrected.any()]), np.array([table.sampled.any()]),
    )  # fmt: skip


def take(table: Sums, numbers: Ints) -> Sums:
    """Rows of a table, by their numbers."""
    return Sums(
        table.buckets[numbers], tuple(group[numbers] for group in table.groups), tuple(m[numbers] for m in table.measures),
        table.corrected[numbers], table.sampled[numbers],
    )  # fmt: skip


def concatenate(tables: Sequence[Sums]) -> Sums:
    """The rows of several tables with the same columns, one table after the other."""
    return Sums(
        np.concatenate([t.buckets for t in tables]),
        tuple(np.concatenate(columns) for columns in zip(*(t.groups for t in tables), strict=True)),
        tuple(np.concatenate(columns) for columns in zip(*(t.measures for t in tables), strict=True)),
        np.concatenate([t.corrected for t in tables]),
        np.concatenate([t.sampled for t in tables]),
    )


def _distinct_groups(question: Question, table: Sums) -> tuple[list[Ints], Ints]:
    """The distinct groups, by column, and the number of each row's group."""
    if not question.group_by:
        return [], np.zeros(len(table), np.int64)
    distinct, numbers = np.unique(np.stack(table.groups), axis=1, return_inverse=True)
    return list(distinct), numbers.reshape(-1)


def encode_tables(tables: Sequence[tuple[Sums, int]]) -> bytes:
    """Tables, each with how many rows were read for it, as the cache holds them; `decode_tables` reads them, with the same
    ENCODING."""
    return msgspec.msgpack.encode([encode_sums(*table) for table in tables])


def decode_tables(raw: bytes) -> list[tuple[Sums, int]]:
    """Tables, each with how many rows were read for it."""
    return [decode_sums(table) for table in msgspec.msgpack.decode(raw, type=list[bytes])]


def encode_sums(table: Sums, rows_read: int) -> bytes:
    """A table, and how many rows were read for it, encoded; `decode_sums` reads them, with the same ENCODING."""
    columns = [*table.keys, *table.measures, table.corrected, table.sampled]
    encoded = [(c.dtype.str, c.tobytes()) if c.dtype != object else (_WIDE, list(map(str, c))) for c in columns]
    return msgspec.msgpack.encode((rows_read, len(table.groups), encoded))


def decode_sums(raw: bytes) -> tuple[Sums, int]:
    """A table, and how many rows were read for it."""
    rows_read, groups, encoded = msgspec.msgpack.decode(raw, type=tuple[int, int, list[tuple[str, bytes | list[str]]]])
    columns = [
        np.array([int(text) for text in values], object) if isinstance(values, list) else np.frombuffer(values, kind)
        for kind, values in encoded
    ]
    buckets, *rest = columns
    *measures, corrected, sampled = rest[groups:]
    return Sums(buckets, tuple(rest[:groups]), tuple(measures), corrected, sampled), rows_read
