"""Kafka's record batches (format 2) by column: bytes off the wire to where each message lies.

Only what a reader of committed messages needs: https://kafka.apache.org/documentation/#recordbatch. Aborted transactions
and control records are left out here, as every client does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cramjam
import google_crc32c
import numpy as np

from infra.columnar.columns import PADDING, Bytes, Ints, Values
from infra.columnar.jit import Number, byte_at, compiled
from infra.errors import CorruptLog

_HEADER = 61
_CODEC, _LOG_APPEND, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
# Columns of the table of batches.
_AT, _END, _COUNT, _FIRST, _LAST, _FIRST_MS, _MAX_MS, _ATTRIBUTES, _PRODUCER, _EPOCH, _CRC = range(11)
_COLUMNS = 11
# The checksum covers a batch from its attributes on: what comes before is rewritten by the broker.
_HEADER_AFTER_CRC = _HEADER - 21
_WRONG, _NOWHERE = -1, -1
_FORMAT = 2
_LONGEST_HEADERS = 1024
# A size, attributes, the differences of time and offset, the sizes of key and value, the number of headers: a byte each.
_SHORTEST_RECORD = 7
# Up to and with the format's number, which is where it is in all formats.
_SHORTEST_HEADER = 17
# What a batch may become when it is decompressed: one of a few megabytes could otherwise take all of the memory.
_LARGEST_PLAIN = 256 << 20
# Times the size: most batches fit the room that is made first.
_FIRST_ROOM = 32
_RESTORE = "compare the broker's replicas; restore the segment from an intact one"
_REWRITE = "copy the topic with a client of Kafka 0.11 or later, which writes message format v2"
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
    is_of_one_leader: bool = True
    """Whether all batches have that leader epoch."""

    def shifted(self, by: int) -> Records:
        """The same messages at higher offsets."""
        return replace(self, offsets=self.offsets + by, next_offset=self.next_offset + by) if by else self

    def headers(self, row: int) -> dict[bytes, bytes]:
        """The headers of a message, by name; none where they are longer than those of our own messages.

        They are read only here, right behind the value: batches are decoded without them. Of a name that occurs twice the last
        value counts. Only for records that `read_batches` has made.
        """
        start = max(int(self.values.starts[row]), int(self.values.ends[row]))
        return _headers_in(self.values.data[start : start + _LONGEST_HEADERS].tobytes())

    def split(self, count: int) -> tuple[Records, Records]:
        """The first `count` messages, of more, and the others."""
        # Of which leader the last of the first part is, is not known where there are several.
        epoch = self.leader_epoch if self.is_of_one_leader else -1
        first = self._part(slice(None, count), int(self.offsets[count]), epoch)
        return first, self._part(slice(count, None), self.next_offset, self.leader_epoch)

    def _part(self, rows: slice, next_offset: int, leader_epoch: int) -> Records:
        return replace(
            self,
            offsets=self.offsets[rows],
            timestamps_ms=self.timestamps_ms[rows],
            values=self.values.take(rows),
            keys=self.keys.take(rows),
            next_offset=next_offset,
            leader_epoch=leader_epoch,
        )

    @classmethod
    def none(cls, next_offset: int) -> Records:
        """No messages up to an offset."""
        numbers = np.empty(0, np.int64)
        texts = Values(np.zeros(PADDING, np.uint8), numbers, numbers)
        return cls(numbers, numbers, texts, texts, next_offset)


class CorruptBatch(CorruptLog):
    """A record batch is not what was written, or cannot be read; `offset` is its first one, `next_offset` the one behind its last, as far as
    that is known. `raw`: its bytes."""

    def __init__(self, offset: int, message: str, *, hint: str = _RESTORE) -> None:
        super().__init__(message, hint=hint)
        self.offset, self.next_offset, self.raw = offset, offset + 1, b""


def _headers_in(data: bytes) -> dict[bytes, bytes]:
    """The headers at the beginning of `data`; none where it ends before them."""
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte, at = data[at], at + 1
            number, shift = number | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return number >> 1 ^ -(number & 1)

    def text() -> bytes:
        nonlocal at
        size = varint()
        if size > len(data) - at:
            raise IndexError(size)
        start, at = at, at + max(size, 0)
        return data[start:at]

    try:
        return {text(): text() for _ in range(varint())}
    except IndexError:
        return {}


def read_batches(data: Bytes, start: int, end: int, from_offset: int, aborted: list[tuple[int, int]]) -> Records:
    """The messages from `from_offset` on in data[start:end], which may end within a batch.

    `data` goes on for PADDING bytes. `aborted`: (producer id, first offset) of transactions that were rolled back. Raises
    CorruptBatch.
    """
    table = np.empty(((end - start) // _HEADER + 1, _COLUMNS), np.int64)
    count, unreadable_at = _find_batches(data.ctypes.data, start, end, table)
    batches = table[:count]
    _check_crcs(data, batches)
    if unreadable_at != _NOWHERE:
        raise _unreadable(data, unreadable_at)
    next_offset = max(from_offset, int(batches[-1, _LAST]) + 1) if len(batches) else from_offset
    wanted = batches[_committed(data, batches, aborted) & (batches[:, _LAST] >= from_offset)]
    records = _records(*_plain(data, wanted), from_offset, next_offset)
    if not len(batches):
        return records
    epochs = batches[:, _EPOCH]
    return replace(records, leader_epoch=int(epochs[-1]), is_of_one_leader=bool((epochs == epochs[-1]).all()))


def read_intact(
    data: Bytes, start: int, end: int, from_offset: int, aborted: list[tuple[int, int]]
) -> tuple[Records, CorruptBatch | None]:
    """The messages before the first batch that cannot be read, and that batch, with its bytes; None where all can."""
    try:
        return read_batches(data, start, end, from_offset, aborted), None
    except CorruptBatch as error:
        failure = error
    edges = _batch_edges(data, start, end)
    # The fewest batches with which it fails: the last of them is the one.
    low, high = 0, len(edges) - 1
    while low < high - 1:
        middle = (low + high) // 2
        try:
            read_batches(data, start, edges[middle], from_offset, aborted)
            low = middle
        except CorruptBatch as error:
            high, failure = middle, error
    at, stop = edges[low], edges[low + 1] if low + 1 < len(edges) else end
    failure.offset = int.from_bytes(data[at : at + 8].tobytes(), signed=True)
    failure.next_offset = _next_offset(data, at, stop, end)
    failure.raw = data[at:stop].tobytes()
    return read_batches(data, start, at, from_offset, aborted), failure


def _batch_edges(data: Bytes, start: int, end: int) -> list[int]:
    """Where whole batches begin, of any format, and where the last of them ends. A batch whose size cannot be true is the last one."""
    edges, at = [start], start
    while at + _HEADER <= end:
        stop = at + 12 + int.from_bytes(data[at + 8 : at + 12].tobytes(), signed=True)
        if stop > end and len(edges) > 1:
            break
        at = stop if at + _SHORTEST_HEADER < stop <= end else end
        edges.append(at)
    return edges


def _next_offset(data: Bytes, at: int, stop: int, end: int) -> int:
    """The offset behind a batch: that of the next one where it is there, since the batch's own header may be wrong."""
    first = int.from_bytes(data[at : at + 8].tobytes(), signed=True)
    if stop + 8 <= end and (following := int.from_bytes(data[stop : stop + 8].tobytes(), signed=True)) > first:
        return following
    last_delta = int.from_bytes(data[at + 23 : at + 27].tobytes(), signed=True) if data[at + 16] == _FORMAT else 0
    return first + max(0, last_delta) + 1


