"""Synthetic ad traffic, made from columns, and the truth about it.

Lines come in the order of their arrival. What the pipeline must say about each follows from how it was made: nothing
here imports any part of the pipeline that decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS

Ints = npt.NDArray[np.int64]

COUNTRIES = [
    "US",
    "IN",
    "BR",
    "DE",
    "GB",
    "FR",
    "JP",
    "ID",
    "MX",
    "IT",
    "ES",
    "CA",
    "KR",
    "PL",
    "NL",
    "AU",
    "TR",
    "SE",
    "CH",
    "AT",
]
DEVICES = ["mobile", "desktop", "ctv", "tablet", "other"]
TYPES = ["impression", "click", "conversion"]
DIMENSIONS = ["campaign_id", "ad_id", "advertiser_id", "publisher_id", "country", "device"]
DISORDER_MS = 5_000
# A partition's watermark trails arrival by the gap since its last message. Among this many messages before, each of up
# to 16 partitions has had one, but for a chance of 7e-8.
_SEEN_BY_ALL = 256
_CLEARANCE_MS = 20_000
# (late by more than, at most): corrected, flagged, too late.
_LATE_CLASSES = ((0, 5 * MINUTE_MS), (5 * MINUTE_MS, HOUR_MS), (HOUR_MS, 6 * HOUR_MS))
_FAR_FUTURE_MS = 4_102_444_800_000  # the year 2100: ahead of any clock that reads this


@dataclass(frozen=True)
class Spec:
    """What to make. Fractions are of `events`, the number of lines."""

    events: int
    seed: int = 1
    start_ms: int = 0
    span_ms: int = HOUR_MS
    campaigns: int = 1_000
    campaigns_per_advertiser: int = 5
    ads_per_campaign: int = 10
    publishers: int = 500
    publishers_per_campaign: int = 50
    duplicates: float = 0.01
    late: float = 0.003
    malformed: float = 0.001
    future: float = 0.0005
    bursts: float = 0.02
    hot_campaign: float = 0.0
    iso_times: float = 0.05
    zipf: float = 1.1


@dataclass(frozen=True)
class Truth:
    """What must come out.

    `counts`: a row for each minute and all dimensions, with `minute_ms`, DIMENSIONS, and for both views (`stream_…`,
    `batch_…`) impressions, clicks, conversions, spend_micros, late_events, and late_clicks. `dead`: `line` (from 0) and `reason`.
    """

    counts: pl.DataFrame
    dead: pl.DataFrame


@dataclass(frozen=True)
class SyntheticEvents:
    """`lines` (Binary) in order of arrival, with `arrival_ms` and the message `keys` (null where there is none)."""

    lines: pl.Series
    arrival_ms: Ints
    keys: pl.Series
    truth: Truth = field(repr=False)


def generate_events(spec: Spec) -> SyntheticEvents:
    """Make everything in memory: about 600 bytes an event at the peak."""
    rng = np.random.default_rng(spec.seed)
    counts = {name: round(spec.events * getattr(spec, name)) for name in ("duplicates", "malformed", "future")}
    base = max(1, spec.events - sum(counts.values()))
    frame = _base(spec, base, rng)
    frame = _with_late(spec, frame, rng)
    lines = _json(frame)
    copies = _copies(spec, frame, counts["duplicates"], rng)
    bad_lines, bad_reasons = _malformed(frame, counts["malformed"], rng)
    bad_arrival = _spread(spec, len(bad_lines), rng)
    future = _future(frame, counts["future"], rng)
    future_arrival = _spread(spec, future.height, rng)

    everything = pl.concat(
        [
            pl.DataFrame(
                {
                    "arrival": frame["arrival_ms"],
                    "line": lines,
                    "key": frame["event_id"],
                    "reason": frame["reason"],
                }
            ),
            pl.DataFrame(
                {
                    "arrival": copies["arrival_ms"],
                    "line": lines.gather(copies["source"]),
                    "key": frame["event_id"].gather(copies["source"]),
                    "reason": pl.Series([None] * copies.height, dtype=pl.String),
                }
            ),
            pl.DataFrame(
                {
                    "arrival": bad_arrival,
                    "line": bad_lines,
                    "key": _ids(len(bad_lines), rng),
                    "reason": bad_reasons,
                },
                schema={"arrival": pl.Int64, "line": pl.Binary, "key": pl.String, "reason": pl.String},
            ),
            pl.DataFrame(
                {
                    "arrival": future_arrival,
                    "line": _json(future),
                    "key": future["event_id"],
                    "reason": pl.Series(["from-the-future"] * future.height, dtype=pl.String),
                }
            ),
        ]
    ).sort("arrival", maintain_order=True)
    dead = everything.with_row_index("line_number").filter(pl.col("reason").is_not_null())
    truth = Truth(
        _counts(frame),
        dead.select(pl.col("line_number").cast(pl.Int64).alias("line"), "reason"),
    )
    return SyntheticEvents(everything["line"], everything["arrival"].to_numpy(), everything["key"], truth)


def zipf(count: int, exponent: float, size: int, rng: np.random.Generator) -> Ints:
    """Ranks from 0, with probability ∝ 1 / (rank + 1)^exponent."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    cumulative = np.cumsum(weights) / weights.sum()
    return np.minimum(np.searchsorted(cumulative, rng.random(size)), count - 1).astype(np.int64)


