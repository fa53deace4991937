"""Events moved to another time, under ids of their own: `adclick replay --shift-to-now`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from infra.clock import MINUTE_MS
from ingest import events
from ingest.decoding import json_fields

_NEAR_MS = 30 * MINUTE_MS
_HASH_BYTES = 16
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shift:
    """By how much events are moved, and the text that makes the ids of one replay differ from those of every other."""

    shift_ms: int
    replay: str

    @property
    def suffix(self) -> str:
        """The text that is appended to an id."""
        return f"~{self.shift_ms // MINUTE_MS}.{self.replay}"


def find_shift(now_ms: int, times_ms: Iterable[int]) -> Shift | None:
    """The shift by whole minutes that brings the end of the events to now; None where no event has a time.

    Events dated far off do not count. The moment goes into the ids, so that a second replay counts within the same minute, too.
    """
    times = np.sort(np.fromiter(times_ms, np.int64))
    if not len(times):
        return None
    # The end of a file may hold an event from the future: take the newest that has company.
    keep = times[: max(1, int(len(times) * 0.999))] if len(times) > 1000 else times
    # What is further ahead than this is no part of the traffic.
    spread = int(2 * max(MINUTE_MS, np.median(keep) - np.percentile(keep, 1)))
    newest = int(keep[keep <= np.median(keep) + spread][-1])
    beyond = times[(times > newest) & (times <= newest + _NEAR_MS)]
    newest = int(beyond[-1]) if len(beyond) else newest
    return Shift((now_ms - newest) // MINUTE_MS * MINUTE_MS, _base36(now_ms))


def shift_event(line: bytes, event_id: str | None, time_ms: int | None, shift: Shift) -> bytes:
    """The event moved, under an id derived from its own: the same for copies, another for every other event.

    A line without a valid id or a readable time stays as it is: moving mends nothing.
    """
    size = len(json_fields.key_of(event_id) or b"")
    if event_id is None or time_ms is None or not 0 < size <= events.MAX_EVENT_ID_BYTES:
        return line
    changes = {"event_id": derived_id(event_id, shift.suffix), "event_time": time_ms + shift.shift_ms}
    return json_fields.with_fields(line, changes) or line


def derived_id(event_id: str, suffix: str) -> str:
    """The id and the suffix; where both are longer than an id may be, the id's beginning and a hash of both."""
    whole = (event_id + suffix).encode()
    if len(whole) <= events.MAX_EVENT_ID_BYTES:
        return whole.decode()
    digest = hashlib.blake2b(whole, digest_size=_HASH_BYTES).hexdigest()
    room = events.MAX_EVENT_ID_BYTES - len(digest) - 1
    return whole[:room].decode("utf-8", "ignore") + "~" + digest


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
