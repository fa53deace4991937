"""What ends reading reaches the thread that takes messages, whatever it is."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, cast

import pytest

from infra.columnar.columns import PADDING
from infra.errors import Denied
from infra.kafka.client import KafkaError
from infra.kafka.fetch import Fetcher
from infra.kafka.record_batches import CorruptBatch
from infra.kafka.topic_state import TopicState
from tests.product import PATIENCE, wait_until
from tests.unit.test_fetch_responses import TOPIC_ID, partition, response
from tests.unit.test_record_batches import batch, crc32c, record

Answer = Callable[[], bytes]


class Broker:
    """A connection to a broker that answers each request in the same way."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._unread = answer, b""

    def sendall(self, _request: bytes) -> None:
        payload = self._answer()
        self._unread += struct.pack(">i", len(payload)) + payload

    def recv_into(self, view: memoryview) -> int:
        part = self._unread[: len(view)]
        self._unread = self._unread[len(part) :]
        view[: len(part)] = part
        return len(part)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def reading(answer: Answer) -> Iterator[Fetcher]:
    """A reader of partition 0 from offset 7 on, of a broker that answers so."""
    state = TopicState(partitions=1, topic_id=TOPIC_ID, leaders={0: ("broker", 9092)})
    fetcher = Fetcher("ad-events", lambda: state, lambda *_: (cast(socket.socket, Broker(answer)), float("inf")))
    fetcher.assign({0: 7})
    try:
        yield fetcher
    finally:
        fetcher.close()


def answer_of(records: bytes, end: int = 900) -> Answer:
    """A response of these record batches, of a log that ends there."""
    raw = response(partition(0, records, end=end)).tobytes()
    return lambda: raw[: len(raw) - PADDING]


def taken(fetcher: Fetcher) -> bool:
    return bool(fetcher.take(1, 0.1))


def test_messages_of_a_broker_are_taken() -> None:
    with reading(answer_of(batch(record(0), codec=0, count=1))) as fetcher:
        wait_until(lambda: taken(fetcher), 20, "a message is taken")


@pytest.mark.parametrize(
    ("values", "end", "expected"),
    [
        ([b"x"], 8, True),
        ([b"x", b"x"], 9, True),
        ([b"x", b"y"], 9, False),
        ([b"x"], 9, False),
        ([b"x"] * 17, 24, False),
    ],
)
def test_whether_only_such_messages_wait_is_known_where_they_are_few_and_all(
    values: list[bytes], end: int, expected: bool
) -> None:
    records = b"".join(record(delta, value) for delta, value in enumerate(values))
    with reading(answer_of(batch(records, codec=0, count=len(values)), end)) as fetcher:
        wait_until(lambda: fetcher.end(0) >= 0, 20, "the broker has answered")
        assert fetcher.waits_only_for(0, lambda value: value == b"x") is expected
        assert not fetcher.waits_only_for(1, lambda value: True), "nothing waits of what is not read"
        fetcher.take(100, 0.1)


@pytest.mark.parametrize(("epochs", "first"), [((3, 3), 3), ((3, 4), -1)])
def test_of_which_leader_the_last_message_of_a_batch_is_goes_along_where_it_is_known(
    epochs: tuple[int, int], first: int
) -> None:
    batches = [batch(record(0), codec=0, count=1, offset=7 + n, leader_epoch=epoch) for n, epoch in enumerate(epochs)]
    with reading(answer_of(b"".join(batches))) as fetcher:
        wait_until(lambda: fetcher.end(0) >= 0, 20, "the broker has answered")
        taken = [fetcher.take(1, 0.1)[0][0] for _ in epochs]
    assert [records.leader_epoch for records in taken] == [first, epochs[1]]


def stopped_before(fetcher: Fetcher) -> CorruptBatch:
    """Wait until partition 0 stops before a batch that cannot be read."""
    wait_until(lambda: taken(fetcher) or fetcher.unreadable(), 20, "the partition stops")
    return fetcher.unreadable()[0]


@pytest.mark.parametrize("count", [-(2**31), 2**31 - 1])
def test_a_batch_with_an_impossible_number_of_records_is_named(count: int) -> None:
    raw = bytearray(batch(record(0), codec=0, count=1))
    raw[57:61] = struct.pack(">i", count)
    raw[17:21] = struct.pack(">I", crc32c(bytes(raw[21:])))
    with reading(answer_of(bytes(raw))) as fetcher:
        corrupt = stopped_before(fetcher)
    assert (corrupt.offset, corrupt.raw) == (7, bytes(raw))
    assert f"has {count} records" in str(corrupt)


def test_a_log_in_an_old_message_format_is_named_with_what_to_do() -> None:
    old = struct.pack(">qiib", 7, 200, 0, 1) + bytes(195)
    with reading(answer_of(old)) as fetcher:
        corrupt = stopped_before(fetcher)
    assert (corrupt.offset, corrupt.raw) == (7, old)
    assert re.search(r"is in the old message format v1; v2 is needed.*copy the topic", str(corrupt))


