"""One batch of one source partition, judged: copies, lateness, weight. Pure, but for the registry."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.columns import Ints
from ingest import archived, blocks, lateness, shedding
from ingest.archived import Decision, on_wire
from ingest.decode import NO_USER, Events
from ingest.dedup import decision
from ingest.dedup.decision import NOT_A_COPY
from ingest.dedup.digest import first_words
from ingest.dedup.memory import PartitionMemory
from ingest.dedup.registry import Registry
from ingest.lateness import Lateness
from ingest.position import Position


@dataclass(frozen=True)
class Judged:
    """Events with what was decided on each; `late_by_ms` is negative for one that was early.

    `after` is the position once this is committed.
    """

    events: Events
    offsets: Ints
    log_time_ms: Ints
    decisions: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.uint32]
    lateness: npt.NDArray[np.uint8]
    late_by_ms: Ints
    copies: decision.Decision
    before: Position
    after: Position


def judge(
    valid: Events,
    offsets: Ints,
    log_time_ms: Ints,
    before: Position,
    end: Position,
    memory: PartitionMemory,
    known: Registry,
    *,
    horizon_ms: int,
    level: shedding.Level,
    policy: shedding.Policy,
) -> Judged:
    """Judge the valid events of one partition; `offsets` and `log_time_ms` belong to them.

    `end` carries offset and log time after the batch; its watermark is filled in. Raises Unavailable.
    """
    copies = decision.decide(memory, known, valid.digests, offsets, log_time_ms // horizon_ms)
    first = copies.first
    late, late_by, watermark = lateness.judge(valid["time_ms"], first, before.watermark_ms)
    weight = shedding.weigh(
        level,
        policy,
        valid["event_type"],
        valid["cost_micros"],
        first_words(valid.digests),
    )
    decisions = archived.decide(shed=weight == 0, too_late=late == Lateness.TOO_LATE, copy=~first, doubt=copies.doubt)
    weight[decisions != Decision.COUNTED] = 1
    after = msgspec.structs.replace(end, watermark_ms=watermark)
    return Judged(valid, offsets, log_time_ms, decisions, weight, late, late_by, copies, before, after)


def wire(judged: Judged) -> list[pa.RecordBatch]:
    """Judged events as they go on the wire, in parts that each fit a message."""
    found, copy_of = judged.events, judged.copies.copy_of
    numbers = {
        **found.columns,
        "offset": judged.offsets,
        "log_time_ms": judged.log_time_ms,
        "decision": judged.decisions,
        "weight": judged.weights,
        "lateness": judged.lateness,
        "copy_of": copy_of,
    }
    missing = {"user": found["user"] == NO_USER, "copy_of": copy_of == NOT_A_COPY}
    parts = []
    for number in range(blocks.parts_of(len(found))):
        rows = slice(number * blocks.ROWS_PER_PART, (number + 1) * blocks.ROWS_PER_PART)
        some, gaps = ({n: c[rows] for n, c in columns.items()} for columns in (numbers, missing))
        parts.append(on_wire(found.ids.take(rows), some, gaps))
    return parts
