"""Kafka's record batches (format 2) by column: bytes off the wire to where each message lies.

Only what a reader of committed messages needs: https://kafka.apache.org/documentation/#recordbatch. Aborted transactions
and control records are left out here, as every client does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cramjam
import numpy as np

from infra.columns import PADDING, Bytes, Ints, Values
from infra.compiled import Number, byte_at, compiled
from infra.errors import CorruptLog

_HEADER = 61
_CODEC, _LOG_APPEND, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
# Columns of the table of batches.
_AT, _END, _COUNT, _FIRST, _LAST, _FIRST_MS, _MAX_MS, _ATTRIBUTES, _PRODUCER, _EPOCH = range(10)
_WRONG = -1
_XERIAL = b"\x82SNAPPY\x00"
_LZ4 = b"\x04\x22\x4d\x18"
_LZ4_ALONE, _LZ4_SUMMED, _LZ4_SIZED, _LZ4_DICTIONARY = 0x20, 0x10, 0x08, 0x01
_LZ4_PLAIN = 1 << 31
_LZ4_MOST = 255  # times the size


@dataclass(frozen=True)
class Records:
    """Messages of one partition, in offset order; `next_offset` is where to go on, which may be beyond the last of them."""

    offsets: Ints
    timestamps_ms: Ints
    values: Values
    keys: Values
    next_offset: int
    leader_epoch: int = -1
    """Of the leader that wrote the last batch; −1 when there was none."""
    by_broker: bool = True
    """Whether all timestamps are the broker's (LogAppendTime)."""

    def shifted(self, by: int) -> Records:
        """The same messages at higher offsets."""
        return replace(self, offsets=self.offsets + by, next_offset=self.next_offset + by) if by else self


def read(data: Bytes, start: int, end: int, from_offset: int, aborted: list[tuple[int, int]]) -> Records:
    """The messages from `from_offset` on in data[start:end], which may end within a batch.

    `data` goes on for PADDING bytes. `aborted`: (producer id, first offset) of transactions that did not happen. Raises
    CorruptLog.
    """
    table = np.empty(((end - start) // _HEADER + 1, 10), np.int64)
    found = table[: _batches(data.ctypes.data, start, end, table)]
    if len(found) and found[0, _COUNT] == _WRONG:
        raise CorruptLog("Kafka: a record batch of an unknown format")
    next_offset = max(from_offset, int(found[-1, _LAST]) + 1) if len(found) else from_offset
    wanted = found[_committed(data, found, aborted) & (found[:, _LAST] >= from_offset)]
    epoch = int(found[-1, _EPOCH]) if len(found) else -1
    return _records(*_plain(data, wanted), from_offset, next_offset, epoch)


def _committed(data: Bytes, table: Ints, aborted: list[tuple[int, int]]) -> Any:
    """Which batches hold messages that count."""
    kept = table[:, _ATTRIBUTES] & _CONTROL == 0
    if not aborted:
        return kept
    waiting, open_now = sorted(aborted, key=lambda a: a[1], reverse=True), set[int]()
    for number, batch in enumerate(table.tolist()):
        while waiting and waiting[-1][1] <= batch[_FIRST]:
            open_now.add(waiting.pop()[0])
        if batch[_ATTRIBUTES] & _CONTROL:
            # Its one record's key: version, then 0 for an abort. Either ends the transaction.
            open_now.discard(batch[_PRODUCER])
        elif batch[_ATTRIBUTES] & _TRANSACTIONAL and batch[_PRODUCER] in open_now:
            kept[number] = False
    return kept


def _plain(data: Bytes, table: Ints) -> tuple[Bytes, Ints]:
    """The batches with their records decompressed: memory that holds them all, and the table of where."""
    if not (table[:, _ATTRIBUTES] & _CODEC).any():
        return data, table
    table, parts, at = table.copy(), list[Any](), 0
    for batch in table:
        packed = memoryview(data)[batch[_AT] : batch[_END]]  # type: ignore[arg-type]
        batch[_AT] = at
        for part in _decompressed(packed, int(batch[_ATTRIBUTES]) & _CODEC):
            parts.append(part)
            at += len(part)
        batch[_END] = at
    return np.frombuffer(b"".join([*parts, bytes(PADDING)]), np.uint8), table


def _decompressed(packed: memoryview, codec: int) -> list[Any]:
    """The records, in pieces."""
    try:
        if codec == 0:
            return [packed]
        if codec == 1:
            return [cramjam.gzip.decompress(packed)]
        if codec == 2:
            return [_unsnapped(packed.tobytes())]
        if codec == 3:
            return _unframed(packed)
        if codec == 4:
            return [cramjam.zstd.decompress(packed)]
    except cramjam.DecompressionError as error:
        raise CorruptLog(f"Kafka: a record batch cannot be decompressed: {error}") from error
    raise CorruptLog(f"Kafka: a record batch is compressed in an unknown way ({codec})")


def _unframed(packed: memoryview) -> list[Any]:
    """LZ4, a block at a time where they stand alone, as Kafka's clients write them: that takes a third of what frames do.

    https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md; checksums are not looked at, as elsewhere.
    """
    if len(packed) < 7 or bytes(packed[:4]) != _LZ4:
        raise CorruptLog("Kafka: a record batch is no LZ4 frame")
    flags, largest = packed[4], 1 << (8 + 2 * (packed[5] >> 4 & 7))
    if flags & (_LZ4_ALONE | _LZ4_DICTIONARY) != _LZ4_ALONE:
        return [cramjam.lz4.decompress(packed)]
    at, parts = 7 + (8 if flags & _LZ4_SIZED else 0), list[Any]()
    while size := int.from_bytes(packed[at : at + 4], "little"):
        at += 4
        block = packed[at : at + (size & ~_LZ4_PLAIN)]
        if len(block) < size & ~_LZ4_PLAIN:
            raise CorruptLog("Kafka: a record batch is cut short")
        room = min(largest, _LZ4_MOST * len(block))
        parts.append(block if size & _LZ4_PLAIN else cramjam.lz4.decompress_block(block, output_len=room))
        at += len(block) + (4 if flags & _LZ4_SUMMED else 0)
    return parts


def _unsnapped(packed: bytes) -> bytes:
    """Snappy, in the blocks of the Java client or without."""
    if not packed.startswith(_XERIAL):
        return bytes(cramjam.snappy.decompress_raw(packed))
    parts, at = [], 16
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4])
        parts.append(bytes(cramjam.snappy.decompress_raw(packed[at + 4 : at + 4 + size])))
        at += 4 + size
    return b"".join(parts)


