"""The directory as a process knows it: what it has written itself is in it, or it says how old it is."""

from __future__ import annotations

from typing import cast

import polars as pl

from infra.errors import Unavailable
from query.directory.reader import DirectoryReader
from query.directory.store import DirectoryStore


class Store:
    """An empty table, which may be away."""

    is_away = False

    def read_since(self, _version: int) -> pl.DataFrame:
        if self.is_away:
            raise Unavailable("ClickHouse: gone")
        return pl.DataFrame()

    def summary(self) -> tuple[int, tuple[int, int]]:
        return 0, (0, 0)


def test_a_snapshot_without_what_this_process_wrote_is_not_taken_for_a_fresh_one() -> None:
    store, now_s = Store(), [1000.0]
    reader = DirectoryReader(cast(DirectoryStore, store), lambda: now_s[0])
    assert reader.current().stale_s == 0
    reader.expire()
    store.is_away = True
    now_s[0] += 0.5
    assert reader.begin()().stale_s > 0
    assert reader.begin()().stale_s > 0
    store.is_away = False
    assert reader.begin()().stale_s == 0
