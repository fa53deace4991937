"""A limit on what each key may have open at once: exports and streams hold a slot for as long as they are open."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

from query.api.problems import Problem


class Slots:
    """Slots of each key, in this process. Thread-safe."""

    def __init__(self, limit: int, type_: str, detail: str) -> None:
        """`type_`, `detail`: the problem for a key that has `limit` slots already."""
        self._limit, self._type, self._detail = limit, type_, detail
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, key: str) -> Slot:
        """A slot of the key. Raises Problem (429) when all are taken."""
        with self._lock:
            if self._taken[key] >= self._limit:
                raise Problem(429, self._type, self._detail, headers={"Retry-After": "5"})
            self._taken[key] += 1
        return Slot(self, key)

    def give_back(self, key: str) -> None:
        """Called by `Slot.release`."""
        with self._lock:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


class Slot:
    """One of a key's slots. It is released at the latest when the object is deleted: a response whose client has disconnected may
    never be sent."""

    def __init__(self, slots: Slots, key: str) -> None:
        self._slots, self._key = slots, key
        self._released = threading.Lock()

    def release(self) -> None:
        """Give it back. Safe to repeat."""
        if self._released.acquire(blocking=False):
            self._slots.give_back(self._key)

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