def _unreadable(data: Bytes, at: int) -> CorruptBatch:
    """Why the batch at `at` cannot be read."""
    # Where its offset and its format stand has not changed from format to format.
    offset, written = int.from_bytes(data[at : at + 8].tobytes()), int(data[at + 16])
    if written < _FORMAT:
        needed = f"is in the old message format v{written}; v{_FORMAT} is needed"
        return CorruptBatch(offset, needed, hint=_REWRITE)
    problem = "is shorter than its header" if written == _FORMAT else f"is in the unknown message format v{written}"
    return CorruptBatch(offset, problem)


def _check_crcs(data: Bytes, batches: Ints) -> None:
    """Raise CorruptBatch unless each batch has the CRC-32C (Castagnoli) that its writer computed."""
    for batch in batches:
        covered = data[batch[_AT] - _HEADER_AFTER_CRC : batch[_END]]
        if google_crc32c.value(covered) != int(batch[_CRC]) & 0xFFFF_FFFF:
            raise CorruptBatch(int(batch[_FIRST]), "does not have the CRC-32C that its writer computed")


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
        try:
            pieces = _decompressed(packed, int(batch[_ATTRIBUTES]) & _CODEC)
        except (cramjam.DecompressionError, _Undecodable) as error:
            raise CorruptBatch(int(batch[_FIRST]), f"cannot be decompressed: {error}") from error
        for piece in pieces:
            parts.append(piece)
            at += len(piece)
        batch[_END] = at
    return np.frombuffer(b"".join([*parts, bytes(PADDING)]), np.uint8), table


