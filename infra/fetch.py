"""Reads partitions of a topic by column: Kafka's Fetch over sockets of its own, read-committed.

Librdkafka makes an object of each message, twice; that was a third of an event's CPU. Here a response stays one stretch of
bytes. Membership, offsets and metadata stay with librdkafka: `describe` asks it which topic there is, and who leads what.

A thread for each broker fetches ahead until enough is waiting; `take` hands it over. Requests name the topic by its id, so
a topic that was made again is never read on as if it were the one before; and they carry the leader epoch of the last
batch, by which the broker tells a log that was cut off. Whatever goes wrong with a broker is waited out, with the leaders
asked again, but for a topic or an offset that is not there any more.
"""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra import logs, record_batches
from infra.columns import PADDING, Bytes
from infra.errors import AdclickError, CorruptLog, LogTruncated, OffsetOutOfRange, TopicChanged
from infra.kafka import Admin, GroupConsumer
from infra.kafka_errors import unreadable
from infra.record_batches import Records
from infra.records import TopicState

Address = tuple[str, int]

_FETCH, _VERSION, _CLIENT = 1, 13, b"adclick"
_READ_COMMITTED = 1
_MAX_WAIT_MS, _PARTITION_BYTES, _RESPONSE_BYTES = 100, 2 << 20, 16 << 20
_LARGEST_RESPONSE = 128 << 20
_TIMEOUT_S, _RETRY_S = 10.0, 0.2
# A broker that is just coming back may not know its topics yet.
_MISSING_S = 30.0
# Of one partition, waiting to be taken.
_AHEAD_MESSAGES = 30_000
_OUT_OF_RANGE = 1
_NO_TAGS, _DIVERGING_EPOCH = b"\0", 0
# Not the leader, not ready, or not known there yet: ask who leads, and go on.
_PASSING = {3, 5, 6, 7, 9, 13, 14, 56, 74, 75, 78, 100, 103}


@dataclass
class _Partition:
    """What is read of a partition. `next_offset` is what to ask for next."""

    next_offset: int
    leader_epoch: int = -1
    waiting: deque[Records] = field(default_factory=deque)
    messages: int = 0
    end: int = -1
    stable_end: int = -1


