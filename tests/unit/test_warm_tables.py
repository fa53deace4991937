"""What shards of a worker share of ClickHouse's tables: inserts of few rows, and looks at the tables."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.errors import Refused
from stream.warm.tables import WarmTables

IDS = {"stream_hours": "one", "stream_days": "two", "closed_cells": "three"}


class Tables:
    """ClickHouse, as far as this reaches it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inserts: list[tuple[str, int]] = []
        self.ids, self.looks, self.answer = dict(IDS), 0, threading.Event()
        self.answer.set()
        client = ClickHouse("http://nowhere", "adclick")
        monkeypatch.setattr(client, "insert", lambda table, data: self.inserts.append((table, len(data))))
        monkeypatch.setattr(borders, "table_ids", self._look)
        self.warm = WarmTables(client, look_every_s=0.05)

    def _look(self, *_: object) -> dict[str, str]:
        self.looks += 1
        self.answer.wait(10)
        return dict(self.ids)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    return Tables(monkeypatch)


def test_many_rows_go_alone_and_few_that_meet_go_together(tables: Tables) -> None:
    together = threading.Barrier(4)

    def insert(rows: int) -> None:
        together.wait(10)
        tables.warm.insert("stream_hours", 0, rows, lambda: pa.table({"shard": [0] * rows}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(insert, [60_000, 1, 2, 3]))
    assert ("stream_hours", 60_000) in tables.inserts
    assert sum(rows for _, rows in tables.inserts) == 60_006


def test_while_one_shard_looks_others_go_on_with_what_is_known(tables: Tables) -> None:
    assert tables.warm.present_ids("hours") == ("one", "three")
    time.sleep(0.06)
    tables.answer.clear()
    tables.ids["stream_hours"] = "made again"
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(tables.warm.recent_ids, "hours")
        while tables.looks < 2:
            time.sleep(0.001)
        assert tables.warm.recent_ids("days") == ("two", "three")
        tables.answer.set()
        assert looking.result(10) == ("made again", "three")
    assert tables.looks == 2


def test_one_that_takes_a_shard_over_looks_for_itself(tables: Tables) -> None:
    tables.warm.present_ids("hours")
    tables.ids["stream_hours"] = "made again"
    assert tables.warm.present_ids("hours")[0] == "made again"
    del tables.ids["stream_hours"]
    with pytest.raises(Refused, match=r"there is no table stream_hours \(UNKNOWN_TABLE\)"):
        tables.warm.present_ids("hours")
