"""Batches of messages to columns, with the same verdict for each as `events.judge_message` alone would give.

The fast path (`scan`) takes what is written in the common way and is good in every field. Whatever it leaves is judged
one by one by the strict path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Bools, Ints, Stretches, Values
from infra.columnar.siphash import KEY_BYTES, siphash
from ingest import events
from ingest.decoding.scan import NUMBERS, Scanned, scan_messages
from ingest.dedup.digest import Digests, digest_ids
from ingest.events import Event, Rejection

Column = npt.NDArray[Any]

COLUMNS: dict[str, npt.DTypeLike] = {
    "row": np.int64,
    "event_type": np.uint8,
    "time_ms": np.int64,
    **dict.fromkeys(events.ID_FIELDS, np.int64),
    "country": np.uint16,
    "device": np.uint8,
    "user": np.int64,
    "cost_micros": np.int64,
}
NO_USER = -1


@dataclass(frozen=True)
class Events:
    """Valid events by column (COLUMNS), with their ids and these ids' digests.

    `row` is the message's place in its batch. `user` is 63 bits of the keyed hash of user_id, or NO_USER.
    """

    columns: dict[str, Column]
    ids: Values
    digests: Digests

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def take(self, rows: slice | Ints | Bools) -> Events:
        """The events at these places, in the order of `rows`."""
        return Events({n: c[rows] for n, c in self.columns.items()}, self.ids.take(rows), self.digests[rows])


@dataclass(frozen=True)
class Decoded:
    """`events` are ordered by row; the rest was rejected."""

    events: Events
    rejected: dict[int, Rejection]


def decode_events(
    messages: Values | Stretches,
    log_time_ms: Ints,
    user_key: bytes = bytes(KEY_BYTES),
    *,
    latest_ms: Ints | None = None,
) -> Decoded:
    """Judge a batch; `log_time_ms[i]` is the Kafka timestamp of each. `user_key` is that of the users' hashes.

    `latest_ms[i]` is the latest event time that is accepted, ten minutes after the timestamp by default.
    """
    latest_ms = log_time_ms + events.MAX_AHEAD_MS if latest_ms is None else latest_ms
    scanned = scan_messages(messages.parts if isinstance(messages, Stretches) else [messages], log_time_ms, latest_ms)
    fast = _fast(scanned, user_key)
    if scanned.fits.all():
        return Decoded(fast, {})
    fast = fast.take(scanned.fits)
    slow, rejected = _judge_each(messages, np.flatnonzero(~scanned.fits).tolist(), log_time_ms, latest_ms, user_key)
    return Decoded(_merged(fast, slow) if len(slow) else fast, rejected)


def _fast(scanned: Scanned, user_key: bytes) -> Events:
    columns: dict[str, Column] = {"row": np.arange(len(scanned.fits))}
    for name, column in zip(NUMBERS, scanned.numbers, strict=True):
        columns["time_ms" if name == "event_time" else name] = column
    columns["user"] = _users(scanned.users, scanned.has_user, user_key)
    return Events(_typed(columns), scanned.ids, digest_ids(scanned.ids))


def _typed(columns: dict[str, Column]) -> dict[str, Column]:
    return {name: columns[name].astype(kind, copy=False) for name, kind in COLUMNS.items()}


def _users(texts: Values, present: Bools, key: bytes) -> Ints:
    hashes = (siphash(texts, key)[:, 0] >> np.uint64(1)).astype(np.int64)
    return np.where(present, hashes, NO_USER)


def _merged(fast: Events, slow: Events) -> Events:
    """Both by row. Their ids are copied together again."""
    order = np.argsort(np.concatenate((fast["row"], slow["row"])), kind="stable")
    return Events(
        {name: np.concatenate((fast[name], slow[name]))[order] for name in COLUMNS},
        Values.joined([fast.ids, slow.ids]).take(order).copied(),
        np.concatenate((fast.digests, slow.digests))[order],
    )


def _judge_each(
    messages: Values | Stretches, rows: list[int], log_time_ms: Ints, latest_ms: Ints, user_key: bytes
) -> tuple[Events, dict[int, Rejection]]:
    """The strict path, one message at a time."""
    good: list[Event] = []
    kept: list[int] = []
    rejected: dict[int, Rejection] = {}
    for row in rows:
        verdict = events.judge_message(messages[row], int(log_time_ms[row]), int(latest_ms[row]))
        if isinstance(verdict, Rejection):
            rejected[row] = verdict
        else:
            good.append(verdict)
            kept.append(row)
    columns: dict[str, Column] = {"row": np.array(kept, np.int64)}
    for name in COLUMNS.keys() - {"row", "user"}:
        columns[name] = np.array([getattr(event, name) for event in good], np.int64)
    users = Values.of([(event.user_id or "").encode() for event in good])
    columns["user"] = _users(users, np.array([event.user_id is not None for event in good], np.bool_), user_key)
    ids = Values.of([event.event_id.encode() for event in good])
    return Events(_typed(columns), ids, digest_ids(ids)), rejected