class Fetcher:
    """Reads assigned partitions of a topic. `describe()` gives its id and leaders, None when it does not exist; it may raise."""

    def __init__(self, topic: str, describe: Callable[[], TopicState | None]) -> None:
        self._topic, self._describe = topic, describe
        self._log = logs.get("fetch").bind(topic=topic)
        self._topic_id = ""
        self._missing_since: float | None = None
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

    def assign(
        self, positions: dict[int, int], *, topic_id: str = "", leader_epochs: Mapping[int, int] | None = None
    ) -> None:
        """Read these partitions, each from an offset, and no others. What was fetched before is dropped.

        `topic_id`: of the topic that these offsets belong to, by default the one that there is. `leader_epochs`: of the
        batches before these offsets, where they are known.
        """
        epochs = leader_epochs or {}
        with self._changed:
            self._topic_id = topic_id or self._topic_id
            self._partitions = {p: _Partition(offset, epochs.get(p, -1)) for p, offset in positions.items()}
            self._failure = None
            self._changed.notify_all()

    def seek(self, partition: int, offset: int, leader_epoch: int = -1) -> None:
        """Go back (or forward)."""
        with self._changed:
            before = self._partitions.get(partition)
            if before is not None:
                self._partitions[partition] = _Partition(
                    offset, leader_epoch, end=before.end, stable_end=before.stable_end
                )
                self._changed.notify_all()

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order; waits until there are as many, or for the time given.

        Raises TopicChanged, LogTruncated, OffsetOutOfRange, CorruptLog.
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
        """The end of the log (high watermark) as last seen; negative before that."""
        state = self._partitions.get(partition)
        return -1 if state is None else state.end

    def stable_end(self, partition: int) -> int:
        """Where reading has to stop for an open transaction, or the end of the log; negative before it is known."""
        state = self._partitions.get(partition)
        return -1 if state is None else state.stable_end

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
            led: dict[int, Address] = {}
            try:
                led = self._leaders()
            except TopicChanged as error:
                self._fail(error)
            except AdclickError:
                pass
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

    def _leaders(self) -> dict[int, Address]:
        """Raises TopicChanged when the topic is not the one that is read."""
        state = self._describe()
        if state is None:
            now = time.monotonic()
            self._missing_since = self._missing_since or now
            if now - self._missing_since > _MISSING_S:
                raise TopicChanged(f"topic {self._topic} is gone")
            return {}
        self._missing_since = None
        with self._changed:
            self._topic_id = self._topic_id or state.topic_id
            if self._topic_id != state.topic_id:
                raise TopicChanged(
                    f"topic {self._topic} was made again: its id was {self._topic_id}, it is {state.topic_id}"
                )
        return state.leaders

    def _fail(self, error: AdclickError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

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
                self._fail(error)
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
            wanted = {p: (held, held.next_offset, held.leader_epoch) for p, held in self._wanted(address).items()}
            topic_id = self._topic_id
        if not wanted:
            return True
        connection.sendall(_request(topic_id, {p: (offset, epoch) for p, (_, offset, epoch) in wanted.items()}))
        fine = True
        for number, answer in _answers(_received(connection)):
            partition, offset, _ = wanted[number]
            if answer.diverges_at is not None:
                raise LogTruncated(
                    f"{self._topic}/{number} was cut off at offset {answer.diverges_at}: {offset} was to be read next",
                    partition=number,
                    end=answer.diverges_at,
                )
            if answer.error == _OUT_OF_RANGE:
                raise OffsetOutOfRange(
                    f"{self._topic}/{number}: offset {offset} is no longer there",
                    hint="events were deleted before they were read; restore them, or move the group's offset on purpose",
                )
            if answer.error:
                if answer.error not in _PASSING:
                    raise unreadable(answer.error, f"{self._topic}/{number}")
                fine = False
                continue
            records = record_batches.read(answer.data, answer.start, answer.stop, offset, answer.aborted)
            with self._changed:
                if self._partitions.get(number) is partition:
                    partition.end, partition.stable_end = answer.end, answer.stable_end
                    if records.next_offset > offset:
                        partition.leader_epoch = records.leader_epoch
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
            records.leader_epoch,
            records.by_broker,
        )

    middle = int(records.offsets[count])
    return part(slice(None, count), middle), part(slice(count, None), records.next_offset)


@dataclass(frozen=True)
class _Answer:
    """One partition's part of a response: data[start:stop]. The log ends at `end`; up to `stable_end` it is decided."""

    error: int
    end: int
    stable_end: int
    aborted: list[tuple[int, int]]
    diverges_at: int | None
    data: Bytes
    start: int
    stop: int


def _request(topic_id: str, positions: dict[int, tuple[int, int]]) -> bytes:
    """https://kafka.apache.org/protocol#The_Messages_Fetch, version 13, outside of a fetch session.

    `positions`: partition → offset, and the leader epoch of the batch before it.
    """
    parts = [
        struct.pack(">hhih", _FETCH, _VERSION, 0, len(_CLIENT)), _CLIENT, _NO_TAGS,
        struct.pack(">iiiibii", -1, _MAX_WAIT_MS, 1, _RESPONSE_BYTES, _READ_COMMITTED, 0, -1),
        _uvarint(2), base64.urlsafe_b64decode(topic_id + "=="), _uvarint(len(positions) + 1),
        *(
            struct.pack(">iiqiqi", p, -1, offset, epoch, -1, _PARTITION_BYTES) + _NO_TAGS
            for p, (offset, epoch) in positions.items()
        ),
        _NO_TAGS, _uvarint(1), _uvarint(1), _NO_TAGS,
    ]  # fmt: skip
    body = b"".join(parts)
    return struct.pack(">i", len(body)) + body


def _uvarint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


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


