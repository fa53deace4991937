"""Recorded ids of one generation: an open segment, which grows, and closed ones, which are sorted and never change.

A row is a digest and the offset of the first occurrence. The open segment lies in Redis as a list of chunks of rows, in the
order in which they were recorded, and in the worker with a hash index. A closed one lies in Redis alone; of it the worker
keeps the Bloom filter and every 32nd digest's first word.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Ints
from infra.columnar.jit import Number, compiled, put_word, word_at
from ingest.dedup.bloom import Filter
from ingest.dedup.digest import DIGEST, DIGEST_BYTES, Digests, first_words

ROW = np.dtype([("digest", DIGEST), ("offset", "<i8")])
ROW_BYTES = ROW.itemsize
Rows = npt.NDArray[np.void]
"""Elements of type ROW."""
Offsets = Ints
UNKNOWN = -1

FIRST_CAPACITY = 250_000
_SPARSE = 32
_HEAD = struct.Struct("<8sqq")
_MAGIC = b"adclick1"
HEAD_BYTES = _HEAD.size


class Damaged(Exception):
    """A segment in Redis is not what was written there."""


@compiled
def _side_by_side(digests: int, offsets: Offsets, rows: int) -> None:
    for row in range(len(offsets)):
        digest, at = digests + DIGEST_BYTES * row, rows + ROW_BYTES * row
        put_word(at, 0, word_at(digest, 0))
        put_word(at, 4, word_at(digest, 4))
        put_word(at, DIGEST_BYTES, np.uint64(offsets[row]))


@compiled
def _copy_in_order(rows: int, order: Ints, ordered: int) -> None:
    for row in range(len(order)):
        row_at, copy_at = rows + ROW_BYTES * order[row], ordered + ROW_BYTES * row
        put_word(copy_at, 0, word_at(row_at, 0))
        put_word(copy_at, 8, word_at(row_at, 8))
        put_word(copy_at, DIGEST_BYTES, word_at(row_at, DIGEST_BYTES))


def segment_rows(digests: Digests, offsets: Offsets) -> Rows:
    """Digests and offsets as rows of a segment."""
    rows, digests = np.empty(len(digests), ROW), np.ascontiguousarray(digests)
    _side_by_side(digests.ctypes.data, offsets.astype(np.int64, copy=False), rows.ctypes.data)
    return rows


@compiled
def _same(a: Number, b: Number) -> Number:
    """Whether the digests at two addresses are equal."""
    return word_at(a, 0) == word_at(b, 0) and word_at(a, 4) == word_at(b, 4)


@compiled
def _index(rows: int, start: int, stop: int, slots: npt.NDArray[np.int32]) -> None:
    """Put rows into a hash index: linear probing from the digest's first word, 0 for an empty slot, else row + 1."""
    mask = len(slots) - 1
    for row in range(start, stop):
        slot = np.int64(word_at(rows, ROW_BYTES * row) & np.uint64(mask))
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = row + 1


@compiled
def _find(digests: int, rows_asked: Ints, rows: int, slots: npt.NDArray[np.int32], offsets: Offsets) -> None:
    """Fill in the offsets of the digests at `rows_asked` that the index has."""
    mask = len(slots) - 1
    for at in rows_asked:
        digest = digests + DIGEST_BYTES * at
        slot = np.int64(word_at(digest, 0) & np.uint64(mask))
        while slots[slot] != 0:
            row = rows + ROW_BYTES * np.int64(slots[slot] - 1)
            if _same(digest, row):
                offsets[at] = np.int64(word_at(row, DIGEST_BYTES))
                break
            slot = (slot + 1) & mask


@compiled
def _scan(digests: int, wanted: Ints, windows: int, edges: Ints, offsets: Offsets) -> None:
    """Fill in the offsets of the digests at `wanted` that lie in their windows: windows[edges[i] : edges[i + 1]] for the i-th."""
    for i in range(len(wanted)):
        digest = digests + DIGEST_BYTES * wanted[i]
        for at in range(edges[i], edges[i + 1], ROW_BYTES):
            if _same(digest, windows + at):
                offsets[wanted[i]] = np.int64(word_at(windows + at, DIGEST_BYTES))
                break


