"""Chunks: what a stage writes at a flush, to its state log and, unchanged, to the next stage.

A chunk is the delta since the flush before, with the input offsets [from, to) that it contains and the closing watermark
before and after. A base is a chunk that stands for all before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import polars as pl

from ingest import blocks, partials
from stream.windows import Closing

SCHEMA_VERSION = blocks.SCHEMA_VERSION
# Beside the sums of a partial: rows that came when their window (of this stage's grain) was closed.
CHANGED = "changed"
SCHEMA = pl.Schema({**partials.SCHEMA, CHANGED: pl.Int64()})
_SAMPLED_KEYS, _WORTHWHILE = 8, 0.8


class ChunkHeader(msgspec.Struct, frozen=True):
    """What a chunk accounts for. `sequence` counts the flushes of a partition: unlike offsets, it is never used twice.

    `upstream_next` is where the next chunk of the stage before must begin.
    """

    version: int
    sequence: int
    from_offset: int
    to_offset: int
    closing: Closing
    closed_before_ms: int | None
    dropped_ms: int
    upstream_next: int | None = None
    base: bool = False
    part: int = 0
    parts: int = 1


def empty() -> pl.DataFrame:
    """No rows."""
    return pl.DataFrame(schema=SCHEMA)


def key(header: ChunkHeader, part: int) -> bytes:
    """The key of one message of a chunk: no other chunk of the log has it, so compaction keeps both."""
    return f"{header.sequence:020d}:{part:05d}".encode()


def sequence_of(key: bytes) -> int:
    """The sequence in a message's key."""
    return int(key.split(b":", 1)[0])


def encode(frame: pl.DataFrame, header: ChunkHeader) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each message of a chunk, in order."""
    parts = blocks.split(blocks.rows_of(frame))
    for number, part in enumerate(parts):
        told = msgspec.structs.replace(header, part=number, parts=len(parts))
        yield key(header, number), blocks.pack(part, msgspec.json.encode(told))


def decode(value: bytes, where: str) -> tuple[pl.DataFrame, ChunkHeader]:
    """A message as chunk. Raises CorruptLog."""
    frame, raw = blocks.unpack(value)
    return frame, blocks.decode_header(raw, ChunkHeader, where)


def merge(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Sum rows that share a key."""
    if not frames:
        return empty()
    return partials.merge(frames, extra=(CHANGED,)).select(list(SCHEMA))


def repeats(frame: pl.DataFrame) -> bool:
    """Whether merging would drop a fifth of the rows or more, judged by the rows of an eighth of the keys."""
    sample = frame.filter((pl.col("ad_id") + pl.col("publisher_id")) % _SAMPLED_KEYS == 0)
    return sample.select(list(partials.KEYS)).n_unique() < _WORTHWHILE * sample.height
