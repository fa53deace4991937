"""Reads partitions of a topic by column: Kafka's Fetch over sockets of its own, read-committed.

Librdkafka makes an object of each message, twice; that was a third of an event's CPU. Here a response stays one stretch of
bytes. Membership, offsets and metadata stay with librdkafka: `leaders` asks it who leads what.

A thread for each broker fetches ahead until enough is waiting; `take` hands it over. Whatever goes wrong with a broker is
waited out, with the leaders asked again, but for an offset that is not there any more.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra import logs, record_batches
from infra.columns import PADDING, Bytes
from infra.errors import AdclickError, CorruptLog, OffsetOutOfRange
from infra.kafka import Admin, GroupConsumer
from infra.record_batches import Records

Address = tuple[str, int]

_FETCH, _VERSION, _CLIENT = 1, 11, b"adclick"
_READ_COMMITTED = 1
_MAX_WAIT_MS, _PARTITION_BYTES, _RESPONSE_BYTES = 100, 2 << 20, 16 << 20
_LARGEST_RESPONSE = 128 << 20
_TIMEOUT_S, _RETRY_S = 10.0, 0.2
# Of one partition, waiting to be taken.
_AHEAD_MESSAGES = 30_000
_OUT_OF_RANGE = 1
# Not the leader, not ready, or not known there yet: ask who leads, and go on.
_PASSING = {3, 5, 6, 7, 9, 13, 14, 56, 74, 75, 78, 100, 103}


@dataclass
class _Partition:
    """What is read of a partition. `next_offset` is what to ask for next."""

    next_offset: int
    waiting: deque[Records] = field(default_factory=deque)
    messages: int = 0
    end: int = -1


class Fetcher:
    """Reads the partitions that it is told to. `leaders()` gives the address of each partition's leader; it may raise."""

    def __init__(self, topic: str, leaders: Callable[[], dict[int, Address]]) -> None:
        self._topic, self._leaders = topic, leaders
        self._log = logs.get("fetch").bind(topic=topic)
        self._changed = threading.Condition()
        self._partitions: dict[int, _Partition] = {}
        self._led: dict[int, Address] = {}
        self._readers: dict[Address, threading.Thread] = {}
        self._lost = threading.Event()
        self._lost.set()
        self._failure: AdclickError | None = None
        self._closed = False
        self._finder = threading.Thread(target=self._find_leaders, daemon=True, name="leaders")
        self._finder.start()

    # -- for one thread ---------------------------------------------------------------------------------------

    def assign(self, positions: dict[int, int]) -> None:
        """Read these partitions, each from an offset, and no others. What was fetched before is dropped."""
        with self._changed:
            self._partitions = {p: _Partition(offset) for p, offset in positions.items()}
            self._failure = None
            self._changed.notify_all()

    def seek(self, partition: int, offset: int) -> None:
        """Go back (or forward)."""
        with self._changed:
            if partition in self._partitions:
                self._partitions[partition] = _Partition(offset, end=self._partitions[partition].end)
                self._changed.notify_all()

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order; waits until there are as many, or for the time given.

        Raises OffsetOutOfRange, CorruptLog.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                left = deadline - time.monotonic()
                if left <= 0 or sum(p.messages for p in self._partitions.values()) >= count:
                    return self._taken(count)
                self._changed.wait(left)

    def end(self, partition: int) -> int:
        """The end of the committed log as last seen; negative before that."""
        held = self._partitions.get(partition)
        return -1 if held is None else held.end

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._lost.set()

    def _taken(self, count: int) -> dict[int, list[Records]]:
        taken: dict[int, list[Records]] = {}
        # In turn, so that no partition is starved.
        while count > 0:
            before = count
            for number, partition in self._partitions.items():
                if not partition.waiting or count <= 0:
                    continue
                records = partition.waiting.popleft()
                if len(records.offsets) > count:
                    records, rest = _split(records, count)
                    partition.waiting.appendleft(rest)
                partition.messages -= len(records.offsets)
                # Something that holds no message still moves the position.
                count -= max(1, len(records.offsets))
                taken.setdefault(number, []).append(records)
            if count == before:
                break
        self._changed.notify_all()
        return taken

    # -- who leads ----------------------------------------------------------------------------------------------

    def _find_leaders(self) -> None:
        """Keep a reader for each leader, and ask again whenever one was lost."""
        while True:
            self._lost.wait()
            self._lost.clear()
            if self._closed:
                return
            try:
                led = self._leaders()
            except AdclickError:
                led = {}
            with self._changed:
                self._led = led or self._led
                for address in set(self._led.values()) - self._readers.keys():
                    reader = threading.Thread(target=self._read, args=(address,), daemon=True, name="fetch")
                    self._readers[address] = reader
                    reader.start()
                self._changed.notify_all()
            if not led:
                self._lost.set()
            time.sleep(_RETRY_S)

    # -- one broker ---------------------------------------------------------------------------------------------

    def _read(self, address: Address) -> None:
        """Fetch from one broker for as long as it leads anything."""
        away = False
        while not self._closed and address in self._led.values():
            try:
                with socket.create_connection(address, 3.0) as connection:
                    connection.settimeout(_TIMEOUT_S)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while self._turn(address, connection):
                        if away:
                            away = False
                            self._log.info("the broker is back", broker=address)
            except (OSError, EOFError) as error:
                if not away and not self._closed:
                    self._log.warning("the broker is away", broker=address, why=str(error))
                away = True
            except AdclickError as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
            self._lost.set()
            time.sleep(_RETRY_S)
        with self._changed:
            del self._readers[address]

    def _turn(self, address: Address, connection: socket.socket) -> bool:
        """One request; False when it is no use to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted(address), timeout=1.0)
            if self._closed or address not in self._led.values():
                return False
            wanted = {p: (held, held.next_offset) for p, held in self._wanted(address).items()}
        if not wanted:
            return True
        connection.sendall(_request(self._topic, {p: offset for p, (_, offset) in wanted.items()}))
        fine = True
        for number, answer in _answers(_received(connection)):
            partition, offset = wanted[number]
            if answer.error == _OUT_OF_RANGE:
                raise OffsetOutOfRange(
                    f"{self._topic}/{number}: offset {offset} is no longer there",
                    hint="events were deleted before they were read; restore them, or move the group's offset on purpose",
                )
            if answer.error:
                if answer.error not in _PASSING:
                    raise AdclickError(f"Kafka: {self._topic}/{number} cannot be read: error {answer.error}")
                fine = False
                continue
            records = record_batches.read(answer.data, answer.start, answer.stop, offset, answer.aborted)
            with self._changed:
                if self._partitions.get(number) is partition:
                    partition.end = answer.end
                    if records.next_offset > offset:
                        partition.waiting.append(records)
                        partition.messages += len(records.offsets)
                        partition.next_offset = records.next_offset
                    self._changed.notify_all()
        return fine

    def _wanted(self, address: Address) -> dict[int, _Partition]:
        return {
            p: held
            for p, held in self._partitions.items()
            if self._led.get(p) == address and held.messages < _AHEAD_MESSAGES and self._failure is None
        }


def _split(records: Records, count: int) -> tuple[Records, Records]:
    def part(rows: slice, next_offset: int) -> Records:
        return Records(
            records.offsets[rows],
            records.timestamps_ms[rows],
            records.values.take(rows),
            records.keys.take(rows),
            next_offset,
        )

    middle = int(records.offsets[count])
    return part(slice(None, count), middle), part(slice(count, None), records.next_offset)


@dataclass(frozen=True)
class _Answer:
    """One partition's part of a response: data[start:stop], up to the last stable offset `end`."""

    error: int
    end: int
    aborted: list[tuple[int, int]]
    data: Bytes
    start: int
    stop: int


