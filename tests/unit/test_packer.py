"""Packing closed minutes: what is written again, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingest.partials import Partials
from stream.chunks import CHANGED
from stream.hot.layout import ShardKeys
from stream.hot.limits import DEFAULT_LIMITS
from stream.hot.packer import ClosedMinute, Packer, Todo
from stream.window import Window, WindowPiece
from tests.unit.test_partials_and_cells import frame, partial

MINUTE = 60_000


class CountingRedis:
    """Takes every call, and counts the cells of each."""

    def __init__(self) -> None:
        self.cells = list[int]()

    def script(self, _source: str) -> Any:
        def run(_keys: list[bytes], arguments: list[Any]) -> int:
            self.cells.append((len(arguments) - 2) // 7)
            return len(self.cells)

        return run


def rows_of(campaigns: range) -> Partials:
    rows = frame([partial(window_ms=MINUTE, campaign_id=campaign) for campaign in campaigns])
    return rows.with_column(CHANGED, np.zeros(len(campaigns), np.uint8))


def test_a_late_row_that_comes_as_its_minute_is_packed_writes_one_cell_again() -> None:
    redis: Any = CountingRedis()
    packer = Packer(redis, ShardKeys.of("x", 0), 100_000, DEFAULT_LIMITS)
    minute = ClosedMinute(0, Window(MINUTE, (WindowPiece(rows_of(range(1, 1001))),)))
    packer.hand_over(Todo(1, {MINUTE: minute}))
    packer.pack(lambda: False)
    assert sum(redis.cells) == 1000
    assert not packer.has_work
    redis.cells.clear()
    # The flush's thread had not seen yet that it is packed.
    packer.hand_over(Todo(2, {MINUTE: minute.with_late(rows_of(range(7, 8)))}))
    packer.pack(lambda: False)
    assert redis.cells == [1]
    assert not packer.has_work
