"""The router: a question is planned once, every piece is read once and concurrently, and merged."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso
from infra.errors import Unavailable
from infra.redis import Redis
from infra.settings import Settings
from query import answer
from query.answer import Sums, Table
from query.plan import HOT, Borders, Piece, plan
from query.request import Held, Question
from query.tiers.hot import HotTier, Span
from query.tiers.stored import StoredTiers

_WARNING_AGE_S = 5.0


class NothingLeft(Unavailable):
    """No tier that this question needs can be asked at the moment."""


class Router:
    """Answers questions. Thread-safe; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self.held = Held(settings.hot_hours * HOUR_MS, settings.warm_days * DAY_MS)
        self._currency = settings.currency
        self.hot = HotTier(Redis(settings.redis, timeout_s=3.0), settings.key_prefix, settings.block_partitions)
        self.stored = StoredTiers(ClickHouse(settings.clickhouse, settings.database), settings.block_partitions)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="tier")

    def answer(self, question: Question) -> dict[str, Any]:
        """The whole answer as it goes over HTTP. Raises BadQuestion, NothingLeft."""
        started = time.perf_counter()
        warnings: list[str] = []
        span_asked = self._pool.submit(self.hot.span)
        # Minutes only need to know, for a warning, which days are reconciled.
        age_s = _WARNING_AGE_S if question.grain == "minute" else 0.0
        stored_asked = self._pool.submit(self.stored.borders, max_age_s=age_s)
        span, borders = self._borders(span_asked, stored_asked, question, warnings)
        pieces = plan(
            question.start_ms, question.end_ms, borders,
            whole_days=question.grain == "total" or (question.grain == "day" and question.utc_days),
            only_minutes=question.grain == "minute",
        )  # fmt: skip
        table, read, answered = self._read(question, pieces, span, warnings)
        made = answer.rows(question, table, borders, pieces)
        shown, cursor = answer.page(question, made)
        self._warn(question, table, borders, pieces, span, warnings)
        for row in shown:
            del row["_bucket"]
        return {
            "meta": answer.meta(question),
            "data": shown,
            "rows": len(shown),
            "next_cursor": cursor,
            "granularity": question.grain,
            "currency": self._currency,
            "finality": answer.weakest(made, question, borders, pieces),
            "watermark": None if borders.watermark_ms is None else _instant(borders.watermark_ms),
            "statistics": {
                "elapsed_ms": round((time.perf_counter() - started) * 1000, 2),
                "rows_read": read,
                "tiers": [{"tier": p.tier, "start": iso(p.start_ms), "end": iso(p.end_ms)} for p in answered],
            },
            "warnings": warnings,
        }

    def _borders(
        self, span_asked: Any, stored_asked: Any, question: Question, warnings: list[str]
    ) -> tuple[Span | None, Borders]:
        span: Span | None = None
        borders = Borders()
        failures = []
        try:
            span = span_asked.result()
        except Unavailable as error:
            failures.append(error)
            warnings.append("tier hot is not available: minutes and the newest hours are missing")
        try:
            borders = stored_asked.result()
        except Unavailable as error:
            failures.append(error)
            if question.grain != "minute":
                warnings.append("tiers warm and cold are not available: what is in Redis is shown")
        if len(failures) == 2 or (span is None and question.grain == "minute"):
            raise NothingLeft(str(failures[0]))
        marks = [m for m in (span.watermark_ms if span else None, borders.watermark_ms) if m is not None]
        hot_from_ms = None if span is None else span.held_from_ms
        return span, replace(borders, watermark_ms=max(marks, default=None), hot_from_ms=hot_from_ms)

    def _read(
        self, question: Question, pieces: list[Piece], span: Span | None, warnings: list[str]
    ) -> tuple[Table, int, list[Piece]]:
        asked = []
        for piece in pieces:
            if piece.tier == HOT:
                if span is None:
                    continue
                asked.append(
                    (
                        piece,
                        self._pool.submit(self.hot.read, question, piece.start_ms, piece.end_ms, span),
                    )
                )
            else:
                asked.append((piece, self._pool.submit(self.stored.read, question, piece)))
        table: Table = {}
        total, answered = 0, []
        for piece, future in asked:
            try:
                part, count = future.result()
            except Unavailable:
                warnings.append(
                    f"tier {piece.tier} is not available: {iso(piece.start_ms)} to {iso(piece.end_ms)} is missing"
                )
                continue
            total += count
            answered.append(piece)
            if not table:
                table = part
                continue
            for key, sums in part.items():
                table.setdefault(key, Sums()).add(sums.values, corrected=sums.corrected, sampled=sums.sampled)
        if asked and not answered:
            raise NothingLeft("no tier answered")
        return table, total, answered

    def _warn(
        self,
        question: Question,
        table: Table,
        borders: Borders,
        pieces: list[Piece],
        span: Span | None,
        warnings: list[str],
    ) -> None:
        hot = [p for p in pieces if p.tier == HOT]
        if hot and span is not None:
            if span.unknown:
                shards = ", ".join(map(str, span.unknown))
                warnings.append(f"tier hot: shard {shards} does not say what it holds; its numbers may be missing")
            since = max((f for f in span.from_ms if f is not None), default=0)
            for piece in hot:
                if piece.start_ms < since:
                    warnings.append(
                        f"tier hot: {iso(piece.start_ms)} to {iso(min(since, piece.end_ms))} may be missing"
                    )
        if any(s.sampled for s in table.values()):
            warnings.append("some counts are estimates: traffic was sampled under overload")
        if question.grain == "minute" and any(
            question.start_ms < d + DAY_MS and d < question.end_ms for d in borders.runs
        ):
            warnings.append("minutes of a reconciled day are the stream's; hours and days are reconciled")


def _instant(ms: int) -> str:
    """RFC 3339 with milliseconds, always."""
    text = iso(ms)
    return text if "." in text else text[:-1] + ".000Z"
