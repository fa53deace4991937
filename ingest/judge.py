"""The verdict on a batch of one source partition: copies, lateness, weight. Pure, but for look-ups in the registry."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.columnar.columns import Ints
from ingest import blocks, lateness, shedding
from ingest.archive import schema as archive_schema
from ingest.archive.schema import Decision, encode_archived
from ingest.decoding.decode import NO_USER, Events
from ingest.dedup.copies import NOT_A_COPY, CopyDecisions, find_copies
from ingest.dedup.digest import first_words
from ingest.dedup.mirror import PartitionMirror
from ingest.dedup.registry import Registry
from ingest.lateness import Lateness
from ingest.position import Position


@dataclass(frozen=True)
class JudgedBatch:
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
    copies: CopyDecisions
    before: Position
    after: Position


def judge_batch(
    valid: Events,
    offsets: Ints,
    log_time_ms: Ints,
    before: Position,
    end: Position,
    mirror: PartitionMirror,
    known: Registry,
    *,
    horizon_ms: int,
    level: shedding.Level,
    policy: shedding.Policy,
) -> JudgedBatch:
    """Judge the valid events of one partition; `offsets` and `log_time_ms` belong to them.

    `end` carries offset and log time after the batch; its watermark is filled in. Raises Unavailable.
    """
    copies = find_copies(mirror, known, valid.digests, offsets, log_time_ms // horizon_ms)
    first = copies.first
    late, late_by, watermark = lateness.judge_lateness(valid["time_ms"], first, before.watermark_ms)
    weight = shedding.weigh(
        level,
        policy,
        valid["event_type"],
        valid["cost_micros"],
        first_words(valid.digests),
    )
    decisions = archive_schema.choose_decisions(
        shed=weight == 0, too_late=late == Lateness.TOO_LATE, copy=~first, doubt=copies.doubt
    )
    weight[decisions != Decision.COUNTED] = 1
    after = msgspec.structs.replace(end, watermark_ms=watermark)
    return JudgedBatch(valid, offsets, log_time_ms, decisions, weight, late, late_by, copies, before, after)


def archive_parts(judged: JudgedBatch) -> list[pa.RecordBatch]:
    """Judged events as messages of `ad-archive` have them, in parts that each fit a message."""
    events, copy_of = judged.events, judged.copies.copy_of
    numbers = {
        **events.columns,
        "offset": judged.offsets,
        "log_time_ms": judged.log_time_ms,
        "decision": judged.decisions,
        "weight": judged.weights,
        "lateness": judged.lateness,
        "copy_of": copy_of,
    }
    missing = {"user": events["user"] == NO_USER, "copy_of": copy_of == NOT_A_COPY}
    parts = []
    for number in range(blocks.part_count(len(events))):
        rows = slice(number * blocks.ROWS_PER_PART, (number + 1) * blocks.ROWS_PER_PART)
        part, part_missing = ({n: c[rows] for n, c in columns.items()} for columns in (numbers, missing))
        parts.append(encode_archived(events.ids.take(rows), part, part_missing))
    return parts
