"""An answer as JSON with everything about it, or as rows alone: CSV, NDJSON, an Arrow stream."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import polars as pl
import pyarrow as pa

from infra.clock import iso
from query.page import describe_columns
from query.question import MEASURES, Question
from query.reach import whole_hours
from query.router import Answer
from query.rows import Rows
from stream.reach.registers import STANDARD_ERROR

ARROW = "application/vnd.apache.arrow.stream"
_AMOUNTS = (*MEASURES, "cpc_micros", "cpm_micros")


def encode_document(answer: Answer, rows: bytes, currency: str) -> bytes:
    """The JSON document of an answer around its rows, which are encoded already."""
    return msgspec.json.encode(
        {
            "meta": describe_columns(answer.question),
            "answer_id": answer.id,
            "data": msgspec.Raw(rows),
            "rows": len(answer.page),
            "next_cursor": answer.next_cursor,
            **({} if answer.total is None else {"totals": answer.total.amounts()}),
            **({} if answer.part is None else {"comparison": describe_comparison(answer)}),
            **describe_users(answer.question),
            "granularity": answer.question.grain,
            "currency": currency,
            "finality": answer.finality,
            "watermark": None if answer.watermark_ms is None else iso_with_ms(answer.watermark_ms),
            "statistics": {
                "elapsed_ms": round(answer.elapsed_ms, 2),
                "tiers_ms": round(answer.tiers_ms, 2),
                "rows_read": answer.rows_read,
                "tiers": [{"tier": p.tier, "start": iso(p.start_ms), "end": iso(p.end_ms)} for p in answer.pieces],
            },
            "warnings": answer.warnings,
        }
    )


def describe_comparison(answer: Answer) -> dict[str, Any]:
    """What an answer's range is compared with. `counted_until`: the end of that part of an unfinished range that is compared; null
    where all of it is. `whole_end`: where the earlier range would end, were this one finished."""
    comparison, part = answer.question.compare, answer.part
    assert comparison is not None and part is not None
    label = answer.question.label
    return {
        "kind": comparison.kind,
        "start": label(part.start_ms),
        "end": label(part.end_ms),
        "whole_end": label(comparison.earlier.end_ms),
        "counted_until": None if part.counted_ms is None else label(part.counted_ms),
    }


def describe_users(question: Question) -> dict[str, Any]:
    """How good the users of an answer are: their relative standard error, and the whole hours that they were counted in, where these are
    more than the question's range. Empty for a question that does not want them."""
    if not question.users:
        return {}
    known: dict[str, Any] = {"users_standard_error": round(STANDARD_ERROR, 4)}
    start_ms, end_ms = whole_hours(question)
    if (start_ms, end_ms) != (question.start_ms, question.end_ms):
        known["users_range"] = {"start": question.label(start_ms), "end": question.label(end_ms)}
    return known


class Encoder(Protocol):
    """Writes the rows of one answer, page by page."""

    def page(self, answer: Answer) -> bytes:
        """The rows of the next page."""

    def end(self) -> bytes:
        """The bytes that follow the last page."""


class _Csv:
    def __init__(self) -> None:
        self._header = True

    def page(self, answer: Answer) -> bytes:
        text = answer.page.shown.write_csv(include_header=self._header)
        self._header = False
        return text.encode()

    def end(self) -> bytes:
        return b""


class _Ndjson:
    def page(self, answer: Answer) -> bytes:
        return answer.page.shown.write_ndjson().encode()

    def end(self) -> bytes:
        return b""


class _Arrow:
    """Times as timestamps in UTC, amounts as 64-bit integers, or as decimals where one of the first page's answer does not fit.

    `page` raises OverflowError for a later amount that does not fit: a stream has one schema.
    """

    def __init__(self) -> None:
        self._sink, self._decimals = io.BytesIO(), False
        self._writer: Any = None

    def page(self, answer: Answer) -> bytes:
        if self._writer is None:
            self._decimals = _needs_decimals(answer.page.rows)
        times = pl.from_epoch("_bucket", time_unit="ms").dt.replace_time_zone("UTC").alias("time")
        settled = pl.from_epoch("_settled_ms", time_unit="ms").dt.replace_time_zone("UTC").alias("settled_until")
        rows = answer.page.frame.with_columns(times, settled).drop("_bucket", "_settled_ms", "_sampled")
        names = [name for name in rows.columns if name.removeprefix("previous_") in _AMOUNTS]
        amounts = pl.col(*names).cast(pl.Decimal(38, 0) if self._decimals else pl.Int64)
        try:
            table = rows.with_columns(amounts).to_arrow(compat_level=pl.CompatLevel.oldest())
        except pl.exceptions.InvalidOperationError as error:
            raise OverflowError("an amount does not fit into 64 bits; retry with a shorter range") from error
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._sink, table.schema)
        self._writer.write_table(table)
        return self._drain()

    def end(self) -> bytes:
        if self._writer is not None:
            self._writer.close()
        return self._drain()

    def _drain(self) -> bytes:
        written = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return written


def _needs_decimals(rows: Rows) -> bool:
    columns = [*rows.sums.measures, *(ratio.values for ratio in (rows.ratios | rows.compared).values())]
    return any(column.dtype == object and max(column, default=0) >= 2**63 for column in columns)


@dataclass(frozen=True)
class Format:
    """A format of rows alone. `mark_broken`: the bytes that end an export which cannot be completed, so that no reader takes it for
    a complete one."""

    media_type: str
    encoder: Callable[[], Encoder]
    mark_broken: Callable[[str], bytes]


def _broken_csv(detail: str) -> bytes:
    return f'"ERROR: {detail.replace(chr(34), chr(39))}"\n'.encode()


def _broken_ndjson(detail: str) -> bytes:
    return msgspec.json.encode({"error": detail}) + b"\n"


def _broken_arrow(_detail: str) -> bytes:
    # The header of a message that does not follow: readers fail, where a mere end would look like the end of the stream.
    return b"\xff\xff\xff\xff\x00\x01\x00\x00"


STREAMED = {
    "csv": Format("text/csv; charset=utf-8", _Csv, _broken_csv),
    "ndjson": Format("application/x-ndjson", _Ndjson, _broken_ndjson),
    "arrow": Format(ARROW, _Arrow, _broken_arrow),
}
"""Formats of rows alone, which may be of any length, by name."""
MEDIA_TYPES = {"json": "application/json"} | {name: written.media_type for name, written in STREAMED.items()}
"""Media types by the name in `format=`; the default first."""


def encode_rows(answer: Answer, name: str) -> bytes:
    """The rows of an answer's page, in the format of that name."""
    if name == "json":
        return answer.page.json()
    encoder = STREAMED[name].encoder()
    return encoder.page(answer) + encoder.end()


def encode_warnings(warnings: Sequence[str]) -> str:
    """Warnings as a header has them, beside rows alone."""
    return msgspec.json.encode(warnings).decode("ascii", "replace")


def iso_with_ms(ms: int) -> str:
    """RFC 3339 with milliseconds, also where they are zero."""
    text = iso(ms)
    return text if "." in text else text[:-1] + ".000Z"
