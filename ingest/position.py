"""Where a source partition stands: stored with the committed offset, atomic with what was written, and rolled back with it.

Offsets of events are counted through the life of an installation. They are Kafka's plus `base`, which is 0 unless a topic
that was made again, or a log that was cut off, was accepted (see `ingest.continuation`).
"""

from __future__ import annotations

import msgspec

from infra.structs import decodable
from ingest.lateness import NO_WATERMARK
from ingest.log_time import AHEAD_MS, Turns


@decodable
class _Metadata(msgspec.Struct, frozen=True):
    v: int
    wm: int = NO_WATERMARK
    lt: int = 0
    turns: Turns = ()
    topic: str = ""
    base: int = 0
    epoch: int = -1
    canary: int = 0
    canaries: int = 0


@decodable
class Position(msgspec.Struct, frozen=True):
    """A source partition after a batch: `offset` is the next one to read."""

    offset: int
    watermark_ms: int = NO_WATERMARK
    log_time_ms: int = 0
    turns: Turns = ()
    """Where the newest generations of dedup began. Empty before the first message, and after an upgrade."""
    topic_id: str = ""
    """Of the topic that was read; empty after an upgrade."""
    base: int = 0
    leader_epoch: int = -1
    """Of the last batch read; −1 when it is unknown."""
    canary_ms: int = 0
    """When the last canary before `offset` was sent; 0 where there was none."""
    canaries: int = 0
    """How many messages before `offset` were canaries, since canaries are counted."""

    @property
    def log_offset(self) -> int:
        """The next offset as Kafka counts it."""
        return self.offset - self.base

    @property
    def watermark(self) -> int | None:
        """The verdict watermark; None when there was no valid event yet."""
        return None if self.watermark_ms == NO_WATERMARK else self.watermark_ms

    def at_most(self, now_ms: int) -> Position:
        """The position as it may be: a log time far ahead is one that an older version took from a wrong timestamp."""
        if self.log_time_ms <= now_ms + AHEAD_MS:
            return self
        return msgspec.structs.replace(self, log_time_ms=now_ms, turns=())

    def metadata(self) -> str:
        """The text that is committed beside the offset."""
        fields = _Metadata(
            2, self.watermark_ms, self.log_time_ms, self.turns, self.topic_id, self.base, self.leader_epoch, self.canary_ms,
            self.canaries,
        )  # fmt: skip
        return msgspec.json.encode(fields).decode()

    @classmethod
    def committed(cls, log_offset: int, metadata: str) -> Position | None:
        """The position that was committed; None when the metadata is not that of an ingest worker."""
        try:
            m = msgspec.json.decode(metadata, type=_Metadata)
        except msgspec.MsgspecError:
            return None
        return cls(log_offset + m.base, m.wm, m.lt, m.turns, m.topic, m.base, m.epoch, m.canary, m.canaries)