class _Undecodable(Exception):
    """Compressed records are not what their codec writes."""


def _decompressed(packed: memoryview, codec: int) -> list[Any]:
    """The records of a batch, in pieces. Raises cramjam.DecompressionError, _Undecodable."""
    if codec == 0:
        return [packed]
    if codec == 1:
        return [_inflated(packed, cramjam.gzip)]
    if codec == 2:
        return [_unsnapped(packed.tobytes())]
    if codec == 3:
        return _unframed(packed)
    if codec == 4:
        return [_inflated(packed, cramjam.zstd)]
    raise _Undecodable(f"codec {codec} is not known")


def _inflated(packed: memoryview, codec: Any) -> Any:
    """A batch in one frame, of up to `_LARGEST_PLAIN` bytes. Raises cramjam.DecompressionError, _Undecodable."""
    size = _FIRST_ROOM * len(packed) + _FIRST_ROOM
    while True:
        room = np.empty(min(size, _LARGEST_PLAIN), np.uint8)
        try:
            return room[: codec.decompress_into(packed, room)]
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
            _refuse_larger(size + 1)
            size *= 8


def _refuse_larger(size: int) -> None:
    """Raise _Undecodable for decompressed records of so many bytes, where these are too many."""
    if size > _LARGEST_PLAIN:
        raise _Undecodable(f"it is larger than {_LARGEST_PLAIN >> 20} MiB")


def _unframed(packed: memoryview) -> list[Any]:
    """LZ4, a block at a time where they stand alone, as Kafka's clients write them: that takes a third of what frames do.

    https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md; its own checksums are not looked at: the batch has one.
    """
    if len(packed) < 7 or bytes(packed[:4]) != _LZ4:
        raise _Undecodable("it is no LZ4 frame")
    flags, largest = packed[4], 1 << (8 + 2 * (packed[5] >> 4 & 7))
    if flags & (_LZ4_ALONE | _LZ4_DICTIONARY) != _LZ4_ALONE:
        return [_inflated(packed, cramjam.lz4)]
    at, plain, parts = 7 + (8 if flags & _LZ4_SIZED else 0), 0, list[Any]()
    while size := int.from_bytes(packed[at : at + 4], "little"):
        at += 4
        block = packed[at : at + (size & ~_LZ4_PLAIN)]
        if len(block) < size & ~_LZ4_PLAIN:
            raise _Undecodable("it is cut short")
        if size & _LZ4_PLAIN:
            parts.append(block)
        else:
            room: Any = np.empty(min(largest, _LZ4_MOST * len(block)), np.uint8)
            parts.append(room[: cramjam.lz4.decompress_block_into(block, room)])
        plain += len(parts[-1])
        _refuse_larger(plain)
        at += len(block) + (4 if flags & _LZ4_SUMMED else 0)
    return parts


def _unsnapped(packed: bytes) -> bytes:
    """Snappy, in the blocks of the Java client or without."""
    if not packed.startswith(_XERIAL):
        _refuse_larger(cramjam.snappy.decompress_raw_len(packed))
        return bytes(cramjam.snappy.decompress_raw(packed))
    parts, plain, at = [], 0, 16
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4])
        block = packed[at + 4 : at + 4 + size]
        plain += cramjam.snappy.decompress_raw_len(block)
        _refuse_larger(plain)
        parts.append(bytes(cramjam.snappy.decompress_raw(block)))
        at += 4 + size
    return b"".join(parts)


