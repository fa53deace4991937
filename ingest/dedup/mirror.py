"""The dedup ids of one partition in a worker: a mirror of the registry in Redis, without the rows of closed segments."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from infra.columnar.columns import Bools
from infra.structs import decodable
from ingest.dedup.bloom import Filter
from ingest.dedup.digest import Digests
from ingest.dedup.segments import Generation


@decodable
class SegmentCounts(msgspec.Struct, frozen=True):
    """How many closed segments a generation has, and how many rows its open one."""

    closed: int = 0
    open: int = 0


@decodable
class RegistryHead(msgspec.Struct, frozen=True):
    """What is recorded of a partition; it changes with every write, and each write is conditional on it.

    Every id before the offset `up_to` is recorded. In `doubtful` generations ids are lost that no log holds any more.
    """

    up_to: int
    generations: dict[int, SegmentCounts] = {}
    doubtful: tuple[int, ...] = ()
    v: int = 1

    def encoded(self) -> bytes:
        """The head as Redis stores it."""
        return msgspec.json.encode(self)


@dataclass
class PartitionMirror:
    """The mirror; it is changed only after Redis has been."""

    partition: int
    head: RegistryHead
    generations: dict[int, Generation] = field(default_factory=dict)
    doubtful: dict[int, list[Filter] | None] = field(default_factory=dict)
    """Generations of which ids are lost, with the filters that have seen them, None where those are lost, too."""

    @property
    def recorded_up_to(self) -> int:
        """The offset before which every id is recorded."""
        return self.head.up_to

    def become(self, other: PartitionMirror) -> None:
        """Take over head and generations of another mirror; filters of lost ids are kept."""
        self.head, self.generations = other.head, other.generations
        self.doubtful = {g: self.doubtful.get(g, filters) for g, filters in other.doubtful.items()}

    def may_be_lost(self, generation: int, digests: Digests) -> Bools:
        """Which may be ids that were recorded in this generation once."""
        filters = self.doubtful.get(generation, [])
        if filters is None:
            return np.ones(len(digests), np.bool_)
        lost = np.zeros(len(digests), np.bool_)
        for bloom in filters:
            bloom.contains(digests, lost)
        return lost

    def inherit(self, former: PartitionMirror) -> None:
        """Take over the filters of doubtful generations: what they have not seen is certainly new."""
        for generation in self.doubtful:
            lost = former.doubtful.get(generation, [])
            if lost is not None:
                recorded = former.generations.get(generation)
                self.doubtful[generation] = [*lost, *(recorded.filters if recorded else [])]
