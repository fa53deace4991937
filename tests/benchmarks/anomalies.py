"""`make bench-anomalies`: what the detector finds, and what it raises for nothing.

With DATA=DIR and OUT=DIR it scores every series of a folder, for others to judge. A series is a CSV file with the columns `timestamp`
(ISO 8601, of UTC where it names no zone) and `value`; its scores go to a file of the same name, with the columns `timestamp` and
`anomaly_score`, 0 to 1. At which score to raise an alarm is the judge's choice.

Without, campaigns are made up: four weeks of minutes whose volume follows the time of the day and of the week, with changes planted in
the last two. Printed are the share that is found within five minutes and the alarms where nothing was planted, at five deviations and
at four, beside those of two fixed thresholds; and the same of the alerts that the stream writes, by kind. Figures go to
`.bench/anomalies.json`.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.clock import DAY_MS, MINUTE_MS
from stream.insights.alerting import Alerting, AlertPolicy
from stream.insights.detector import Detector, DetectorBank
from stream.insights.watch import Watch
from tests.benchmarks.stack import save

_CRITICAL, _FOUR = 0.5, 4 / 9
"""The scores of five deviations, and of four."""
_CAMPAIGNS, _DAYS, _LEARNED_DAYS = 200, 28, 14
_DAY = DAY_MS // MINUTE_MS
_MONTH = 30
# Minutes that a planted change lasts, within which it must be found, and after whose end alarms are still about it.
_LASTS, _FOUND_WITHIN, _ECHO = 15, 5, 30
_CHANGES = (3.0, 5.0, 1 / 3, 0.0)
# Of the usual volume all over: a fixed threshold for each campaign.
_FIXED_HIGH, _FIXED_LOW = 3.0, 1 / 3
# Of an alert's kind: by which factors impressions, click rate and spend of an impression change.
_PLANTED_KINDS = {
    "spend-spike": (1.0, 1.0, 4.0), "zero-impressions": (0.0, 1.0, 1.0), "ctr-drop": (1.0, 1 / 4, 1.0),
    "surge-ctr-collapse": (6.0, 1 / 20, 1.0),
}  # fmt: skip
# Below so many clicks a minute a lower click rate is within chance; and above so many impressions none are unusual.
_ENOUGH_CLICKS, _ENOUGH_IMPRESSIONS = 10.0, 150.0


@dataclass(frozen=True)
class Traffic:
    """Values by minute and campaign, and the planted changes: (campaign, first minute, factor)."""

    values: Any
    planted: list[tuple[int, int, float]]


def main() -> int:
    """Score the series of a folder, or made-up campaigns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of CSV files, in folders or not")
    parser.add_argument("--out", type=Path, help="where the scores go")
    words = parser.parse_args()
    if (words.data is None) != (words.out is None):
        parser.error("give both --data and --out, or neither")
    return measure_planted() if words.data is None else score_folder(words.data, words.out)


def score_folder(data: Path, out: Path) -> int:
    """Write the scores of each series."""
    files = sorted(data.rglob("*.csv"))
    if not files:
        print(f"bench-anomalies: no CSV file in {data}", file=sys.stderr)
        return 1
    values = seconds = 0.0
    for file in files:
        rows = list(csv.DictReader(file.open(newline="")))
        series = [(time_ms(row["timestamp"]), float(row["value"])) for row in rows]
        began, detector = time.perf_counter(), Detector()
        scores = [detector.update(at_ms, value).score for at_ms, value in series]
        seconds += time.perf_counter() - began
        values += len(rows)
        target = out / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(["timestamp", "anomaly_score"])
            writer.writerows((row["timestamp"], f"{score:.6f}") for row, score in zip(rows, scores, strict=True))
    each = seconds / max(values, 1) * 1e6
    print(f"{len(files)} series, {values:,.0f} values, {each:.1f} µs a value one by one, scores in {out}")
    return 0


