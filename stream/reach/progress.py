"""How far users are counted: what the writer knows of each partition of `ad-archive`. It is committed with offsets, and published in
Redis, in `…:reach:{pN}`, for routers; the key is named here alone.

A *hole* is a range of event times of which messages were deleted before they were read: users of these hours are too few, until a
nightly run has counted them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from infra.clock import MINUTE_MS
from infra.errors import AdclickError
from infra.redis.client import Redis
from infra.structs import decodable
from ingest.blocks import BlockHeader
from ingest.lateness import ACCEPTED_UP_TO_MS

LATE_MS = ACCEPTED_UP_TO_MS + MINUTE_MS
"""No event that is counted is older than its partition's watermark by more than this."""
# Of more, the oldest ones are told as one.
_MOST_HOLES = 20
Hole = tuple[int, int]


@decodable
class SavedProgress(msgspec.Struct, frozen=True):
    """What is committed with an offset. `tables`: the UUIDs of the tables that the users of all events before it are in.
    `watermark_ms`: that of the events; None while there was none. `holes`: [from, to), epoch ms."""

    tables: str = ""
    watermark_ms: int | None = None
    holes: tuple[Hole, ...] = ()

    def encode(self) -> str:
        """As the metadata of an offset."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, metadata: str) -> SavedProgress:
        """Offsets that were set by a tool have no metadata."""
        return msgspec.json.decode(metadata, type=cls) if metadata.startswith("{") else cls(metadata)


@decodable
class Progress(msgspec.Struct, frozen=True):
    """What is published of a partition: users of all events that were sent to it before `read_ms` are counted, but for `holes`."""

    read_ms: int
    watermark_ms: int | None = None
    holes: tuple[Hole, ...] = ()


@dataclass
class _Partition:
    saved: SavedProgress
    is_torn: bool
    """Whether a hole is open: it ends with the first message that is there."""
    sent_ms: int | None = None
    read_to: int = -1
    """All messages before this offset are read; −1: not known yet."""


@dataclass
class ProgressTracker:
    """The progress of one writer, in the partitions that it owns. Pure."""

    _partitions: dict[int, _Partition] = field(default_factory=dict)

    def begin(self, partition: int, saved: SavedProgress, *, is_torn: bool) -> None:
        """Reading begins. `is_torn`: messages after those that `saved` is about were deleted."""
        self._partitions[partition] = _Partition(saved, is_torn)

    def end(self, partition: int) -> None:
        """Another writer reads it."""
        self._partitions.pop(partition, None)

    def clear(self) -> None:
        """It reads none."""
        self._partitions.clear()

    def add(self, partition: int, offset: int, header: BlockHeader) -> None:
        """A message was read, a part of a block."""
        state = self._partitions[partition]
        if state.is_torn:
            self._close_hole(state, header.sent_at_ms)
        state.read_to = max(state.read_to, offset + 1)
        if header.part == header.parts - 1:
            state.sent_ms = header.sent_at_ms
            watermarks = (state.saved.watermark_ms, *(r.watermark_ms for r in header.ranges))
            known = max((ms for ms in watermarks if ms is not None), default=None)
            state.saved = msgspec.structs.replace(state.saved, watermark_ms=known)

    def reach_end(self, partition: int, offset: int) -> None:
        """All messages before `offset` were handed out, and nothing followed."""
        if (state := self._partitions.get(partition)) is not None:
            state.read_to = max(state.read_to, offset)

    def saved(self, partition: int, tables: str) -> SavedProgress:
        """What to commit."""
        return msgspec.structs.replace(self._partitions[partition].saved, tables=tables)

    def current(self, ends: Mapping[int, int], at_ms: int) -> dict[int, Progress]:
        """Partition → what to publish, of those of which anything is known, once all that was read is written. `ends`: where they ended
        at `at_ms`."""
        progress = dict[int, Progress]()
        for partition, state in self._partitions.items():
            is_at_end = state.read_to >= ends[partition]
            if state.is_torn and is_at_end:
                self._close_hole(state, at_ms)
            read_ms = at_ms if is_at_end else state.sent_ms
            if read_ms is not None and not state.is_torn:
                progress[partition] = Progress(read_ms, state.saved.watermark_ms, state.saved.holes)
        return progress

    @staticmethod
    def _close_hole(state: _Partition, to_ms: int) -> None:
        watermark_ms, holes = state.saved.watermark_ms, state.saved.holes
        from_ms = 0 if watermark_ms is None else max(0, watermark_ms - LATE_MS)
        if len(holes) == _MOST_HOLES:
            holes = ((holes[0][0], holes[1][1]), *holes[2:])
        state.saved = msgspec.structs.replace(state.saved, holes=(*holes, (from_ms, max(from_ms, to_ms))))
        state.is_torn = False


def _key(prefix: str, partition: int) -> str:
    return f"{prefix}reach:{{p{partition}}}"


def publish_progress(redis: Redis, prefix: str, progress: Mapping[int, Progress]) -> None:
    """Publish the progress of some partitions; best effort: readers see that what they have is old."""
    with contextlib.suppress(AdclickError):
        redis.pipeline([("SET", _key(prefix, p), msgspec.json.encode(of_p)) for p, of_p in progress.items()])


def read_progress(redis: Redis, prefix: str, partitions: int) -> list[Progress | None]:
    """The progress of each partition; None where none was published. Raises Unavailable."""
    replies = redis.pipeline([("GET", _key(prefix, p)) for p in range(partitions)])
    return [None if raw is None else msgspec.json.decode(raw, type=Progress) for raw in replies]
