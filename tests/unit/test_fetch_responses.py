"""Fetch requests and responses on the wire: https://kafka.apache.org/protocol#The_Messages_Fetch, version 13."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from infra.columnar.columns import PADDING, Bytes
from infra.errors import CorruptLog
from infra.kafka import fetch_protocol

TOPIC_ID = "AAECAwQFBgcICQoLDA0ODw"


def uvarint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + uvarint(number >> 7)


def partition(
    number: int, records: bytes, *, aborted: Any = (), diverging: bytes = b"\0", error: int = 0, end: int = 900
) -> bytes:
    transactions = b"".join(struct.pack(">qq", *transaction) + b"\0" for transaction in aborted)
    head = struct.pack(">ihqqq", number, error, end, 800, 10)
    tail = struct.pack(">i", -1) + uvarint(len(records) + 1) + records + diverging
    return head + uvarint(len(aborted) + 1) + transactions + tail


def response(*partitions: bytes) -> Bytes:
    topic = bytes(range(16)) + uvarint(len(partitions) + 1) + b"".join(partitions) + b"\0"
    raw = struct.pack(">i", 0) + b"\0" + struct.pack(">ihi", 0, 0, 0) + uvarint(2) + topic + b"\0"
    return np.frombuffer(raw + bytes(PADDING), np.uint8)


def test_a_response_has_each_partition_with_its_aborted_transactions() -> None:
    records = bytes(range(200))
    data = response(partition(3, records, aborted=[(7, 11), (8, 12)]), partition(4, b"", error=3))
    three, four = fetch_protocol.decode_response(data)
    assert (three.partition, three.end, three.stable_end, three.aborted) == (3, 900, 800, [(7, 11), (8, 12)])
    assert data[three.start : three.stop].tobytes() == records
    assert (three.error, three.diverges_at) == (0, None)
    assert (four.partition, four.error, four.stop - four.start) == (4, 3, 0)


def test_a_truncated_log_reports_where_it_diverges() -> None:
    # Tagged field 0: the epoch, and where it ends in the leader's log.
    diverging = uvarint(1) + uvarint(0) + uvarint(13) + struct.pack(">iq", 5, 640) + b"\0"
    (answer,) = fetch_protocol.decode_response(response(partition(0, b"", diverging=diverging)))
    assert answer.diverges_at == 640


def test_a_truncated_response_is_refused() -> None:
    data = response(partition(0, b"", aborted=[(7, 11)]))
    with pytest.raises(CorruptLog, match="unknown form"):
        fetch_protocol.decode_response(data[: len(data) - PADDING - 30])


def test_a_request_names_the_topic_by_its_id_and_the_epoch_that_was_read() -> None:
    raw = fetch_protocol.encode_request(TOPIC_ID, {2: (50, 6)})
    assert struct.unpack(">i", raw[:4])[0] == len(raw) - 4
    assert bytes(range(16)) in raw
    assert struct.pack(">iiqi", 2, -1, 50, 6) in raw
