"""What an ingest worker has done since it started, as it reports it."""

from __future__ import annotations

import msgspec
import numpy as np

from infra.structs import decodable
from ingest.archive.schema import Decision
from ingest.judge import JudgedBatch


@decodable
class Counts(msgspec.Struct):
    """Of committed batches. Messages are rejected, canaries, or valid events with one decision each."""

    messages: int = 0
    rejected: int = 0
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

    def add(self, judged: JudgedBatch, messages: int) -> None:
        """Count the batch of one partition, of so many messages."""
        decisions = np.bincount(judged.decisions, minlength=len(Decision)).tolist()
        self.messages += messages
        canaries = judged.after.canaries - judged.before.canaries
        self.rejected += messages - len(judged.decisions) - canaries
        self.canary += canaries
        self.counted += decisions[Decision.COUNTED]
        self.copies += decisions[Decision.COPY]
        self.too_late += decisions[Decision.TOO_LATE]
        self.shed += decisions[Decision.SHED]
        self.doubt += decisions[Decision.DOUBT]
        self.bloom_positives += judged.copies.lookups.positives
        self.bloom_false += judged.copies.lookups.false
