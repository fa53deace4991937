"""The exact answers to the demo's questions, and the comparison of a router's answers with them.

The truth is the generator's; nothing here uses the pipeline but its HTTP interface.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
import zoneinfo
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from infra.clock import DAY_MS, HOUR_MS, iso
from ingest.partials import MEASURES
from ingest.synthetic.generator import Truth
from query.demo.questions import DemoQuestion

AnswerRows = dict[tuple[object, ...], tuple[int, ...]]
"""(time label, group values…) → measures."""


class MetricsClient(Protocol):
    """What answers questions: a router over HTTP, or one in this process."""

    def get(self, path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The JSON document of GET path?parameters."""


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer, compared with the truth. `difference`: the first one; empty when the answer is exact."""

    question: DemoQuestion
    tiers: tuple[str, ...]
    finality: str
    ms: float
    rows: int
    difference: str


class Oracle:
    """Knows the exact answer to every question about synthetic events, from their generator."""

    def __init__(self, truth: Truth) -> None:
        self._counts = truth.counts

    def busiest(self, count: int) -> list[int]:
        """Campaigns with the most events, most first."""
        return (
            self._counts.group_by("campaign_id").agg(pl.sum("stream_impressions"))
            .sort("stream_impressions", "campaign_id", descending=True)["campaign_id"].head(count).to_list()
        )  # fmt: skip

    def campaigns(self) -> list[int]:
        """All campaigns that have events."""
        return self._counts["campaign_id"].unique().sort().to_list()

    def expected_rows(self, question: DemoQuestion) -> AnswerRows:
        """(time label, group values…) → measures; rows without any event are left out."""
        name, ids = question.subject
        frame = self._counts.filter(
            pl.col(name).is_in(list(ids)),
            pl.col("minute_ms") >= question.start_ms,
            pl.col("minute_ms") < question.end_ms,
        )
        for dimension, values in question.filters.items():
            frame = frame.filter(pl.col(dimension).is_in(list(values)))
        time_of = {
            "minute": pl.col("minute_ms"),
            "hour": pl.col("minute_ms") // HOUR_MS * HOUR_MS,
            "day": pl.col("minute_ms") // DAY_MS * DAY_MS,
            "total": pl.lit(question.start_ms, dtype=pl.Int64),
        }[question.grain]
        if question.grain == "day" and question.zone != "UTC":
            local = (
                pl.from_epoch("minute_ms", time_unit="ms")
                .dt.replace_time_zone("UTC")
                .dt.convert_time_zone(question.zone)
            )
            time_of = local.dt.truncate("1d").dt.epoch("ms")
        sums = frame.group_by(time_of.alias("_time"), *question.group_by).agg(
            *(pl.col(f"{question.view}_{m}").sum().alias(m) for m in MEASURES)
        )
        width = 1 + len(question.group_by)
        return {
            (self._label(row[0], question.zone), *row[1:width]): row[width:]
            for row in sums.iter_rows()
            if any(row[width:])
        }

    @staticmethod
    def _label(time_ms: int, zone: str) -> str:
        if zone == "UTC":
            return iso(time_ms)
        return dt.datetime.fromtimestamp(time_ms // 1000, zoneinfo.ZoneInfo(zone)).isoformat()

    def total_is_exact(self, client: MetricsClient, campaign: int, start_ms: int, end_ms: int) -> bool:
        """Whether the router's total of a campaign is the truth by now."""
        question = DemoQuestion("total", ("campaign_id", (campaign,)), start_ms, end_ms, "total")
        return not self.check(client, question).difference

    def check(self, client: MetricsClient, question: DemoQuestion) -> CheckedAnswer:
        """Ask the router for all pages, and compare."""
        began = time.perf_counter()
        rows: AnswerRows = {}
        finality, tiers, cursor = "", tuple[str, ...](), None
        while True:
            body = client.get("/v1/metrics", [*question.parameters(), *([("cursor", cursor)] if cursor else [])])
            finality = finality or body["finality"]
            tiers = tiers or tuple(dict.fromkeys(t["tier"] for t in body["statistics"]["tiers"]))
            for row in body["data"]:
                rows[(row["time"], *(row[g] for g in question.group_by))] = tuple(row[m] for m in MEASURES)
            cursor = body["next_cursor"]
            if cursor is None:
                break
        ms = (time.perf_counter() - began) * 1000
        rows = {key: values for key, values in rows.items() if any(values)}
        difference = _first_difference(self.expected_rows(question), rows)
        return CheckedAnswer(question, tiers, finality, ms, len(rows), difference)


def _first_difference(expected: AnswerRows, answered: AnswerRows) -> str:
    """Where two answers differ first; empty when they do not."""
    for key in sorted(expected.keys() | answered.keys(), key=str):
        if expected.get(key) != answered.get(key):
            return f"{key}: expected {expected.get(key)}, answered {answered.get(key)}"
    return ""


def compare_dead_letters(truth: Truth, lines: pl.Series, letters: list[tuple[bytes | None, str]]) -> str:
    """The first difference between dead letters (value, reason) and the truth; empty when there is none."""
    dead = truth.dead
    expected = sorted(zip(lines.gather(dead["line"]).to_list(), dead["reason"].to_list(), strict=True))
    actual = sorted((value or b"", reason) for value, reason in letters)
    if expected == actual:
        return ""
    for wanted, letter in itertools.zip_longest(expected, actual):
        if wanted != letter:
            return f"expected {wanted}, found {letter}; {len(expected)} expected, {len(actual)} found"
    return ""
