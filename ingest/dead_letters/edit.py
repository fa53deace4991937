"""Which dead letters an edit touches, and what becomes of them: pure, over the bytes of a letter.

An edit sets a field only where that field was at fault. So one command may be given many letters: a country that is set to
ZZ leaves the event alone whose cost was wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import UsageError
from ingest import events
from ingest.decoding import json_fields
from ingest.events import Reason, Rejection

_TEXTS = ("event_id", "event_type", "event_time", "country", "device", "user_id")
_OF_A_FIELD = (Reason.MISSING_FIELD, Reason.BAD_VALUE)


@dataclass(frozen=True)
class Mended:
    """An event that is valid now, and the fields that were set for it."""

    value: bytes
    event_id: str
    fields: tuple[str, ...]


def field_at_fault(reason: str | None, detail: str | None) -> str | None:
    """The field that a verdict names; None where the whole message is at fault."""
    if reason == Reason.FROM_THE_FUTURE:
        return "event_time"
    return detail if reason in _OF_A_FIELD and detail in events.FIELDS else None


def parse_edits(texts: tuple[str, ...]) -> dict[str, Any]:
    """`FIELD=VALUE` by field. Raises UsageError."""
    edits: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in events.FIELDS:
            raise UsageError(f"--edit is FIELD=VALUE with a field of the event, not {text}")
        if name in edits:
            raise UsageError(f"--edit sets {name} twice")
        edits[name] = _parsed(name, value)
    return edits


def mend(value: bytes | None, at_fault: str | None, edits: Mapping[str, Any], now_ms: int) -> Mended | Rejection:
    """The event with those fields set that were at fault, one after the other; the verdict on it where it stays invalid.

    `at_fault` is the field that the letter names, if any.
    """
    fields = list[str]()
    while True:
        if at_fault is not None and at_fault in edits and at_fault not in fields:
            value = json_fields.with_fields(value, {at_fault: edits[at_fault]}) or value
            fields.append(at_fault)
        verdict = events.judge_message(value, now_ms)
        if not isinstance(verdict, Rejection):
            return Mended(value or b"", verdict.event_id, tuple(fields))
        at_fault = field_at_fault(verdict.reason, verdict.detail)
        if at_fault not in edits or at_fault in fields:
            return verdict


def _parsed(name: str, text: str) -> Any:
    """A value as JSON, or as plain text. A field of text takes a number as the text that it is."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float):  # which no field takes, and JSON has no word for some
        return text
    if name in _TEXTS and not (
        value is None or isinstance(value, str) or (name == "event_time" and type(value) is int)
    ):
        return text
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
