"""What the stream and a nightly run make of the messages of one id. Pure.

The rules of the recount are those of `batch.corrections`, for one id; a test compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.clickhouse.ledger_causes import Cause
from infra.clock import DAY_MS
from ingest.archive.schema import DECISIONS, Decision
from ingest.archive.search import ArchivedMessage
from ingest.lateness import Lateness

COUNTED, COPY, TOO_LATE, SHED, DOUBT = (DECISIONS[d] for d in Decision)
_LATENESS = {
    Lateness.ON_TIME: "counted, on time",
    Lateness.CORRECTS: "counted, late by up to 5 min: its minute was corrected",
    Lateness.FLAGGED: "counted, late by up to 1 h: one of late_events",
    Lateness.TOO_LATE: "counted",
}
_LEFT_TO_THE_RUN = {
    TOO_LATE: "more than 1 h behind the newest event of its partition: not counted by the stream",
    SHED: "dropped while ingest was overloaded: not counted by the stream",
    DOUBT: "its id may be one of those that Redis has lost: not counted by the stream",
}


@dataclass(frozen=True)
class NightVerdict:
    """What a nightly run makes of a message. `counts`: whether it bills it; `moved`: what it adds to the stream's number of such events, and
    `cause`: why, empty where that is nothing."""

    counts: bool
    moved: int = 0
    cause: str = ""


def explain_decision(message: ArchivedMessage) -> str:
    """What the stream did with a message, and why."""
    if message.decision == COPY:
        first = "" if message.copy_of is None else f" of {message.partition}/{message.copy_of}"
        return f"a copy{first}: not counted"
    if message.decision != COUNTED:
        return _LEFT_TO_THE_RUN[message.decision]
    sampled = f", standing for {message.weight} events: impressions were sampled" if message.weight > 1 else ""
    return _LATENESS[Lateness(message.lateness)] + sampled


def order_of_arrival(messages: Sequence[ArchivedMessage]) -> list[ArchivedMessage]:
    """Each message once, by (log time, partition, offset): of copies the first counts."""
    by_place = {m.place: m for m in messages}
    return sorted(by_place.values(), key=lambda m: (m.log_time_ms, *m.place))


def judge_night(message: ArchivedMessage, messages: Sequence[ArchivedMessage], rejected_ms: int | None) -> NightVerdict:
    """What the run of the message's day makes of it. `messages`: all of its id that the run has read. `rejected_ms`: when a dead letter of
    the id was first written, other than for being too late; None where there is none."""
    day_ms = message.time_ms // DAY_MS * DAY_MS
    near = [m for m in order_of_arrival(messages) if day_ms - DAY_MS <= m.time_ms < day_ms + 2 * DAY_MS]
    first = near[0]
    of_stream = next((m for m in near if m.decision == COUNTED), None)
    counts, is_of_stream = message.place == first.place, of_stream is not None and message.place == of_stream.place
    if counts and of_stream is None:
        return _move(message, 0 if message.decision == COPY else 1, _cause_of_decision(message, rejected_ms), counts)
    if counts and of_stream is not None and _facts(of_stream) != _facts(first):
        return _move(message, 1, Cause.CONFLICTING_COPY, counts)
    if message.decision != COUNTED or of_stream is None:
        return NightVerdict(counts)
    if _facts(message) == _facts(first):
        if is_of_stream:
            return _move(message, 1 - message.weight, Cause.SHED, counts)
        is_elsewhere = message.partition != of_stream.partition
        cause = Cause.CROSS_PARTITION if is_elsewhere else Cause.EXPIRED_HORIZON
        return _move(message, -message.weight, cause, counts)
    return _move(message, -message.weight, Cause.CONFLICTING_COPY, counts)


def _move(message: ArchivedMessage, moved: int, cause: Cause, counts: bool) -> NightVerdict:
    return NightVerdict(counts, moved, cause.value if moved else "")


def _cause_of_decision(message: ArchivedMessage, rejected_ms: int | None) -> Cause:
    if message.decision == TOO_LATE:
        is_again = rejected_ms is not None and rejected_ms <= message.log_time_ms
        return Cause.SENT_AGAIN if is_again else Cause.LATE
    return Cause.DOUBT if message.decision == DOUBT else Cause.SHED


def _facts(message: ArchivedMessage) -> tuple[object, ...]:
    """What a copy of an event has, too."""
    return (
        message.time_ms, message.event_type, message.campaign_id, message.advertiser_id, message.ad_id, message.publisher_id,
        message.country, message.device, message.cost_micros,
    )  # fmt: skip
