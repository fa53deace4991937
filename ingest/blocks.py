"""Blocks: the envelope of everything between our own processes. Arrow IPC, compressed, with a checked header.

A header names the schema version and the ranges of input that the block accounts for. Ranges must tile: a reader that
finds a hole or an overlap stops. A block that would not fit a message is split into parts with one header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from infra.errors import CorruptLog
from infra.structs import decodable

# Version 2 has columns in any integer types, version 3 differences from the least and ids in bytes, version 4 offsets by how
# they differ from counting, version 5 late clicks.
SCHEMA_VERSION = 5
READABLE_VERSIONS: tuple[int, ...] = (1, 2, 3, 4, 5)
MAX_BLOCK_BYTES = 2 << 20
# Compressed rows of a partial take 20 to 45 bytes, of an archived event 60 to 90.
ROWS_PER_PART = 20_000
_HEADER = b"adclick"
_COMPRESSION = pa.ipc.IpcWriteOptions(compression="lz4")


@decodable
class SourceRange(msgspec.Struct, frozen=True, array_like=True):
    """Offsets [from, to) of one source partition, and what is known after them."""

    partition: int
    from_offset: int
    to_offset: int
    watermark_ms: int | None
    """The verdict watermark; None while there was no valid event."""
    silent: bool
    canary_ms: int = 0
    """When the last canary before `to_offset` was sent; 0 where there was none, and in blocks of releases without canaries."""


@decodable
class BlockHeader(msgspec.Struct, frozen=True):
    """What a block accounts for. `part` counts from 0 to `parts` − 1. `is_behind`: whether more messages were waiting than were taken:
    then none of it is fresh."""

    version: int
    ranges: tuple[SourceRange, ...]
    sent_at_ms: int
    part: int = 0
    parts: int = 1
    is_behind: bool = False
    log_time_ms: int = 0
    """Of blocks of `ad-archive`: the partition's log time after them; 0 in those of earlier releases."""


@decodable
class _Versioned(msgspec.Struct, frozen=True):
    """What headers of all versions have."""

    version: int | None = None


def pack_rows(rows: pa.RecordBatch, header: bytes) -> bytes:
    """Rows as one Arrow IPC stream with a header in its schema's metadata."""
    rows = rows.replace_schema_metadata({_HEADER: header})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_COMPRESSION) as writer:
        writer.write_batch(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def unpack_rows(value: bytes, columns: Sequence[str] = ()) -> tuple[pa.Table, bytes]:
    """The rows and the header; of the rows only these columns, if any are named: others are not decompressed. Raises CorruptLog when
    this is no block."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(value), options=_included(value, columns)) as reader:
            header = (reader.schema.metadata or {})[_HEADER]
            return reader.read_all(), header
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise CorruptLog(f"not a block: {error}") from error


def _included(value: bytes, columns: Sequence[str]) -> pa.ipc.IpcReadOptions:
    schema = pa.ipc.read_schema(pa.py_buffer(value)) if columns else pa.schema([])
    return pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns] or None)


def part_count(rows: int) -> int:
    """How many messages so many rows take; at least one."""
    return max(1, -(-rows // ROWS_PER_PART))


def split_rows(rows: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Parts that each fit a message; at least one, which may be empty."""
    return [rows.slice(n * ROWS_PER_PART, ROWS_PER_PART) for n in range(part_count(rows.num_rows))]


def encode_block(
    parts: Sequence[pa.RecordBatch],
    ranges: tuple[SourceRange, ...],
    sent_at_ms: int,
    is_behind: bool = False,
    log_time_ms: int = 0,
) -> Iterator[bytes]:
    """A block as messages, one for each of its parts, in the order in which they must be written."""
    for number, part in enumerate(parts):
        header = BlockHeader(SCHEMA_VERSION, ranges, sent_at_ms, number, len(parts), is_behind, log_time_ms)
        yield pack_rows(part, msgspec.json.encode(header))


def decode_block(value: bytes, where: str, columns: Sequence[str] = ()) -> tuple[pa.Table, BlockHeader]:
    """A message as block, with these columns, or with all. Raises CorruptLog, naming `where`, on an unknown version."""
    rows, raw = unpack_rows(value, columns)
    return rows, decode_header(raw, BlockHeader, where)


def decode_header(raw: bytes, kind: type[Any], where: str) -> Any:
    """A header of some kind, after its version was checked."""
    version = msgspec.json.decode(raw, type=_Versioned).version
    if version not in READABLE_VERSIONS:
        raise CorruptLog(
            f"{where}: schema version {version}, this program reads {READABLE_VERSIONS}",
            hint="upgrade this worker",
        )
    return msgspec.json.decode(raw, type=kind)


def check_tiles(expected: int | None, source_range: SourceRange, where: str) -> None:
    """Raise CorruptLog unless `source_range` begins where the range before it ended (None: this is the first)."""
    if expected is not None and source_range.from_offset != expected:
        kind = "hole" if source_range.from_offset > expected else "overlap"
        raise CorruptLog(
            f"{where}: {kind} in source partition {source_range.partition}: expected offset {expected}, found {source_range.from_offset}"
        )
