"""What a transaction of ingest writes: blocks, archived events, dead letters and marks of canaries of a batch, or heartbeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.records import Record
from infra.settings import Settings
from ingest import blocks, judge, partials, salting
from ingest.archive.schema import Decision
from ingest.blocks import SourceRange
from ingest.canary.marks import mark_records
from ingest.events import Reason, Rejection
from ingest.partials import Partials
from ingest.poison import Poison, dead_letter
from ingest.position import Position
from ingest.processor import ProcessedBatch

STAGE = "ingest"


@dataclass(frozen=True)
class Transaction:
    """Records to write, and what is true once they are committed. `sent_ms` is in the header of the blocks."""

    sent_ms: int
    records: list[Record]
    ranges: Mapping[int, SourceRange]
    """What the blocks account for, of every owned partition."""
    positions: dict[int, Position] = field(default_factory=dict)
    """Of the partitions that the batch has messages of."""
    batch: ProcessedBatch | None = None


class TransactionLayout:
    """Lays out transactions by the installation's topics and partition counts."""

    def __init__(self, settings: Settings) -> None:
        self._events, self._blocks = settings.topic(topics.EVENTS), settings.topic(topics.BLOCKS)
        self._archive, self._dead_letters = settings.topic(topics.ARCHIVE), settings.topic(topics.DEAD_LETTERS)
        self._canaries = settings.topic(topics.CANARIES)
        self._event_partitions, self._shards = settings.event_partitions, settings.block_partitions

    def of_heartbeat(self, ranges: Mapping[int, SourceRange]) -> Transaction:
        """An empty block to every shard, with the watermarks and silences in `ranges`."""
        sent_ms = now_ms()
        return Transaction(sent_ms, list(self._block_records(partials.empty_partials(), ranges, sent_ms)), ranges)

    def of_batch(self, batch: ProcessedBatch, ranges: Mapping[int, SourceRange], is_behind: bool) -> Transaction:
        """All that a batch with messages brings about; `ranges` of every owned partition. `is_behind`: whether more were waiting."""
        sent_ms, judged = now_ms(), batch.judged
        records = list(self._block_records(partials.fold_events(list(judged.values())), ranges, sent_ms, is_behind))
        for p, events in judged.items():
            parts, log_time_ms = judge.archive_parts(events), events.after.log_time_ms
            for value in blocks.encode_block(parts, (ranges[p],), sent_ms, log_time_ms=log_time_ms):
                records.append(Record(self._archive, value, partition=p))
        records += self._dead_letter_records(batch)
        for p, offsets in batch.canaries.items():
            records += mark_records(self._canaries, p, offsets)
        return Transaction(sent_ms, records, ranges, {p: events.after for p, events in judged.items()}, batch)

    def of_poison(
        self, batch: ProcessedBatch, ranges: Mapping[int, SourceRange], poison: Poison, base: int
    ) -> Transaction:
        """What sets poison aside: `batch` has no message, and moves its partition behind it."""
        letter = poison.letter(self._dead_letters, self._events, base, poison.partition % self._event_partitions, STAGE)
        transaction = self.of_batch(batch, ranges, is_behind=False)
        transaction.records.append(letter)
        return transaction

    def _block_records(
        self, folded: Partials, ranges: Mapping[int, SourceRange], sent_ms: int, is_behind: bool = False
    ) -> Iterator[Record]:
        """One block to every block partition, empty where there is nothing: each accounts for all ranges."""
        shard_of_row = salting.assign_shards(folded, self._shards)
        rows = folded.without_zero_sums().take(np.argsort(shard_of_row, kind="stable")).arrow()
        edges = np.cumsum(np.bincount(shard_of_row, minlength=self._shards)).tolist()
        sources = tuple(ranges[p] for p in sorted(ranges))
        for shard, (start, stop) in enumerate(pairwise([0, *edges])):
            parts = blocks.split_rows(rows.slice(start, stop - start))
            for value in blocks.encode_block(parts, sources, sent_ms, is_behind):
                yield Record(self._blocks, value, partition=shard)

    def _dead_letter_records(self, batch: ProcessedBatch) -> Iterator[Record]:
        """Rejected messages and too-late events, with their original bytes, in the order of the batch."""
        letters = dict(batch.rejected)
        for judged in batch.judged.values():
            too_late = judged.decisions == Decision.TOO_LATE
            for row, late_by_ms in zip(
                judged.events["row"][too_late].tolist(), judged.late_by_ms[too_late].tolist(), strict=True
            ):
                letters[row] = Rejection(Reason.TOO_LATE, f"{late_by_ms} ms after the end of its minute")
        for row in sorted(letters):
            rejection, (p, offset, key) = letters[row], batch.source.source(row)
            yield dead_letter(
                self._dead_letters, p % self._event_partitions, batch.source.values[row], key,
                reason=rejection.reason, detail=rejection.detail, source=f"{self._events}/{p}/{offset}", stage=STAGE,
            )  # fmt: skip
