"""Reading by column against librdkafka reading message by message: the same log, the same messages."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from infra import topics
from infra.errors import OffsetOutOfRange
from infra.fetch import Fetcher
from infra.kafka import Admin, read_to_end
from infra.settings import Settings
from tests.product import PATIENCE, wait_until

Message = tuple[int, int, bytes | None, bytes | None]
"""Offset, timestamp, key, value."""


@pytest.fixture
def topic(settings: Settings) -> str:
    return settings.topic(topics.BLOCKS)


@pytest.fixture
def fetcher(settings: Settings, topic: str) -> Iterator[Fetcher]:
    admin = Admin(settings.kafka)
    fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic))
    yield fetcher
    fetcher.close()


def truth(settings: Settings, topic: str, start: int) -> list[Message]:
    return [(m.offset(), m.timestamp()[1], m.key(), m.value()) for m in read_to_end(settings.kafka, topic, 0, start)]


def fetched(fetcher: Fetcher, start: int, end: int, count: int = 100_000) -> list[Message]:
    found: list[Message] = []
    fetcher.assign({0: start})
    deadline, reached = time.monotonic() + 20 * PATIENCE, start
    while reached < end:
        assert time.monotonic() < deadline, f"{reached} of {end}"
        for records in fetcher.take(count, 0.2).get(0, []):
            assert len(records.offsets) <= count
            reached = records.next_offset
            times = records.timestamps_ms.tolist()
            for i, offset in enumerate(records.offsets.tolist()):
                found.append((offset, times[i], records.keys[i], records.values[i]))
    return found


def produce(settings: Settings, topic: str, count: int, **config: object) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka, **config})
    for i in range(count):
        value = None if i % 11 == 0 else b"" if i % 13 == 0 else b"%d " % i * (i % 200)
        producer.produce(
            topic, value, b"k%d" % i if i % 3 else None, partition=0, headers={"h": b"x"} if i % 5 else None
        )
    producer.flush(20)


def test_whatever_producers_send_is_read_alike(settings: Settings, topic: str, fetcher: Fetcher) -> None:
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        produce(settings, topic, 3_000, **{"compression.type": codec})
        produce(settings, topic, 20, **{"compression.type": codec, "linger.ms": 0, "batch.num.messages": 1})
    produce(settings, topic, 1, **{"compression.type": "none"})
    (end, *_) = Admin(settings.kafka).ends(topic, settings.block_partitions)
    wanted = truth(settings, topic, 0)
    assert len(wanted) == end == 5 * 3_020 + 1
    assert fetched(fetcher, 0, end) == wanted
    assert fetched(fetcher, 4_321, end) == wanted[4_321:], "from the middle of a batch"
    assert fetched(fetcher, 0, end, count=777) == wanted, "in pieces"


def test_only_what_was_committed_is_read(settings: Settings, topic: str, fetcher: Fetcher) -> None:
    producers = [
        Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.namespace}fetch{n}"})
        for n in range(2)
    ]
    for producer in producers:
        producer.init_transactions(10)
    for turn in range(12):
        for n, producer in enumerate(producers):
            producer.begin_transaction()
            producer.produce(topic, b"%d %d" % (turn, n), partition=0)
            producer.flush(10)
        for n, producer in enumerate(producers):
            (producer.abort_transaction if (turn + n) % 3 == 0 else producer.commit_transaction)(10)
        produce(settings, topic, 2)
    (end, *_) = Admin(settings.kafka).ends(topic, settings.block_partitions)
    wanted = truth(settings, topic, 0)
    assert len(wanted) == 12 * 2 + 12 * 2 * 2 // 3
    assert fetched(fetcher, 0, end) == wanted
    middle = end // 2
    assert fetched(fetcher, middle, end) == [m for m in wanted if m[0] >= middle]

    producers[0].begin_transaction()
    producers[0].produce(topic, b"not yet", partition=0)
    producers[0].flush(10)
    produce(settings, topic, 1)
    fetcher.assign({0: end})
    assert fetcher.take(10, 1.0) == {}
    producers[0].commit_transaction(10)
    (after, *_) = Admin(settings.kafka).ends(topic, settings.block_partitions)
    assert fetched(fetcher, end, after) == truth(settings, topic, end)
    assert fetcher.end(0) == after


def test_an_offset_that_is_not_there_is_named(settings: Settings, topic: str, fetcher: Fetcher) -> None:
    produce(settings, topic, 10)
    (end, *_) = Admin(settings.kafka).ends(topic, settings.block_partitions)
    fetcher.assign({0: end + 1000})
    with pytest.raises(OffsetOutOfRange, match=rf"/0: offset {end + 1000} is no longer there"):
        wait_until(lambda: fetcher.take(1, 0.2) and False, 10, "the offset is refused")
