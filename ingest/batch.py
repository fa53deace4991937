"""One batch of one source partition, judged: copies, lateness, weight. Pure, but for the registry."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from ingest import lateness, shedding
from ingest.archived import WIRE, Decision
from ingest.dedup import decision
from ingest.dedup.decision import NOT_A_COPY, PartitionMemory
from ingest.dedup.digest import Digests, first_words
from ingest.dedup.registry import Registry
from ingest.lateness import NO_WATERMARK, Lateness


class Position(msgspec.Struct, frozen=True):
    """Where a source partition stands after a batch; stored with the committed offset, and rolled back with it."""

    offset: int
    watermark_ms: int = NO_WATERMARK
    log_time_ms: int = 0

    def metadata(self) -> str:
        """The text that is committed beside the offset."""
        return msgspec.json.encode({"v": 1, "wm": self.watermark_ms, "lt": self.log_time_ms}).decode()

    @classmethod
    def committed(cls, offset: int, metadata: str) -> Position:
        """What `metadata` said."""
        found = msgspec.json.decode(metadata) if metadata else {}
        return cls(offset, found.get("wm", NO_WATERMARK), found.get("lt", 0))

    @property
    def watermark(self) -> int | None:
        """The verdict watermark; None when there was no valid event yet."""
        return None if self.watermark_ms == NO_WATERMARK else self.watermark_ms


@dataclass(frozen=True)
class Judged:
    """`rows` has the columns of `archived.WIRE` and `row`, the message's place in the whole consumed batch.

    `late_by_ms` belongs to each row. `after` is the position once this is committed.
    """

    rows: pl.DataFrame
    late_by_ms: npt.NDArray[np.int64]
    copies: decision.Decision
    before: Position
    after: Position


def log_times(timestamps_ms: npt.NDArray[np.int64], before_ms: int) -> npt.NDArray[np.int64]:
    """Log time: the running maximum of Kafka's timestamps, so that it never goes back."""
    return np.maximum(np.maximum.accumulate(timestamps_ms), before_ms)


def judge(
    valid: pl.DataFrame,
    digests: Digests,
    offsets: npt.NDArray[np.int64],
    log_time_ms: npt.NDArray[np.int64],
    before: Position,
    end: Position,
    memory: PartitionMemory,
    known: Registry,
    *,
    horizon_ms: int,
    level: shedding.Level,
    policy: shedding.Policy,
) -> Judged:
    """Judge the valid events (`decode.COLUMNS`) of one partition; `digests`, `offsets` and `log_time_ms` belong to them.

    `end` carries offset and log time after the batch; its watermark is filled in. Raises Unavailable.
    """
    copies = decision.decide(memory, known, digests, offsets, log_time_ms // horizon_ms)
    first = copies.first
    late, late_by, watermark = lateness.judge(valid["time_ms"].to_numpy(), first, before.watermark_ms)
    taken = np.full(len(offsets), Decision.COUNTED, np.uint8)
    weight = shedding.weigh(
        level,
        policy,
        valid["event_type"].to_numpy(),
        valid["cost_micros"].to_numpy(),
        first_words(digests),
    )
    taken[weight == 0] = Decision.SHED
    taken[late == Lateness.TOO_LATE] = Decision.TOO_LATE
    taken[~first] = Decision.COPY
    taken[copies.doubt] = Decision.DOUBT
    weight[taken != Decision.COUNTED] = 1
    rows = valid.select(
        "row",
        pl.Series("offset", offsets),
        pl.Series("log_time_ms", log_time_ms),
        *(c for c in list(WIRE)[2:11]),
        "user",
        "cost_micros",
        pl.Series("decision", taken),
        pl.Series("weight", weight),
        pl.Series("lateness", late),
        pl.Series("copy_of", copies.copy_of).replace(NOT_A_COPY, None),
    )
    return Judged(rows, late_by, copies, before, replace_watermark(end, watermark))


def replace_watermark(position: Position, watermark_ms: int) -> Position:
    """The position with another watermark."""
    return Position(position.offset, watermark_ms, position.log_time_ms)
