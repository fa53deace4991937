"""The path of a batch to its verdicts: decode, log time, copies and lateness, and the ids recorded in Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from infra import faults
from infra.clock import now_ms
from infra.columnar.columns import Ints
from infra.columnar.siphash import KEY_BYTES
from infra.settings import Settings
from ingest import log_time, shedding
from ingest.decoding.decode import Events, decode_events
from ingest.dedup.copies import oldest_needed
from ingest.dedup.registry import Registry
from ingest.events import Rejection
from ingest.judge import JudgedBatch, judge_batch
from ingest.position import Position
from ingest.source_batch import SourceBatch
from ingest.source_partition import SourcePartition


@dataclass(frozen=True)
class ProcessedBatch:
    """A batch with the verdict on each of its messages. `judged` and `misdated` are by partition, `rejected` by row."""

    source: SourceBatch
    judged: dict[int, JudgedBatch]
    rejected: dict[int, Rejection]
    misdated: dict[int, int]
    """How many messages have a timestamp that cannot be true."""


class BatchProcessor:
    """Judges batches by the settings. `level` is the overload level that the worker has measured; it counts where shedding is on."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        secret = settings.user_secret.get_secret_value().encode()
        self._user_key = hashlib.blake2b(secret, digest_size=KEY_BYTES).digest()
        self._horizon_ms, self._sheds = settings.dedup_horizon_s * 1000, settings.shed == "on"
        self._registry = registry
        self.policy = shedding.Policy()
        self.level = shedding.Level.NORMAL

    def process(
        self, batch: SourceBatch, owned: Mapping[int, SourcePartition], log_ends: Mapping[int, int]
    ) -> ProcessedBatch:
        """Judge the messages and record the ids of valid events. Nothing else changes: the same batch may be processed again.

        `log_ends`: the end of each partition's log when the batch was taken, as Kafka counts. Raises Unavailable, RegistryLost.
        """
        clock_ms = now_ms()
        references = log_time.reference_times(batch.timestamps_ms, clock_ms)
        latest = log_time.latest_event_times(references, batch.by_broker, clock_ms)
        decoded = decode_events(batch.values, references, self._user_key, latest_ms=latest)
        event_rows = decoded.events["row"]
        judged: dict[int, JudgedBatch] = {}
        for p, rows in batch.rows.items():
            partition = owned[p]
            log_times = _log_times(batch, p, partition.position, log_ends[p], clock_ms)
            end = self._end_position(batch, p, partition.position, log_times)
            first, last = np.searchsorted(event_rows, (rows.start, rows.stop))
            events = decoded.events.take(slice(int(first), int(last)))
            at = events["row"]
            judged[p] = self._judge(partition, events, batch.offsets[at], log_times[at - rows.start], end)
        misdated = ~log_time.credible(batch.timestamps_ms, clock_ms)
        counts = {p: int(misdated[rows].sum()) for p, rows in batch.rows.items()}
        return ProcessedBatch(batch, judged, decoded.rejected, counts)

    def _end_position(self, batch: SourceBatch, p: int, before: Position, log_times: Ints) -> Position:
        """The position behind the batch, but for its watermark."""
        last = batch.parts[p][-1]
        generations = log_times // self._horizon_ms
        return msgspec.structs.replace(
            before,
            offset=last.next_offset,
            log_time_ms=int(log_times[-1]) if len(log_times) else before.log_time_ms,
            turns=log_time.turns_after(before.turns, batch.offsets[batch.rows[p]], generations),
            leader_epoch=last.leader_epoch,
        )

    def _judge(
        self, partition: SourcePartition, events: Events, offsets: Ints, log_times: Ints, end: Position
    ) -> JudgedBatch:
        """Judge the valid events of one partition, and record their ids."""
        judged = judge_batch(
            events, offsets, log_times, partition.position, end, partition.mirror, self._registry,
            horizon_ms=self._horizon_ms, level=self.level if self._sheds else shedding.Level.NORMAL, policy=self.policy,
        )  # fmt: skip
        # A reader of this batch after a restart begins in the generation that is committed now.
        oldest = oldest_needed(partition.position.log_time_ms // self._horizon_ms)
        self._registry.record(partition.mirror, judged.copies.news, up_to=end.offset, oldest_generation=oldest)
        faults.point("ingest.recorded")
        return judged


def _log_times(batch: SourceBatch, p: int, position: Position, log_end: int, clock_ms: int) -> Ints:
    """Log time of each message of a partition."""
    live = batch.parts[p][-1].next_offset - position.base >= log_end
    return log_time.log_times(batch.timestamps_ms[batch.rows[p]], position.log_time_ms, clock_ms, live=live)
