"""What an ingest worker has done since it started, as it reports it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from infra.structs import decodable
from ingest.archive.schema import Decision
from ingest.events import Reason
from ingest.judge import JudgedBatch

REJECTIONS: dict[Reason, str] = {
    reason: reason.value.replace("-", "_") for reason in Reason if reason not in (Reason.TOO_LATE, Reason.UNREADABLE)
}
"""Reason of a message that is rejected before dedup → its field in `Counts`. Too late is a decision; what is unreadable is set aside."""


@decodable
class Counts(msgspec.Struct):
    """Of committed batches. Messages are rejected, each for one reason, canaries, or valid events with one decision each."""

    messages: int = 0
    rejected: int = 0
    too_large: int = 0
    malformed: int = 0
    missing_field: int = 0
    bad_value: int = 0
    from_the_future: int = 0
    counted: int = 0
    copies: int = 0
    too_late: int = 0
    shed: int = 0
    doubt: int = 0
    canary: int = 0
    bloom_positives: int = 0
    """Ids that a Bloom filter took for known, and that were looked for in Redis."""
    bloom_false: int = 0
    """Of these, how many were not there."""

    def add(self, judged: JudgedBatch, messages: int, reasons: Iterable[Reason] = ()) -> None:
        """Count the batch of one partition, of so many messages. `reasons`: of each message that was rejected."""
        decisions = np.bincount(judged.decisions, minlength=len(Decision)).tolist()
        self.messages += messages
        canaries = judged.after.canaries - judged.before.canaries
        self.rejected += messages - len(judged.decisions) - canaries
        self.canary += canaries
        for reason in reasons:
            name = REJECTIONS[reason]
            setattr(self, name, getattr(self, name) + 1)
        self.counted += decisions[Decision.COUNTED]
        self.copies += decisions[Decision.COPY]
        self.too_late += decisions[Decision.TOO_LATE]
        self.shed += decisions[Decision.SHED]
        self.doubt += decisions[Decision.DOUBT]
        self.bloom_positives += judged.copies.lookups.positives
        self.bloom_false += judged.copies.lookups.false
