"""Which events of a batch are first occurrences. Pure, but for the registry it is given.

Generations are as long as the horizon and turn with log time. An event is a copy when its id was recorded, at a
lower offset, in its own generation or the one before: every copy within one horizon of the first occurrence
is caught, and some up to two. The verdict is a function of the partition's log alone.

Where ids were lost that no log holds any more, an id that may be one of them is in doubt: it is taken for a copy, and
left to the nightly job, which has the archive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.columnar.jit import compiled
from ingest.dedup.digest import Digests, first_words
from ingest.dedup.mirror import PartitionMirror
from ingest.dedup.registry import Lookups, News, Registry
from ingest.dedup.segments import UNKNOWN, Offsets

NOT_A_COPY = -1


def oldest_needed(committed_generation: int) -> int:
    """The oldest generation that is ever looked up again.

    A batch may span many generations, and is read again from its beginning when it was recorded and not committed.
    """
    return committed_generation - 1


@dataclass(frozen=True)
class CopyDecisions:
    """`copy_of[i]` is the offset of the first occurrence, NOT_A_COPY for a first occurrence and for one in `doubt`.

    `news` is what must be recorded. `lookups`: searches in Redis.
    """

    copy_of: Offsets
    doubt: npt.NDArray[np.bool_]
    news: News
    lookups: Lookups

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """Mark events that are first occurrences beyond doubt."""
        return np.asarray((self.copy_of == NOT_A_COPY) & ~self.doubt)


def find_copies(
    mirror: PartitionMirror,
    registry: Registry,
    digests: Digests,
    offsets: Offsets,
    generations: npt.NDArray[np.int64],
) -> CopyDecisions:
    """Judge the valid events of a batch, in offset order. `generations` never decreases.

    Nothing is recorded yet. Raises Unavailable, RegistryLost.
    """
    count = len(offsets)
    copy_of = np.full(count, NOT_A_COPY, np.int64)
    doubt, replayed = np.zeros(count, bool), np.zeros(count, bool)
    lookups = Lookups()
    for generation in np.unique(generations).tolist():
        rows = np.flatnonzero(generations == generation)
        ids, own_offsets = digests[rows], offsets[rows]
        for searched in (generation, generation - 1):
            first_offsets, looked_up = registry.lookup(mirror, searched, ids)
            lookups += looked_up
            # Its own offset: a batch that was recorded and not committed, read again. A higher one cannot be
            # a first occurrence for this event.
            copies = (first_offsets != UNKNOWN) & (first_offsets < own_offsets)
            replayed[rows[first_offsets == own_offsets]] = True
            if searched in mirror.doubtful:
                doubt[rows[(first_offsets == UNKNOWN) & mirror.may_be_lost(searched, ids)]] = True
            copied = rows[copies]
            copy_of[copied] = np.where(
                copy_of[copied] == NOT_A_COPY, first_offsets[copies], np.minimum(copy_of[copied], first_offsets[copies])
            )
    mark_copies_within(digests, offsets, generations, copy_of)
    # Recorded under its own offset: it was beyond doubt when this batch was first read.
    doubt &= (copy_of == NOT_A_COPY) & ~replayed
    decisions = CopyDecisions(copy_of, doubt, {}, lookups)
    first = decisions.first
    for generation in np.unique(generations[first]).tolist():
        in_generation = first & (generations == generation)
        decisions.news[generation] = (digests[in_generation], offsets[in_generation])
    return decisions


def mark_copies_within(
    digests: Digests, offsets: Offsets, generations: npt.NDArray[np.int64], copy_of: Offsets
) -> None:
    """Mark copies of events of the same batch: the first one wins."""
    again = np.zeros(len(digests), np.bool_)
    slots = np.zeros(1 << (2 * len(digests)).bit_length(), np.int32)
    if not _mark_repeated(first_words(digests), slots, again):
        return
    # Few: walk them in order, since a first occurrence may have aged out of reach within one batch.
    recorded: dict[bytes, tuple[int, int]] = {}
    for i in np.flatnonzero(again).tolist():
        key, generation = digests[i].tobytes(), int(generations[i])
        if copy_of[i] != NOT_A_COPY:
            continue
        before = recorded.get(key)
        if before is not None and generation - before[0] <= 1:
            copy_of[i] = before[1]
        else:
            recorded[key] = (generation, int(offsets[i]))


@compiled
def _mark_repeated(words: npt.NDArray[np.uint64], slots: npt.NDArray[np.int32], again: npt.NDArray[np.bool_]) -> bool:
    """Mark all of the words that are there more than once; whether there is any. A slot holds row + 1, 0 where it is free."""
    mask, repeats = np.uint64(len(slots) - 1), False
    for row in range(len(words)):
        slot = words[row] & mask
        while slots[slot] != 0 and words[slots[slot] - 1] != words[row]:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == 0:
            slots[slot] = row + 1
        else:
            again[slots[slot] - 1] = again[row] = repeats = True
    return repeats
