"""Id and time of an event, read from its JSON before any verdict, and an event with other values in some of its fields.

For senders of events and readers of dead letters. The common spelling is read by msgspec; what that does not take is
read as `events.judge_message` reads it, so both agree on the id of every valid event, however it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from infra.rfc3339 import time_ms_of
from infra.structs import decodable
from ingest import events

# Far beyond any time that a verdict takes, and small enough to be added to.
_MAX_TIME_MS = 10**15
# Python refuses to build longer integers from text, and to print them.
_MAX_DIGITS = 4_300


@decodable
class _Fields(msgspec.Struct, gc=False):
    event_id: str | None = None
    event_time: int | str | None = None


_fields = msgspec.json.Decoder(_Fields)
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
# What msgspec does not take has halves of surrogate pairs. A number that cannot be built becomes `true`, which is as wrong
# in every field of an event.
_lenient = json.JSONDecoder(
    parse_int=lambda digits: int(digits) if len(digits) < _MAX_DIGITS else True,
    parse_float=lambda text: float(text) if math.isfinite(float(text)) else True,
)
_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_id_and_time(value: bytes | None) -> tuple[str | None, int | None]:
    """The event's id as a text, and its time in epoch ms; None for what is not there or not of that type."""
    try:
        fields = _fields.decode(value or b"")
        event_id, time = fields.event_id, fields.event_time
    except _FAILURES:
        event = events.object_of(value) or {}
        event_id, time = event.get("event_id"), event.get("event_time")
    return event_id if isinstance(event_id, str) else None, _time_ms(time)


def read_ids_and_times(lines: Sequence[bytes]) -> tuple[list[str | None], list[int | None]]:
    """`read_id_and_time` of many events, in less time than one call for each takes."""
    ids, times, decode = list[str | None](), list[int | None](), _fields.decode
    for line in lines:
        try:
            fields = decode(line)
        except _FAILURES:
            event_id, time_ms = read_id_and_time(line)
        else:
            event_id, time_ms = fields.event_id, _time_ms(fields.event_time)
        ids.append(event_id)
        times.append(time_ms)
    return ids, times


def key_of(event_id: str | None) -> bytes | None:
    """The message key of an event with this id: what every copy of it has; None where a text cannot be encoded."""
    try:
        return None if event_id is None else event_id.encode()
    except UnicodeEncodeError:
        return None


def valid_id(value: bytes | None) -> str | None:
    """The event's id if a valid event could have it, else None. Takes any bytes."""
    event_id, _ = read_id_and_time(value)
    key = key_of(event_id)
    return event_id if key and len(key) <= events.MAX_EVENT_ID_BYTES else None


def with_fields(value: bytes | None, changes: dict[str, Any]) -> bytes | None:
    """The event with fields set, every other value as it was written; None where `value` is no JSON object."""
    try:
        raw: dict[str, Any] = _raw_fields.decode(value or b"")
        return msgspec.json.encode(raw | changes)
    except (*_FAILURES, UnicodeEncodeError, OverflowError):
        if events.object_of(value) is None:
            return None
        event = _lenient.decode((value or b"").decode())
        return json.dumps(event | changes, separators=(",", ":")).encode()


def _time_ms(time: object) -> int | None:
    if isinstance(time, str):
        return time_ms_of(time)
    return time if type(time) is int and abs(time) <= _MAX_TIME_MS else None
