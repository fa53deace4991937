"""Fakes of what unit tests may not reach. `tests/contracts.py` runs over them and over the real parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from ingest.dedup.digest import DIGEST, Digests
from ingest.dedup.registry import UNKNOWN, Offsets


class MemoryRegistry:
    """A registry in a dictionary."""

    def __init__(self) -> None:
        self.ids: dict[tuple[int, int], dict[bytes, int]] = {}
        self.up_to: dict[int, int] = {}
        self.doubts: dict[int, set[int]] = {}

    def recorded_up_to(self, partition: int) -> int | None:
        return self.up_to.get(partition)

    def lookup(self, partition: int, generation: int, digests: Digests) -> Offsets:
        known = self.ids.get((partition, generation), {})
        return np.array([known.get(d.tobytes(), UNKNOWN) for d in digests], np.int64)

    def begin(self, partition: int, up_to: int, doubtful: Collection[int] = ()) -> None:
        self.up_to[partition] = up_to
        self.doubts.setdefault(partition, set()).update(doubtful)

    def doubtful(self, partition: int) -> set[int]:
        return self.doubts.get(partition, set())

    def record(
        self,
        partition: int,
        news: dict[int, tuple[Digests, Offsets]],
        *,
        expected: int,
        up_to: int,
        oldest_generation: int,
    ) -> bool:
        held = self.up_to.get(partition)
        if held is None or held < expected:
            return False
        for generation, (digests, offsets) in news.items():
            known = self.ids.setdefault((partition, generation), {})
            known.update(zip((d.tobytes() for d in digests), offsets.tolist(), strict=True))
        for old in [g for p, g in self.ids if p == partition and g < oldest_generation]:
            del self.ids[partition, old]
        self.up_to[partition] = max(up_to, held)
        return True

    def pages(self, partition: int, generation: int) -> Iterator[Digests]:
        yield np.array(list(self.ids.get((partition, generation), {})), DIGEST)

    def forget(self, partition: int) -> None:
        self.up_to.pop(partition, None)
        self.doubts.pop(partition, None)
        for key in [k for k in self.ids if k[0] == partition]:
            del self.ids[key]