class OpenSegment:
    """The segment that ids are recorded in."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: ids; one batch more does no harm."""
        self.capacity, self.count = capacity, 0
        self.filter = Filter(capacity)
        self._rows: Rows = np.empty(1024, ROW)
        self._slots = np.zeros(2 * len(self._rows), np.int32)

    def add(self, rows: Rows) -> None:
        """Append rows and index them."""
        start, stop = self.count, self.count + len(rows)
        if stop > len(self._rows):
            larger = np.empty(1 << (stop - 1).bit_length(), ROW)
            larger[:start] = self._rows[:start]
            self._rows, self._slots = larger, np.zeros(2 * len(larger), np.int32)
            _index(larger.ctypes.data, 0, start, self._slots)
        self._rows[start:stop] = rows
        _index(self._rows.ctypes.data, start, stop, self._slots)
        self.filter.add(rows["digest"])
        self.count = stop

    def find(self, digests: Digests, offsets: Offsets) -> None:
        """Fill in the offsets of the digests that this segment has."""
        if not self.count:
            return
        positives = np.flatnonzero(self.filter.contains(digests))
        if positives.size:
            _find(digests.ctypes.data, positives, self._rows.ctypes.data, self._slots, offsets)

    @property
    def full(self) -> bool:
        """Whether it has as many ids as it is made for, and must be closed."""
        return self.count >= self.capacity

    def closed(self) -> tuple[ClosedSegment, bytes]:
        """The closed segment of the same ids in order, and its bytes in Redis: head, sparse index, filter, rows."""
        rows = self._rows[: self.count]
        words = first_words(rows["digest"])
        order, ordered = np.argsort(words), np.empty(self.count, ROW)
        _copy_in_order(rows.ctypes.data, order, ordered.ctypes.data)
        sparse = words[order[::_SPARSE]]
        head = _HEAD.pack(_MAGIC, self.capacity, self.count)
        stored = b"".join((head, sparse.tobytes(), self.filter.snapshot(), ordered.tobytes()))
        return ClosedSegment(self.count, self.filter, sparse), stored


@dataclass(frozen=True)
class ClosedSegment:
    """A closed segment without its rows; `sparse` has the first word of every 32nd row."""

    count: int
    filter: Filter
    sparse: npt.NDArray[np.uint64]

    @staticmethod
    def sizes(head: bytes) -> tuple[int, int, int]:
        """Capacity, count of rows, and the bytes before the rows, from a segment's head. Raises Damaged."""
        if len(head) != HEAD_BYTES:
            raise Damaged("no head")
        magic, capacity, count = _HEAD.unpack(head)
        if magic != _MAGIC or capacity < 1 or count < 1:
            raise Damaged("not a segment")
        return capacity, count, HEAD_BYTES + 8 * -(-count // _SPARSE) + Filter(capacity).size

    @classmethod
    def loaded(cls, start: bytes) -> ClosedSegment:
        """A closed segment from its bytes before the rows. Raises Damaged."""
        capacity, count, size = cls.sizes(start[:HEAD_BYTES])
        if len(start) != size:
            raise Damaged("cut short")
        bloom, sparse = Filter(capacity), -(-count // _SPARSE)
        bloom.restore(start[HEAD_BYTES + 8 * sparse :])
        return cls(count, bloom, np.frombuffer(start, "<u8", sparse, HEAD_BYTES))

    def windows(self, digests: Digests) -> tuple[Ints, Ints]:
        """The window of rows in which each digest must lie: first and last byte of the stored segment."""
        words = first_words(digests)
        first = np.maximum(np.searchsorted(self.sparse, words, "left") - 1, 0) * _SPARSE
        last = np.minimum(np.searchsorted(self.sparse, words, "right") * _SPARSE, self.count)
        rows_at = HEAD_BYTES + 8 * len(self.sparse) + self.filter.size
        # Before the first row of all: one row, which is another's.
        return rows_at + ROW_BYTES * first, rows_at + ROW_BYTES * np.maximum(last, 1) - 1


def scan_windows(digests: Digests, wanted: Ints, windows: list[bytes], offsets: Offsets) -> None:
    """Look for the digests at `wanted` in their windows of rows, and fill in their offsets."""
    joined = np.frombuffer(b"".join(windows), np.uint8)
    edges = np.zeros(len(windows) + 1, np.int64)
    np.cumsum([len(window) for window in windows], out=edges[1:])
    _scan(digests.ctypes.data, wanted, joined.ctypes.data, edges, offsets)


@dataclass
class Generation:
    """The segments of one generation."""

    limit: int
    """At most so many ids in a segment."""
    first: int = FIRST_CAPACITY
    """Ids of the first segment; each further one takes twice as many."""
    closed: list[ClosedSegment] = field(default_factory=list)
    open: OpenSegment | None = None

    def opened(self) -> OpenSegment:
        """The open segment; a new one is twice as large as the one before."""
        self.open = self.open or OpenSegment(min(self.limit, self.first << len(self.closed)))
        return self.open

    @property
    def filters(self) -> list[Filter]:
        """An id that none of them has seen is not recorded here."""
        return [part.filter for part in (*self.closed, self.open) if part is not None]
