"""The directory of synthetic traffic: an entry for each advertiser, campaign, ad and publisher that its events may name.

NDJSON that `adclick directory import` takes, parents first; the same for the same seed. Budgets are near what a campaign is
going to spend, so that some of them run out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from infra.clock import DAY_MS
from ingest.synthetic.generator import Ints, Spec, expected_spend_micros

HALF_HOUR_ZONE = "Asia/Kolkata"
_ZONES = [
    "America/New_York", "Europe/Berlin", "Asia/Tokyo", "Europe/London", "America/Los_Angeles", "America/Sao_Paulo",
    "Australia/Adelaide", "UTC", "Asia/Singapore",
]  # fmt: skip
_PLACES = [
    "Northwind", "Harbour", "Alpine", "Juniper", "Copper", "Meridian", "Lakeside", "Saffron", "Orchard", "Polar", "Cedar", "Summit",
    "Granite", "Willow", "Ember", "Coral", "Atlas", "Nimbus", "Prairie", "Velvet",
]  # fmt: skip
_TRADES = [
    "Coffee", "Outdoor", "Insurance", "Travel", "Furniture", "Bikes", "Energy", "Foods", "Optics", "Games", "Bank", "Airlines",
    "Skincare", "Books", "Garden", "Mobile", "Motors", "Fashion",
]  # fmt: skip
_OCCASIONS = [
    "Spring sale", "Summer holidays", "Back to school", "Black Friday", "Winter warmers", "New arrivals", "Brand awareness",
    "App installs", "Newsletter sign-up", "Retargeting", "Store opening", "Gift guide",
]  # fmt: skip
_AUDIENCES = ["new customers", "returning customers", "families", "students", "commuters", "weekend", "worldwide"]
_ADS = [
    "Banner 300×250", "Video 15 s", "Video 30 s", "Native", "Carousel", "Interstitial", "Banner 728×90", "Story", "Rich media", "Text",
]  # fmt: skip
_MESSAGES = ["price", "benefit", "testimonial", "launch", "reminder", "seasonal"]
_TITLES = [
    "Daily", "Morning", "Evening", "Weekly", "Sunday", "Modern", "Open", "Little", "Grand", "Quiet", "Urban", "Digital",
]  # fmt: skip
_PAPERS = [
    "Courier", "Herald", "Review", "Kitchen", "Traveller", "Gamer", "Weather", "Sports", "Post", "Gazette", "Cinema", "Science",
]  # fmt: skip
_UNIT = 1_000_000
_SLICE = 100_000


def write_directory(spec: Spec, path: Path) -> int:
    """Write the entries; returns their number."""
    entries = 0
    with path.open("wb") as out:
        for frame in _frames(spec):
            frame.write_ndjson(out)
            entries += frame.height
    return entries


def _frames(spec: Spec) -> Iterator[pl.DataFrame]:
    yield _advertisers(spec)
    yield from _campaigns(spec).iter_slices(_SLICE)
    campaigns = max(1, _SLICE // spec.ads_per_campaign)
    for first in range(1, spec.campaigns + 1, campaigns):
        yield _ads(spec, np.arange(first, min(first + campaigns, spec.campaigns + 1)))
    yield _publishers(spec)


def _advertisers(spec: Spec) -> pl.DataFrame:
    ids = np.arange(1, (spec.campaigns - 1) // spec.campaigns_per_advertiser + 2)
    zones = [_ZONES[int(id_) % len(_ZONES)] for id_ in ids]
    # The second one, where there are two: a zone that is not whole hours from UTC.
    zones[min(1, len(zones) - 1)] = HALF_HOUR_ZONE
    return _frame("advertiser", ids, _pairs(ids, _PLACES, _TRADES, spec.seed), timezone=zones)


def _campaigns(spec: Spec) -> pl.DataFrame:
    rng = np.random.default_rng(spec.seed + 2)
    size, ids = spec.campaigns, np.arange(1, spec.campaigns + 1)
    advertisers = (ids - 1) // spec.campaigns_per_advertiser + 1
    zones = _advertisers(spec)["timezone"].gather(advertisers - 1)
    first_day = spec.start_ms // DAY_MS
    start = np.maximum(0, first_day - rng.integers(5, 120, size))
    # The busiest ones run; an ended one ended as the events begin.
    dice = np.where(ids <= 20, 0.0, rng.random(size))
    status = np.where(dice < 0.85, "active", np.where(dice < 0.95, "paused", "ended"))
    lasts, open_end = rng.integers(130, 300, size), rng.random(size) < 0.4
    end = np.where(dice < 0.95, start + lasts, first_day)
    daily = expected_spend_micros(spec) * DAY_MS / spec.span_ms * rng.uniform(0.7, 1.6, size)
    kind = rng.choice(["daily", "total", ""], size, p=[0.55, 0.35, 0.1])
    amount = np.where(kind == "total", daily * lasts, daily)
    has_end, has_budget = ~open_end | (dice >= 0.95), kind != ""
    return _frame(
        "campaign", ids, _pairs(ids, _OCCASIONS, _AUDIENCES, spec.seed + 1), advertiser_id=advertisers, timezone=zones, status=status,
        start=pl.Series(start.astype(np.int32)).cast(pl.Date),
        end=pl.Series(pl.Series(end.astype(np.int32)).cast(pl.Date)).set(pl.Series(~has_end), None),
        budget=pl.Series(kind).set(pl.Series(~has_budget), None),
        budget_micros=pl.Series(_rounded(amount)).set(pl.Series(~has_budget), None),
    )  # fmt: skip


def _ads(spec: Spec, campaigns: Ints) -> pl.DataFrame:
    numbers = np.tile(np.arange(1, spec.ads_per_campaign + 1), len(campaigns))
    of = np.repeat(campaigns, spec.ads_per_campaign)
    ids = of * 1_000 + numbers
    return _frame("ad", ids, _pairs(numbers + of * 7, _ADS, _MESSAGES, spec.seed), campaign_id=of)


def _publishers(spec: Spec) -> pl.DataFrame:
    ids = np.arange(1, spec.publishers + 1)
    return _frame("publisher", ids, _pairs(ids, _TITLES, _PAPERS, spec.seed))


def _frame(kind: str, ids: Ints, names: pl.Series, **fields: object) -> pl.DataFrame:
    return pl.DataFrame({"kind": [kind] * len(ids), "id": ids, "name": names} | fields)


def _pairs(numbers: Ints, firsts: list[str], seconds: list[str], seed: int) -> pl.Series:
    """A name for each number: all pairs of words in an order of the seed's, and then the same with a count."""
    order = np.random.default_rng(seed).permutation(len(firsts) * len(seconds))
    chosen = order[numbers % len(order)]
    rounds = numbers // len(order)
    join = " · " if seconds is _AUDIENCES or seconds is _MESSAGES else " "
    texts = [
        f"{firsts[pair % len(firsts)]}{join}{seconds[pair // len(firsts)]}{f' {count + 1}' if count else ''}"
        for pair, count in zip(chosen.tolist(), rounds.tolist(), strict=True)
    ]
    return pl.Series(texts)


def _rounded(micros: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Ints:
    """Whole units of the currency with two significant digits, at least one unit."""
    units = np.maximum(1.0, micros / _UNIT)
    step = 10.0 ** np.maximum(0, np.floor(np.log10(units)) - 1)
    rounded: Ints = (np.round(units / step) * step).astype(np.int64)
    return rounded * _UNIT
