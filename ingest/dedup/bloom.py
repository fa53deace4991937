"""Tier 1 of dedup: "certainly new" without a look-up in Redis.

pybloom_live sizes and holds the bits; whole batches are checked and added by compiled loops on the same memory. Positions
come from the digest that is stored, and from nothing else, so that a filter rebuilt from there is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from pybloom_live import BloomFilter

from infra.columnar.columns import Bools, Bytes
from infra.columnar.jit import byte_at, compiled, word_at
from ingest.dedup.digest import DIGEST_BYTES, Digests

# Positives are confirmed, so a loose rate is enough.
ERROR_RATE = 1e-3


def _positions_of_one(width: int, slices: int, key: bytes) -> Iterator[int]:
    """The same positions as `_position` computes, for pybloom itself."""
    a, b = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:12], "little") | 1
    for i in range(slices):
        yield (a + i * b) % (1 << 64) % width


@compiled
def _position(digest: int, i: int, width: Any) -> Any:
    """(a + i·b) mod width, in slice i: Kirsch and Mitzenmacher, "Less hashing, same performance", 2006.

    a is the digest's first eight bytes, b its last four made odd.
    """
    a, b = word_at(digest, 0), (word_at(digest, 4) >> np.uint64(32)) | np.uint64(1)
    return (a + np.uint64(i) * b) % width + np.uint64(i) * width


@compiled
def _contains(digests: Any, bits: Any, slices: int, width: Any, marks: Any) -> None:
    """Mark in `marks` which may have been added."""
    for row in range(len(marks)):
        if marks[row]:
            continue
        alive = True
        for i in range(slices):
            position = _position(digests + DIGEST_BYTES * row, i, width)
            byte = byte_at(bits, np.int64(position >> np.uint64(3)))
            if not (byte >> np.uint8(position & np.uint64(7))) & 1:
                alive = False
                break
        marks[row] = alive


@compiled
def _add(digests: Any, apart: int, count: int, bits: Any, slices: int, width: Any) -> None:
    for row in range(count):
        for i in range(slices):
            position = _position(digests + apart * row, i, width)
            bits[np.int64(position >> np.uint64(3))] |= np.uint8(1) << np.uint8(position & np.uint64(7))


class Filter:
    """One pybloom filter, used by whole batches."""

    def __init__(self, capacity: int) -> None:
        self.bloom = BloomFilter(capacity=capacity, error_rate=ERROR_RATE)
        # So that pybloom's own `in` agrees. Not a method of this object: the filter would refer to itself, and only
        # be freed by a full collection.
        self.bloom.make_hashes = partial(_positions_of_one, self.bloom.bits_per_slice, self.bloom.num_slices)
        self._bits: Bytes = np.frombuffer(self.bloom.bitarray, np.uint8)
        self._width = np.uint64(self.bloom.bits_per_slice)

    def contains(self, digests: Digests, marks: Bools | None = None) -> Bools:
        """Which may have been added; False is certain. What is marked in `marks` already stays so."""
        marks = np.zeros(len(digests), np.bool_) if marks is None else marks
        digests = np.ascontiguousarray(digests)
        _contains(digests.ctypes.data, self._bits.ctypes.data, self.bloom.num_slices, self._width, marks)
        return marks

    def add(self, digests: Digests) -> None:
        """Add digests, which may lie at any stride."""
        _add(digests.ctypes.data, digests.strides[0], len(digests), self._bits, self.bloom.num_slices, self._width)

    @property
    def size(self) -> int:
        """The size of a snapshot in bytes."""
        return len(self._bits)

    def snapshot(self) -> bytes:
        """The bits, for `restore` of a filter of the same capacity."""
        return self._bits.tobytes()

    def restore(self, snapshot: bytes) -> None:
        """Replace the bits by a snapshot of a filter of this capacity."""
        self._bits[:] = np.frombuffer(snapshot, np.uint8)

    def __contains__(self, digest: bytes) -> bool:
        """pybloom's own answer for one digest."""
        return digest in self.bloom
