"""Tables of sums, by column: what tiers give, and what is left of several of them. Pure.

In numpy, and in the thread that asked: a question has few rows, and handing each step to a pool of threads would take longer than the
step. Amounts are 64-bit integers, and Python's own where a sum might not fit: the same expressions, slower, and as exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from infra.columns import Bools, Ints
from ingest.events import COUNTRIES, DEVICES
from query.bad_question import BadQuestion
from query.request import MEASURES, Question

Exact = npt.NDArray[Any]
"""Integers: of 64 bits, or of any size (dtype object)."""
NAMES = {"country": COUNTRIES, "device": DEVICES}
"""Dimensions of strings, and the values that they may have; columns hold their numbers."""
MOST_FILLED = 500_000
"""Rows with those of zeros, at most: a few hundred megabytes while they are sorted."""
_MOST = 2**63 - 1
_WIDE = "wide"


@dataclass(frozen=True)
class Sums:
    """A row for each bucket and group: start of the bucket (epoch ms), the values of `group_by`, the sums of MEASURES, and whether
    any of it was corrected, or sampled."""

    buckets: Ints
    groups: tuple[Ints, ...]
    measures: tuple[Exact, ...]
    corrected: Bools
    sampled: Bools

    def __len__(self) -> int:
        return len(self.buckets)

    @property
    def keys(self) -> tuple[Ints, ...]:
        """What tells rows apart."""
        return (self.buckets, *self.groups)


def none(question: Question) -> Sums:
    """No rows."""
    numbers, flags = np.zeros(0, np.int64), np.zeros(0, bool)
    return Sums(numbers, (numbers,) * len(question.group_by), (numbers,) * len(MEASURES), flags, flags)


def merged(question: Question, tables: Sequence[Sums]) -> Sums:
    """One row for each bucket and group."""
    tables = [table for table in tables if len(table)]
    if len(tables) <= 1:
        return tables[0] if tables else none(question)
    joined = _joined(tables)
    # Pieces meet at hours: no bucket of theirs is in two of them.
    return joined if question.grain in ("minute", "hour") else summed(joined)


def summed(table: Sums) -> Sums:
    """Sums of a table whose keys may repeat, in the order of its keys."""
    if not len(table):
        return table
    order = np.lexsort(table.keys[::-1])
    keys = [key[order] for key in table.keys]
    fresh = np.ones(len(table), bool)
    fresh[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    at = np.flatnonzero(fresh)
    return Sums(
        keys[0][at],
        tuple(key[at] for key in keys[1:]),
        tuple(np.add.reduceat(roomy(m, len(table))[order], at) for m in table.measures),
        np.logical_or.reduceat(table.corrected[order], at),
        np.logical_or.reduceat(table.sampled[order], at),
    )


def filled(question: Question, table: Sums) -> Sums:
    """With a row of zeros for each bucket in which a group that is there has none. Raises BadQuestion where these are too many."""
    buckets = np.array(question.buckets(), np.int64)
    groups, number = _groups(question, table)
    rows = len(buckets) * (len(groups[0]) if groups else 1)
    if rows > MOST_FILLED:
        detail = f"fill=zero would make {rows:,} rows, and {MOST_FILLED:,} are possible"
        raise BadQuestion("fill", f"{detail}: ask for a coarser granularity, a shorter range or fewer groups")
    missing = np.ones((len(buckets), len(groups[0]) if groups else 1), bool)
    missing[np.searchsorted(buckets, table.buckets), number] = False
    bucket, group = np.nonzero(missing)
    zeros, flags = np.zeros(len(bucket), np.int64), np.zeros(len(bucket), bool)
    absent = Sums(buckets[bucket], tuple(g[group] for g in groups), (zeros,) * len(MEASURES), flags, flags)
    return _joined([table, absent])


def roomy(column: Exact, times: int) -> Exact:
    """A column whose values may be multiplied or added up so many times."""
    fits = column.dtype == object or int(column.max(initial=0)) <= _MOST // max(1, times)
    return column if fits else column.astype(object)


def of_halves(low: npt.NDArray[Any], high: npt.NDArray[Any], bits: int) -> Exact:
    """high · 2^bits + low, of halves that are not negative."""
    # A half may itself be a sum, and reach into the other.
    if bits < 63 and int(high.max(initial=0)) < 1 << (62 - bits) and int(low.max(initial=0)) < 1 << 62:
        return np.asarray((high.astype(np.int64) << bits) + low.astype(np.int64))
    return np.asarray(high.astype(object) * (1 << bits) + low.astype(object))


def _joined(tables: Sequence[Sums]) -> Sums:
    return Sums(
        np.concatenate([t.buckets for t in tables]),
        tuple(np.concatenate(columns) for columns in zip(*(t.groups for t in tables), strict=True)),
        tuple(np.concatenate(columns) for columns in zip(*(t.measures for t in tables), strict=True)),
        np.concatenate([t.corrected for t in tables]),
        np.concatenate([t.sampled for t in tables]),
    )


def _groups(question: Question, table: Sums) -> tuple[list[Ints], Ints]:
    """The distinct groups, by column, and which of them each row has."""
    if not question.group_by:
        return [], np.zeros(len(table), np.int64)
    distinct, number = np.unique(np.stack(table.groups), axis=1, return_inverse=True)
    return list(distinct), number.reshape(-1)


def as_bytes(table: Sums, rows_read: int) -> bytes:
    """A table, and how many rows were read for it, as they are kept."""
    columns = [*table.keys, *table.measures, table.corrected, table.sampled]
    told = [(c.dtype.str, c.tobytes()) if c.dtype != object else (_WIDE, list(map(str, c))) for c in columns]
    return msgspec.msgpack.encode((rows_read, len(table.groups), told))


def of_bytes(raw: bytes) -> tuple[Sums, int]:
    """What `as_bytes` made."""
    rows_read, groups, told = msgspec.msgpack.decode(raw, type=tuple[int, int, list[tuple[str, bytes | list[str]]]])
    columns = [
        np.array([int(text) for text in held], object) if isinstance(held, list) else np.frombuffer(held, kind)
        for kind, held in told
    ]
    buckets, *more = columns
    *measures, corrected, sampled = more[groups:]
    return Sums(buckets, tuple(more[:groups]), tuple(measures), corrected, sampled), rows_read
