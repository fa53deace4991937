"""What a worker holds of one partition's past: a mirror of what Redis holds, without the rows of closed segments."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from infra.columns import Bools
from ingest.dedup.bloom import Filter
from ingest.dedup.digest import Digests
from ingest.dedup.segments import Generation


class Kept(msgspec.Struct, frozen=True):
    """Of one generation: how many closed segments, and how many rows the open one has."""

    closed: int = 0
    open: int = 0


class Head(msgspec.Struct, frozen=True):
    """What is recorded of a partition; it changes with every write, and each write is conditional on it.

    Every id before the offset `up_to` is recorded, but in the generations that are `doubtful` ids are lost that no log
    holds any more.
    """

    up_to: int
    generations: dict[int, Kept] = {}
    doubtful: tuple[int, ...] = ()
    v: int = 1

    def told(self) -> bytes:
        """As it is stored."""
        return msgspec.json.encode(self)


@dataclass
class PartitionMemory:
    """Whoever changes it has changed Redis before."""

    partition: int
    head: Head
    generations: dict[int, Generation] = field(default_factory=dict)
    doubtful: dict[int, list[Filter] | None] = field(default_factory=dict)
    """Generations of which ids are lost, with the filters that have seen them, None where those are lost, too."""

    @property
    def recorded_up_to(self) -> int:
        """The offset before which every id is recorded."""
        return self.head.up_to

    def become(self, other: PartitionMemory) -> None:
        """Hold what the other one holds; filters of lost ids are kept."""
        self.head, self.generations = other.head, other.generations
        self.doubtful = {g: self.doubtful.get(g, filters) for g, filters in other.doubtful.items()}

    def may_be_lost(self, generation: int, digests: Digests) -> Bools:
        """Which may be ids that were recorded in this generation once."""
        filters = self.doubtful.get(generation, [])
        if filters is None:
            return np.ones(len(digests), np.bool_)
        found = np.zeros(len(digests), np.bool_)
        for known in filters:
            known.contains(digests, found)
        return found

    def inherit(self, former: PartitionMemory) -> None:
        """Take over the filters of doubtful generations: what they have not seen is certainly new."""
        for generation in self.doubtful:
            lost = former.doubtful.get(generation, [])
            if lost is not None:
                held = former.generations.get(generation)
                self.doubtful[generation] = [*lost, *(held.filters if held else [])]
