"""Writes of several threads that meet, as one: for a store to which each write costs much, however little is in it.

Databases commit transactions like this (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from infra.errors import is_away

Key = TypeVar("Key")
Item = TypeVar("Item")


class _Waiting(Generic[Key, Item]):
    """What one thread waits for."""

    def __init__(self, key: Key, item: Item) -> None:
        self.key, self.item = key, item
        self.is_done = False
        self.error: BaseException | None = None


class GroupCommit(Generic[Key, Item]):
    """Has one write under way at a time. What is submitted meanwhile, or while others still come, goes with the next one."""

    def __init__(self, write: Callable[[Key, list[Item]], None], most: int, linger_s: float = 0.02) -> None:
        """`write` writes items of one key, `most` of them at most, all or none, in the order in which they came. It is safe to repeat.
        `linger_s`: for how long another one is waited for, each time."""
        self._write, self._most, self._linger_s = write, most, linger_s
        self._changed = threading.Condition()
        """Guards the two below."""
        self._waiting: list[_Waiting[Key, Item]] = []
        self._is_writing = False

    def submit(self, key: Key, item: Item) -> None:
        """Write an item, alone or with others of its key. Raises what `write` raises, of one that is refused by itself only for this
        item's own part."""
        mine = _Waiting(key, item)
        with self._changed:
            self._waiting.append(mine)
        while not self._is_done_or_free(mine):
            try:
                self._write_group(self._next_group())
            finally:
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()
        if mine.error is not None:
            raise mine.error

    def _is_done_or_free(self, mine: _Waiting[Key, Item]) -> bool:
        """Wait until an item is written, True, or until this thread is the one to write: False."""
        with self._changed:
            self._changed.wait_for(lambda: mine.is_done or not self._is_writing)
            if not mine.is_done:
                self._is_writing = True
            return mine.is_done

    def _next_group(self) -> list[_Waiting[Key, Item]]:
        """Take what has waited longest off the list, with others of its key: once none comes any more, there are enough, or another key
        waits."""
        before = 0
        while True:
            with self._changed:
                key = self._waiting[0].key
                group = [w for w in self._waiting if w.key == key][: self._most]
                if len(group) in (before, self._most) or len(group) < len(self._waiting):
                    self._waiting = [w for w in self._waiting if w not in group]
                    return group
            before = len(group)
            time.sleep(self._linger_s)

    def _write_group(self, group: list[_Waiting[Key, Item]]) -> None:
        error = self._error_of(group)
        if error is None or is_away(error) or len(group) == 1:
            self._end(group, error)
            return
        # One of them may be at fault, or all together be too much. But a store that refuses two of them refuses all.
        kinds = set[object]()
        for place, one in enumerate(group):
            error = self._error_of([one])
            kind = (type(error), getattr(error, "code", ""))
            if error is not None and kind in kinds:
                self._end(group[place:], error)
                return
            kinds.add(kind)
            self._end([one], error)

    def _error_of(self, group: list[_Waiting[Key, Item]]) -> BaseException | None:
        """What writing them raises."""
        try:
            self._write(group[0].key, [one.item for one in group])
        except BaseException as error:
            return error
        return None

    def _end(self, group: list[_Waiting[Key, Item]], error: BaseException | None) -> None:
        with self._changed:
            for one in group:
                one.error, one.is_done = error, True
            self._changed.notify_all()