def _request(topic: str, offsets: dict[int, int]) -> bytes:
    """https://kafka.apache.org/protocol#The_Messages_Fetch, version 11, outside of a fetch session."""
    name = topic.encode()
    parts = [
        struct.pack(">hhih", _FETCH, _VERSION, 0, len(_CLIENT)), _CLIENT,
        struct.pack(">iiiibii", -1, _MAX_WAIT_MS, 1, _RESPONSE_BYTES, _READ_COMMITTED, 0, -1),
        struct.pack(">ih", 1, len(name)), name, struct.pack(">i", len(offsets)),
        *(struct.pack(">iiqqi", p, -1, offset, -1, _PARTITION_BYTES) for p, offset in offsets.items()),
        struct.pack(">ih", 0, 0),
    ]  # fmt: skip
    body = b"".join(parts)
    return struct.pack(">i", len(body)) + body


def _received(connection: socket.socket) -> Bytes:
    """A response, followed by PADDING bytes."""
    head = bytearray(4)
    _fill(connection, memoryview(head))
    (size,) = struct.unpack(">i", head)
    if not 0 < size <= _LARGEST_RESPONSE:
        raise OSError(f"a response of {size} bytes")
    data = np.empty(size + PADDING, np.uint8)
    _fill(connection, memoryview(data)[:size])  # type: ignore[arg-type]
    data[size:] = 0
    return data


