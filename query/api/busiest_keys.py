"""Requests and rows read by key, of the keys that are used most, so that the number of series stays bounded. Pure, but for a lock."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from query.api.pipeline_samples import MetricSample

MOST_KEYS = 20
OTHER_KEYS = "other"
"""Stands for all keys that are not shown."""
_HALF_LIFE_S = 600.0
# A key takes the place of another one where it is clearly busier, and not by a few requests: else keys of about the same use would take
# turns, each with a series of its own in Prometheus.
_BUSIER, _FEWEST = 2.0, 10.0
_LIMITED = 429


def outcome_of(status: int) -> str:
    """`answered`, `limited` by the key's rate, `refused` for another mistake of the client, or `failed`."""
    if status == _LIMITED:
        return "limited"
    return "failed" if status >= 500 else "refused" if status >= 400 else "answered"


@dataclass
class _Use:
    requests: Counter[str] = field(default_factory=Counter)
    rows_read: int = 0


class BusiestKeys:
    """The counts of one process. Counters only grow: a key that comes to be shown begins at 0, and what it was counted for before stays
    with `other`; one that makes room for it ends. Thread-safe."""

    def __init__(self, most: int = MOST_KEYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._shown: dict[str, _Use] = {}
        self._other = _Use()
        self._recent: dict[str, float] = {}
        """Requests of each key; those of ten minutes ago count half."""
        self._halved_at = clock()

    def count(self, key: str, status: int) -> None:
        """Count an answer to a key."""
        with self._lock:
            self._fade()
            self._recent[key] = self._recent.get(key, 0.0) + 1
            self._maybe_show(key)
            self._shown.get(key, self._other).requests[outcome_of(status)] += 1

    def charge(self, key: str, rows_read: int) -> None:
        """Count rows that were read for a key."""
        with self._lock:
            self._shown.get(key, self._other).rows_read += rows_read

    def samples(self) -> Iterator[MetricSample]:
        """All counts, of at most `most` keys and of the others."""
        with self._lock:
            uses = [*self._shown.items(), (OTHER_KEYS, self._other)]
            samples = [
                *(
                    MetricSample("adclick_key_requests_total", (key, outcome), n)
                    for key, use in uses
                    for outcome, n in use.requests.items()
                ),
                *(MetricSample("adclick_key_rows_read_total", (key,), use.rows_read) for key, use in uses),
            ]
        return iter(samples)

    def _maybe_show(self, key: str) -> None:
        if key in self._shown:
            return
        if len(self._shown) >= self._most:
            quietest = min(self._shown, key=lambda shown: self._recent.get(shown, 0.0))
            if self._recent[key] < max(_FEWEST, _BUSIER * self._recent.get(quietest, 0.0)):
                return
            del self._shown[quietest]
        self._shown[key] = _Use()

    def _fade(self) -> None:
        """Halve the recent requests once for each half-life that has passed, and forget keys without any."""
        times = int((self._clock() - self._halved_at) / _HALF_LIFE_S)
        if times:
            self._halved_at += times * _HALF_LIFE_S
            self._recent = {key: n / 2**times for key, n in self._recent.items() if n / 2**times >= 0.5}