class _Reader:
    """Reads the fields of a response in order."""

    def __init__(self, data: Bytes) -> None:
        self.at, self._view = 0, memoryview(data)  # type: ignore[arg-type]

    def fields(self, kinds: str) -> Any:
        """Numbers of a fixed size, as `struct` names them."""
        numbers = struct.unpack_from(">" + kinds, self._view, self.at)
        self.at += struct.calcsize(">" + kinds)
        return numbers

    def uvarint(self) -> int:
        """An unsigned number of variable size."""
        number = shift = 0
        while True:
            byte = self._view[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def array(self) -> range:
        """As many steps as a compact array has elements; none where it is null."""
        return range(max(0, self.uvarint() - 1))

    def tags(self) -> dict[int, int]:
        """Tagged fields: number → where its bytes begin."""
        found = {}
        for _ in range(self.uvarint()):
            tag, size = self.uvarint(), self.uvarint()
            found[tag] = self.at
            self.at += size
        return found

    def diverging_epoch(self, at: int) -> int:
        """Where the log and what was read of it part, of such a field."""
        return int(struct.unpack_from(">q", self._view, at + 4)[0])


def _answers(data: Bytes) -> list[tuple[int, _Answer]]:
    """(partition, its part) of a response."""
    reader, answers = _Reader(data), list[tuple[int, _Answer]]()
    try:
        reader.fields("i")
        reader.tags()
        _, error, _ = reader.fields("ihi")
        if error:
            raise OSError(f"error {error}")
        for _ in reader.array():
            reader.fields("16s")
            for _ in reader.array():
                answers.append(_answer(reader, data))
            reader.tags()
    except (struct.error, IndexError) as problem:
        raise CorruptLog(f"Kafka: a response of an unknown form: {problem}") from problem
    return answers


def _answer(reader: _Reader, data: Bytes) -> tuple[int, _Answer]:
    number, error, end, stable_end, _ = reader.fields("ihqqq")
    aborted = list[tuple[int, int]]()
    for _ in reader.array():
        aborted.append(reader.fields("qq"))
        reader.tags()
    reader.fields("i")
    size = max(0, reader.uvarint() - 1)
    start = reader.at
    reader.at += size
    diverging = reader.tags().get(_DIVERGING_EPOCH)
    diverges_at = None if diverging is None else reader.diverging_epoch(diverging)
    return number, _Answer(error, end, stable_end, aborted, diverges_at, data, start, start + size)


@dataclass(frozen=True)
class Starts:
    """Where to start reading: partition → offset, in the topic of this id, after batches of these leader epochs."""

    positions: dict[int, int]
    topic_id: str
    leader_epochs: dict[int, int]


class ColumnConsumer:
    """One member of a consumer group over one topic, which positions itself and reads by column.

    `on_assign(partitions)` returns where to start each; `on_revoke(partitions)` is told what is gone. Both run inside
    `take`.
    """

    def __init__(
        self,
        servers: str,
        group: str,
        topic: str,
        on_assign: Callable[[list[int]], Starts],
        on_revoke: Callable[[list[int]], None],
        session_timeout_ms: int,
    ) -> None:
        self._on_assign = on_assign
        admin = Admin(servers, timeout_s=3.0)
        self._fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic))
        self.member = GroupConsumer(servers, group, topic, self._assigned, on_revoke, session_timeout_ms, reads=False)

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        starts = self._on_assign(partitions)
        self._fetcher.assign(starts.positions, topic_id=starts.topic_id, leader_epochs=starts.leader_epochs)
        return starts.positions

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order.

        Raises TopicChanged, LogTruncated, OffsetOutOfRange, CorruptLog.
        """
        self.member.consume(1, 0.0)
        return self._fetcher.take(count, timeout_s)

    def end(self, partition: int) -> int:
        """The end of the log (high watermark) as last seen; negative before that."""
        return self._fetcher.end(partition)

    def stable_end(self, partition: int) -> int:
        """Where reading has to stop for an open transaction, or the end of the log; negative before it is known."""
        return self._fetcher.stable_end(partition)

    def seek(self, partition: int, offset: int, leader_epoch: int = -1) -> None:
        """Go back (or forward) to an offset."""
        self._fetcher.seek(partition, offset, leader_epoch)

    def close(self) -> None:
        """Stop reading and leave the group."""
        self._fetcher.close()
        self.member.close()
