"""Answers of a moment ago: whoever asks the same within a quarter of a second gets the same, and of those who ask at once one works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
KEPT_S = 0.25
_STRIPES = 256
_MOST = 1024


class Recent(Generic[T]):
    """Values by key, in this process. Thread-safe."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._held: dict[Hashable, tuple[float, T]] = {}
        self._making = [threading.Lock() for _ in range(_STRIPES)]

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, as old as `kept_s` at most, or what `make` returns. Raises what `make` raises."""
        if (found := self._known(key)) is not None:
            return found[1]
        with self._making[hash(key) % _STRIPES]:
            if (found := self._known(key)) is not None:
                return found[1]
            began = time.monotonic()
            value = make()
            if len(self._held) >= _MOST:
                self._held = {k: v for k, v in list(self._held.items()) if began - v[0] < self._kept_s}
            if len(self._held) < _MOST:
                self._held[key] = (began, value)
            return value

    def _known(self, key: Hashable) -> tuple[float, T] | None:
        found = self._held.get(key)
        return found if found is not None and time.monotonic() - found[0] < self._kept_s else None
