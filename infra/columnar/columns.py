"""Messages by column: where each lies in one stretch of bytes, instead of an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.jit import Number, compiled, put_word, word_at

PADDING = 64
"""Bytes that follow the last message, so that whole words may be read."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Values:
    """Texts at data[starts[i] : ends[i]]; one that ends before it starts is null."""

    data: Bytes
    starts: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> bytes | None:
        start, end = self.starts[row], self.ends[row]
        return None if end < start else self.data[start:end].tobytes()

    def take(self, rows: Ints | Bools | slice) -> Values:
        """The texts at these places, in the order of `rows`."""
        return Values(self.data, self.starts[rows], self.ends[rows])

    def mean_bytes(self) -> float:
        """Of a text, on average; 0 where there is none."""
        return float(np.maximum(self.ends - self.starts, 0).mean()) if len(self) else 0.0

    def copied(self) -> Values:
        """The same texts, one right after the other."""
        sizes = np.maximum(self.ends - self.starts, 0)
        ends = np.cumsum(sizes)
        data = np.zeros(int(sizes.sum()) + PADDING, np.uint8)
        _copy(self.data.ctypes.data, self.starts, sizes, data.ctypes.data)
        return Values(data, ends - sizes, ends)

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """The texts of several parts, one after the other; only the bytes they refer to are copied."""
        if len(parts) == 1:
            return parts[0]
        stretches, starts, ends, at = list[Bytes](), list[Ints](), list[Ints](), 0
        for part in parts:
            low, high = (int(part.starts.min()), int(part.ends.max())) if len(part) else (0, 0)
            stretches.append(part.data[low : max(low, high)])
            starts.append(part.starts + (at - low))
            ends.append(part.ends + (at - low))
            at += len(stretches[-1])
        data = np.concatenate([*stretches, np.zeros(PADDING, np.uint8)])
        return cls(data, np.concatenate(starts or [_NONE]), np.concatenate(ends or [_NONE]))

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Values:
        """Texts copied together, null where a value is None."""
        present = [v or b"" for v in values]
        data = np.frombuffer(b"".join([*present, bytes(PADDING)]), np.uint8)
        lengths = np.fromiter(map(len, present), np.int64, len(present))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        ends[[row for row, value in enumerate(values) if value is None]] = -1
        return cls(data, starts, ends)


@dataclass(frozen=True)
class Stretches:
    """Texts in several stretches of bytes, one after the other: nothing is copied to have them together."""

    parts: Sequence[Values]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, row: int) -> bytes | None:
        for values in self.parts:
            if row < len(values):
                return values[row]
            row -= len(values)
        raise IndexError(row)


@compiled
def _copy(data: Number, starts: Any, sizes: Any, into: Number) -> None:
    """Copy texts together, by whole words: what lies beyond one is overwritten by the next."""
    at = 0
    for row in range(len(starts)):
        for done in range(0, sizes[row], 8):
            put_word(into, at + done, word_at(data, starts[row] + done))
        at += sizes[row]