def time_ms(text: str) -> int:
    """Epoch ms of an ISO 8601 time, of UTC where it names no zone."""
    moment = dt.datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def measure_planted() -> int:
    """Print what is found of planted changes, and what is raised without one."""
    traffic = make_traffic()
    began = time.perf_counter()
    scores = score_traffic(traffic.values)
    seconds = time.perf_counter() - began
    learned = traffic.values[: _LEARNED_DAYS * _DAY].mean(axis=0)
    fixed = (traffic.values > _FIXED_HIGH * learned) | (traffic.values < _FIXED_LOW * learned)
    figures = {"campaigns": _CAMPAIGNS, "values": traffic.values.size, "planted": len(traffic.planted)}
    figures["us_a_value"] = round(seconds / traffic.values.size * 1e6, 3)
    detected = {"detector_at_5": scores >= _CRITICAL, "detector_at_4": scores >= _FOUR}
    for name, alarms in {**detected, "fixed": begins(fixed)}.items():
        recall, false = judge(alarms, traffic.planted)
        figures |= {f"{name}_recall": round(recall, 4), f"{name}_false_a_campaign_and_month": round(false, 3)}
    figures |= measure_alerts() | measure_opening_hours()
    for name, value in figures.items():
        print(f"{name:45} {value}")
    save("anomalies", figures)
    return 0


def measure_alerts(seed: int = 2) -> dict[str, float]:
    """The share of planted changes of which the stream's alerts tell in time, by kind, and false alerts."""
    random = np.random.default_rng(seed)
    traffic = make_traffic(seed, plants=False)
    kinds, names = random.integers(0, len(_PLANTED_KINDS), (_CAMPAIGNS, 10)), list(_PLANTED_KINDS)
    rate = random.uniform(0.01, 0.08, _CAMPAIGNS)
    factors = np.ones((3, *traffic.values.shape), np.float32)
    planted = dict[tuple[int, int], str]()
    for campaign in range(_CAMPAIGNS):
        days = random.choice(np.arange(_LEARNED_DAYS, _DAYS), kinds.shape[1], replace=False)
        for day, kind in zip(days.tolist(), kinds[campaign].tolist(), strict=True):
            first = int(day * _DAY + random.integers(0, _DAY - _LASTS - _ECHO))
            usual = traffic.values[first - 10 : first, campaign].mean()
            name = names[kind]
            if usual < _ENOUGH_IMPRESSIONS or (name == "ctr-drop" and usual * rate[campaign] < _ENOUGH_CLICKS):
                continue
            factors[:, first : first + _LASTS, campaign] = np.array(_PLANTED_KINDS[name])[:, None]
            planted[campaign, first] = name
    watch, alerting, opened = Watch(120), Alerting(AlertPolicy()), list[tuple[int, int, str]]()
    watch.rows_of(np.arange(_CAMPAIGNS), np.zeros(_CAMPAIGNS, np.int64))
    for minute, values in enumerate(traffic.values):
        at_ms, (volume, click_rate, price) = 4 * DAY_MS + minute * MINUTE_MS, factors[:, minute]
        impressions = np.round(values * volume)
        clicks = random.binomial(impressions.astype(np.int64), rate * click_rate)
        spend = impressions * price * random.uniform(900, 1_100, _CAMPAIGNS)
        for alert in alerting.take(at_ms, watch.take(at_ms, impressions, clicks, spend), watch.expecting):
            if alert.version == 1 and minute >= _LEARNED_DAYS * _DAY:
                opened.append((alert.campaign_id, minute, alert.kind))
    found = dict.fromkeys(names, 0)
    for (campaign, first), name in planted.items():
        found[name] += any(c == campaign and k == name and first <= m < first + _FOUND_WITHIN for c, m, k in opened)
    false = sum(
        not any(c == campaign and first <= m < first + _LASTS + _ECHO for campaign, first in planted)
        for c, m, _ in opened
    )
    counts = {name: list(planted.values()).count(name) for name in names}
    recall = {f"alerts_{name}_recall_of_{counts[name]}": round(found[name] / counts[name], 4) for name in names}
    months = _CAMPAIGNS * (_DAYS - _LEARNED_DAYS) / _MONTH
    return recall | {"alerts_false_a_campaign_and_month": round(false / months, 3)}


