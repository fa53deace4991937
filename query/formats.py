"""An answer as JSON with everything about it, or as rows alone: CSV, NDJSON, an Arrow stream."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import polars as pl

from infra.clock import iso
from query import answer
from query.request import MEASURES
from query.router import Answer

ARROW = "application/vnd.apache.arrow.stream"
_WIDE = (*MEASURES, "cpc_micros", "cpm_micros")


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


def _json(found: Answer) -> bytes:
    return found.page.json()


def _csv(found: Answer) -> bytes:
    return found.page.shown.write_csv().encode()


def _ndjson(found: Answer) -> bytes:
    return found.page.shown.write_ndjson().encode()


def _arrow(found: Answer) -> bytes:
    """Times as timestamps in UTC, amounts as 64-bit integers, or as decimals where one does not fit."""
    times = pl.from_epoch("_bucket", time_unit="ms").dt.replace_time_zone("UTC").alias("time")
    rows = found.page.frame.with_columns(times).drop("_bucket", "_sampled")
    wide = any(rows.schema[name] == pl.Int128() for name in _WIDE)
    amounts = pl.col(*_WIDE).cast(pl.Decimal(38, 0) if wide else pl.Int64)
    into = io.BytesIO()
    rows.with_columns(amounts).write_ipc_stream(into, compat_level=pl.CompatLevel.oldest())
    return into.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Answer], bytes]]] = {
    "json": ("application/json", _json),
    "csv": ("text/csv; charset=utf-8", _csv),
    "ndjson": ("application/x-ndjson", _ndjson),
    "arrow": (ARROW, _arrow),
}
"""By the name that `format=` knows it by: its media type, and how rows are written."""


def rows_alone(found: Answer, name: str) -> tuple[str, bytes]:
    """(media type, bytes) of the rows in one of FORMATS."""
    media_type, write = FORMATS[name]
    return media_type, write(found)


def accepted(accept: str) -> str:
    """The format that an Accept header asks for: the first of its media types that is known, else json."""
    for part in accept.split(","):
        media_type = part.partition(";")[0].strip().lower()
        for name, (known, _) in FORMATS.items():
            if media_type == known.partition(";")[0]:
                return name
        if media_type == "*/*":
            break
    return "json"


def instant(ms: int) -> str:
    """RFC 3339 with milliseconds, always."""
    text = iso(ms)
    return text if "." in text else text[:-1] + ".000Z"
