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
from ingest.canary.marker import believable_ms, may_be_canary, sent_ms_of
from ingest.decoding.decode import Events, decode_events
from ingest.dedup.copies import oldest_needed
from ingest.dedup.registry import Registry
from ingest.events import Reason, Rejection
from ingest.judge import JudgedBatch, judge_batch
from ingest.position import Position
from ingest.source_batch import SourceBatch
from ingest.source_partition import SourcePartition


@dataclass(frozen=True)
class ProcessedBatch:
    """A batch with the verdict on each of its messages. `judged`, `misdated` and `canaries` are by partition, `rejected` by row."""

    source: SourceBatch
    judged: dict[int, JudgedBatch]
    rejected: dict[int, Rejection]
    misdated: dict[int, int]
    """How many messages have a timestamp that cannot be true."""
    canaries: dict[int, list[int]]
    """The offsets of canaries, of partitions that have some."""

    def has_only_canaries(self, p: int) -> bool:
        """Whether nothing else has come of a partition."""
        rows = self.source.rows[p]
        return p in self.canaries and len(self.canaries[p]) == rows.stop - rows.start


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
        canaries = _find_canaries(batch, decoded.rejected)
        canary_rows = np.array(sorted(canaries), np.int64)
        judged: dict[int, JudgedBatch] = {}
        offsets: dict[int, list[int]] = {}
        for p, rows in batch.rows.items():
            partition = owned[p]
            first, last = np.searchsorted(event_rows, (rows.start, rows.stop))
            events = decoded.events.take(slice(int(first), int(last)))
            low, high = np.searchsorted(canary_rows, (rows.start, rows.stop))
            own = canary_rows[low:high]
            at, timed = events["row"], _rows_but(own, rows)
            log_times = _log_times(batch, p, timed, partition.position, log_ends[p], clock_ms)
            places = at - rows.start if isinstance(timed, slice) else np.searchsorted(timed, at)
            sent_ms = [canaries[row] for row in own.tolist()]
            end = self._end_position(batch, p, timed, partition.position, log_times, sent_ms)
            judged[p] = self._judge(partition, events, batch.offsets[at], log_times[places], end)
            if len(own):
                offsets[p] = batch.offsets[own].tolist()
        misdated = ~log_time.credible(batch.timestamps_ms, clock_ms)
        misdated[canary_rows] = False
        counts = {p: int(misdated[rows].sum()) for p, rows in batch.rows.items()}
        rejected = {row: rejection for row, rejection in decoded.rejected.items() if row not in canaries}
        return ProcessedBatch(batch, judged, rejected, counts, offsets)

    def _end_position(
        self, batch: SourceBatch, p: int, timed: Ints | slice, before: Position, log_times: Ints, canaries_ms: list[int]
    ) -> Position:
        """The position behind the batch, but for its watermark. `timed`: the rows that have the log times; `canaries_ms`: when its
        canaries were sent."""
        last = batch.parts[p][-1]
        generations = log_times // self._horizon_ms
        return msgspec.structs.replace(
            before,
            offset=last.next_offset,
            log_time_ms=int(log_times[-1]) if len(log_times) else before.log_time_ms,
            turns=log_time.turns_after(before.turns, batch.offsets[timed], generations),
            leader_epoch=last.leader_epoch,
            # The last one, not the latest: where a clock was wrong, the next canary is right.
            canary_ms=canaries_ms[-1] if canaries_ms else before.canary_ms,
            canaries=before.canaries + len(canaries_ms),
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


def _find_canaries(batch: SourceBatch, rejected: Mapping[int, Rejection]) -> dict[int, int]:
    """Row → when it was sent, of each canary. They are looked for among what no event can be, so other messages cost nothing more."""
    canaries = dict[int, int]()
    for row, rejection in rejected.items():
        value = batch.values[row] if rejection.reason is Reason.MALFORMED else None
        if may_be_canary(value) and (sent_ms := sent_ms_of(value, batch.headers(row))) is not None:
            canaries[row] = believable_ms(sent_ms, int(batch.timestamps_ms[row]))
    return canaries


def _rows_but(canary_rows: Ints, rows: slice) -> slice | Ints:
    """The rows of a partition without those of its canaries. What a canary's timestamp says must not count: log time, and the generations of
    dedup, are as they would be without it."""
    if not len(canary_rows):
        return rows
    return np.delete(np.arange(rows.start, rows.stop), canary_rows - rows.start)


def _log_times(
    batch: SourceBatch, p: int, timed: Ints | slice, position: Position, log_end: int, clock_ms: int
) -> Ints:
    """Log time of each message in these rows of a partition."""
    live = batch.parts[p][-1].next_offset - position.base >= log_end
    return log_time.log_times(batch.timestamps_ms[timed], position.log_time_ms, clock_ms, live=live)
