"""Batches of messages to columns, with the same verdict for each as `events.judge` alone would give.

The fast path never guesses. From a message that the strict path has read, a *shape* is derived: a regular
expression that fixes the order of keys, the white space and the kind of every value, and that allows no
escapes, no line breaks and only short plain integers. What matches a shape is one line of JSON on which any two
parsers agree, so the lines can be joined and read by polars; what matches none is judged one by one.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest import events
from ingest.events import Event, Reason, Rejection
from ingest.text import as_text

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
    "user_id": pl.String(),
    "cost_micros": pl.Int64(),
}

_TEXT = r'"[^"\\\x00-\x1f]*"'
_INT = r"(?:0|[1-9][0-9]{0,17})"
_TIME = r'"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-][01][0-9]:[0-5][0-9])"'
_SCALAR = re.compile(rf"{_TEXT}|-?(?:0|[1-9][0-9]{{0,17}})(?:\.[0-9]{{1,17}})?|true|false|null")
_MEMBER = re.compile(rf'([ ]*)"([^"\\\x00-\x1f]*)"([ ]*:[ ]*)({_SCALAR.pattern})([ ]*)')
_PLAIN_KINDS = {name: (_INT if name in (*events.ID_FIELDS, "cost_micros") else _TEXT) for name in events.FIELDS}
_KEPT_SHAPES = 16
_JSON_SCHEMA = {
    **dict.fromkeys(("event_id", "event_type", "country", "device", "user_id"), pl.String),
    **dict.fromkeys((*events.ID_FIELDS, "cost_micros"), pl.Int64),
}
_COUNTRY = pl.Enum(list(events.COUNTRIES))
_DEVICE = pl.Enum(list(events.DEVICES))
_TYPE = pl.Enum(list(events.EVENT_TYPES))


@dataclass(frozen=True)
class Decoded:
    """`events` has COLUMNS, ordered by `row`, the position in the batch; the rest was rejected."""

    events: pl.DataFrame
    rejected: dict[int, Rejection]


@dataclass(frozen=True)
class _Shape:
    pattern: str
    time_is_text: bool


def _shape_of(value: bytes) -> _Shape | None:
    """The shape of a message, or None when messages like it must be judged one by one."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not (text.startswith("{") and text.endswith("}")):
        return None
    parts, seen, at, time_is_text = [r"^\{"], set(), 1, False
    while True:
        member = _MEMBER.match(text, at)
        if member is None:
            return None
        before, key, colon, scalar, after = member.groups()
        if key in seen:
            return None
        seen.add(key)
        kind = _kind(key, scalar)
        if kind is None:
            return None
        time_is_text |= kind is _TIME
        parts.append(f'{before}"{re.escape(key)}"{colon}{kind}{after}')
        at = member.end()
        if text[at] == "}" and at == len(text) - 1:
            break
        if text[at] != ",":
            return None
        parts.append(",")
        at += 1
    return _Shape("".join(parts) + r"\}$", time_is_text)


def _kind(key: str, scalar: str) -> str | None:
    """The pattern for a value of this key, given one such value."""
    if key not in _PLAIN_KINDS:
        return f"(?:{_TEXT}|true|false|null|-?{_INT}(?:\\.[0-9]{{1,17}})?)"
    if scalar == "null":
        return "null"
    if key == "event_time":
        return _TIME if re.fullmatch(_TIME, scalar) else _INT if re.fullmatch(_INT, scalar) else None
    kind = _PLAIN_KINDS[key]
    return kind if re.fullmatch(kind, scalar) else None


class Decoder:
    """Keeps the shapes it has met. The verdicts do not depend on which those are."""

    def __init__(self) -> None:
        self._shapes: dict[_Shape, int] = {}
        """How many messages of the last batch had each shape: the commonest is tried first."""

    def decode(self, values: list[bytes | None], log_time_ms: npt.NDArray[np.int64]) -> Decoded:
        """Judge a batch; `log_time_ms[i]` is the Kafka timestamp of `values[i]`."""
        rejected: dict[int, Rejection] = {}
        frames: list[pl.DataFrame] = []
        slow: list[int] = []
        raw = pl.Series(values, dtype=pl.Binary)
        if (raw.bin.size().max() or 0) > events.MAX_VALUE_BYTES:  # type: ignore[operator]
            raw = raw.set(raw.bin.size() > events.MAX_VALUE_BYTES, None)
        text = as_text(raw)
        left = np.flatnonzero(text.is_not_null().to_numpy())
        slow += np.flatnonzero(text.is_null().to_numpy()).tolist()
        common = sorted(self._shapes, key=self._shapes.__getitem__, reverse=True)
        self._shapes = dict.fromkeys(common[:_KEPT_SHAPES], 0)
        for known in self._shapes:
            if not left.size:
                break
            left = self._take(known, values, text, left, log_time_ms, frames, rejected)
        learned = 0
        while left.size and learned < _KEPT_SHAPES:
            first = int(left[0])
            shape = _shape_of(values[first] or b"")
            if shape is None or shape in self._shapes:
                slow.append(first)
                left = left[1:]
                learned += 1
                continue
            learned += 1
            self._shapes[shape] = 0
            left = self._take(shape, values, text, left, log_time_ms, frames, rejected)
        slow += left.tolist()
        if slow:
            frames.append(_judge_each(values, slow, log_time_ms, rejected))
        found = pl.concat(frames) if frames else pl.DataFrame(schema=COLUMNS)
        return Decoded(found.sort("row") if len(frames) > 1 else found, rejected)

    def _take(
        self,
        shape: _Shape,
        values: list[bytes | None],
        text: pl.Series,
        left: npt.NDArray[np.int64],
        log_time_ms: npt.NDArray[np.int64],
        frames: list[pl.DataFrame],
        rejected: dict[int, Rejection],
    ) -> npt.NDArray[np.int64]:
        """Decode those of `left` that have this shape; returns the others."""
        candidates = text if left.size == len(text) else text.gather(left)
        fits = candidates.str.contains(shape.pattern).to_numpy()
        if not fits.any():
            return left
        rows = left[fits]
        self._shapes[shape] += len(rows)
        matched = values if rows.size == len(values) else [values[row] for row in rows.tolist()]
        frames.append(_read(shape, matched, rows, log_time_ms[rows], rejected))
        others: npt.NDArray[np.int64] = left[~fits]
        return others


