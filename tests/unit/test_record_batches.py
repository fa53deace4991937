"""Record batches of other clients are read, damaged ones never."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import cramjam
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.columnar.columns import PADDING
from infra.kafka import record_batches
from infra.kafka.record_batches import CorruptBatch, Records

VALUES = [b"%d " % i * (i % 300) for i in range(1500)]
_LZ4 = 3


def varint(number: int) -> bytes:
    number, out = number * 2 if number >= 0 else -number * 2 - 1, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def records() -> bytes:
    records = b""
    for delta, value in enumerate(VALUES):
        body = b"\0" + varint(0) + varint(delta) + varint(-1) + varint(len(value)) + value + varint(0)
        records += varint(len(body)) + body
    return records


def frame(plain: bytes, *, summed: bool, sized: bool, every_second_plain: bool, block: int = 1 << 16) -> bytes:
    """An LZ4 frame of independent blocks: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md, checksums left zero."""
    flags = 0x60 | (0x10 if summed else 0) | (0x08 if sized else 0)
    parts = [b"\x04\x22\x4d\x18", bytes([flags, 0x40]), struct.pack("<Q", len(plain)) if sized else b"", b"\0"]
    for number, start in enumerate(range(0, len(plain), block)):
        part = plain[start : start + block]
        if every_second_plain and number % 2:
            parts.append(struct.pack("<I", len(part) | 1 << 31) + part)
        else:
            packed = bytes(cramjam.lz4.compress_block(part, store_size=False))
            parts.append(struct.pack("<I", len(packed)) + packed)
        parts.append(bytes(4) if summed else b"")
    return b"".join([*parts, bytes(4)])


def crc32c(data: bytes) -> int:
    """Bit by bit, with the polynomial of Castagnoli in reverse (RFC 3720, B.4)."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


def batch(
    packed: bytes, *, codec: int = _LZ4, count: int = len(VALUES), offset: int = 7, leader_epoch: int = 0
) -> bytes:
    """A record batch."""
    covered = struct.pack(">hiqqqhii", codec, count - 1, 5, 5, -1, -1, -1, count) + packed
    return struct.pack(">qiibI", offset, 9 + len(covered), leader_epoch, 2, crc32c(covered)) + covered


def read_raw(raw: bytes) -> Records:
    return record_batches.read_batches(np.frombuffer(raw + bytes(PADDING), np.uint8), 0, len(raw), 7, [])


def read(packed: bytes) -> list[bytes | None]:
    messages = read_raw(batch(packed))
    assert messages.offsets.tolist() == [7 + i for i in range(len(VALUES))]
    return [messages.values[i] for i in range(len(VALUES))]


