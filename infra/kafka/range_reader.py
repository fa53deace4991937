"""Reads a range of one partition by column. A record batch that cannot be read is named, or passed over where it is known to be set aside;
librdkafka would fetch it for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from infra.errors import TimedOut
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.fetch import Fetcher
from infra.kafka.record_batches import Records
from infra.kafka.sasl import Connector

_SILENT_S = 30.0


def read_range(
    kafka: Connection, topic: str, partition: int, first: int, end: int, batch: int = 20_000, *, pass_over: bool = False
) -> Iterator[Records]:
    """The committed messages of offsets [first, end), up to `batch` at a time. `pass_over`: leave out what cannot be read. Raises CorruptBatch
    for it otherwise, Unavailable, and what else ends reading."""
    if first >= end:
        return
    admin = Admin(kafka)
    fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic), Connector(kafka).open, kafka.rack)
    with contextlib.closing(fetcher):
        fetcher.assign({partition: first})
        heard = time.monotonic()
        while True:
            for records in fetcher.take(batch, 0.1).get(partition, []):
                heard = time.monotonic()
                wanted = int((records.offsets < end).sum())
                if wanted:
                    yield records if wanted == len(records.offsets) else records.split(wanted)[0]
                if records.next_offset >= end:
                    return
            if (corrupt := fetcher.unreadable().get(partition)) is not None:
                heard = time.monotonic()
                if corrupt.offset >= end:
                    return
                if not pass_over:
                    raise corrupt
                if corrupt.next_offset >= end:
                    return
                fetcher.seek(partition, corrupt.next_offset)
            if time.monotonic() - heard > _SILENT_S:
                raise TimedOut(f"Kafka: no answer while reading {topic}/{partition}", backend="kafka")