def _fill(connection: socket.socket, view: memoryview) -> None:
    while len(view):
        got = connection.recv_into(view)
        if not got:
            raise EOFError("the broker closed the connection")
        view = view[got:]


def _answers(data: Bytes) -> list[tuple[int, _Answer]]:
    """(partition, its part) of a response."""
    at, view = 0, memoryview(data)  # type: ignore[arg-type]

    def read(kinds: str) -> Any:
        nonlocal at
        found = struct.unpack_from(">" + kinds, view, at)
        at += struct.calcsize(">" + kinds)
        return found

    _, _, error, _ = read("iihi")
    if error:
        raise OSError(f"error {error}")
    answers = []
    try:
        for _ in range(read("i")[0]):
            (length,) = read("h")
            at += length
            for _ in range(read("i")[0]):
                number, error, _, end, _, transactions = read("ihqqqi")
                aborted = [read("qq") for _ in range(max(0, transactions))]
                _, size = read("ii")
                answers.append((number, _Answer(error, end, aborted, data, at, at + max(0, size))))
                at += max(0, size)
    except struct.error as problem:
        raise CorruptLog(f"Kafka: a response of an unknown form: {problem}") from problem
    return answers


class ColumnConsumer:
    """One member of a consumer group over one topic, which positions itself and reads by column.

    `on_assign(partitions)` returns the offset to start each at; `on_revoke(partitions)` is told what is gone. Both run
    inside `take`.
    """

    def __init__(
        self,
        servers: str,
        group: str,
        topic: str,
        on_assign: Callable[[list[int]], dict[int, int]],
        on_revoke: Callable[[list[int]], None],
        session_timeout_ms: int,
    ) -> None:
        self._on_assign = on_assign
        admin = Admin(servers, timeout_s=3.0)
        self._fetcher = Fetcher(topic, lambda: admin.leaders(topic))
        self.member = GroupConsumer(servers, group, topic, self._assigned, on_revoke, session_timeout_ms, reads=False)

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        starts = self._on_assign(partitions)
        self._fetcher.assign(starts)
        return starts

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order. Raises OffsetOutOfRange, CorruptLog."""
        self.member.consume(1, 0.0)
        return self._fetcher.take(count, timeout_s)

    def end(self, partition: int) -> int:
        """The end of the committed log as last seen; negative before that."""
        return self._fetcher.end(partition)

    def seek(self, partition: int, offset: int) -> None:
        """Go back (or forward) to an offset."""
        self._fetcher.seek(partition, offset)

    def close(self) -> None:
        """Stop reading and leave the group."""
        self._fetcher.close()
        self.member.close()