def _records(data: Bytes, table: Ints, from_offset: int, next_offset: int) -> Records:
    counts, sizes = table[:, _COUNT], table[:, _END] - table[:, _AT]
    impossible = np.flatnonzero((counts < 0) | (counts * _SHORTEST_RECORD > sizes))
    if len(impossible):
        number = impossible[0]
        problem = f"has {counts[number]} records by its header, and {sizes[number]} bytes of them"
        raise CorruptBatch(int(table[number, _FIRST]), problem)
    count = int(counts.sum())
    columns = np.empty((6, count), np.int64)
    filled = _read_records(data.ctypes.data, table, from_offset, columns)
    if filled == _WRONG:
        first = int(table[0, _FIRST]) if len(table) else from_offset
        raise CorruptBatch(first, "or one of the batches after it is not a list of records")
    offsets, times, starts, ends, key_starts, key_ends = columns[:, :filled]
    values, keys = Values(data, starts, ends), Values(data, key_starts, key_ends)
    by_broker = bool((table[:, _ATTRIBUTES] & _LOG_APPEND != 0).all())
    return Records(offsets, times, values, keys, next_offset, by_broker=by_broker)


@compiled
def _big_endian(base: Number, at: Number, size: Number) -> Number:
    """A signed integer of `size` bytes."""
    number = np.int64(np.int8(byte_at(base, at)))
    for i in range(1, size):
        number = (number << 8) | np.int64(byte_at(base, at + i))
    return number


@compiled
def _find_batches(data: Number, start: Number, end: Number, table: Any) -> tuple[Number, Number]:
    """Fill the table with the whole batches there are, up to one that cannot be read; returns how many, and where that one is."""
    at, count = start, 0
    while at + _HEADER <= end:
        stop = at + 12 + _big_endian(data, at + 8, 4)
        if byte_at(data, at + 16) != _FORMAT or stop < at + _HEADER:
            return count, at
        if stop > end:
            break
        first = _big_endian(data, at, 8)
        table[count, _AT], table[count, _END] = at + _HEADER, stop
        table[count, _COUNT] = _big_endian(data, at + 57, 4)
        table[count, _FIRST], table[count, _LAST] = first, first + _big_endian(data, at + 23, 4)
        table[count, _FIRST_MS], table[count, _MAX_MS] = _big_endian(data, at + 27, 8), _big_endian(data, at + 35, 8)
        table[count, _ATTRIBUTES] = _big_endian(data, at + 21, 2)
        table[count, _PRODUCER] = _big_endian(data, at + 43, 8)
        table[count, _EPOCH] = _big_endian(data, at + 12, 4)
        table[count, _CRC] = _big_endian(data, at + 17, 4)
        count += 1
        at = stop
    return count, _NOWHERE


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
    """Fill columns: offset, timestamp, and where value and key begin and end; returns how many, or a negative number where a batch does
    not hold what its header says."""
    filled = 0
    for batch in range(len(table)):
        at, end = table[batch, _AT], table[batch, _END]
        append = table[batch, _ATTRIBUTES] & _LOG_APPEND != 0
        before = table[batch, _FIRST] - 1
        for _ in range(table[batch, _COUNT]):
            if at >= end:
                return _WRONG
            size, at = _varint(data, at)
            # Compared with the room there is: a sum could overflow.
            if size < 0 or size > end - at:
                return _WRONG
            stop = at + size
            delta_ms, at = _varint(data, at + 1)
            delta, at = _varint(data, at)
            key_size, at = _varint(data, at)
            key_at = at
            if key_size > stop - at:
                return _WRONG
            value_size, at = _varint(data, at + max(key_size, 0))
            if value_size > stop - at:
                return _WRONG
            offset = table[batch, _FIRST] + delta
            if offset <= before or offset > table[batch, _LAST]:
                return _WRONG
            before = offset
            if offset >= from_offset:
                columns[0, filled] = offset
                columns[1, filled] = table[batch, _MAX_MS] if append else table[batch, _FIRST_MS] + delta_ms
                # What is null ends before it starts.
                columns[2, filled], columns[3, filled] = at, at + value_size
                columns[4, filled], columns[5, filled] = key_at, key_at + key_size
                filled += 1
            at = stop
        # As many as the header says, and nothing after them.
        if at != end:
            return _WRONG
    return filled
