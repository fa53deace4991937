"""Writes of several threads that meet, as one: for a store to which each write costs much, however little is in it.

Databases commit transactions like this (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from infra.errors import BadStatement, Refused

Key = TypeVar("Key")
Item = TypeVar("Item")


class _Waiting(Generic[Key, Item]):
    """What one thread waits for."""

    def __init__(self, key: Key, item: Item) -> None:
        self.key, self.item = key, item
        self.is_done, self.error = False, None  # type: bool, BaseException | None


class GroupCommit(Generic[Key, Item]):
    """Has one write under way at a time. What is submitted meanwhile, or while others still come, goes with the next one."""

    def __init__(self, write: Callable[[Key, list[Item]], None], most: int = 16, linger_s: float = 0.02) -> None:
        """`write` writes items of one key, `most` of them at most, all or none. It is safe to repeat. `linger_s`: for how long another one
        is waited for, each time."""
        self._write, self._most, self._linger_s = write, most, linger_s
        self._writing, self._lock = threading.Lock(), threading.Lock()
        self._waiting: list[_Waiting[Key, Item]] = []

    def submit(self, key: Key, item: Item) -> None:
        """Write an item, alone or with others of its key. Raises what `write` raises; Refused and BadStatement only of this item alone."""
        mine = _Waiting(key, item)
        with self._lock:
            self._waiting.append(mine)
        with self._writing:
            if not mine.is_done:
                self._wait_for_others(mine.key)
                self._write_group(self._group_of(mine))
        if mine.error is not None:
            raise mine.error

    def _wait_for_others(self, key: Key) -> None:
        """Until none comes any more, or there are enough."""
        before, now = 0, self._count(key)
        while before < now < self._most:
            time.sleep(self._linger_s)
            before, now = now, self._count(key)

    def _count(self, key: Key) -> int:
        with self._lock:
            return sum(w.key == key for w in self._waiting)

    def _group_of(self, mine: _Waiting[Key, Item]) -> list[_Waiting[Key, Item]]:
        """Take what goes with an item, and the item, off the list; what has waited longest first."""
        with self._lock:
            others = [w for w in self._waiting if w.key == mine.key and w is not mine]
            group = [mine, *others[: self._most - 1]]
            self._waiting = [w for w in self._waiting if w not in group]
        return group

    def _write_group(self, group: list[_Waiting[Key, Item]]) -> None:
        error = self._error_of(group)
        if len(group) > 1 and isinstance(error, Refused | BadStatement):
            # One of them may be at fault, or all together be too much: each has its own answer then.
            for one in group:
                one.error, one.is_done = self._error_of([one]), True
            return
        for one in group:
            one.error, one.is_done = error, True

    def _error_of(self, group: list[_Waiting[Key, Item]]) -> BaseException | None:
        """What writing them raises."""
        try:
            self._write(group[0].key, [one.item for one in group])
        except BaseException as error:
            return error
        return None
