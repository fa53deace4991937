"""Batches of messages to columns, with the same verdict for each as `events.judge` alone would give.

The fast path takes what fits a template and is good in every field; it never guesses and never rejects. Whatever it
leaves is judged one by one by the strict path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ingest import events, template
from ingest.events import Event, Rejection
from ingest.template import Bools, Ints, Page, Template

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

_DEFAULTS = {
    **dict.fromkeys(("event_type", "event_time", *events.ID_FIELDS, "cost_micros"), 0),
    "country": events.DEFAULT_COUNTRY,
    "device": events.DEFAULT_DEVICE,
}
_KEPT_TEMPLATES = 16
# A page and the columns made from it stay in the processor's second-level cache.
_PAGE_ROWS = 16_000
_WORTHWHILE = 50


@dataclass(frozen=True)
class Decoded:
    """`events` has COLUMNS, ordered by `row`, the position in the batch; the rest was rejected."""

    events: pl.DataFrame
    rejected: dict[int, Rejection]


class Decoder:
    """Keeps the templates it has met. The verdicts do not depend on which those are."""

    def __init__(self, *, worthwhile: int = _WORTHWHILE) -> None:
        """`worthwhile` is the number of messages from which on a template is cheaper than the strict path."""
        self._worthwhile = worthwhile
        self._templates: dict[Template, int] = {}
        """How many messages of the last batch fitted each: the commonest is tried first."""

    def decode(self, values: list[bytes | None], log_time_ms: npt.NDArray[np.int64]) -> Decoded:
        """Judge a batch; `log_time_ms[i]` is the Kafka timestamp of `values[i]`."""
        common = sorted((t for t, n in self._templates.items() if n), key=self._templates.__getitem__, reverse=True)
        self._templates = dict.fromkeys(common[:_KEPT_TEMPLATES], 0)
        frames, rejected = [pl.DataFrame(schema=COLUMNS)], dict[int, Rejection]()
        for start in range(0, len(values), _PAGE_ROWS):
            stop = start + _PAGE_ROWS
            frames.append(self._decode_page(values[start:stop], log_time_ms[start:stop], start, rejected))
        return Decoded(pl.concat(frames, rechunk=True), rejected)

    def _decode_page(
        self, values: list[bytes | None], log_time_ms: Ints, offset: int, rejected: dict[int, Rejection]
    ) -> pl.DataFrame:
        """Judge one page, whose first row is `offset`."""
        page = Page(values)
        taken = _Taken(page, log_time_ms)
        left = np.flatnonzero(page.plain)
        for known in self._templates:
            left = self._take(known, taken, left)
        for _ in range(_KEPT_TEMPLATES):
            if left.size < self._worthwhile:
                break
            first = left[0]
            learned = template.learn(values[first] or b"")
            left = left[1:] if learned is None or learned in self._templates else self._take(learned, taken, left)
            left = left[left != first]
        fast, others = taken.columns(offset)
        if not others:
            return fast
        slow = _judge_each(values, others, log_time_ms, offset, rejected)
        return pl.concat([fast, slow]).sort("row") if slow.height else fast

    def _take(self, known: Template, taken: _Taken, left: Ints) -> Ints:
        """Decode those of `left` that fit; returns the others."""
        if left.size < self._worthwhile:
            return left
        alike = taken.page.quote_count[left] == known.quotes
        rows = left if alike.all() else left[alike]
        if rows.size < self._worthwhile:
            return left
        fits = taken.take(known, rows)
        self._templates[known] = self._templates.get(known, 0) + int(fits.sum())
        others = ~alike
        others[alike] = ~fits
        remaining: Ints = left[others]
        return remaining


class _Taken:
    """Columns of a whole batch, filled template by template."""

    def __init__(self, page: Page, log_time_ms: Ints) -> None:
        self.page, self._log_time_ms = page, log_time_ms
        size = len(page.starts)
        self._done = np.zeros(size, bool)
        self._numbers = {name: np.full(size, default, np.int64) for name, default in _DEFAULTS.items()}
        self._spans = {
            name: (np.zeros(size, np.int64), np.full(size, -1, np.int64)) for name in ("event_id", "user_id")
        }

    def take(self, known: Template, rows: Ints) -> Bools:
        """Take those of `rows` that fit and are good in every field; returns which."""
        found = template.read(known, self.page, rows)
        fits = found.fits
        time, log_time = found.numbers["event_time"], self._log_time_ms[rows]
        fits &= (time >= log_time - events.MAX_BEHIND_MS) & (time <= log_time + events.MAX_AHEAD_MS)
        fits &= (found.spans["event_id"][1] >= 1) & (found.spans["event_id"][1] <= events.MAX_EVENT_ID_BYTES)
        if "user_id" in found.spans:
            fits &= found.spans["user_id"][1] <= events.MAX_USER_ID_BYTES
        if "cost_micros" in found.numbers:
            fits &= found.numbers["cost_micros"] <= events.MAX_COST_MICROS
        whole = bool(fits.all())
        into = rows if whole else rows[fits]
        for name, column in found.numbers.items():
            self._numbers[name][into] = column if whole else column[fits]
        for name, (start, length) in found.spans.items():
            self._spans[name][0][into] = start if whole else start[fits]
            self._spans[name][1][into] = length if whole else length[fits]
        self._done[into] = True
        return fits

    def columns(self, offset: int) -> tuple[pl.DataFrame, list[int]]:
        """What was taken, in order, with `row` counted from `offset`; and the rows of the page that were not."""
        rows = np.flatnonzero(self._done)
        every = len(rows) == len(self._done)
        columns: dict[str, object] = {"row": rows + offset}
        for name, column in self._numbers.items():
            columns["time_ms" if name == "event_time" else name] = column if every else column[rows]
        for name, (start, length) in self._spans.items():
            columns[name] = _texts(self.page, start[rows], length[rows])
        frame = pl.DataFrame(columns).select(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
        return frame, [] if every else np.flatnonzero(~self._done).tolist()


def _texts(page: Page, start: Ints, length: Ints) -> pl.Series:
    """Places in the page as a String series; null where the length is negative."""
    if not len(start):
        return pl.Series([], dtype=pl.String)
    sizes = np.maximum(length, 0)
    widest = max(1, int(sizes.max()))
    cells = page.cells(start, widest)
    if int(sizes.min()) < widest:
        cells = cells[np.arange(widest) < sizes[:, None]]
    offsets = np.zeros(len(start) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    valid = pa.py_buffer(np.packbits(length >= 0, bitorder="little")) if (length < 0).any() else None
    array = pa.LargeStringArray.from_buffers(
        len(start), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(cells)), valid
    )
    return pl.Series(pl.from_arrow(array), dtype=pl.String)


def _judge_each(
    values: list[bytes | None],
    rows: list[int],
    log_time_ms: npt.NDArray[np.int64],
    offset: int,
    rejected: dict[int, Rejection],
) -> pl.DataFrame:
    """The strict path, one message at a time; rows are counted from `offset` in what comes out."""
    good: list[tuple[int, Event]] = []
    for row in rows:
        verdict = events.judge(values[row], int(log_time_ms[row]))
        if isinstance(verdict, Rejection):
            rejected[row + offset] = verdict
        else:
            good.append((row + offset, verdict))
    columns: dict[str, list[object]] = {"row": [row for row, _ in good]}
    for name in list(COLUMNS)[1:]:
        columns[name] = [getattr(event, name) for _, event in good]
    return pl.DataFrame(columns, schema=COLUMNS)
