"""Messages by column: where each lies in one stretch of bytes, instead of an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PADDING = 64
"""Bytes that follow the last message, so that whole words may be read."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Columns:
    """Messages of a topic; `timestamps_ms` are Kafka's."""

    partitions: Ints
    offsets: Ints
    timestamps_ms: Ints
    values: Values


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

    def take(self, rows: Ints | slice) -> Values:
        """Some of them, in the order of `rows`."""
        return Values(self.data, self.starts[rows], self.ends[rows])

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """Of several, one after the other; only what they refer to is copied."""
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
        """Copied together."""
        held = [v or b"" for v in values]
        data = np.frombuffer(b"".join([*held, bytes(PADDING)]), np.uint8)
        lengths = np.fromiter(map(len, held), np.int64, len(held))
        ends = np.cumsum(lengths)
        starts = ends - lengths
        ends[[row for row, value in enumerate(values) if value is None]] = -1
        return cls(data, starts, ends)
