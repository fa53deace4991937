"""A turn of an ingest worker, over a Redis in this process and a log to which messages are still appended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.clock import HOUR_MS, now_ms
from infra.columnar.columns import Values
from infra.errors import Unavailable
from infra.kafka import topics
from infra.kafka.record_batches import CorruptBatch, Records
from infra.settings import Settings
from ingest import blocks
from ingest.dedup.registry import Registry
from ingest.partials import SUMS
from ingest.position import Position
from ingest.processor import BatchProcessor
from ingest.source_partition import SourcePartition
from ingest.transaction_layout import Transaction
from ingest.worker import IngestWorker
from tests.unit.fakes import FakeRedis


class Log:
    """Partitions with one untimed message each; `end` is where they end by now."""

    def __init__(self, partitions: int) -> None:
        self.ends = dict.fromkeys(range(partitions), 1)

    def end(self, partition: int) -> int:
        return self.ends[partition]

    def unreadable(self) -> dict[int, CorruptBatch]:
        return {}

    leaves_messages = False

    def append(self) -> None:
        self.ends = {p: end + 1 for p, end in self.ends.items()}

    def take(self, _count: int, _timeout_s: float) -> dict[int, list[Records]]:
        return {p: [_untimed_message(p)] for p in self.ends}


class SlowRedis(FakeRedis):
    """A Redis that is away at the first write; before each one, messages are appended to `log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log, self._failures = log, [Unavailable("Redis: it is away", backend="redis")]

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Sequence[Any]] | None]) -> bool:
        self._log.append()
        if self._failures:
            raise self._failures.pop()
        return super().write_if(key, accept)


def _untimed_message(partition: int) -> Records:
    event = {
        "event_id": f"e{partition}", "event_type": "click", "event_time": now_ms(),
        "campaign_id": 1, "ad_id": 1, "advertiser_id": 1, "publisher_id": 1,
    }  # fmt: skip
    value = Values.of([json.dumps(event).encode()])
    return Records(np.array([0]), np.array([-1]), value, Values.of([None]), 1, by_broker=False)


def _blocks(settings: Settings, transaction: Transaction) -> list[pa.Table]:
    topic = settings.topic(topics.BLOCKS)
    return [blocks.decode_block(r.value or b"", topic)[0] for r in transaction.records if r.topic == topic]


def test_messages_that_ended_the_log_when_they_were_taken_move_log_time_whatever_came_since() -> None:
    settings, log = Settings.model_validate({}), Log(partitions=3)
    redis = SlowRedis(log)
    registry = Registry(redis, "x:", ttl_s=60, segment_ids=20_000)
    worker, transactions = IngestWorker(settings, "ingest-0"), list[Transaction]()
    worker._consumer = log  # type: ignore[assignment]
    worker._processor = BatchProcessor(settings, registry)
    worker._commit = transactions.append  # type: ignore[assignment, method-assign]
    began_ms = now_ms()
    for p in log.ends:
        position = Position(0, log_time_ms=began_ms - HOUR_MS)
        worker._owned[p] = SourcePartition(p, position, registry.begin(p, 0), time.monotonic(), 0)
    worker._run_turn()
    assert min(log.ends.values()) > 2, "messages have come meanwhile"
    (transaction,) = transactions
    assert transaction.batch is not None
    assert not transaction.batch.rejected
    for judged in transaction.batch.judged.values():
        assert judged.after.log_time_ms >= began_ms
    kept = {name for rows in _blocks(settings, transaction) for name in rows.column_names} & {*SUMS}
    assert kept == {"clicks"}, "of sums that are 0 in all rows no block has a column"