def _spread(spec: Spec, size: int, rng: np.random.Generator) -> Ints:
    """Arrival times over the span, along a daily curve that peaks at 20:00 UTC."""
    grid = np.linspace(0.0, 1.0, 2_881)
    hours = ((spec.start_ms + grid * spec.span_ms) % DAY_MS) / HOUR_MS
    rate = 1.0 + 0.6 * np.cos((hours - 20) / 24 * 2 * np.pi)
    cumulative = np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)))
    share = np.interp(rng.random(size), cumulative / cumulative[-1], grid)
    return spec.start_ms + (share * (spec.span_ms - 1)).astype(np.int64)


def _ids(size: int, rng: np.random.Generator) -> pl.Series:
    """Random 128-bit ids in hexadecimal."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    raw = rng.integers(0, 256, (size, 16), dtype=np.uint8)
    text = np.empty((size, 32), np.uint8)
    text[:, ::2], text[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    offsets = np.arange(0, 32 * size + 1, 32, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(size, pa.py_buffer(offsets), pa.py_buffer(text))
    return pl.Series("event_id", pl.from_arrow(array), dtype=pl.String)


def _base(spec: Spec, size: int, rng: np.random.Generator) -> pl.DataFrame:
    """Distinct valid events, all on time, in order of arrival."""
    arrival = _spread(spec, size, rng)
    burst = rng.random(size) < spec.bursts
    if burst.any() and spec.span_ms > 2 * MINUTE_MS:
        starts = spec.start_ms + rng.integers(0, spec.span_ms - MINUTE_MS, max(1, int(spec.span_ms // (2 * HOUR_MS))))
        arrival[burst] = rng.choice(starts, int(burst.sum())) + rng.integers(0, 30_000, int(burst.sum()))
    arrival.sort()
    campaign = zipf(spec.campaigns, spec.zipf, size, rng) + 1
    if spec.hot_campaign:
        campaign[rng.random(size) < spec.hot_campaign] = 1
    ctr, cvr, cpm, cpc = (trait[campaign] for trait in _traits(spec))
    dice = rng.random(size)
    kind = np.where(dice < ctr * cvr, 2, np.where(dice < ctr * (1 + cvr), 1, 0)).astype(np.int64)
    publisher = zipf(spec.publishers_per_campaign, 1.0, size, rng)
    return pl.DataFrame(
        {
            "event_id": _ids(size, rng),
            "kind": kind,
            "arrival_ms": arrival,
            "time_ms": arrival - rng.integers(0, DISORDER_MS, size),
            "campaign_id": campaign,
            "ad_id": campaign * 1_000 + zipf(spec.ads_per_campaign, 0.8, size, rng) + 1,
            "advertiser_id": (campaign - 1) // spec.campaigns_per_advertiser + 1,
            "publisher_id": (campaign * 37 + publisher) % spec.publishers + 1,
            "country": pl.Series(COUNTRIES).gather(zipf(len(COUNTRIES), 1.0, size, rng)),
            "device": pl.Series(DEVICES).gather(zipf(len(DEVICES), 1.2, size, rng)),
            "user": rng.integers(0, 2_000_000, size),
            "cost_micros": np.where(kind == 0, cpm, np.where(kind == 1, cpc, 0)),
            "iso": rng.random(size) < spec.iso_times,
        }
    )


def _traits(spec: Spec) -> tuple[npt.NDArray[Any], ...]:
    """By campaign (the first one is none): ctr, cvr, and what an impression and a click cost, in micros."""
    traits, size = np.random.default_rng(spec.seed + 1), spec.campaigns + 1
    return (
        traits.uniform(0.005, 0.05, size), traits.uniform(0.01, 0.10, size), traits.integers(500, 8_000, size),
        traits.integers(50_000, 2_000_000, size),
    )  # fmt: skip


def expected_spend_micros(spec: Spec) -> npt.NDArray[np.float64]:
    """About what each campaign spends over the span, from the first campaign on."""
    ctr, cvr, cpm, cpc = (trait[1:] for trait in _traits(spec))
    shares = 1.0 / np.arange(1, spec.campaigns + 1) ** spec.zipf
    share = shares / shares.sum() * (1 - spec.hot_campaign)
    share[0] += spec.hot_campaign
    return np.asarray(spec.events * share * ((1 - ctr * (1 + cvr)) * cpm + ctr * cpc))


def _with_late(spec: Spec, frame: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Move some events back in time, each clear of its class's borders; adds `late_class` (0 to 3) and `reason`."""
    size = frame.height
    arrival, time = frame["arrival_ms"].to_numpy(), frame["time_ms"].to_numpy().copy()
    late_class = np.zeros(size, np.int64)
    wanted = min(round(spec.events * spec.late), max(0, size - _SEEN_BY_ALL))
    chosen = (
        np.sort(rng.choice(np.arange(_SEEN_BY_ALL, size), wanted, replace=False)) if wanted else np.empty(0, np.int64)
    )
    lag = arrival[chosen] - arrival[chosen - _SEEN_BY_ALL] if wanted else chosen
    first_try = rng.integers(0, 3, wanted)
    for step in range(3):
        number = (first_try + step) % 3
        for index, (least, most) in enumerate(_LATE_CLASSES):
            mine = (number == index) & (late_class[chosen] == 0)
            low = least + lag + _CLEARANCE_MS
            high = most - _CLEARANCE_MS - MINUTE_MS
            by = low + (rng.random(wanted) * np.maximum(1, high - low)).astype(np.int64)
            end = (arrival[chosen] - DISORDER_MS - by) // MINUTE_MS * MINUTE_MS
            good = mine & (low < high) & (end - MINUTE_MS >= spec.start_ms)
            moved = end - 1 - rng.integers(0, MINUTE_MS, wanted)
            time[chosen[good]] = moved[good]
            late_class[chosen[good]] = index + 1
    reason = pl.when(pl.col("late_class") == 3).then(pl.lit("too-late")).otherwise(None).alias("reason")
    return frame.with_columns(pl.Series("time_ms", time), pl.Series("late_class", late_class)).with_columns(reason)


