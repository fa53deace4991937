"""Packs closed minutes of the hot tier beside the flushes, a few cells a call, so that what is new need not wait for it.

A call says all that a cell has at a sequence, takes the place of its rows by flush up to there, and happens only while Redis is at
that sequence. So it does not matter which worker makes it, how often, or whether a flush is half written at the time. Calls are
counted in Redis: one that went back to an earlier point between two flushes is noticed by their number.

Two threads meet here, without a lock. The flush's thread hands over a `Todo`, which never changes; the packing thread answers with
the versions of minutes that it has packed. A minute that has got late rows meanwhile has another version: it is not packed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from infra import faults
from infra.redis.client import Redis
from ingest.partials import Partials
from stream.hot import cell_format, scripts
from stream.hot.layout import ShardKeys
from stream.hot.limits import HotLimits
from stream.window import Window


@dataclass(frozen=True)
class ClosedMinute:
    """A minute that is to be packed: its window when it closed, and rows that flushes have brought since."""

    number: int
    """Tells apart minutes that were handed over at different times."""
    window: Window
    late: tuple[Partials, ...] = ()

    @property
    def version(self) -> tuple[int, int]:
        """Equal only for the same rows."""
        return self.number, len(self.late)

    def with_late(self, rows: Partials) -> ClosedMinute:
        """The minute with what one more flush has brought."""
        return replace(self, late=(*self.late, rows))


@dataclass(frozen=True)
class Todo:
    """Minutes to pack, by their start, with all their rows at a sequence."""

    sequence: int
    minutes: Mapping[int, ClosedMinute]


class Packer:
    """Packs one shard. Raises Unavailable, and can then simply be called again."""

    def __init__(self, redis: Redis, keys: ShardKeys, cells_per_call: int, limits: HotLimits) -> None:
        self._keys, self._cells_per_call, self._limits = keys, cells_per_call, limits
        self._script = scripts.pack_cells(redis)
        self.moves = 0
        """How many calls have moved rows between flushes, as far as is known: Redis has at least so many, or has lost some."""
        self._todo = Todo(-1, {})
        self._packed: frozenset[tuple[int, int]] = frozenset()
        self._minute: _Minute | None = None

    # -- the flush's thread ---------------------------------------------------------------------------------

    def hand_over(self, todo: Todo) -> None:
        """Pack these from now on, and nothing else. Called once Redis is at the sequence."""
        self._todo = todo

    def has_packed(self, minute: ClosedMinute) -> bool:
        """Whether all rows of a minute that was handed over are packed."""
        return minute.version in self._packed

    @property
    def has_work(self) -> bool:
        """Whether a minute waits for being packed. For any thread."""
        return not all(map(self.has_packed, self._todo.minutes.values()))

    # -- the packing thread ---------------------------------------------------------------------------------

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Pack the oldest minute that waits, until that is done, or Redis is at another sequence, or `given_up`."""
        start = min((s for s, minute in self._todo.minutes.items() if not self.has_packed(minute)), default=None)
        while start is not None and not given_up():
            todo = self._todo
            closed = todo.minutes.get(start)
            if closed is None:
                self._minute = None
                return
            minute = self._minute_of(closed)
            page = minute.next_page(self._cells_per_call)
            if not page:
                current = {m.version for m in todo.minutes.values()}
                # Its cells are kept: a late row that came meanwhile changes one of them.
                self._packed = (self._packed & current) | {closed.version}
                return
            if self._write(todo.sequence, start, page):
                minute.mark_packed(page)
            elif todo is self._todo:  # a flush is on its way, or another worker owns the shard
                return

    def _minute_of(self, closed: ClosedMinute) -> _Minute:
        if self._minute is None or self._minute.number != closed.number:
            self._minute = _Minute(closed, self._limits)
        self._minute.add_late(closed.late)
        return self._minute

    def _write(self, sequence: int, start: int, page: dict[int, tuple[bytes, bytes]]) -> bool:
        """Write cells; False where Redis is not at the sequence, or has lost calls."""
        cells = [(self._keys.cell(start, campaign), contents) for campaign, contents in page.items()]
        keys = dict.fromkeys(key for cell, _ in cells for key in cell.keys)
        arguments = [argument for cell, contents in cells for argument in cell.move(*contents)]
        moves = int(self._script([self._keys.span, *keys], [sequence, self.moves, *arguments]))
        if not moves:
            return False
        self.moves = moves
        faults.point("hot.packed")
        return True


class _Minute:
    """A minute that is being packed: its cells, and which of them are still to be written."""

    def __init__(self, closed: ClosedMinute, limits: HotLimits) -> None:
        self.number, self._limits = closed.number, limits
        self._rows, self._late = closed.window.whole(), tuple[Partials, ...]()
        self._cells = {campaign: (rows, rolls) for (_, campaign), rows, rolls in self._pack([self._rows])}
        self._waiting = dict.fromkeys(self._cells)
        self._corrected = set[int]()

    def add_late(self, late: tuple[Partials, ...]) -> None:
        """Cells with rows that were not there before are to be written, again where they were."""
        for rows in late[len(self._late) :]:
            campaigns = set(rows["campaign_id"].tolist())
            self._corrected |= campaigns
            self._waiting |= dict.fromkeys(campaigns)
        self._late = late

    def next_page(self, most_cells: int) -> dict[int, tuple[bytes, bytes]]:
        """campaign → rows and roll-ups, of the next cells to write: as many as make a call."""
        page, size = dict[int, tuple[bytes, bytes]](), 0
        for campaign in islice(self._waiting, most_cells):
            page[campaign] = self._corrected_cell(campaign) if campaign in self._corrected else self._cells[campaign]
            size += len(page[campaign][0])
            if size > self._limits.pack_call_bytes:
                break
        return page

    def _corrected_cell(self, campaign: int) -> tuple[bytes, bytes]:
        _, rows, rolls = next(iter(self._pack([_of_campaign(part, campaign) for part in (self._rows, *self._late)])))
        return rows, rolls

    def _pack(self, parts: list[Partials]) -> Iterable[tuple[tuple[int, int], bytes, bytes]]:
        return zip(*cell_format.pack(Partials.joined(parts), self._limits.roll_up_above_rows), strict=True)

    def mark_packed(self, page: Iterable[int]) -> None:
        """These are written."""
        for campaign in page:
            del self._waiting[campaign]


def _of_campaign(rows: Partials, campaign: int) -> Partials:
    return rows.take(np.isin(rows["campaign_id"], [campaign]))
