"""Reading by column against librdkafka reading message by message: the same log, the same messages."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import Producer

from infra.errors import OffsetOutOfRange
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.kafka.fetch import Fetcher
from infra.kafka.sasl import Connector
from infra.kafka.topic_state import TopicState
from infra.settings import Settings
from tests.product import PATIENCE, wait_until

Message = tuple[int, int, bytes | None, bytes | None]
"""Offset, timestamp, key, value."""


@pytest.fixture
def topic(settings: Settings) -> str:
    return settings.topic(topics.BLOCKS)


@pytest.fixture
def fetcher(settings: Settings, topic: str) -> Iterator[Fetcher]:
    admin = Admin(settings.kafka_connection)
    fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic), Connector(settings.kafka_connection).open)
    yield fetcher
    fetcher.close()


def truth(settings: Settings, topic: str, start: int) -> list[Message]:
    return [
        (m.offset(), m.timestamp()[1], m.key(), m.value())
        for m in read_to_end(settings.kafka_connection, topic, 0, start)
    ]


def fetched(fetcher: Fetcher, start: int, end: int, count: int = 100_000) -> list[Message]:
    messages: list[Message] = []
    fetcher.assign({0: start})
    deadline, reached = time.monotonic() + 20 * PATIENCE, start
    while reached < end:
        assert time.monotonic() < deadline, f"{reached} of {end}"
        for records in fetcher.take(count, 0.2).get(0, []):
            assert len(records.offsets) <= count
            reached = records.next_offset
            times = records.timestamps_ms.tolist()
            for i, offset in enumerate(records.offsets.tolist()):
                messages.append((offset, times[i], records.keys[i], records.values[i]))
    return messages


def produce(settings: Settings, topic: str, count: int, **config: object) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka, **config})
    for i in range(count):
        value = None if i % 11 == 0 else b"" if i % 13 == 0 else b"%d " % i * (i % 200)
        producer.produce(
            topic, value, b"k%d" % i if i % 3 else None, partition=0, headers={"h": b"x"} if i % 5 else None
        )
    producer.flush(20)


def test_messages_of_any_producer_are_read_as_librdkafka_reads_them(
    settings: Settings, topic: str, fetcher: Fetcher
) -> None:
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        produce(settings, topic, 3_000, **{"compression.type": codec})
        produce(settings, topic, 20, **{"compression.type": codec, "linger.ms": 0, "batch.num.messages": 1})
    produce(settings, topic, 1, **{"compression.type": "none"})
    (end, *_) = Admin(settings.kafka_connection).ends(topic, settings.block_partitions)
    expected = truth(settings, topic, 0)
    assert len(expected) == end == 5 * 3_020 + 1
    assert fetched(fetcher, 0, end) == expected
    assert fetched(fetcher, 4_321, end) == expected[4_321:], "from the middle of a batch"
    assert fetched(fetcher, 0, end, count=777) == expected, "in pieces"


def test_only_committed_messages_are_read(settings: Settings, topic: str, fetcher: Fetcher) -> None:
    producers = [
        Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.namespace}fetch{n}"})
        for n in range(2)
    ]
    for producer in producers:
        producer.init_transactions(10 * PATIENCE)
    for turn in range(12):
        for n, producer in enumerate(producers):
            producer.begin_transaction()
            producer.produce(topic, b"%d %d" % (turn, n), partition=0)
            producer.flush(10)
        for n, producer in enumerate(producers):
            (producer.abort_transaction if (turn + n) % 3 == 0 else producer.commit_transaction)(10 * PATIENCE)
        produce(settings, topic, 2)
    (end, *_) = Admin(settings.kafka_connection).ends(topic, settings.block_partitions)
    expected = truth(settings, topic, 0)
    assert len(expected) == 12 * 2 + 12 * 2 * 2 // 3
    assert fetched(fetcher, 0, end) == expected
    middle = end // 2
    assert fetched(fetcher, middle, end) == [m for m in expected if m[0] >= middle]

    producers[0].begin_transaction()
    producers[0].produce(topic, b"not yet", partition=0)
    producers[0].flush(10)
    produce(settings, topic, 1)
    fetcher.assign({0: end})
    assert fetcher.take(10, 1.0) == {}
    producers[0].commit_transaction(10 * PATIENCE)
    # The commit is answered before its marker is written.
    admin = Admin(settings.kafka_connection)
    wait_until(lambda: admin.ends(topic, settings.block_partitions)[0] > end, 10, "the commit can be read")
    (after, *_) = admin.ends(topic, settings.block_partitions)
    assert fetched(fetcher, end, after) == truth(settings, topic, end)
    assert fetcher.end(0) == after


def test_a_missing_offset_is_named(settings: Settings, topic: str, fetcher: Fetcher) -> None:
    produce(settings, topic, 10)
    (end, *_) = Admin(settings.kafka_connection).ends(topic, settings.block_partitions)
    fetcher.assign({0: end + 1000})
    with pytest.raises(OffsetOutOfRange, match=rf"/0: offset {end + 1000} is no longer there"):
        wait_until(lambda: fetcher.take(1, 0.2) and False, 10, "the offset is refused")


class BitFlipper(socketserver.ThreadingTCPServer):
    """Passes bytes on between a client and a broker, and flips one bit of `target` in the first `damaged` responses that hold it."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, broker: tuple[str, int], target: bytes, damaged: int) -> None:
        self.damaged, flipper = damaged, self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(broker) as upstream, contextlib.suppress(OSError):
                    back = threading.Thread(target=pass_back, args=(upstream, self.request), daemon=True)
                    back.start()
                    while data := self.request.recv(1 << 16):
                        upstream.sendall(data)

        def pass_back(upstream: socket.socket, client: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := upstream.recv(1 << 20):
                    if target in data and flipper.damaged > 0:
                        flipper.damaged -= 1
                        data = data.replace(target, bytes([target[0] ^ 4]) + target[1:])
                    client.sendall(data)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def through(settings: Settings, topic: str, flipper: BitFlipper) -> Fetcher:
    admin = Admin(settings.kafka_connection)
    address = ("127.0.0.1", flipper.server_address[1])

    def describe() -> TopicState | None:
        state = admin.describe([topic]).get(topic)
        return state and replace(state, leaders=dict.fromkeys(state.leaders, address))

    return Fetcher(topic, describe, Connector(settings.kafka_connection).open)


@pytest.fixture
def leader(settings: Settings, topic: str) -> tuple[str, int]:
    state = Admin(settings.kafka_connection).describe([topic])[topic]
    return state.leaders[0]


def test_a_batch_that_was_damaged_on_its_way_is_fetched_again(
    settings: Settings, topic: str, leader: tuple[str, int]
) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka})
    producer.produce(topic, b"some bytes to be damaged", partition=0)
    producer.flush(20)
    with BitFlipper(leader, b"some bytes to be damaged", damaged=2) as flipper:
        fetcher = through(settings, topic, flipper)
        assert fetched(fetcher, 0, 1) == truth(settings, topic, 0)
        assert flipper.damaged == 0
        fetcher.close()
        flipper.shutdown()


def test_a_batch_that_stays_damaged_stops_its_partition_and_is_named(
    settings: Settings, topic: str, leader: tuple[str, int]
) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka, "linger.ms": 0})
    for value in (b"intact", b"these bytes stay damaged"):
        producer.produce(topic, value, partition=0)
        producer.flush(20)
    with BitFlipper(leader, b"these bytes stay damaged", damaged=1_000) as flipper:
        fetcher = through(settings, topic, flipper)
        fetcher.assign({0: 0})
        values = list[bytes | None]()

        def read_more() -> bool:
            values.extend(records.values[0] for records in fetcher.take(10, 0.2).get(0, []))
            return bool(fetcher.unreadable())

        wait_until(read_more, 20, "the damaged batch stops the partition")
        assert fetcher.unreadable()[0].offset == 1
        assert "CRC-32C" in str(fetcher.unreadable()[0])
        assert values == [b"intact"]
        fetcher.close()
        flipper.shutdown()
