"""Causes of corrections, as the `ledger` table holds them: written by batch, read by query, neither of which imports the other."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why the exact count and the stream's differ in a row."""

    LATE = "late"
    SHED = "shed"
    DOUBT = "doubt"
    CROSS_PARTITION = "cross-partition-duplicate"
    EXPIRED_HORIZON = "expired-horizon-duplicate"
    CONFLICTING_COPY = "conflicting-copy"
    SENT_AGAIN = "dead-letter-replayed"
    OTHER_REGION = "other-region"  # it was sent to another region, whose stream has it
    OPEN = "open"  # the stream had not finished with the row when the run began
    UNEXPLAINED = "unexplained"


DECIDED = tuple(cause for cause in Cause if cause not in (Cause.OPEN, Cause.UNEXPLAINED))
"""What the recount decides on a row; the others come out of the comparison with the stream."""