def _copies(spec: Spec, frame: pl.DataFrame, count: int, rng: np.random.Generator) -> pl.DataFrame:
    """Copies: `source` (row of the original) and `arrival_ms`, a millisecond to 50 minutes later; some twice."""
    source = rng.integers(0, frame.height, count)
    if count:
        again = rng.random(count) < 0.1
        source[again] = source[rng.integers(0, count, int(again.sum()))]
    later = np.exp(rng.uniform(0.0, np.log(50 * MINUTE_MS), count)).astype(np.int64) + 1
    arrival = np.minimum(frame["arrival_ms"].to_numpy()[source] + later, spec.start_ms + spec.span_ms)
    return pl.DataFrame({"source": source, "arrival_ms": arrival})


def _json(frame: pl.DataFrame) -> pl.Series:
    """NDJSON lines, as two kinds of producers write them: times as numbers, or as RFC 3339."""
    # The year 2100 and a millisecond part are both printed by strftime.
    text = pl.from_epoch("time_ms", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
    time = pl.when(pl.col("iso")).then(pl.format('"{}"', text)).otherwise(pl.col("time_ms").cast(pl.String))
    kind = pl.Series(TYPES).gather(frame["kind"])
    return frame.select(
        pl.format(
            '{}"event_id":"{}","event_type":"{}","event_time":{},"campaign_id":{},"ad_id":{},"advertiser_id":{},'
            '"publisher_id":{},"country":"{}","device":"{}","user_id":"u{}","cost_micros":{}{}',
            pl.lit("{"), "event_id", kind, time, "campaign_id", "ad_id", "advertiser_id", "publisher_id", "country", "device",
            "user", "cost_micros", pl.lit("}"),
        ).cast(pl.Binary).alias("line")
    )["line"]  # fmt: skip


def _counts(frame: pl.DataFrame) -> pl.DataFrame:
    """Exact sums by minute and all dimensions, as the stream must show them and as the batch must."""
    accepted = pl.col("late_class") < 3
    sums = []
    for view, seen in (("stream", accepted), ("batch", pl.lit(True))):
        sums += [
            (seen & (pl.col("kind") == k)).sum().cast(pl.Int64).alias(f"{view}_{name}s") for k, name in enumerate(TYPES)
        ]
        sums.append(pl.when(seen).then(pl.col("cost_micros")).otherwise(0).sum().alias(f"{view}_spend_micros"))
        late = seen & (pl.col("late_class") == 2)
        sums.append(late.sum().cast(pl.Int64).alias(f"{view}_late_events"))
        click = pl.col("kind") == TYPES.index("click")
        sums.append((late & click).sum().cast(pl.Int64).alias(f"{view}_late_clicks"))
    sums.append((accepted & (pl.col("late_class") > 0)).sum().cast(pl.Int64).alias("stream_late"))
    return frame.group_by((pl.col("time_ms") // MINUTE_MS * MINUTE_MS).alias("minute_ms"), *DIMENSIONS).agg(sums)


def _future(frame: pl.DataFrame, count: int, rng: np.random.Generator) -> pl.DataFrame:
    """Valid but for their time: the year 2100."""
    rows = frame[rng.integers(0, frame.height, count)]
    return rows.with_columns(_ids(count, rng), pl.Series("time_ms", _FAR_FUTURE_MS + rng.integers(0, DAY_MS, count)))


_BAD_VALUES: list[tuple[str, object]] = [
    ("event_id", ""), ("event_id", "x" * 65), ("event_id", 12), ("event_type", "view"), ("event_type", 1),
    ("event_time", "yesterday"), ("event_time", 1_000), ("event_time", 1.5e12), ("event_time", "2026-13-01T00:00:00Z"),
    ("campaign_id", -1), ("campaign_id", "7"), ("ad_id", 2**63), ("advertiser_id", 1.0), ("publisher_id", True),
    ("country", "XX"), ("country", "us"), ("device", "phone"), ("user_id", "u" * 129), ("user_id", 5),
    ("cost_micros", -1), ("cost_micros", 10**12 + 1), ("cost_micros", "12"),
]  # fmt: skip
_REQUIRED = ["event_id", "event_type", "event_time", "campaign_id", "ad_id", "advertiser_id", "publisher_id"]


def _malformed(frame: pl.DataFrame, count: int, rng: np.random.Generator) -> tuple[list[bytes], list[str]]:
    """Lines that must be dead-lettered, of every kind in turn, and their reasons."""
    kinds: list[tuple[str, str, object]] = [
        ("malformed", "cut", None),
        ("malformed", "bytes", None),
        ("malformed", "text", None),
    ]
    kinds += [("malformed", "array", None), ("malformed", "number", None)]
    kinds += [("missing-field", name, None) for name in _REQUIRED]
    kinds += [("bad-value", name, value) for name, value in _BAD_VALUES]
    kinds += [("too-large", "", None)]
    lines, reasons = [], []
    ids = _ids(count, rng).to_list()
    picks = rng.integers(0, frame.height, count).tolist()
    for number in range(count):
        reason, what, value = kinds[number % len(kinds)]
        row = frame.row(picks[number], named=True)
        event: dict[str, object] = {
            "event_id": ids[number], "event_type": TYPES[row["kind"]], "event_time": row["time_ms"],
            **{name: row[name] for name in DIMENSIONS}, "cost_micros": row["cost_micros"],
        }  # fmt: skip
        if reason == "missing-field":
            del event[what]
        elif reason == "bad-value":
            event[what] = value
        elif reason == "too-large":
            event["note"] = "x" * 70_000
        line = json.dumps(event, separators=(",", ":")).encode()
        if what == "cut":
            line = line[: len(line) // 2]
        elif what == "bytes":
            line = line.replace(b'"event_type"', b'"event_type\xff"')
        elif what == "text":
            line = f"event {ids[number]} was here".encode()
        elif what == "array":
            line = b"[" + line + b"]"
        elif what == "number":
            line = str(1_000_000 + number).encode()
        lines.append(line)
        reasons.append(reason)
    return lines, reasons
