"""Ids of 32 lower-case hexadecimal digits, as most producers make them, in 16 bytes each: no compression finds that."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from infra.columnar.columns import Bytes, Ints, Values
from infra.columnar.jit import Number, byte_at, compiled

_DIGITS, BYTES = 32, 16
_NO_DIGIT = 255
_VALUE: Bytes = np.full(256, _NO_DIGIT, np.uint8)
_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_PAIRS: Bytes = np.frombuffer(b"".join(b"%02x" % n for n in range(256)), np.uint8)


@compiled
def _packed(data: int, starts: Ints, value: Bytes, packed: Bytes) -> Number:
    """Pack pairs of digits into bytes; False where a character is no hexadecimal digit."""
    for row in range(len(starts)):
        wrong = np.uint8(0)
        for i in range(BYTES):
            high = value[byte_at(data, starts[row] + 2 * i)]
            low = value[byte_at(data, starts[row] + 2 * i + 1)]
            wrong |= high | low
            packed[BYTES * row + i] = (high << np.uint8(4)) | low
        if wrong >= BYTES:
            return False
    return True


@compiled
def _spelled(packed: Bytes, pairs: Bytes, texts: Bytes) -> None:
    for i in range(len(packed)):
        at = 2 * np.int64(packed[i])
        texts[2 * i] = pairs[at]
        texts[2 * i + 1] = pairs[at + 1]


def pack_hex(ids: Values) -> pa.Array | None:
    """The ids in bytes; None when one is something else."""
    if not len(ids) or (ids.ends - ids.starts != _DIGITS).any():
        return None
    packed = np.empty(BYTES * len(ids), np.uint8)
    if not _packed(ids.data.ctypes.data, ids.starts, _VALUE, packed):
        return None
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), len(ids), [None, pa.py_buffer(packed)])


def spell_hex(packed_ids: pa.FixedSizeBinaryArray) -> pa.Array:
    """The ids as hexadecimal texts again."""
    size, offset = len(packed_ids), packed_ids.offset * BYTES
    raw = np.frombuffer(packed_ids.buffers()[1], np.uint8)[offset : offset + BYTES * size]
    texts = np.empty(_DIGITS * size, np.uint8)
    _spelled(raw, _PAIRS, texts)
    edges = np.arange(0, _DIGITS * (size + 1), _DIGITS, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(size, pa.py_buffer(edges), pa.py_buffer(texts))
