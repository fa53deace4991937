"""Which coupons are new: the greatest rank that each register of recent periods has had, and what has risen since rows were taken.

Few events of a busy campaign raise a register, and only these reach ClickHouse. Registers are kept in lines of 64, in a cache of
fixed size with four places for each line, which are replaced in turn. What the cache has forgotten is added once more, which changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.clock import DAY_MS
from infra.columnar.columns import Ints
from infra.columnar.grouping import SPREAD, sort_order
from infra.columnar.jit import Number, compiled
from stream.reach.registers import PRECISION, REGISTERS, Coupons

MOST_PENDING = 1 << 20
# 40 MB, of which the system gives what is touched: room for 4,000 keys with all their registers.
_MAX_KEYS, _SETS, _WAYS, _LINE = 1 << 17, 1 << 17, 4, 64
_LINES_PER_KEY = REGISTERS // _LINE
# A pending coupon is its key's number, its register and its rank in one word.
_RANK_BITS = 6
_KEY_SHIFT = PRECISION + _RANK_BITS


@dataclass(frozen=True)
class ReachRows:
    """A row for each period, campaign and advertiser, in the order of days, campaigns, periods and advertisers. Row i has
    `coupons[edges[i] : edges[i + 1]]`, one of each register."""

    start_ms: Ints
    campaign_ids: Ints
    advertiser_ids: Ints
    coupons: Coupons
    edges: Ints

    def __len__(self) -> int:
        return len(self.start_ms)


class Additions:
    """Coupons by period, campaign and advertiser, without those that rows were taken of before. Not thread-safe."""

    def __init__(self, period_ms: int) -> None:
        self._period_ms = period_ms
        self._pending = np.empty(MOST_PENDING, np.int64)
        self.forget()

    def forget(self) -> None:
        """Drop what is pending, and all that is known: rows that were taken may not have been stored."""
        self._counts = np.zeros(2, np.int64)
        self._keys, self._slots = np.zeros((_MAX_KEYS, 3), np.int64), np.zeros(2 * _MAX_KEYS, np.int32)
        self._tags, self._next_ways = np.zeros((_SETS, _WAYS), np.int32), np.zeros(_SETS, np.uint8)
        self._lines = np.zeros((_SETS, _WAYS, _LINE), np.uint8)

    @property
    def pending(self) -> int:
        """How many coupons wait for `take`."""
        return int(self._counts[1])

    def add(self, times_ms: Ints, campaign_ids: Ints, advertiser_ids: Ints, coupons: Coupons) -> int:
        """Add a coupon of each row (0: none), and return how many rows there was room for: before the others, rows must be taken."""
        return int(
            _add(
                times_ms, campaign_ids, advertiser_ids, coupons, np.int64(self._period_ms), self._counts, self._pending,
                self._keys, self._slots, self._tags, self._next_ways, self._lines,
            )
        )  # fmt: skip

    def take(self) -> ReachRows:
        """What is pending, as rows."""
        words = self._pending[: self.pending]
        numbers = words >> _KEY_SHIFT
        present = np.flatnonzero(np.bincount(numbers))
        keys = self._keys[present]
        order = sort_order([keys[:, 0] // DAY_MS, keys[:, 1], keys[:, 0], keys[:, 2]])
        places = np.zeros(int(self._counts[0]), np.int64)
        places[present[order]] = np.arange(len(order))
        words = np.sort(places[numbers] << _KEY_SHIFT | words & ((1 << _KEY_SHIFT) - 1))
        # Of the coupons of one register the last one is the greatest.
        words = words[np.append(np.diff(words >> _RANK_BITS) > 0, np.ones(min(1, len(words)), np.bool_))]
        edges = np.append(np.flatnonzero(np.diff(words >> _KEY_SHIFT, prepend=-1)), len(words))
        coupons = (words >> _RANK_BITS & (REGISTERS - 1)) | (words & ((1 << _RANK_BITS) - 1)) << PRECISION
        starts, campaigns, advertisers = keys[order].T
        rows = ReachRows(starts, campaigns, advertisers, coupons.astype(np.uint32), edges)
        if self._counts[0] == _MAX_KEYS:
            self.forget()
        self._counts[1] = 0
        return rows


@compiled
def _add(
    times_ms: Any, campaign_ids: Any, advertiser_ids: Any, coupons: Any, period_ms: Number, counts: Any, pending: Any,
    keys: Any, slots: Any, tags: Any, next_ways: Any, lines: Any,
) -> Number:  # fmt: skip
    """A slot holds the number of a key, counted from 1; so does the tag of a line, followed by the line's place."""
    key_mask, set_mask = np.uint64(len(slots) - 1), np.uint64(len(tags) - 1)
    key_count, count = counts[0], counts[1]
    done = len(times_ms)
    for row in range(len(times_ms)):
        if coupons[row] == 0:
            continue
        if count == len(pending):
            done = row
            break
        start, campaign, advertiser = times_ms[row] // period_ms * period_ms, campaign_ids[row], advertiser_ids[row]
        code = np.uint64(start) * SPREAD
        code = (code ^ code >> np.uint64(32) ^ np.uint64(campaign)) * SPREAD
        code = (code ^ code >> np.uint64(32) ^ np.uint64(advertiser)) * SPREAD
        slot = (code ^ code >> np.uint64(32)) & key_mask
        key = np.int64(slots[slot]) - 1
        while key >= 0 and (keys[key, 0] != start or keys[key, 1] != campaign or keys[key, 2] != advertiser):
            slot = (slot + np.uint64(1)) & key_mask
            key = np.int64(slots[slot]) - 1
        if key < 0:
            if key_count == len(keys):
                done = row
                break
            key = key_count
            keys[key, 0], keys[key, 1], keys[key, 2] = start, campaign, advertiser
            key_count += 1
            slots[slot] = key_count
        register, rank = np.int64(coupons[row]) & (REGISTERS - 1), np.int64(coupons[row]) >> PRECISION
        tag = (key + 1) * _LINES_PER_KEY + register // _LINE
        code = np.uint64(tag) * SPREAD
        code = (code ^ code >> np.uint64(32)) * SPREAD
        at = (code ^ code >> np.uint64(32)) & set_mask
        way = np.int64(0)
        while way < _WAYS and tags[at, way] != tag:
            way += 1
        if way == _WAYS:
            way = np.int64(next_ways[at]) % _WAYS
            next_ways[at] = way + 1
            tags[at, way] = tag
            lines[at, way, :] = 0
        if rank > lines[at, way, register % _LINE]:
            lines[at, way, register % _LINE] = rank
            pending[count] = key << _KEY_SHIFT | register << _RANK_BITS | rank
            count += 1
    counts[0], counts[1] = key_count, count
    return done
