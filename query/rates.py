"""Rates of counters that are looked at now and then: by how much each has grown lately, in a second. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 10.0
"""A rate is over so much time, or over what there is of it."""
_FORGET_S = 60.0


class Rates:
    """Samples of counters by name. A counter that is lower than before has begun anew: its former samples say nothing.

    Not thread-safe.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: dict[str, deque[tuple[float, int]]] = {}

    def add(self, counters: Mapping[str, tuple[float, int]]) -> None:
        """The counters there are now, each with the moment (s) at which it was counted. Those that are gone are forgotten."""
        self._samples = {name: self._samples.get(name, deque()) for name in counters}
        for name, (at_s, count) in counters.items():
            samples = self._samples[name]
            if samples and (count < samples[-1][1] or at_s - samples[-1][0] > _FORGET_S):
                samples.clear()
            if samples and at_s <= samples[-1][0]:
                continue
            samples.append((at_s, count))
            # One sample that is older than the window stays: the window begins between two.
            while len(samples) > 2 and samples[1][0] <= at_s - self._window_s:
                samples.popleft()

    def of(self, name: str) -> float | None:
        """How much a counter grows in a second; None while there are no two samples of it."""
        samples = self._samples.get(name, deque())
        if len(samples) < 2:
            return None
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        return (last - first) / (last_s - first_s)

    def total(self, prefix: str) -> float | None:
        """The sum over all counters whose name begins so, of those that have a rate; None where none has."""
        rates = [rate for name in self._samples if name.startswith(prefix) and (rate := self.of(name)) is not None]
        return sum(rates) if rates else None
