"""Tier 1 of dedup: "certainly new" without asking anybody.

pybloom_live sizes and holds the bits; whole batches are checked and added with numpy on the same memory. Positions
come from the digest that Redis stores, and from nothing else, so that a filter rebuilt from there is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
from pybloom_live import BloomFilter

# Positives are confirmed in Redis, so a loose rate is enough.
ERROR_RATE = 1e-3
FIRST_CAPACITY = 500_000

Digests = npt.NDArray[np.void]
"""Digests of `registry.DIGEST_BYTES` bytes each."""


def halves(digests: Digests) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two hash values of each digest: its first eight bytes, and its last four made odd."""
    raw = np.ascontiguousarray(digests).view(np.uint8).reshape(len(digests), digests.dtype.itemsize)
    first = np.ascontiguousarray(raw[:, :8]).view("<u8").reshape(-1)
    second = np.ascontiguousarray(raw[:, 8:12]).view("<u4").reshape(-1).astype(np.uint64) | np.uint64(1)
    return first, second


def _position(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], i: int, width: int) -> npt.NDArray[np.uint64]:
    """(a + i·b) mod width, in slice i: Kirsch and Mitzenmacher, "Less hashing, same performance", 2006."""
    return (a + np.uint64(i) * b) % np.uint64(width)


def _positions_of_one(width: int, slices: int, key: bytes) -> Iterator[int]:
    a, b = halves(np.frombuffer(key, dtype=f"V{len(key)}"))
    for i in range(slices):
        yield int(_position(a, b, i, width)[0])


class _Filter:
    """One pybloom filter, used by whole batches."""

    def __init__(self, capacity: int) -> None:
        self.bloom = BloomFilter(capacity=capacity, error_rate=ERROR_RATE)
        # So that pybloom's own `in` agrees. Not a method of this object: it would be held by its own filter, and only
        # ever be freed by a full collection.
        self.bloom.make_hashes = partial(_positions_of_one, self.bloom.bits_per_slice, self.bloom.num_slices)
        self.capacity, self.count = capacity, 0
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self.bloom.bitarray, np.uint8)

    def contains(self, a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which may have been added. Only survivors of one slice are looked up in the next."""
        alive = np.arange(len(a))
        for i in range(self.bloom.num_slices):
            position = _position(a[alive], b[alive], i, self.bloom.bits_per_slice) + self._begin(i)
            hit = (self._bytes[position >> np.uint64(3)] >> (position & np.uint64(7)).astype(np.uint8)) & 1
            alive = alive[hit.astype(bool)]
            if not alive.size:
                break
        found = np.zeros(len(a), dtype=bool)
        found[alive] = True
        return found

    def add(self, a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> None:
        """Set the bits of all."""
        for i in range(self.bloom.num_slices):
            position = _position(a, b, i, self.bloom.bits_per_slice) + self._begin(i)
            # Several digests may share a byte: `|=` through an index array would keep only one of them.
            np.bitwise_or.at(
                self._bytes,
                position >> np.uint64(3),
                np.uint8(1) << (position & np.uint64(7)).astype(np.uint8),
            )
        self.count += len(a)

    def _begin(self, i: int) -> np.uint64:
        return np.uint64(i * self.bloom.bits_per_slice)


class GrowingBloom:
    """Filters that double in capacity, so that no volume has to be known before."""

    def __init__(self, first_capacity: int = FIRST_CAPACITY) -> None:
        self._filters = [_Filter(first_capacity)]

    def contains(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Which may have been added; False is certain."""
        a, b = halves(digests)
        found = np.zeros(len(digests), dtype=bool)
        for part in self._filters:
            found |= part.contains(a, b)
        return found

    def add(self, digests: Digests) -> None:
        """Remember all of these."""
        if not len(digests):
            return
        last = self._filters[-1]
        if last.count >= last.capacity:
            last = _Filter(last.capacity * 2)
            self._filters.append(last)
        last.add(*halves(digests))

    def join(self, other: GrowingBloom) -> None:
        """Hold what the other one holds, too."""
        self._filters = other._filters[:-1] + self._filters + other._filters[-1:]

    def __contains__(self, digest: bytes) -> bool:
        """pybloom's own answer for one digest."""
        return any(digest in part.bloom for part in self._filters)

    @property
    def count(self) -> int:
        """How many were added."""
        return sum(part.count for part in self._filters)
