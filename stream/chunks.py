"""Chunks: what a stage writes at a flush, to its state log and, unchanged, to the next stage.

A chunk is the delta since the flush before, with the input offsets [from, to) that it contains and the closing watermark
before and after. A base is a chunk that stands for all before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from infra.structs import decodable
from ingest import blocks, partials
from ingest.partials import Partials
from stream.closing import Closing, Upstream

SCHEMA_VERSION = blocks.SCHEMA_VERSION
# Beside the sums of a partial: rows that came when their window (of this stage's grain) was closed.
CHANGED = "changed"


@decodable
class Sent(msgspec.Struct, frozen=True, array_like=True):
    """The last flush that sent rows of closed windows, and the input offset that it reached."""

    sequence: int
    to_offset: int


@decodable
class ChunkHeader(msgspec.Struct, frozen=True):
    """What a chunk accounts for. `sequence` counts the flushes of a partition: unlike offsets, it is never used twice.

    `shard` is the partition that wrote it; `upstream` tells of each shard of the stage before how far its chunks are contained;
    `sent`, in chunks of minutes, up to where insights has been sent what has closed.
    """

    version: int
    sequence: int
    from_offset: int
    to_offset: int
    closing: Closing
    closed_before_ms: int | None
    dropped_ms: int
    upstream: dict[int, Upstream] = {}
    shard: int = 0
    base: bool = False
    part: int = 0
    parts: int = 1
    sent: Sent = Sent(0, 0)


def empty() -> Partials:
    """No rows."""
    return partials.empty_partials().with_column(CHANGED, np.empty(0, np.int64))


def key(header: ChunkHeader, part: int) -> bytes:
    """The key of one message of a chunk: no other chunk of the log has it, so compaction keeps both."""
    return f"{header.sequence:020d}:{part:05d}".encode()


def encode(rows: Partials, header: ChunkHeader) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each message of a chunk, in order."""
    parts = blocks.split_rows(rows.without_zero_sums().arrow())
    for number, part in enumerate(parts):
        part_header = msgspec.structs.replace(header, part=number, parts=len(parts))
        yield key(header, number), blocks.pack_rows(part, msgspec.json.encode(part_header))


def decode(value: bytes, where: str) -> tuple[Partials, ChunkHeader]:
    """A message as chunk. Raises CorruptLog."""
    rows, raw = blocks.unpack_rows(value)
    return Partials.of_arrow(rows), blocks.decode_header(raw, ChunkHeader, where)
