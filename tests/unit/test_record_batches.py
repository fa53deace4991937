"""Record batches as other clients may write them: every form of LZ4 frame gives the same messages."""

from __future__ import annotations

import struct

import cramjam
import numpy as np
import pytest

from infra import record_batches
from infra.columns import PADDING
from infra.errors import CorruptLog

VALUES = [b"%d " % i * (i % 300) for i in range(1500)]
_LZ4 = 3


def varint(number: int) -> bytes:
    number, out = number * 2 if number >= 0 else -number * 2 - 1, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def records() -> bytes:
    found = b""
    for delta, value in enumerate(VALUES):
        body = b"\0" + varint(0) + varint(delta) + varint(-1) + varint(len(value)) + value + varint(0)
        found += varint(len(body)) + body
    return found


def frame(plain: bytes, *, summed: bool, sized: bool, every_second_plain: bool) -> bytes:
    """Blocks that stand alone: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md, checksums left zero."""
    flags = 0x60 | (0x10 if summed else 0) | (0x08 if sized else 0)
    parts = [b"\x04\x22\x4d\x18", bytes([flags, 0x40]), struct.pack("<Q", len(plain)) if sized else b"", b"\0"]
    for number, start in enumerate(range(0, len(plain), 1 << 16)):
        part = plain[start : start + (1 << 16)]
        if every_second_plain and number % 2:
            parts.append(struct.pack("<I", len(part) | 1 << 31) + part)
        else:
            packed = bytes(cramjam.lz4.compress_block(part, store_size=False))
            parts.append(struct.pack("<I", len(packed)) + packed)
        parts.append(bytes(4) if summed else b"")
    return b"".join([*parts, bytes(4)])


def read(packed: bytes) -> list[bytes | None]:
    head = struct.pack(
        ">qiibIhiqqqhii", 7, 49 + len(packed), 0, 2, 0, _LZ4, len(VALUES) - 1, 5, 5, -1, -1, -1, len(VALUES)
    )
    raw = head + packed
    data = np.frombuffer(raw + bytes(PADDING), np.uint8)
    found = record_batches.read(data, 0, len(raw), 7, [])
    assert found.offsets.tolist() == [7 + i for i in range(len(VALUES))]
    return [found.values[i] for i in range(len(VALUES))]


@pytest.mark.parametrize("every_second_plain", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_frames_of_blocks_that_stand_alone(summed: bool, sized: bool, every_second_plain: bool) -> None:
    packed = frame(records(), summed=summed, sized=sized, every_second_plain=every_second_plain)
    assert read(packed) == VALUES


def test_a_frame_of_blocks_that_need_the_ones_before() -> None:
    packed = bytes(cramjam.lz4.compress(records()))
    assert not packed[4] & 0x20
    assert read(packed) == VALUES


@pytest.mark.parametrize("cut", [3, 6, 20, 70_000])
def test_a_frame_that_is_cut_or_damaged_stops_the_reader(cut: int) -> None:
    packed = frame(records(), summed=False, sized=False, every_second_plain=True)
    with pytest.raises(CorruptLog):
        read(packed[:cut])
    with pytest.raises(CorruptLog):
        read(b"no frame" + packed)
