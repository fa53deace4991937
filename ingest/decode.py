"""Batches of messages to columns, with the same verdict for each as `events.judge` alone would give.

The fast path (`scan`) takes what is written in the common way and is good in every field. Whatever it leaves is judged
one by one by the strict path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from infra.columns import Bools, Ints, Values
from ingest import events
from ingest.dedup.digest import Digests, digest
from ingest.events import Event, Rejection
from ingest.scan import NUMBERS, Scanned, scan
from ingest.siphash import KEY_BYTES, siphash

COLUMNS: dict[str, pl.DataType] = {
    "row": pl.UInt32(),
    "event_id": pl.String(),
    "event_type": pl.UInt8(),
    "time_ms": pl.Int64(),
    "campaign_id": pl.Int64(),
    "ad_id": pl.Int64(),
    "advertiser_id": pl.Int64(),
    "publisher_id": pl.Int64(),
    "country": pl.UInt16(),
    "device": pl.UInt8(),
    "user": pl.Int64(),
    "cost_micros": pl.Int64(),
}


@dataclass(frozen=True)
class Decoded:
    """`events` has COLUMNS, ordered by `row`, the position in the batch; the rest was rejected.

    `user` is the keyed hash of user_id. `digests` belong to the events.
    """

    events: pl.DataFrame
    digests: Digests
    rejected: dict[int, Rejection]


def decode(messages: Values, log_time_ms: Ints, user_key: bytes = bytes(KEY_BYTES)) -> Decoded:
    """Judge a batch; `log_time_ms[i]` is the Kafka timestamp of each. `user_key` is that of the users' hashes."""
    found = scan(messages, log_time_ms)
    fast, digests = _columns(found, user_key)
    others = np.flatnonzero(~found.fits).tolist()
    if not others:
        return Decoded(fast, digests, {})
    slow, slow_digests, rejected = _judge_each(messages, others, log_time_ms, user_key)
    frame = pl.concat([fast.filter(pl.Series(found.fits)), slow], rechunk=True)
    digests = np.concatenate((digests[found.fits], slow_digests))
    order = np.argsort(frame["row"].to_numpy(), kind="stable")
    return Decoded(frame[order], digests[order], rejected)


def _columns(found: Scanned, user_key: bytes) -> tuple[pl.DataFrame, Digests]:
    columns: dict[str, object] = {
        "row": np.arange(len(found.fits), dtype=np.uint32),
        "event_id": _texts(found.ids),
        "user": _users(found.users, found.has_user, user_key),
    }
    for name, column in zip(NUMBERS, found.numbers, strict=True):
        columns["time_ms" if name == "event_time" else name] = column
    frame = pl.DataFrame(columns).select(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
    return frame, digest(found.ids)


def _users(texts: Values, there: Bools, key: bytes) -> pl.Series:
    """63 bits of a keyed hash; null where there is none."""
    hashes = (siphash(texts, key)[:, 0] >> np.uint64(1)).astype(np.int64)
    column = pl.Series(hashes)
    return column if there.all() else pl.select(pl.when(pl.Series(there)).then(column)).to_series()


def _texts(joined: Values) -> pl.Series:
    """Texts that follow each other as a String series."""
    edges = np.concatenate((np.zeros(1, np.int64), joined.ends))
    array = pa.LargeStringArray.from_buffers(len(joined), pa.py_buffer(edges), pa.py_buffer(joined.data))
    return pl.Series(pl.from_arrow(array), dtype=pl.String)


def _judge_each(
    messages: Values, rows: list[int], log_time_ms: Ints, user_key: bytes
) -> tuple[pl.DataFrame, Digests, dict[int, Rejection]]:
    """The strict path, one message at a time."""
    good: list[tuple[int, Event]] = []
    rejected: dict[int, Rejection] = {}
    for row in rows:
        verdict = events.judge(messages[row], int(log_time_ms[row]))
        if isinstance(verdict, Rejection):
            rejected[row] = verdict
        else:
            good.append((row, verdict))
    columns: dict[str, object] = {"row": [row for row, _ in good]}
    for name in set(COLUMNS) - {"row", "user"}:
        columns[name] = [getattr(event, name) for _, event in good]
    users = Values.of([(event.user_id or "").encode() for _, event in good])
    columns["user"] = _users(users, np.array([event.user_id is not None for _, event in good], np.bool_), user_key)
    frame = pl.DataFrame(columns, schema=COLUMNS)
    return frame, digest(Values.of([event.event_id.encode() for _, event in good])), rejected
