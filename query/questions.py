"""Questions with their true answers: what the demo and the tests ask a router.

The truth is the generator's; nothing here uses the pipeline but its HTTP face.
"""

from __future__ import annotations

import datetime as dt
import itertools
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso
from ingest.synthetic.generator import Truth

MEASURES = ("impressions", "clicks", "conversions", "spend_micros", "late_events")
GROUPS = ("ad_id", "publisher_id", "country", "device")
Rows = dict[tuple[object, ...], tuple[int, ...]]


class Asked(Protocol):
    """Whoever answers questions: a router over HTTP, or one in this process."""

    def get(self, path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The answer to GET path?parameters."""


@dataclass(frozen=True)
class Ask:
    """One question in terms of its parameters. `kind` is how the summary calls it."""

    kind: str
    subject: tuple[str, tuple[int, ...]]
    start_ms: int
    end_ms: int
    grain: str
    group_by: tuple[str, ...] = ()
    filters: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    view: str = "stream"
    zone: str = "UTC"

    def parameters(self) -> list[tuple[str, str]]:
        """As the router takes it."""
        name, ids = self.subject
        found = [(name, ",".join(map(str, ids))), ("start", iso(self.start_ms)), ("end", iso(self.end_ms))]
        found += [("granularity", self.grain), ("timezone", self.zone)]
        if self.group_by:
            found.append(("group_by", ",".join(self.group_by)))
        found += [("filter", f"{d}:{','.join(map(str, values))}") for d, values in self.filters.items()]
        return found


@dataclass(frozen=True)
class Verdict:
    """What came back. `wrong` tells the first difference; empty when the answer is the truth."""

    ask: Ask
    tiers: tuple[str, ...]
    finality: str
    ms: float
    rows: int
    wrong: str


class Truths:
    """The truth, ready to be asked."""

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

    def answer(self, ask: Ask) -> Rows:
        """(time label, group values…) → measures; rows without any event are left out."""
        name, ids = ask.subject
        frame = self._counts.filter(
            pl.col(name).is_in(list(ids)),
            pl.col("minute_ms") >= ask.start_ms,
            pl.col("minute_ms") < ask.end_ms,
        )
        for dimension, values in ask.filters.items():
            frame = frame.filter(pl.col(dimension).is_in(list(values)))
        time_of = {
            "minute": pl.col("minute_ms"),
            "hour": pl.col("minute_ms") // HOUR_MS * HOUR_MS,
            "day": pl.col("minute_ms") // DAY_MS * DAY_MS,
            "total": pl.lit(ask.start_ms, dtype=pl.Int64),
        }[ask.grain]
        if ask.grain == "day" and ask.zone != "UTC":
            local = (
                pl.from_epoch("minute_ms", time_unit="ms").dt.replace_time_zone("UTC").dt.convert_time_zone(ask.zone)
            )
            time_of = local.dt.truncate("1d").dt.epoch("ms")
        sums = frame.group_by(time_of.alias("_time"), *ask.group_by).agg(
            *(pl.col(f"{ask.view}_{m}").sum().alias(m) for m in MEASURES)
        )
        width = 1 + len(ask.group_by)
        return {
            (self._label(row[0], ask.zone), *row[1:width]): row[width:] for row in sums.iter_rows() if any(row[width:])
        }

    @staticmethod
    def _label(time_ms: int, zone: str) -> str:
        if zone == "UTC":
            return iso(time_ms)
        import zoneinfo

        return dt.datetime.fromtimestamp(time_ms // 1000, zoneinfo.ZoneInfo(zone)).isoformat()

    def total_is(self, client: Asked, campaign: int, start_ms: int, end_ms: int) -> bool:
        """Whether the router's total of a campaign is the truth by now."""
        return not self.check(client, Ask("total", ("campaign_id", (campaign,)), start_ms, end_ms, "total")).wrong

    def check(self, client: Asked, ask: Ask) -> Verdict:
        """Ask the router, page by page, and compare."""
        began = time.perf_counter()
        found: Rows = {}
        finality, tiers, cursor = "", tuple[str, ...](), None
        while True:
            body = client.get("/v1/metrics", [*ask.parameters(), *([("cursor", cursor)] if cursor else [])])
            finality = finality or body["finality"]
            tiers = tiers or tuple(dict.fromkeys(t["tier"] for t in body["statistics"]["tiers"]))
            for row in body["data"]:
                found[(row["time"], *(row[g] for g in ask.group_by))] = tuple(row[m] for m in MEASURES)
            cursor = body["next_cursor"]
            if cursor is None:
                break
        ms = (time.perf_counter() - began) * 1000
        found = {key: values for key, values in found.items() if any(values)}
        return Verdict(ask, tiers, finality, ms, len(found), first_difference(self.answer(ask), found))


def first_difference(true: Rows, found: Rows) -> str:
    """Where two answers differ first; empty when they do not."""
    for key in sorted(true.keys() | found.keys(), key=str):
        if true.get(key) != found.get(key):
            return f"{key}: true {true.get(key)}, answered {found.get(key)}"
    return ""


def battery(truths: Truths, start_ms: int, end_ms: int, seed: int = 7, *, minute_hours: int = 23) -> list[Ask]:
    """Questions of all grains, groupings, filters and tier-crossing ranges over [start_ms, end_ms).

    `minute_hours`: how many of its last hours are asked for by minute; older minutes may no longer be held.
    """
    rng = random.Random(seed)
    top = truths.busiest(12)
    everyone = truths.campaigns()
    recent = max(start_ms, end_ms - minute_hours * HOUR_MS) // MINUTE_MS * MINUTE_MS
    low, high = start_ms // HOUR_MS * HOUR_MS, -(-end_ms // HOUR_MS) * HOUR_MS
    days = (start_ms // DAY_MS * DAY_MS, -(-end_ms // DAY_MS) * DAY_MS)
    combos = [c for n in range(5) for c in itertools.combinations(GROUPS, n)]
    asks: list[Ask] = []

    def one(c: int) -> tuple[str, tuple[int, ...]]:
        return "campaign_id", (c,)

    for campaign, combo in zip(itertools.cycle(top), combos, strict=False):
        asks.append(Ask("hours by dimensions", one(campaign), low, high, "hour", combo))
    for campaign in [*top[:3], *rng.sample(everyone, 3)]:
        asks.append(Ask("minutes", one(campaign), recent, end_ms, "minute"))
        asks.append(Ask("days", one(campaign), *days, "day"))
    for combo in combos[1:9]:
        window = recent + rng.randrange(0, max(1, end_ms - recent - 2 * HOUR_MS)) // MINUTE_MS * MINUTE_MS
        asks.append(Ask("minutes by dimensions", one(rng.choice(top)), window, window + 2 * HOUR_MS, "minute", combo))
    for _ in range(8):
        a, b = sorted(rng.randrange(recent, end_ms) // MINUTE_MS * MINUTE_MS for _ in range(2))
        asks.append(Ask("totals across tiers", one(rng.choice(top)), a, b + MINUTE_MS, "total", ("country",)))
    for _ in range(6):
        a, b = sorted(rng.randrange(low, high) // HOUR_MS * HOUR_MS for _ in range(2))
        picked = tuple(rng.sample(everyone, min(5, len(everyone))))
        asks.append(
            Ask(
                "several campaigns",
                ("campaign_id", picked),
                a,
                b + HOUR_MS,
                "hour",
                ("campaign_id", "device"),
            )
        )
    for filters in (
        {"country": ("US", "DE")},
        {"device": ("mobile",)},
        {"country": ("US",), "device": ("mobile", "ctv")},
        {"ad_id": (top[0] * 1000 + 1,)},
    ):
        asks.append(Ask("filters", one(top[0]), low, high, "hour", ("publisher_id",), filters))  # type: ignore[arg-type]
        asks.append(Ask("filters", one(top[0]), recent, recent + 3 * HOUR_MS, "minute", (), filters))  # type: ignore[arg-type]
    asks += [
        Ask("an advertiser", ("advertiser_id", (a,)), low, high, g, ("campaign_id",))
        for a in (1, 2)
        for g in ("hour", "total")
    ]
    asks += [
        Ask(
            "days of another zone",
            one(c),
            *_local_days(start_ms, end_ms, "Europe/Berlin"),
            "day",
            zone="Europe/Berlin",
        )
        for c in top[:2]
    ]
    asks += [
        Ask("days by dimensions", one(c), *days, "day", combo) for c, combo in zip(top, combos[5:11], strict=False)
    ]
    asks.append(Ask("an unknown campaign", one(999_999_999), low, high, "hour"))
    return asks


def _local_days(start_ms: int, end_ms: int, zone: str) -> tuple[int, int]:
    import zoneinfo

    tz = zoneinfo.ZoneInfo(zone)

    def midnight(ms: int, days: int) -> int:
        date = dt.datetime.fromtimestamp(ms // 1000, tz).date() + dt.timedelta(days=days)
        return int(dt.datetime(date.year, date.month, date.day, tzinfo=tz).timestamp()) * 1000

    return midnight(start_ms, 0), midnight(end_ms, 1)


def reconciled(asks: Iterable[Ask], day_ms: int) -> list[Ask]:
    """Hour, day and total questions about one day, as the batch must answer them."""
    made = []
    for ask in asks:
        if ask.grain in ("hour", "day") and ask.zone == "UTC":
            made.append(
                Ask(
                    f"reconciled {ask.grain}s",
                    ask.subject,
                    day_ms,
                    day_ms + DAY_MS,
                    ask.grain,
                    ask.group_by,
                    ask.filters,
                    "batch",
                )
            )
    return made


def dead_letters_differ(truth: Truth, lines: pl.Series, found: list[tuple[bytes | None, str]]) -> str:
    """Compare dead letters (value, reason) one by one with the truth; tells the first difference."""
    dead = truth.dead
    expected = sorted(zip(lines.gather(dead["line"]).to_list(), dead["reason"].to_list(), strict=True))
    got = sorted((value or b"", reason) for value, reason in found)
    if expected == got:
        return ""
    for true, answered in itertools.zip_longest(expected, got):
        if true != answered:
            return f"expected {true}, found {answered}; {len(expected)} expected, {len(got)} found"
    return ""