def measure_opening_hours(seed: int = 3) -> dict[str, float]:
    """Alerts of campaigns that run from nine to six, none of which tells of a change; also where that is an hour later in the last week, as
    after a change of the clocks."""
    rates, month = np.random.default_rng(seed).uniform(0.01, 0.08, _CAMPAIGNS), (_DAYS - _LEARNED_DAYS) / _MONTH
    traffic, minute = make_traffic(seed, plants=False).values, np.arange(_DAYS * _DAY)
    figures = dict[str, float]()
    for name, later in (("opening_hours", 0), ("opening_hours_an_hour_later", 60 * (minute >= 21 * _DAY))):
        hour = (minute - later) % _DAY / 60
        random, watch, alerting, false = np.random.default_rng(seed), Watch(120), Alerting(AlertPolicy()), 0
        watch.rows_of(np.arange(_CAMPAIGNS), np.zeros(_CAMPAIGNS, np.int64))
        for at, values in enumerate(traffic * ((hour >= 9) & (hour < 18))[:, None]):
            at_ms, clicks = 4 * DAY_MS + at * MINUTE_MS, random.binomial(values.astype(np.int64), rates)
            findings = watch.take(at_ms, values, clicks, values * random.uniform(900, 1_100, _CAMPAIGNS))
            alerts = list(alerting.take(at_ms, findings, watch.expecting))
            false += sum(alert.version == 1 for alert in alerts) if at >= _LEARNED_DAYS * _DAY else 0
        figures[f"alerts_false_{name}_a_campaign_and_month"] = round(false / _CAMPAIGNS / month, 3)
    return figures


def make_traffic(seed: int = 1, *, plants: bool = True) -> Traffic:
    """Campaigns of 20 to 5,000 impressions a minute, each with its own curve, and ten changes each."""
    random = np.random.default_rng(seed)
    minutes = np.arange(_DAYS * _DAY)[:, None]
    level = np.exp(random.uniform(np.log(20), np.log(5_000), _CAMPAIGNS))
    phase, depth = random.uniform(0, 1, _CAMPAIGNS), random.uniform(0.2, 0.8, _CAMPAIGNS)
    curve = 1 + depth * np.sin(2 * np.pi * (minutes / _DAY + phase))
    weekend = np.where(minutes // _DAY % 7 >= 5, random.uniform(0.5, 1.2, _CAMPAIGNS), 1.0)
    mean = level * curve * weekend * random.lognormal(0, 0.05, (len(minutes), _CAMPAIGNS))
    planted = list[tuple[int, int, float]]()
    for campaign in range(_CAMPAIGNS if plants else 0):
        for day in random.choice(np.arange(_LEARNED_DAYS, _DAYS), 10, replace=False):
            first = int(day * _DAY + random.integers(0, _DAY - _LASTS - _ECHO))
            factor = float(random.choice(_CHANGES))
            mean[first : first + _LASTS, campaign] *= factor
            planted.append((campaign, first, factor))
    return Traffic(random.poisson(mean).astype(np.float64), planted)


def score_traffic(values: Any) -> Any:
    """The scores of all values, minute by minute."""
    bank, rows, scores = DetectorBank(values.shape[1], counts=True), np.arange(values.shape[1]), np.zeros(values.shape)
    for minute, row in enumerate(values):
        times = np.full(len(rows), 4 * DAY_MS + minute * MINUTE_MS)
        # A count of n has a deviation of sqrt(n) by chance alone.
        scores[minute] = bank.update(rows, times, row, np.sqrt(np.maximum(row, 1)))[2]
    return scores


def begins(alarms: Any) -> Any:
    """Where an alarm is raised that was not a minute before."""
    return alarms & ~np.vstack([np.zeros((1, alarms.shape[1]), bool), alarms[:-1]])


def judge(alarms: Any, planted: list[tuple[int, int, float]]) -> tuple[float, float]:
    """The share of changes that is found in time, and false alarms by campaign and month; of the days after learning."""
    rest = alarms.copy()
    rest[: _LEARNED_DAYS * _DAY] = False
    found = 0
    for campaign, first, _ in planted:
        found += bool(alarms[first : first + _FOUND_WITHIN, campaign].any())
        rest[first : first + _LASTS + _ECHO, campaign] = False
    months = alarms.shape[1] * (_DAYS - _LEARNED_DAYS) / _MONTH
    return found / len(planted), float(rest.sum()) / months


if __name__ == "__main__":
    sys.exit(main())
