"""The minute, hour and day that a message belongs to, as the router answers: what any client would be told now."""

from __future__ import annotations

from dataclasses import dataclass

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from infra.errors import Unavailable
from ingest.archive.search import ArchivedMessage
from query.bad_question import BadQuestion
from query.question import parse_question
from query.router import Router

GRAINS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
NOT_RETAINED, UNKNOWN = "no longer retained", "unknown"


@dataclass(frozen=True)
class WindowOfMessage:
    """A window. `state`: the finality of its row, NOT_RETAINED, or UNKNOWN while a store is away. `events`: how many events of the message's
    type and dimensions the answer counts in it; None where there is no answer."""

    grain: str
    start_ms: int
    end_ms: int
    state: str
    events: int | None
    tiers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_windows(router: Router, message: ArchivedMessage, now_ms: int) -> list[WindowOfMessage]:
    """The windows of a message, the shortest first."""
    return [_read_window(router, message, grain, length, now_ms) for grain, length in GRAINS.items()]


def _read_window(router: Router, message: ArchivedMessage, grain: str, length_ms: int, now_ms: int) -> WindowOfMessage:
    start_ms = message.time_ms // length_ms * length_ms
    end_ms = start_ms + length_ms
    filters = ("ad_id", "publisher_id", "country", "device")
    parameters = [
        ("campaign_id", f"{message.campaign_id}"), ("start", iso(start_ms)), ("end", iso(end_ms)), ("granularity", grain),
        *(("filter", f"{name}:{getattr(message, name)}") for name in filters),
    ]  # fmt: skip
    try:
        answer = router.answer(parse_question(parameters, now_ms, router.retention))
    except BadQuestion as error:
        return WindowOfMessage(grain, start_ms, end_ms, NOT_RETAINED, None, warnings=(error.detail,))
    except Unavailable as error:
        return WindowOfMessage(grain, start_ms, end_ms, UNKNOWN, None, warnings=(str(error),))
    rows = answer.page.frame.rows(named=True)
    events = int(sum(row[f"{message.event_type}s"] for row in rows))
    finality = str(rows[0]["finality"]) if rows else answer.finality
    tiers = tuple(dict.fromkeys(piece.tier for piece in answer.pieces))
    return WindowOfMessage(grain, start_ms, end_ms, finality, events, tiers, tuple(answer.warnings))