def _read(
    shape: _Shape,
    lines: list[bytes | None],
    rows: npt.NDArray[np.int64],
    log_time_ms: npt.NDArray[np.int64],
    rejected: dict[int, Rejection],
) -> pl.DataFrame:
    """Columns of lines that all have one shape."""
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        **_JSON_SCHEMA,
        "event_time": pl.String if shape.time_is_text else pl.Int64,
    }
    raw = pl.read_ndjson(io.BytesIO(b"\n".join(cast(list[bytes], lines))), schema=schema)
    if raw.height != len(rows):
        raise AssertionError(f"{len(rows)} lines gave {raw.height} rows")
    if shape.time_is_text:
        time = (
            pl.col("event_time").str.to_datetime("%+", time_unit="ns", time_zone="UTC", strict=False).dt.epoch("ns")
            // 1_000_000
        )
    else:
        time = pl.col("event_time")
    frame = raw.select(
        pl.Series("row", rows, dtype=pl.UInt32),
        "event_id",
        pl.col("event_type").cast(_TYPE, strict=False).to_physical().cast(pl.UInt8),
        time.alias("time_ms"),
        *events.ID_FIELDS,
        _coded("country", _COUNTRY, events.DEFAULT_COUNTRY, pl.UInt16),
        _coded("device", _DEVICE, events.DEFAULT_DEVICE, pl.UInt8),
        "user_id",
        pl.col("cost_micros").fill_null(0),
        _missing=pl.coalesce(*(pl.when(pl.col(n).is_null()).then(pl.lit(n)) for n in events.REQUIRED)),
        log_time_ms=pl.Series(log_time_ms),
    )
    verdict = pl.coalesce(
        _when(~pl.col("event_id").str.len_bytes().is_between(1, events.MAX_EVENT_ID_BYTES), "event_id"),
        _when(pl.col("event_type").is_null(), "event_type"),
        _when(
            pl.col("time_ms").is_null() | (pl.col("time_ms") < pl.col("log_time_ms") - events.MAX_BEHIND_MS),
            "event_time",
        ),
        _when(pl.col("country").is_null(), "country"),
        _when(pl.col("device").is_null(), "device"),
        _when(pl.col("user_id").str.len_bytes() > events.MAX_USER_ID_BYTES, "user_id"),
        _when(pl.col("cost_micros") > events.MAX_COST_MICROS, "cost_micros"),
    )
    ahead = pl.col("time_ms") - pl.col("log_time_ms")
    judged = frame.with_columns(_bad=verdict, _ahead=ahead)
    wrong = pl.col("_missing").is_not_null() | pl.col("_bad").is_not_null() | (pl.col("_ahead") > events.MAX_AHEAD_MS)
    faulty = judged.filter(wrong)
    if faulty.height:
        for row, missing, bad, ms in faulty.select("row", "_missing", "_bad", "_ahead").iter_rows():
            if missing is not None:
                rejected[row] = Rejection(Reason.MISSING_FIELD, missing)
            elif bad is not None:
                rejected[row] = Rejection(Reason.BAD_VALUE, bad)
            else:
                rejected[row] = Rejection(Reason.FROM_THE_FUTURE, f"{ms} ms ahead")
        judged = judged.filter(~wrong)
    return judged.select(list(COLUMNS))


def _when(condition: pl.Expr, name: str) -> pl.Expr:
    return pl.when(condition).then(pl.lit(name))


def _coded(name: str, kind: pl.Enum, default: int, dtype: type[pl.DataType]) -> pl.Expr:
    """The code of an enumeration: the default for an absent value, null for a wrong one."""
    code = pl.col(name).cast(kind, strict=False).to_physical().cast(dtype)
    return pl.when(pl.col(name).is_null()).then(pl.lit(default, dtype=dtype)).otherwise(code).alias(name)


def _judge_each(
    values: list[bytes | None],
    rows: list[int],
    log_time_ms: npt.NDArray[np.int64],
    rejected: dict[int, Rejection],
) -> pl.DataFrame:
    """The strict path, one message at a time."""
    good: list[tuple[int, Event]] = []
    for row in rows:
        verdict = events.judge(values[row], int(log_time_ms[row]))
        if isinstance(verdict, Rejection):
            rejected[row] = verdict
        else:
            good.append((row, verdict))
    columns: dict[str, list[object]] = {"row": [row for row, _ in good]}
    for name in list(COLUMNS)[1:]:
        columns[name] = [getattr(event, name) for _, event in good]
    return pl.DataFrame(columns, schema=COLUMNS)
