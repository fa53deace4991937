"""Cases for both implementations of the token bucket: in Lua, and in Python for while Redis is away."""

from __future__ import annotations

from typing import NamedTuple

from query.limits import ANY_DEBT

RATE, BURST = 0.001, 3.0
"""So slow that the test itself takes no time by the bucket's measure: a token comes back in 1,000 s."""


class Step(NamedTuple):
    """Wait, then take `cost` tokens where `needed` are there."""

    wait_s: float
    cost: float
    needed: float
    taken: bool
    left: float


CASES: dict[str, list[Step]] = {
    "a full bucket allows a burst, and no more": [
        Step(0, 1, 1, True, 2), Step(0, 1, 1, True, 1), Step(0, 1, 1, True, 0), Step(0, 1, 1, False, 0),
    ],
    "tokens come back with time": [Step(0, 3, 3, True, 0), Step(2_000, 1, 1, True, 1), Step(500, 1, 1, True, 0.5)],
    "half a token is none": [Step(0, 3, 1, True, 0), Step(500, 1, 1, False, 0.5)],
    "a bucket holds a burst at most": [Step(0, 1, 1, True, 2), Step(1_000_000, 1, 1, True, 2)],
    "a refusal costs nothing": [
        Step(0, 3, 1, True, 0), Step(0, 1, 1, False, 0), Step(0, 1, 1, False, 0), Step(1_000, 1, 1, True, 0),
    ],
    "a charge may leave debt, which time pays": [
        Step(0, 4, ANY_DEBT, True, -1), Step(1_000, 1, 1, False, 0), Step(1_000, 1, 1, True, 0),
    ],
    "debt is at most a burst": [
        Step(0, 1_000, ANY_DEBT, True, -3), Step(0, 1_000, ANY_DEBT, True, -3), Step(4_000, 1, 1, True, 0),
    ],
    "a clock that is set back takes nothing": [Step(0, 1, 1, True, 2), Step(-5_000, 1, 1, True, 1)],
}  # fmt: skip
