"""Cursors of pages of numbers. A cursor says behind which row the next page begins, and in which range: that which its first page
settled on, however much later it is used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from query.signing import Signer

if TYPE_CHECKING:
    from query.request import Question

_KIND = "metrics"


@dataclass(frozen=True)
class Cursor:
    """`place`: the last row, by all that rows are ordered by. `texts`: start, end and granularity as the first page was asked."""

    question: str
    place: list[Any]
    grain: str
    unit: str
    start_ms: int
    end_ms: int
    texts: tuple[str, ...]


def issue(question: Question, place: list[Any], signer: Signer) -> str:
    """The cursor of what comes behind a row."""
    range_ = [question.grain, question.unit, question.start_ms, question.end_ms]
    return signer.sign({"of": _KIND, "q": digest(question), "k": place, "r": range_, "t": question.texts})


def read(text: str, signer: Signer) -> Cursor | None:
    """What was issued; None for anything else."""
    payload = signer.read(text)
    if payload is None or payload.get("of") != _KIND:
        return None
    grain, unit, start_ms, end_ms = payload["r"]
    return Cursor(payload["q"], payload["k"], grain, unit, start_ms, end_ms, tuple(payload["t"]))


def digest(question: Question) -> str:
    """All that the rows of a question and their order depend on."""
    parts = [
        question.campaigns, question.advertiser, None if question.scope is None else sorted(question.scope), question.grain,
        question.unit, question.start_ms, question.end_ms, question.group_by, question.filters, question.zone.key, question.fill,
        question.order, question.descending,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]
