"""Sums from several tiers to one answer: merged by bucket and group, with finality and ratios. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from query.plan import EXACT, Borders, Piece
from query.request import MEASURES, BadQuestion, Question

FINALITY = ("provisional", "closed", "corrected", "reconciled")


@dataclass
class Sums:
    """What a tier knows of one bucket and group."""

    values: list[int] = field(default_factory=lambda: [0] * len(MEASURES))
    corrected: bool = False
    sampled: bool = False

    def add(self, values: Iterable[int], *, corrected: bool, sampled: bool) -> None:
        """Take in another part."""
        self.values = [a + b for a, b in zip(self.values, values, strict=True)]
        self.corrected |= corrected
        self.sampled |= sampled


Table = dict[tuple[Any, ...], Sums]
"""(bucket start in ms, group values…) → sums."""


def reconciled_stretches(pieces: list[Piece]) -> list[tuple[int, int]]:
    """The stretches that exact tiers serve."""
    return [(p.start_ms, p.end_ms) for p in pieces if p.tier in EXACT]


def _covered(start: int, end: int, stretches: list[tuple[int, int]]) -> bool:
    at = start
    for low, high in stretches:
        if low <= at < high:
            at = high
    return at >= end


def finality(question: Question, bucket: int, borders: Borders, exact: list[tuple[int, int]]) -> str:
    """How final a bucket is, before it is known whether any of it was corrected."""
    end = question.bucket_end(bucket)
    if _covered(bucket, end, exact):
        return "reconciled"
    return "provisional" if borders.watermark_ms is None or end > borders.watermark_ms else "closed"


def _ratio(part: int, whole: int, scale: int = 1) -> float | None:
    return None if whole == 0 else part * scale / whole


def ratios(values: dict[str, int]) -> dict[str, float | int | None]:
    """Derived after summing; null where the divisor is 0. Money is rounded to whole micros."""
    ctr = _ratio(values["clicks"], values["impressions"])
    cvr = _ratio(values["conversions"], values["clicks"])
    spend = values["spend_micros"]
    return {
        "ctr": None if ctr is None else round(ctr, 4),
        "cvr": None if cvr is None else round(cvr, 4),
        "cpc_micros": _per(spend, values["clicks"]),
        "cpm_micros": _per(spend * 1000, values["impressions"]),
    }


def _per(total: int, count: int) -> int | None:
    """total / count to the nearest integer, halves up, without floats."""
    return None if count == 0 else (2 * total + count) // (2 * count)


def rows(question: Question, table: Table, borders: Borders, pieces: list[Piece]) -> list[dict[str, Any]]:
    """All rows of the answer, ordered; `time` still in ms under `_bucket`."""
    exact = reconciled_stretches(pieces)
    if question.fill:
        groups = {key[1:] for key in table} or ({()} if not question.group_by else set())
        for bucket in question.buckets():
            for group in groups:
                table.setdefault((bucket, *group), Sums())
    buckets = {int(key[0]) for key in table}
    told = {b: (question.label(b), finality(question, b, borders, exact)) for b in buckets}
    made = []
    for key, sums in table.items():
        label, final = told[key[0]]
        values = dict(zip(MEASURES, sums.values, strict=True))
        row: dict[str, Any] = {"_bucket": key[0], "time": label}
        row.update(zip(question.group_by, key[1:], strict=True))
        row.update(values)
        row.update(ratios(values))
        row["finality"] = "corrected" if final == "closed" and sums.corrected else final
        made.append(row)
    made.sort(key=lambda r: (r["_bucket"], *(r[g] for g in question.group_by)))
    if question.order:
        column = "_bucket" if question.order == "time" else question.order
        # Absent ratios come last, whichever way.
        made.sort(
            key=lambda r: (
                (r[column] is not None, r[column] or 0) if question.descending else (r[column] is None, r[column] or 0)
            ),
            reverse=question.descending,
        )
    return made


def page(question: Question, made: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """The rows after the cursor, at most `limit`, and the next cursor. Raises BadQuestion on a foreign one."""
    start = 0
    if question.cursor is not None:
        last = _read_cursor(question)
        keys = [_key(question, r) for r in made]
        if last in keys:
            start = keys.index(last) + 1
        elif not question.order:
            start = next((i for i, k in enumerate(keys) if k > last), len(keys))
        else:
            raise BadQuestion("cursor", "the row that the cursor points at has changed its place; start over")
    shown = made[start : start + question.limit]
    more = start + question.limit < len(made)
    return shown, _write_cursor(question, shown[-1]) if more else None


def _key(question: Question, row: dict[str, Any]) -> list[Any]:
    return [row["_bucket"], *(row[g] for g in question.group_by)]


def _fingerprint(question: Question) -> str:
    return f"{question.campaigns}|{question.advertiser}|{question.grain}|{question.group_by}|{question.filters}|{question.order}|{question.descending}"


def _write_cursor(question: Question, row: dict[str, Any]) -> str:
    told: str = json.dumps({"q": _fingerprint(question), "k": _key(question, row)}, separators=(",", ":"))
    return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")


def _read_cursor(question: Question) -> list[Any]:
    text = question.cursor or ""
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        key = list(found["k"])
        good = found["q"] == _fingerprint(question) and len(key) == 1 + len(question.group_by)
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise BadQuestion("cursor", "this cursor does not belong to this question; start without one")
    return key


def weakest(made: list[dict[str, Any]], question: Question, borders: Borders, pieces: list[Piece]) -> str:
    """The finality of the whole."""
    if made:
        return FINALITY[min(FINALITY.index(r["finality"]) for r in made)]
    exact = reconciled_stretches(pieces)
    if _covered(question.start_ms, question.end_ms, exact):
        return "reconciled"
    open_ = borders.watermark_ms is None or question.end_ms > borders.watermark_ms
    return "provisional" if open_ else "closed"


def meta(question: Question) -> list[dict[str, str]]:
    """Names and types of the columns."""
    kinds = {"country": "string", "device": "string"}
    columns = [("time", "datetime"), *((g, kinds.get(g, "integer")) for g in question.group_by)]
    columns += [(m, "integer") for m in MEASURES]
    columns += [
        ("ctr", "number"),
        ("cvr", "number"),
        ("cpc_micros", "integer"),
        ("cpm_micros", "integer"),
        ("finality", "string"),
    ]
    return [{"name": name, "type": kind} for name, kind in columns]
