"""Cursors of pages of numbers. A cursor says behind which row the next page begins, and in which range: that which its first page
settled on, however much later it is used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from query.bad_question import BadQuestion
from query.signing import Signer

if TYPE_CHECKING:
    from query.question import Question

FOREIGN_CURSOR = "the cursor belongs to another question; retry without cursor"
UNKNOWN_CURSOR = "the cursor was not issued by this installation, or by an earlier version; retry without cursor"
_KIND = "metrics"


@dataclass(frozen=True)
class Cursor:
    """`sort_key`: what the last row of the page is ordered by. `texts`: start, end and granularity as the first page was asked.
    `compared`: the earlier range that the first page settled on, as `RangeComparison.state` has it; empty for none."""

    question: str
    sort_key: list[Any]
    grain: str
    unit: str
    start_ms: int
    end_ms: int
    texts: tuple[str, ...]
    compared: tuple[Any, ...] = ()


def issue_cursor(question: Question, sort_key: list[Any], signer: Signer) -> str:
    """The cursor of the page that begins behind a row."""
    range_ = [question.grain, question.unit, question.start_ms, question.end_ms]
    payload = {"of": _KIND, "q": digest_question(question), "k": sort_key, "r": range_, "t": question.texts}
    return signer.sign(payload | ({"c": question.compare.state} if question.compare else {}))


def read_cursor(text: str, signer: Signer) -> Cursor | None:
    """A cursor that was issued here; None for any other text."""
    payload = signer.read(text)
    if payload is None or payload.get("of") != _KIND:
        return None
    grain, unit, start_ms, end_ms = payload["r"]
    return Cursor(
        payload["q"], payload["k"], grain, unit, start_ms, end_ms, tuple(payload["t"]), tuple(payload.get("c", ()))
    )


def read_page(text: str, kind: str, signer: Signer, digest: str | None = None) -> dict[str, Any]:
    """What a cursor of pages of a kind keeps; with `digest`, of the question that it stands for. Raises BadQuestion for any other
    text, and for the cursor of another question."""
    payload = signer.read(text)
    if payload is None or payload.get("of") != kind:
        raise BadQuestion("cursor", UNKNOWN_CURSOR)
    if digest is not None and payload["q"] != digest:
        raise BadQuestion("cursor", FOREIGN_CURSOR)
    return payload


def digest_question(question: Question) -> str:
    """A digest of all that the rows of a question and their order depend on."""
    parts = [
        question.campaigns, question.advertiser, question.scope.parts, question.grain,
        question.unit, question.start_ms, question.end_ms, question.group_by, question.filters, question.zone.key, question.fill,
        question.order, question.descending, *([question.top, question.by] if question.top else []),
        *([question.compare.state] if question.compare else []), *(["users"] if question.users else []),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]
