"""How many messages to take of each partition, so that partitions advance together in time.

Messages of one time meet in one batch then: their sums by minute are few, and windows close soon after their end. A reader that
empties one partition after the other has every minute of a backlog in each of its batches. (Kafka Streams chooses the task's next
record by the lowest timestamp for the same reason, KIP-353.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from infra.columnar.columns import Ints

_SAMPLES = 8_192
MOST_PARTITIONS = 16
"""Of a backlog in one batch, if they have enough messages: each has costs of its own in every batch that it is part of."""


def shares(waiting: Mapping[int, Sequence[Ints]], count: int) -> dict[int, int]:
    """Partition → how many of its messages to take: `count` in all, or less where few partitions have fewer. Those that have to wait are
    left out.

    `waiting`: the timestamps (ms) of the messages of each partition, in parts, in offset order; the partition that has not been taken
    from for longest comes first. Of a backlog, half goes to a few partitions whose turn it is and half to the oldest messages: so one
    with an old backlog keeps no other one waiting.
    """
    waiting = {p: [part for part in parts if len(part)] for p, parts in waiting.items()}
    sizes = {p: sum(map(len, parts)) for p, parts in waiting.items()}
    if sum(sizes.values()) <= count:
        return sizes
    waiting = _of_this_batch(waiting, sizes, count)
    sizes = {p: sizes[p] for p in waiting}
    if sum(sizes.values()) <= count:
        return sizes
    taken = _spread(sizes, -(-count // 2))
    left = count - sum(taken.values())
    step = max(1, sum(sizes.values()) // _SAMPLES)
    times = {p: np.maximum.accumulate(np.concatenate(parts)[taken[p] :: step]) for p, parts in waiting.items()}
    sampled = np.sort(np.concatenate(list(times.values())))
    newest = sampled[min(left // step, len(sampled) - 1)]
    for p, t in times.items():
        older = min(int(np.searchsorted(t, newest)) * step, sizes[p] - taken[p], left)
        taken[p], left = taken[p] + older, left - older
    # What is of the very time at which the count is full, as all messages of a record batch may be.
    rest = _spread({p: size - taken[p] for p, size in sizes.items()}, left)
    return {p: taken[p] + rest[p] for p in sizes}


def _of_this_batch(
    waiting: Mapping[int, Sequence[Ints]], sizes: Mapping[int, int], count: int
) -> dict[int, Sequence[Ints]]:
    """The partitions that a batch takes from, in the order of their turns: those with the oldest messages, and those whose turn it is.
    Together they have half of `count` at least."""
    full = [p for p, parts in waiting.items() if parts]
    oldest = sorted(full, key=lambda p: int(waiting[p][0][0]))
    batch = oldest[: MOST_PARTITIONS // 2]
    for p in full:
        if len(batch) >= MOST_PARTITIONS and sum(sizes[p] for p in batch) >= count // 2:
            break
        if p not in batch:
            batch.append(p)
    return {p: waiting[p] for p in full if p in batch}


def _spread(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """`count` spread over partitions of these sizes, as evenly as they allow; what cannot be divided goes to the first."""
    shares, left = dict.fromkeys(sizes, 0), count
    evenly = count // max(1, len(sizes)) + 1
    for place, p in enumerate(sorted(sizes, key=lambda p: min(sizes[p], evenly))):
        shares[p] = min(sizes[p], -(-left // (len(sizes) - place)))
        left -= shares[p]
    # Of those that have more than an even share, a later one may have less than it was left.
    for p in sizes:
        more = min(sizes[p] - shares[p], left)
        shares[p], left = shares[p] + more, left - more
    return shares
