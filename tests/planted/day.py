"""A made-up day of 30 campaigns, after two usual ones, with an incident of every kind. The same events in each run, but for the date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from stream.insights.watch import Key
from tests.planted.alerts import Numbers
from tests.planted.events import PlantedMinutes, events_of, with_ids

USUAL_DAYS, DAY_MINUTES = 2, DAY_MS // MINUTE_MS
HOURS = 22
"""The day ends so early that all of its alerts have closed."""
ADVERTISER, OTHERS = 1, 2
"""The advertiser of the campaigns with incidents, and that of all others."""
RISER, BOT, BUDGETED = 6, 7, 5
BOT_CLICKS = 10_000
_SEED = 11
# How much of a campaign's volume comes and goes with the hour, and the hour of the most.
_DEPTH, _PEAK_HOUR = 0.5, 15
_SPENT_AT_HOUR = 15


@dataclass(frozen=True)
class Usual:
    """What a campaign has on average: impressions a minute, clicks by impression, and what an impression costs."""

    impressions: float
    click_rate: float
    cost_micros: int


@dataclass(frozen=True)
class Incident:
    """A change of a campaign between two minutes of the day; factors of what is usual. `kind`: of the alert that must tell of it."""

    what: str
    campaign: int
    start: int
    end: int
    kind: str
    impressions: float = 1.0
    click_rate: float = 1.0
    cost: float = 1.0


_PLANTED = {
    1: Usual(80, 0.20, 3_000), 2: Usual(20, 0.04, 2_000), 3: Usual(125, 0.02, 1_500), 4: Usual(40, 0.15, 4_000),
    BUDGETED: Usual(10, 0.03, 5_000), RISER: Usual(4, 0.10, 0), BOT: Usual(4, 0.05, 2_000),
}  # fmt: skip
INCIDENTS = (
    Incident("impressions × 6, click rate ÷ 20", 4, 8 * 60 + 10, 8 * 60 + 40, "surge-ctr-collapse", 6.0, 0.05),
    Incident("click rate ÷ 3", 1, 10 * 60 + 5, 10 * 60 + 35, "ctr-drop", click_rate=1 / 3),
    Incident("no impressions", 3, 12 * 60 + 20, 12 * 60 + 50, "zero-impressions", 0.0),
    Incident("spend × 5", 2, 13 * 60 + 30, 14 * 60, "spend-spike", cost=5.0),
)
RISE = (17 * 60, 18 * 60 + 30)
"""The minutes in which the riser grows, from its usual volume to twenty times as much; nobody pays for it."""
BOT_HOUR = (19 * 60, 20 * 60)
_RISE, _RISER_SOURCES = 20.0, 6


@dataclass(frozen=True)
class Day:
    """All events in the order of time, and the daily budget of `BUDGETED`, which is spent in the afternoon."""

    start_ms: int
    """The start of the day itself; two usual ones come before it."""
    events: pl.DataFrame
    budget_micros: int

    def minutes(self) -> dict[int, dict[Key, Numbers]]:
        """Impressions, clicks and spend of each minute and campaign, as they were made."""
        impression = pl.col("event_type") == 0
        sums = self.events.group_by(
            (pl.col("event_time") // MINUTE_MS * MINUTE_MS).alias("minute"), "campaign_id", "advertiser_id"
        ).agg(impression.sum().alias("impressions"), (~impression).sum().alias("clicks"), pl.col("cost_micros").sum())
        minutes = dict[int, dict[Key, Numbers]]()
        for at_ms, campaign, advertiser, *numbers in sums.sort("minute", "campaign_id").iter_rows():
            minutes.setdefault(at_ms, {})[campaign, advertiser] = (numbers[0], numbers[1], numbers[2])
        return minutes

    def spent_at(self, share: float) -> int:
        """The minute of the day in which a share of the budget is spent."""
        own = self.events.filter((pl.col("campaign_id") == BUDGETED) & (pl.col("event_time") >= self.start_ms))
        place = own["cost_micros"].cum_sum().search_sorted(round(share * self.budget_micros))
        return int(own["event_time"][int(place)] - self.start_ms) // MINUTE_MS


def make_day(start_ms: int) -> Day:
    """The day that begins at midnight, UTC."""
    random = np.random.default_rng(_SEED)
    others = {
        n: Usual(float(random.uniform(0.8, 2.5)), float(random.uniform(0.01, 0.05)), 1_000 * int(random.integers(1, 8)))
        for n in range(len(_PLANTED) + 1, 31)
    }
    first_ms = start_ms - USUAL_DAYS * DAY_MS
    groups = [
        (ADVERTISER, {n: u for n, u in _PLANTED.items() if n != RISER}, 2),
        (ADVERTISER, {RISER: _PLANTED[RISER]}, _RISER_SOURCES),
        (OTHERS, others, 2),
    ]
    parts = []
    for advertiser, usual, sources in groups:
        minutes = _minutes(first_ms, advertiser, usual, random)
        parts.append(events_of(minutes, random, "", sources))
    events = pl.concat([*parts, _bot(start_ms, parts[0].schema, random)]).drop("event_id")
    events = with_ids(events.sort("event_time", maintain_order=True), "day")
    spent = events.filter(
        (pl.col("campaign_id") == BUDGETED)
        & pl.col("event_time").is_between(start_ms, start_ms + _SPENT_AT_HOUR * HOUR_MS, closed="left")
    )
    return Day(start_ms, events, int(spent["cost_micros"].sum()))


def _minutes(first_ms: int, advertiser: int, usual: dict[int, Usual], random: np.random.Generator) -> PlantedMinutes:
    count = USUAL_DAYS * DAY_MINUTES + HOURS * 60
    hours = np.arange(count)[:, None] / 60 % 24
    curve = 1 + _DEPTH * np.cos((hours - _PEAK_HOUR) / 24 * 2 * np.pi)
    volume = curve * np.array([u.impressions for u in usual.values()])
    rate = np.tile([u.click_rate for u in usual.values()], (count, 1))
    cost = np.tile([u.cost_micros for u in usual.values()], (count, 1)).astype(np.int64)
    for incident in INCIDENTS:
        if incident.campaign in usual:
            place = list(usual).index(incident.campaign)
            rows = slice(*(USUAL_DAYS * DAY_MINUTES + m for m in (incident.start, incident.end)))
            volume[rows, place] *= incident.impressions
            rate[rows, place] *= incident.click_rate
            cost[rows, place] = cost[rows, place] * incident.cost
    if RISER in usual:
        first, last = (USUAL_DAYS * DAY_MINUTES + m for m in RISE)
        volume[first:last, list(usual).index(RISER)] *= np.linspace(1.0, _RISE, last - first)
    impressions = random.poisson(volume)
    return PlantedMinutes(first_ms, tuple(usual), advertiser, impressions, random.binomial(impressions, rate), cost)


def _bot(start_ms: int, schema: pl.Schema, random: np.random.Generator) -> pl.DataFrame:
    """Clicks of one user, on one page."""
    first_ms, end_ms = (start_ms + minute * MINUTE_MS for minute in BOT_HOUR)
    times = np.sort(random.integers(first_ms, end_ms, BOT_CLICKS))
    constant = {
        "event_id": "", "event_type": 1, "campaign_id": BOT, "ad_id": BOT * 1_000 + 1, "advertiser_id": ADVERTISER, "publisher_id": 1,
        "country": "US", "device": "mobile", "user_id": "bot", "cost_micros": 0,
    }  # fmt: skip
    columns = {name: pl.lit(value) for name, value in constant.items()}
    return (
        pl.DataFrame({"event_time": times}).with_columns(**columns).select(pl.col(n).cast(t) for n, t in schema.items())
    )
