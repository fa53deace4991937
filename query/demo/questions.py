"""The questions that the demo asks: of all grains, groupings, filters, and ranges that cross tiers."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import zoneinfo
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso

if TYPE_CHECKING:
    from query.demo.oracle import Oracle

_GROUPS = ("ad_id", "publisher_id", "country", "device")


@dataclass(frozen=True)
class DemoQuestion:
    """A question in terms of its parameters. `kind`: its line in the summary; `view`: whose numbers are true, the `stream`'s or,
    once the day is reconciled, the `batch`'s."""

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
        """Name and value of each parameter of /v1/metrics."""
        name, ids = self.subject
        parameters = [(name, ",".join(map(str, ids))), ("start", iso(self.start_ms)), ("end", iso(self.end_ms))]
        parameters += [("granularity", self.grain), ("timezone", self.zone)]
        if self.group_by:
            parameters.append(("group_by", ",".join(self.group_by)))
        parameters += [("filter", f"{d}:{','.join(map(str, values))}") for d, values in self.filters.items()]
        return parameters


def make_questions(
    oracle: Oracle, start_ms: int, end_ms: int, seed: int = 7, *, minute_hours: int = 23
) -> list[DemoQuestion]:
    """Questions of all grains, groupings, filters and tier-crossing ranges over [start_ms, end_ms).

    `minute_hours`: how many of its last hours are read by minute; older minutes may no longer be retained.
    """
    rng = random.Random(seed)
    top = oracle.busiest(12)
    campaigns = oracle.campaigns()
    recent = max(start_ms, end_ms - minute_hours * HOUR_MS) // MINUTE_MS * MINUTE_MS
    low, high = start_ms // HOUR_MS * HOUR_MS, -(-end_ms // HOUR_MS) * HOUR_MS
    days = (start_ms // DAY_MS * DAY_MS, -(-end_ms // DAY_MS) * DAY_MS)
    combos = [c for n in range(5) for c in itertools.combinations(_GROUPS, n)]
    questions: list[DemoQuestion] = []

    def one(campaign: int) -> tuple[str, tuple[int, ...]]:
        return "campaign_id", (campaign,)

    for campaign, combo in zip(itertools.cycle(top), combos, strict=False):
        questions.append(DemoQuestion("hours by dimensions", one(campaign), low, high, "hour", combo))
    for campaign in [*top[:3], *rng.sample(campaigns, 3)]:
        questions.append(DemoQuestion("minutes", one(campaign), recent, end_ms, "minute"))
        questions.append(DemoQuestion("days", one(campaign), *days, "day"))
    for combo in combos[1:9]:
        window = recent + rng.randrange(0, max(1, end_ms - recent - 2 * HOUR_MS)) // MINUTE_MS * MINUTE_MS
        questions.append(
            DemoQuestion("minutes by dimensions", one(rng.choice(top)), window, window + 2 * HOUR_MS, "minute", combo)
        )
    for _ in range(8):
        a, b = sorted(rng.randrange(recent, end_ms) // MINUTE_MS * MINUTE_MS for _ in range(2))
        questions.append(
            DemoQuestion("totals across tiers", one(rng.choice(top)), a, b + MINUTE_MS, "total", ("country",))
        )
    for _ in range(6):
        a, b = sorted(rng.randrange(low, high) // HOUR_MS * HOUR_MS for _ in range(2))
        picked = tuple(rng.sample(campaigns, min(5, len(campaigns))))
        questions.append(
            DemoQuestion(
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
        questions.append(DemoQuestion("filters", one(top[0]), low, high, "hour", ("publisher_id",), filters))  # type: ignore[arg-type]
        questions.append(DemoQuestion("filters", one(top[0]), recent, recent + 3 * HOUR_MS, "minute", (), filters))  # type: ignore[arg-type]
    questions += [
        DemoQuestion("an advertiser", ("advertiser_id", (a,)), low, high, g, ("campaign_id",))
        for a in (1, 2)
        for g in ("hour", "total")
    ]
    questions += [
        DemoQuestion(
            "days of another zone",
            one(c),
            *_local_days(start_ms, end_ms, "Europe/Berlin"),
            "day",
            zone="Europe/Berlin",
        )
        for c in top[:2]
    ]
    questions += [
        DemoQuestion("days by dimensions", one(c), *days, "day", combo)
        for c, combo in zip(top, combos[5:11], strict=False)
    ]
    questions.append(DemoQuestion("an unknown campaign", one(999_999_999), low, high, "hour"))
    return questions


def _local_days(start_ms: int, end_ms: int, zone: str) -> tuple[int, int]:
    """The range, aligned outwards to local midnights."""
    tz = zoneinfo.ZoneInfo(zone)

    def midnight(ms: int, days: int) -> int:
        date = dt.datetime.fromtimestamp(ms // 1000, tz).date() + dt.timedelta(days=days)
        return int(dt.datetime(date.year, date.month, date.day, tzinfo=tz).timestamp()) * 1000

    return midnight(start_ms, 0), midnight(end_ms, 1)


def make_reconciled_questions(questions: Iterable[DemoQuestion], day_ms: int) -> list[DemoQuestion]:
    """The questions by hour and by day, about one reconciled day instead of their own ranges."""
    return [
        replace(q, kind=f"reconciled {q.grain}s", start_ms=day_ms, end_ms=day_ms + DAY_MS, view="batch")
        for q in questions
        if q.grain in ("hour", "day") and q.zone == "UTC"
    ]
