"""SipHash-2-4 of whole columns: a keyed hash that cannot be computed, looked up, or made to collide without the key.

J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012, in its form of 128 bits. Compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Values
from infra.columnar.jit import Number, byte_at, compiled, word_at

Words = npt.NDArray[np.uint64]
KEY_BYTES = 16


def siphash(texts: Values, key: bytes) -> Words:
    """(n, 2): the lower and the higher 64 bits of each text's hash. `key` has KEY_BYTES bytes."""
    hashes = np.empty((len(texts), 2), np.uint64)
    k = np.frombuffer(key, "<u8")
    _all(texts.data.ctypes.data, texts.starts, texts.ends, k[0], k[1], hashes)
    return hashes


@compiled
def _all(data: Number, starts: Any, ends: Any, k0: Number, k1: Number, hashes: Any) -> None:
    for row in range(len(starts)):
        hashes[row, 0], hashes[row, 1] = _hash(data + starts[row], ends[row] - starts[row], k0, k1)


@compiled
def _hash(text: Number, size: Number, k0: Number, k1: Number) -> tuple[Number, Number]:
    v0, v1 = np.uint64(0x736F6D6570736575) ^ k0, np.uint64(0x646F72616E646F6D) ^ k1 ^ np.uint64(0xEE)
    v2, v3 = np.uint64(0x6C7967656E657261) ^ k0, np.uint64(0x7465646279746573) ^ k1
    whole = size - size % 8
    for at in range(0, whole, 8):
        word = word_at(text, at)
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    word = np.uint64(size) << np.uint64(56)
    for i in range(size - whole):
        word |= np.uint64(byte_at(text, whole + i)) << np.uint64(8 * i)
    v3 ^= word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= word
    v2 ^= np.uint64(0xEE)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    low = v0 ^ v1 ^ v2 ^ v3
    v1 ^= np.uint64(0xDD)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return low, v0 ^ v1 ^ v2 ^ v3


@compiled
def _round(v0: Number, v1: Number, v2: Number, v3: Number) -> tuple[Number, Number, Number, Number]:
    v0 += v1
    v1 = _rotated(v1, 13) ^ v0
    v0 = _rotated(v0, 32)
    v2 += v3
    v3 = _rotated(v3, 16) ^ v2
    v0 += v3
    v3 = _rotated(v3, 21) ^ v0
    v2 += v1
    v1 = _rotated(v1, 17) ^ v2
    v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


@compiled
def _rotated(word: Number, bits: int) -> Number:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))