def test_a_batch_that_cannot_be_read_stops_its_own_partition_after_what_is_before_it() -> None:
    intact = [batch(record(0), codec=0, count=1, offset=offset) for offset in (7, 8, 10)]
    bad = batch(record(0), codec=5, count=1, offset=9)
    logs = {"bad": partition(0, intact[0] + intact[1] + bad + intact[2]), "good": partition(1, intact[0])}
    state = TopicState(partitions=2, topic_id=TOPIC_ID, leaders={0: ("bad", 9092), 1: ("good", 9092)})

    def connect(address: tuple[str, int], _timeout_s: float) -> tuple[socket.socket, float]:
        raw = response(logs[address[0]]).tobytes()
        return cast(socket.socket, Broker(lambda: raw[: len(raw) - PADDING])), float("inf")

    fetcher = Fetcher("ad-events", lambda: state, connect)
    fetcher.assign({0: 7, 1: 7})
    taken: dict[int, list[int]] = {0: [], 1: []}

    def take() -> bool:
        for p, parts in fetcher.take(10, 0.1).items():
            taken[p] += [offset for records in parts for offset in records.offsets.tolist()]
        return bool(fetcher.unreadable())

    try:
        wait_until(take, 20, "partition 0 stops")
        corrupt = fetcher.unreadable()[0]
        assert (taken[0], corrupt.offset, corrupt.next_offset, corrupt.raw) == ([7, 8], 9, 10, bad)
        assert "codec 5 is not known" in corrupt.message
        fetcher.seek(0, corrupt.next_offset)
        wait_until(lambda: take() or taken[0][-1] == 10, 20, "it goes on behind the batch")
        assert taken[0] == [7, 8, 10]
        assert taken[1] == [7]
    finally:
        fetcher.close()


@pytest.mark.parametrize("error", [ValueError("negative dimensions"), MemoryError("3 TiB"), AssertionError()])
def test_an_error_that_nobody_expects_ends_reading_instead_of_the_reader_alone(error: Exception) -> None:
    def fail() -> bytes:
        raise error

    with reading(fail) as fetcher, pytest.raises(type(error)) as failure:
        wait_until(lambda: taken(fetcher), 20, "the reader stops")
    assert failure.value is error


def test_refused_credentials_are_tried_again_and_not_over_and_over() -> None:
    attempts = list[float]()

    def refuse(*_: object) -> NoReturn:
        attempts.append(time.monotonic())
        raise Denied("wrong password", backend="kafka")

    state = TopicState(partitions=1, topic_id=TOPIC_ID, leaders={0: ("broker", 9092)})
    fetcher = Fetcher("ad-events", lambda: state, refuse)
    try:
        fetcher.assign({0: 7})
        wait_until(lambda: attempts, 20, "a connection is tried")
        assert fetcher.take(1, 1.0) == {}
        assert len(attempts) == 1
    finally:
        fetcher.close()


def test_what_a_former_leader_brings_late_is_not_taken_twice() -> None:
    answer = answer_of(batch(record(0), codec=0, count=1))
    is_asked, may_answer, has_answered = threading.Event(), threading.Event(), threading.Event()

    class LateBroker(Broker):
        def sendall(self, request: bytes) -> None:
            is_asked.set()
            assert may_answer.wait(60)
            super().sendall(request)

        def __exit__(self, *_: object) -> None:
            has_answered.set()

    leaders = {0: ("former", 9092), 1: ("away", 9092)}
    brokers = {"former": LateBroker(answer), "new": Broker(answer)}

    def connect(address: tuple[str, int], _timeout_s: float) -> tuple[socket.socket, float]:
        if address[0] not in brokers:
            raise OSError("refused")  # so that leaders are looked up again
        return cast(socket.socket, brokers[address[0]]), float("inf")

    fetcher = Fetcher("ad-events", lambda: TopicState(partitions=2, topic_id=TOPIC_ID, leaders=dict(leaders)), connect)
    try:
        fetcher.assign({0: 7, 1: 7})
        assert is_asked.wait(20 * PATIENCE)
        leaders[0] = ("new", 9092)
        wait_until(lambda: fetcher.end(0) >= 0, 20, "the new leader has answered")
        may_answer.set()
        assert has_answered.wait(20 * PATIENCE)
        (records,) = fetcher.take(10, 0.1)[0]
        assert records.offsets.tolist() == [7]
    finally:
        may_answer.set()
        fetcher.close()


def test_a_partition_that_may_not_be_read_is_named_to_who_takes() -> None:
    raw = response(partition(0, b"", error=KafkaError.TOPIC_AUTHORIZATION_FAILED)).tobytes()
    with reading(lambda: raw[: len(raw) - PADDING]) as fetcher, pytest.raises(Denied, match="ad-events/0"):
        wait_until(lambda: taken(fetcher), 20, "a message is taken")
