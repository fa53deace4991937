"""Overload levels and what each of them drops. Off unless `shed = on`; levels are shown either way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Level(IntEnum):
    """How far behind the pipeline is."""

    NORMAL = 0
    ELEVATED = 1  # scale out
    SAMPLING = 2  # a tenth of the impressions, each weighing ten
    CRITICAL = 3  # clicks, conversions and costly impressions only


@dataclass(frozen=True)
class Policy:
    """Messages of lag at which each level begins; a level is left at `relief` of that."""

    begins: tuple[int, int, int] = (500_000, 1_000_000, 10_000_000)
    relief: float = 0.8
    keep_one_in: int = 10
    costly_micros: int = 10_000


def next_level(current: Level, lag: int, policy: Policy) -> Level:
    """The level after seeing this lag, with hysteresis downwards."""
    reached = Level(sum(lag >= begin for begin in policy.begins))
    if reached >= current:
        return reached
    sustained = Level(sum(lag >= begin * policy.relief for begin in policy.begins))
    return min(current, sustained)


def weigh(
    level: Level,
    policy: Policy,
    event_type: npt.NDArray[np.uint8],
    cost_micros: npt.NDArray[np.int64],
    id_hash: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint32]:
    """The weight of each event: 1, `keep_one_in` for a sampled one, 0 for one that is shed."""
    weight = np.ones(len(event_type), np.uint32)
    impression = event_type == 0
    if level == Level.SAMPLING:
        kept = id_hash % np.uint64(policy.keep_one_in) == 0
        weight[impression] = np.where(kept[impression], policy.keep_one_in, 0)
    elif level == Level.CRITICAL:
        weight[impression & (cost_micros < policy.costly_micros)] = 0
    return weight
