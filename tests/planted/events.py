"""Events made from minutes of campaigns, so that the number of each kind in each minute is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from infra.clock import MINUTE_MS
from ingest.synthetic.generator import COUNTRIES, DEVICES, DIMENSIONS, TYPES, SyntheticEvents, Truth

MEASURES = ("impressions", "clicks")
INCIDENTS = (1_001, 1_002)
"""The campaigns of `make_incidents`."""
_USERS, _MINUTES = 50_000, 240


@dataclass(frozen=True)
class PlantedMinutes:
    """Campaigns by minute. All columns are of (minute, campaign)."""

    start_ms: int
    campaigns: tuple[int, ...]
    advertiser: int
    impressions: Any
    clicks: Any
    cost_micros: Any
    """Of an impression; clicks cost nothing."""


def events_of(minutes: PlantedMinutes, random: np.random.Generator, prefix: str, sources: int = 1) -> pl.DataFrame:
    """One row an event, in the order of time. `sources`: how many publishers and countries a campaign has."""
    parts = list[pl.DataFrame]()
    for kind, name in enumerate(MEASURES):
        counts = getattr(minutes, name).astype(np.int64)
        minute, campaign = (np.repeat(place, counts.ravel()) for place in np.indices(counts.shape).reshape(2, -1))
        source = random.integers(0, sources, len(minute))
        ids = np.array(minutes.campaigns, np.int64)[campaign]
        frame = pl.DataFrame(
            {
                "event_type": np.full(len(minute), kind),
                "event_time": minutes.start_ms + minute * MINUTE_MS + random.integers(0, MINUTE_MS, len(minute)),
                "campaign_id": ids,
                "ad_id": ids * 1_000 + 1,
                "advertiser_id": np.full(len(minute), minutes.advertiser),
                "publisher_id": 1 + source,
                "country": pl.Series(COUNTRIES).gather(source),
                "device": pl.Series(DEVICES).gather(source % len(DEVICES)),
                "user_id": random.integers(0, _USERS, len(minute)),
                "cost_micros": np.where(kind == 0, minutes.cost_micros[minute, campaign], 0).astype(np.int64),
            }
        )
        parts.append(frame.with_columns(pl.format("u{}", "user_id").alias("user_id")))
    return with_ids(pl.concat(parts).sort("event_time", maintain_order=True), prefix)


def make_incidents(start_ms: int) -> PlantedMinutes:
    """Two steady campaigns of four hours: the first spends nine times as much for four minutes, the second loses its clicks for ten."""
    random = np.random.default_rng(3)
    impressions = random.poisson((12.0, 20.0), (_MINUTES, 2))
    clicks = random.binomial(impressions, (0.1, 0.5))
    cost = np.full((_MINUTES, 2), 1_000)
    cost[200:204, 0] *= 9
    clicks[215:225, 1] = 0
    return PlantedMinutes(start_ms, INCIDENTS, 1_000, impressions, clicks, cost)


def with_ids(events: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """The events with ids, which are the same in each run."""
    return events.with_row_index("number").select(
        pl.format("{}-{}", pl.lit(prefix), "number").alias("event_id"), pl.exclude("number")
    )


def encode_lines(events: pl.DataFrame) -> pl.Series:
    """The messages, as a producer writes them."""
    text = events.with_columns(pl.Series("event_type", TYPES).gather(events["event_type"])).write_ndjson()
    return pl.Series("line", [line.encode() for line in text.splitlines()])


def merged_with(synthetic: SyntheticEvents, events: pl.DataFrame) -> SyntheticEvents:
    """Synthetic events, and others that arrive at their event time and are none of theirs; with the truth about both."""
    arrival = np.concatenate([synthetic.arrival_ms, events["event_time"].to_numpy()])
    order = np.argsort(arrival, kind="stable")
    lines = pl.concat([synthetic.lines, encode_lines(events)])
    keys = pl.concat([synthetic.keys, events["event_id"]])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    dead = synthetic.truth.dead.with_columns(pl.Series("line", place[synthetic.truth.dead["line"].to_numpy()]))
    counts = pl.concat([synthetic.truth.counts, _counts(events, synthetic.truth.counts.schema)])
    truth = Truth(counts, dead.sort("line"))
    return SyntheticEvents(lines.gather(order), arrival[order], keys.gather(order), truth)


def _counts(events: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """Sums of events none of which is late or rejected."""
    minute = (pl.col("event_time") // MINUTE_MS * MINUTE_MS).alias("minute_ms")
    sums = []
    for view in ("stream", "batch"):
        sums += [(pl.col("event_type") == k).sum().alias(f"{view}_{name}s") for k, name in enumerate(TYPES)]
        sums.append(pl.col("cost_micros").sum().alias(f"{view}_spend_micros"))
    columns = events.group_by(minute, *DIMENSIONS).agg(sums)
    missing = [pl.lit(0).alias(name) for name in schema if name not in columns.columns]
    return columns.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in schema.items())
