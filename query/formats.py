"""An answer as JSON with everything about it, or as rows alone: CSV, NDJSON, an Arrow stream."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import polars as pl
import pyarrow as pa

from infra.clock import iso
from query import answer
from query.answer import Made
from query.request import MEASURES
from query.router import Answer

ARROW = "application/vnd.apache.arrow.stream"
_AMOUNTS = (*MEASURES, "cpc_micros", "cpm_micros")


def document(found: Answer, rows: bytes, currency: str) -> bytes:
    """Everything about an answer, around its rows, as JSON."""
    return msgspec.json.encode(
        {
            "meta": answer.meta(found.question),
            "data": msgspec.Raw(rows),
            "rows": len(found.page),
            "next_cursor": found.next_cursor,
            "granularity": found.question.grain,
            "currency": currency,
            "finality": found.finality,
            "watermark": None if found.watermark_ms is None else instant(found.watermark_ms),
            "statistics": {
                "elapsed_ms": round(found.elapsed_ms, 2),
                "tiers_ms": round(found.tiers_ms, 2),
                "rows_read": found.rows_read,
                "tiers": [{"tier": p.tier, "start": iso(p.start_ms), "end": iso(p.end_ms)} for p in found.tiers],
            },
            "warnings": found.warnings,
        }
    )


class Encoder(Protocol):
    """Writes the rows of one answer, page by page."""

    def page(self, found: Answer) -> bytes:
        """The next page's rows."""

    def end(self) -> bytes:
        """What follows the last page."""


class _Csv:
    def __init__(self) -> None:
        self._header = True

    def page(self, found: Answer) -> bytes:
        text = found.page.shown.write_csv(include_header=self._header)
        self._header = False
        return text.encode()

    def end(self) -> bytes:
        return b""


class _Ndjson:
    def page(self, found: Answer) -> bytes:
        return found.page.shown.write_ndjson().encode()

    def end(self) -> bytes:
        return b""


class _Arrow:
    """Times as timestamps in UTC, amounts as 64-bit integers, or as decimals where one of the first page's answer does not fit.

    `page` raises OverflowError for a later amount that does not fit: a stream has one schema.
    """

    def __init__(self) -> None:
        self._sink, self._decimals = io.BytesIO(), False
        self._writer: Any = None

    def page(self, found: Answer) -> bytes:
        if self._writer is None:
            self._decimals = _needs_decimals(found.page.made)
        times = pl.from_epoch("_bucket", time_unit="ms").dt.replace_time_zone("UTC").alias("time")
        amounts = pl.col(*_AMOUNTS).cast(pl.Decimal(38, 0) if self._decimals else pl.Int64)
        rows = found.page.frame.with_columns(times).drop("_bucket", "_sampled")
        try:
            table = rows.with_columns(amounts).to_arrow(compat_level=pl.CompatLevel.oldest())
        except pl.exceptions.InvalidOperationError as error:
            raise OverflowError("an amount does not fit into 64 bits; ask for a shorter range") from error
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


def _needs_decimals(made: Made) -> bool:
    columns = [*made.table.measures, *(made.ratios[name].values for name in ("cpc_micros", "cpm_micros"))]
    return any(column.dtype == object and max(column, default=0) >= 2**63 for column in columns)


@dataclass(frozen=True)
class Format:
    """One that `format=` names. `mark_broken`: what to write after the last page of an answer that cannot be completed, so that
    no reader takes it for a complete one."""

    media_type: str
    encoder: Callable[[], Encoder]
    mark_broken: Callable[[str], bytes]


def _broken_csv(detail: str) -> bytes:
    return f'"ERROR: {detail.replace(chr(34), chr(39))}"\n'.encode()


def _broken_ndjson(detail: str) -> bytes:
    return msgspec.json.encode({"error": detail}) + b"\n"


def _broken_arrow(_detail: str) -> bytes:
    # The head of a message that does not follow: a reader fails where a mere end would look like the end of the stream.
    return b"\xff\xff\xff\xff\x00\x01\x00\x00"


STREAMED = {
    "csv": Format("text/csv; charset=utf-8", _Csv, _broken_csv),
    "ndjson": Format("application/x-ndjson", _Ndjson, _broken_ndjson),
    "arrow": Format(ARROW, _Arrow, _broken_arrow),
}
"""Formats of rows alone, which may be of any length, by name."""
MEDIA_TYPES = {"json": "application/json"} | {name: written.media_type for name, written in STREAMED.items()}
"""By the name that `format=` knows a format by; the default first."""


def rows_alone(found: Answer, name: str) -> bytes:
    """The rows of one page, in one of MEDIA_TYPES."""
    if name == "json":
        return found.page.json()
    encoder = STREAMED[name].encoder()
    return encoder.page(found) + encoder.end()


def instant(ms: int) -> str:
    """RFC 3339 with milliseconds, always."""
    text = iso(ms)
    return text if "." in text else text[:-1] + ".000Z"
