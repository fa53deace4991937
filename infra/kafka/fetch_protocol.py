"""Kafka's Fetch on the wire: a request for some partitions of a topic, and what a broker answers for each of them.

https://kafka.apache.org/protocol#The_Messages_Fetch, version 13, outside of a fetch session. Bytes and sockets only: what an
answer means for the reader is `infra.kafka.fetch`'s.
"""

from __future__ import annotations

import base64
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.columnar.columns import PADDING, Bytes
from infra.errors import CorruptLog

_FETCH, _VERSION, _CLIENT = 1, 13, b"adclick"
_READ_COMMITTED = 1
# The broker waits until so much has come, or for so long: a request costs it some work for each partition.
_MAX_WAIT_MS, _LEAST_RESPONSE_BYTES, _RESPONSE_BYTES = 100, 64 << 10, 16 << 20
# Of a partition. A record batch as large as brokers take by default fits, or little would come of the partitions behind the first.
_MOST_PARTITION_BYTES, _LEAST_PARTITION_BYTES = 2 << 20, (1 << 20) + 64
_LARGEST_RESPONSE = 128 << 20
_NO_TAGS, _DIVERGING_EPOCH = b"\0", 0


@dataclass(frozen=True)
class PartitionAnswer:
    """One partition's part of a response. Its record batches are data[start:stop]; `data` goes on for PADDING bytes.

    The log ends at `end`; up to `stable_end` all transactions are decided. `error` is 0 or the number of a Kafka error.
    `aborted`: (producer id, first offset) of transactions that were rolled back. `diverges_at`: where the leader's log parts
    from what was read; None where it does not. `near_replica`: the broker to ask instead; negative where there is none.
    """

    partition: int
    error: int
    end: int
    stable_end: int
    aborted: list[tuple[int, int]]
    diverges_at: int | None
    near_replica: int
    data: Bytes
    start: int
    stop: int


def encode_request(topic_id: str, positions: dict[int, tuple[int, int]], rack: str = "") -> bytes:
    """A request; `positions`: partition → the next offset, and the leader epoch of the batch before it. `rack`: ours, by which a leader
    may name another replica."""
    place = rack.encode()
    partition_bytes = max(_LEAST_PARTITION_BYTES, min(_MOST_PARTITION_BYTES, _RESPONSE_BYTES // max(1, len(positions))))
    parts = [
        struct.pack(">hhih", _FETCH, _VERSION, 0, len(_CLIENT)), _CLIENT, _NO_TAGS,
        struct.pack(">iiiibii", -1, _MAX_WAIT_MS, _LEAST_RESPONSE_BYTES, _RESPONSE_BYTES, _READ_COMMITTED, 0, -1),
        _uvarint(2), base64.urlsafe_b64decode(topic_id + "=="), _uvarint(len(positions) + 1),
        *(
            struct.pack(">iiqiqi", partition, -1, offset, epoch, -1, partition_bytes) + _NO_TAGS
            for partition, (offset, epoch) in positions.items()
        ),
        _NO_TAGS, _uvarint(1), _uvarint(len(place) + 1), place, _NO_TAGS,
    ]  # fmt: skip
    body = b"".join(parts)
    return struct.pack(">i", len(body)) + body


def receive_response(connection: socket.socket) -> Bytes:
    """The bytes of one response, followed by PADDING zeros. Raises OSError, EOFError."""
    size_field = bytearray(4)
    receive_into(connection, memoryview(size_field))
    (size,) = struct.unpack(">i", size_field)
    if not 0 < size <= _LARGEST_RESPONSE:
        raise OSError(f"a response of {size} bytes")
    data = np.empty(size + PADDING, np.uint8)
    receive_into(connection, memoryview(data)[:size])  # type: ignore[arg-type]
    data[size:] = 0
    return data


def decode_response(data: Bytes) -> list[PartitionAnswer]:
    """The answers in a response. Raises OSError for an error of the whole request, CorruptLog for another form."""
    fields, answers = _Fields(data), list[PartitionAnswer]()
    try:
        fields.numbers("i")
        fields.tags()
        _, error, _ = fields.numbers("ihi")
        if error:
            raise OSError(f"error {error}")
        for _ in fields.array():
            fields.numbers("16s")
            answers.extend(_decode_partition(fields, data) for _ in fields.array())
            fields.tags()
    except (struct.error, IndexError) as error:
        raise CorruptLog(f"Kafka: a response of an unknown form: {error}") from error
    return answers


def _decode_partition(fields: _Fields, data: Bytes) -> PartitionAnswer:
    number, error, end, stable_end, _ = fields.numbers("ihqqq")
    aborted = list[tuple[int, int]]()
    for _ in fields.array():
        aborted.append(fields.numbers("qq"))
        fields.tags()
    (near_replica,) = fields.numbers("i")
    size = max(0, fields.uvarint() - 1)
    start = fields.at
    fields.at += size
    epoch_at = fields.tags().get(_DIVERGING_EPOCH)
    diverges_at = None if epoch_at is None else fields.diverging_offset(epoch_at)
    return PartitionAnswer(
        number, error, end, stable_end, aborted, diverges_at, near_replica, data, start, start + size
    )


def _uvarint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view` with what a broker sends. Raises OSError, EOFError."""
    while len(view):
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the broker closed the connection")
        view = view[count:]


class _Fields:
    """The fields of a response, read in order; `at` is where the next one begins."""

    def __init__(self, data: Bytes) -> None:
        self.at, self._view = 0, memoryview(data)  # type: ignore[arg-type]

    def numbers(self, kinds: str) -> Any:
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
        positions = {}
        for _ in range(self.uvarint()):
            tag, size = self.uvarint(), self.uvarint()
            positions[tag] = self.at
            self.at += size
        return positions

    def diverging_offset(self, at: int) -> int:
        """The end offset in a DivergingEpoch that begins at `at`."""
        return int(struct.unpack_from(">q", self._view, at + 4)[0])