def _records(data: Bytes, table: Ints, from_offset: int, next_offset: int, leader_epoch: int) -> Records:
    count = int(table[:, _COUNT].sum())
    columns = np.empty((6, count), np.int64)
    filled = _read_records(data.ctypes.data, table, from_offset, columns)
    if filled == _WRONG:
        raise CorruptLog("Kafka: a record batch is damaged")
    offsets, times, starts, ends, key_starts, key_ends = columns[:, :filled]
    values, keys = Values(data, starts, ends), Values(data, key_starts, key_ends)
    by_broker = bool((table[:, _ATTRIBUTES] & _LOG_APPEND != 0).all())
    return Records(offsets, times, values, keys, next_offset, leader_epoch, by_broker)


@compiled
def _big_endian(base: Number, at: Number, size: Number) -> Number:
    """A signed integer of `size` bytes."""
    number = np.int64(np.int8(byte_at(base, at)))
    for i in range(1, size):
        number = (number << 8) | np.int64(byte_at(base, at + i))
    return number


@compiled
def _batches(data: Number, start: Number, end: Number, table: Any) -> Number:
    """Fill the table with the whole batches there are; returns how many, the first with a wrong count for a bad format."""
    at, found = start, 0
    while at + _HEADER <= end:
        stop = at + 12 + _big_endian(data, at + 8, 4)
        if byte_at(data, at + 16) != 2 or stop < at + _HEADER:
            table[0, _COUNT] = _WRONG
            return 1
        if stop > end:
            break
        first = _big_endian(data, at, 8)
        table[found, _AT], table[found, _END] = at + _HEADER, stop
        table[found, _COUNT] = _big_endian(data, at + 57, 4)
        table[found, _FIRST], table[found, _LAST] = first, first + _big_endian(data, at + 23, 4)
        table[found, _FIRST_MS], table[found, _MAX_MS] = _big_endian(data, at + 27, 8), _big_endian(data, at + 35, 8)
        table[found, _ATTRIBUTES] = _big_endian(data, at + 21, 2)
        table[found, _PRODUCER] = _big_endian(data, at + 43, 8)
        table[found, _EPOCH] = _big_endian(data, at + 12, 4)
        found += 1
        at = stop
    return found


@compiled
def _varint(data: Number, at: Number) -> tuple[Number, Number]:
    """A zigzag integer of up to ten bytes, and where it ends."""
    byte = np.uint64(byte_at(data, at))
    at += 1
    number, shift = byte & np.uint64(0x7F), np.uint64(7)
    while byte & np.uint64(0x80) and shift < 64:
        byte = np.uint64(byte_at(data, at))
        at += 1
        number |= (byte & np.uint64(0x7F)) << shift
        shift += np.uint64(7)
    return np.int64(number >> np.uint64(1)) ^ -np.int64(number & np.uint64(1)), at


@compiled
def _read_records(data: Number, table: Any, from_offset: Number, columns: Any) -> Number:
    """Fill columns: offset, timestamp, and where value and key begin and end; returns how many, or a negative number."""
    filled = 0
    for batch in range(len(table)):
        at, end = table[batch, _AT], table[batch, _END]
        append = table[batch, _ATTRIBUTES] & _LOG_APPEND != 0
        for _ in range(table[batch, _COUNT]):
            if at >= end:
                return _WRONG
            size, at = _varint(data, at)
            stop = at + size
            if size < 0 or stop > end:
                return _WRONG
            delta_ms, at = _varint(data, at + 1)
            delta, at = _varint(data, at)
            key_size, at = _varint(data, at)
            key_at = at
            value_size, at = _varint(data, at + max(key_size, 0))
            if at + max(value_size, 0) > stop:
                return _WRONG
            offset = table[batch, _FIRST] + delta
            if offset >= from_offset:
                columns[0, filled] = offset
                columns[1, filled] = table[batch, _MAX_MS] if append else table[batch, _FIRST_MS] + delta_ms
                # What is null ends before it starts.
                columns[2, filled], columns[3, filled] = at, at + value_size
                columns[4, filled], columns[5, filled] = key_at, key_at + key_size
                filled += 1
            at = stop
    return filled
