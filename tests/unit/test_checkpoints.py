"""What a checkpoint of the detector carries over a restart."""

from __future__ import annotations

import base64
from typing import Any, cast

import numpy as np
import pyarrow as pa

from infra.clickhouse.client import ClickHouse
from stream.insights.checkpoints import TABLE, Checkpoint, read_checkpoint, write_checkpoint
from tests.insight_owner import InsightOwner
from tests.unit.test_alerting import minutes_of


class CheckpointTable:
    """The table of checkpoints alone: no alert was ever written."""

    def __init__(self) -> None:
        self.database = "adclick"
        self._rows = dict[tuple[int, int, int], dict[str, Any]]()

    def insert(self, table: str, rows: pa.Table) -> None:
        """Replace rows of the same shard, slot and part."""
        if table == TABLE:
            self._rows |= {(row["shard"], row["slot"], row["part"]): row for row in rows.to_pylist()}

    def rows(self, statement: str, _parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Those of checkpoints, the newest first."""
        if TABLE not in statement:
            return []
        ordered = sorted(self._rows.values(), key=lambda row: (-row["upto_ms"], row["part"]))
        return [(row["slot"], row["upto_ms"], row["part"], row["parts"], row["body"]) for row in ordered]


def client() -> ClickHouse:
    return cast(ClickHouse, CheckpointTable())


def last_checkpoint(restart_every: int) -> Checkpoint:
    """After 130 minutes with events, 150 without, and 70 with events again."""
    numbers = np.concatenate([minutes_of(4, 130), np.zeros((150, 3, 4)), minutes_of(4, 70)])
    owner = InsightOwner(client())
    for minute, values in enumerate(numbers):
        assert owner.sink.write(owner.flush(minute, values))
        if 130 <= minute < 280 and minute % restart_every == 0:
            owner.succeed()
    checkpoint, _ = read_checkpoint(owner.client)
    assert checkpoint is not None
    return checkpoint


def test_restarts_within_a_standstill_teach_the_detector_nothing() -> None:
    assert last_checkpoint(restart_every=25) == last_checkpoint(restart_every=1_000)


def test_a_checkpoint_of_another_version_is_not_read() -> None:
    tables, written = client(), Checkpoint(60_000, b"watch", b"alerting", 17)
    write_checkpoint(tables, 0, written)
    assert read_checkpoint(tables) == (written, 1)
    watch, alerting = (base64.b64encode(value).decode() for value in (b"watch", b"alerting"))
    row = {"shard": 0, "slot": 1, "part": 0, "parts": 1, "upto_ms": 120_000, "body": f"2 {watch} {alerting} 0"}
    tables.insert(TABLE, pa.table({name: [value] for name, value in row.items()}))
    assert read_checkpoint(tables) == (written, 1)