@pytest.mark.parametrize("every_second_plain", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_lz4_frames_of_independent_blocks_are_read(summed: bool, sized: bool, every_second_plain: bool) -> None:
    packed = frame(records(), summed=summed, sized=sized, every_second_plain=every_second_plain)
    assert read(packed) == VALUES


@pytest.mark.parametrize("block", [1_000, 50_000])
def test_blocks_may_be_shorter_than_the_largest(block: int) -> None:
    assert read(frame(records(), summed=False, sized=False, every_second_plain=False, block=block)) == VALUES


def test_lz4_frames_of_linked_blocks_are_read() -> None:
    packed = bytes(cramjam.lz4.compress(records()))
    assert not packed[4] & 0x20
    assert read(packed) == VALUES


@pytest.mark.parametrize("cut", [3, 6, 20, 70_000])
def test_a_frame_that_is_cut_or_damaged_stops_the_reader(cut: int) -> None:
    packed = frame(records(), summed=False, sized=False, every_second_plain=True)
    with pytest.raises(CorruptBatch):
        read(packed[:cut])
    with pytest.raises(CorruptBatch):
        read(b"no frame" + packed)


def record(delta: int, value: bytes = b"value", key_size: int = -1, longer: int = 0) -> bytes:
    body = b"\0" + varint(0) + varint(delta) + varint(key_size) + varint(len(value)) + value + varint(0)
    return varint(len(body) + longer) + body


@pytest.mark.parametrize(
    ("packed", "count"),
    [
        (record(0) + record(1), 1),
        (record(0), 2),
        (record(0) + b"\0", 1),
        (record(0) + record(1)[:-3], 2),
        (record(0) + record(1, longer=3), 2),
        (record(0) + record(1, key_size=1 << 40), 2),
        (record(0) + record(1, key_size=2**62), 2),
        (record(0) + varint(2**62) + record(1), 2),
        (record(0) + record(0), 2),
        (record(1) + record(0), 2),
        (record(0) + record(2), 2),
        (record(0) + b"\xff" * 12, 2),
    ],
    ids=[
        "more records than counted", "fewer", "a byte too many", "cut short", "longer than its batch", "a key that is longer", "a key of a size that overflows", "a size that overflows",
        "an offset twice", "offsets backwards", "an offset beyond the last", "no number",
    ],
)  # fmt: skip
def test_a_batch_whose_records_are_not_as_its_header_says_is_refused_whole(packed: bytes, count: int) -> None:
    # As reported of a client that read such a batch up to the first bad record, and went on behind it (Dekaf #2065).
    assert len(read_raw(batch(record(0) + record(1), codec=0, count=2)).offsets) == 2
    with pytest.raises(CorruptBatch):
        read_raw(batch(packed, codec=0, count=count))


@pytest.mark.parametrize("count", [-(2**31), -2, -1, 0, 2, 3, 2**31 - 1])
@pytest.mark.parametrize("codec", [0, _LZ4])
def test_a_number_of_records_that_its_bytes_cannot_hold_is_refused(codec: int, count: int) -> None:
    plain = record(0)
    packed = plain if codec == 0 else frame(plain, summed=False, sized=False, every_second_plain=False)
    raw = bytearray(batch(packed, codec=codec, count=1))
    raw[57:61] = struct.pack(">i", count)
    raw[17:21] = struct.pack(">I", crc32c(bytes(raw[21:])))
    with pytest.raises(CorruptBatch) as failure:
        read_raw(bytes(raw))
    assert failure.value.offset == 7


def test_the_shortest_records_are_read() -> None:
    shortest = b"".join(
        varint(6) + b"\0" + varint(0) + varint(delta) + varint(-1) * 2 + varint(0) for delta in range(9)
    )
    messages = read_raw(batch(shortest, codec=0, count=9))
    assert [messages.values[i] for i in range(9)] == [None] * 9
    assert len(read_raw(batch(b"", codec=0, count=0)).offsets) == 0, "as compaction leaves it"


@pytest.mark.parametrize(
    ("message_format", "length", "reason", "advice"),
    [
        (0, 200, "is in the old message format v0; v2 is needed", "copy the topic"),
        (1, 200, "is in the old message format v1; v2 is needed", "copy the topic"),
        (3, 200, "is in the unknown message format v3", "restore the segment"),
        (2, 48, "is shorter than its header", "restore the segment"),
    ],
)
def test_a_batch_of_another_format_is_named_with_what_to_do(
    message_format: int, length: int, reason: str, advice: str
) -> None:
    other = struct.pack(">qiib", 8, length, 0, message_format) + bytes(200)
    with pytest.raises(CorruptBatch, match=reason) as failure:
        read_raw(batch(record(0), codec=0, count=1) + other)
    assert failure.value.offset == 8
    assert advice in failure.value.hint


def test_the_checksum_is_crc_32c() -> None:
    assert crc32c(b"123456789") == 0xE306_9283, "its published check value"


@pytest.mark.parametrize("codec", [0, _LZ4])
def test_every_flipped_bit_under_the_checksum_is_detected(codec: int) -> None:
    body = b"\0" + varint(0) + varint(0) + varint(-1) + varint(6) + b"values" + varint(0)
    plain = varint(len(body)) + body
    packed = plain if codec == 0 else frame(plain, summed=False, sized=False, every_second_plain=False)
    raw = batch(packed, codec=codec, count=1)
    assert read_raw(raw).values[0] == b"values"
    for bit in range(8 * 17, 8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatch) as failure:
            read_raw(bytes(flipped))
        assert failure.value.offset == 7


def test_a_damaged_batch_is_named_and_those_before_it_are_not_read_without_it() -> None:
    body = b"\0" + varint(0) + varint(0) + varint(-1) + varint(6) + b"values" + varint(0)
    intact = batch(varint(len(body)) + body, codec=0, count=1)
    second = struct.pack(">q", 8) + intact[8:-1] + b"\1"
    with pytest.raises(CorruptBatch, match="CRC-32C") as failure:
        read_raw(intact + second)
    assert failure.value.offset == 8


@given(st.integers(1, 6), st.data())
def test_of_some_batches_those_before_the_first_bad_one_are_read_and_that_one_is_named(count: int, data: Any) -> None:
    batches = [bytearray(batch(record(0) + record(1), codec=0, count=2, offset=7 + 2 * n)) for n in range(count)]
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    for number in bad:
        at = data.draw(st.integers(17, len(batches[number]) - 1))  # what the checksum covers, or is
        batches[number][at] ^= data.draw(st.integers(1, 255))
    raw = b"".join(batches)
    messages, corrupt = record_batches.read_intact(np.frombuffer(raw + bytes(PADDING), np.uint8), 0, len(raw), 7, [])
    first = min(bad, default=count)
    assert messages.offsets.tolist() == list(range(7, 7 + 2 * first))
    assert (corrupt is None) == (not bad)
    if corrupt is not None:
        assert (corrupt.offset, corrupt.raw) == (7 + 2 * first, bytes(batches[first]))
        assert first == count - 1 or corrupt.next_offset == 9 + 2 * first


@pytest.mark.parametrize("codec", ["snappy", "lz4", "zstd"])
def test_a_batch_that_would_take_all_of_the_memory_is_refused(codec: str) -> None:
    codecs: dict[str, tuple[int, Callable[[bytes], Any]]] = {
        # What it says that it would become, before anything is.
        "snappy": (2, lambda _: b"\xff\xff\xff\xff\x0f" + bytes(50)), "lz4": (3, cramjam.lz4.compress),
        "zstd": (4, cramjam.zstd.compress),
    }  # fmt: skip
    number, packed = codecs[codec]
    with pytest.raises(CorruptBatch, match="is larger than 256 MiB"):
        read_raw(batch(bytes(packed(bytes(257 << 20))), codec=number, count=1))
