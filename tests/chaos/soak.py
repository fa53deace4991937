"""`make soak`: twenty minutes at half load; memory and open files of every process, and how fast what is stored grows.

Event time passes twelve times as fast as the clock, and little is kept, so that windows close and go, dedup generations
turn, and topics are cut off and compacted many times over. MINUTES, RATE (events/s) and SPEED change it; KEEP=1 leaves the stack's folder. Exit 1 when something
grows that must not, or a number is wrong in the end.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import psutil

from infra.clock import HOUR_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import ARCHIVE, BLOCKS, EVENTS, HOURS, MINUTES
from infra.redis.client import Redis
from ingest.dedup import registry
from ingest.partials import BILLED
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from query.client import Client
from stream.hot.layout import ShardKeys
from tests.conftest import adclick
from tests.product import Product, wait_until

_CHUNK_S, _SPEED = 10, int(os.environ.get("SPEED") or 12)
# So few combinations that a day has seen all of them after minutes.
_SHAPE = {"campaigns": 50, "publishers": 50, "publishers_per_campaign": 5}
_KEPT = {
    "ADCLICK_DEDUP_HORIZON_S": "120",
    "ADCLICK_EVENTS_RETENTION_S": "360",
    "ADCLICK_BLOCKS_RETENTION_S": "240",
    "ADCLICK_HOT_HOURS": "2",
}
_KEYS = ("time", "campaign_id")
_GROWING = ("archive", "clickhouse")
# Growth that is noise: a process of an interpreter or a JVM moves by that much.
_NOISE_MB, _NOISE_SHARE, _NOISE_FILES = 40, 0.15, 20


@dataclass
class Readings:
    """Readings of each minute: memory and open files by process, bytes by store."""

    rss_mb: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    stored_mb: dict[str, list[float]] = field(default_factory=dict)

    def take(self, product: Product) -> None:
        """Read everything once."""
        for name, process in product.folder.processes().items():
            self.rss_mb.setdefault(name, []).append(process.memory_info().rss >> 20)
            self.files.setdefault(name, []).append(process.num_fds())
            self.cpu_s.setdefault(name, []).append(sum(process.cpu_times()[:2]))
        for store in ("kafka", "redis", "clickhouse", "archive"):
            size = sum(f.stat().st_blocks * 512 for f in (product.folder.path / store).rglob("*") if f.is_file())
            self.stored_mb.setdefault(store, []).append(size / (1 << 20))
        used = Redis(product.settings.redis).call("INFO", "memory")["used_memory"]
        self.stored_mb.setdefault("redis memory", []).append(int(used) / (1 << 20))

    def print(self) -> None:
        """Print what was read."""
        print(f"{'process':12} {'MB first':>9} {'middle':>7} {'last':>6} {'files':>6} {'CPU s/min':>9}")
        for name, values in self.rss_mb.items():
            print(
                f"{name:12} {values[0]:9} {values[len(values) // 2]:7} {values[-1]:6} {self.files[name][-1]:6}"
                f" {(self.cpu_s[name][-1] - self.cpu_s[name][0]) / max(1, len(values) - 1):9.1f}"
            )
        for store, sizes in self.stored_mb.items():
            half = len(sizes) // 2
            per_minute = (sizes[-1] - sizes[half]) / max(1, len(sizes) - 1 - half)
            print(f"{store:12} {sizes[0]:9.0f} {sizes[half]:7.0f} {sizes[-1]:6.0f} MB, {per_minute:+.1f} MB a minute")

    def grew(self) -> list[str]:
        """What still grows after the first third, beyond noise."""
        faults = []
        bounded = {f"stored in {name}": sizes for name, sizes in self.stored_mb.items() if name not in _GROWING}
        for kind, series, noise in (
            ("MB", self.rss_mb | bounded, _NOISE_MB),
            ("open files", self.files, _NOISE_FILES),
        ):
            for name, values in series.items():
                third = max(1, len(values) // 3)
                middle, last = statistics.median(values[third : 2 * third]), statistics.median(values[-third:])
                if last > middle + max(noise, middle * _NOISE_SHARE):
                    faults.append(f"{name}: {middle:.0f} {kind}, and then {last:.0f}")
        return faults


def _chunk(start_ms: int, rate: int, seed: int) -> SyntheticEvents:
    span_ms = _CHUNK_S * 1000 * _SPEED
    return generate_events(Spec(events=rate * _CHUNK_S, seed=seed, start_ms=start_ms, span_ms=span_ms, **_SHAPE))


def _send(product: Product, rate: int, minutes: float, readings: Readings) -> pl.DataFrame:
    """Send chunks of ten seconds, the last of them about now; returns what must be counted, by hour and campaign."""
    producer, counted = EventProducer(product.settings.kafka_connection), []
    begin_ms = now_ms() // 1000 * 1000
    chunks = int(minutes * 60 / _CHUNK_S)
    first_ms = begin_ms - chunks * _CHUNK_S * 1000 * _SPEED
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(_chunk, first_ms, rate, 0)
        for number in range(chunks):
            events = following.result()
            following = maker.submit(_chunk, first_ms + (number + 1) * _CHUNK_S * 1000 * _SPEED, rate, number + 1)
            sums = [pl.col(f"stream_{m}").sum().alias(m) for m in BILLED]
            hour = (pl.col("minute_ms") // HOUR_MS * HOUR_MS).alias("time")
            counted.append(events.truth.counts.group_by(hour, "campaign_id").agg(sums))
            step = max(1, rate // 10)
            for at in range(0, len(events.lines), step):
                due_ms = begin_ms + number * _CHUNK_S * 1000 + at * 1000 // rate
                time.sleep(max(0, due_ms - now_ms()) / 1000)
                keys = [None if k is None else k.encode() for k in events.keys[at : at + step]]
                producer.send(EVENTS, keys, events.lines[at : at + step].to_list())
            if number % 6 == 5:
                readings.take(product)
                rss_mb = {name: values[-1] for name, values in readings.rss_mb.items()}
                passed_s = (number + 1) * _CHUNK_S
                late_s = (now_ms() - begin_ms) / 1000 - passed_s
                watermark = dt.datetime.fromisoformat(Client(product.settings).get("/v1/pipeline", [])["watermark"])
                behind_s = (first_ms / 1000 - watermark.timestamp()) / _SPEED + passed_s
                print(
                    f"{passed_s // 60:3} min, sent {late_s:.0f} s late, shown {behind_s:.0f} s after  MB {rss_mb}",
                    flush=True,
                )
    assert producer.flush(60) == 0
    whole = pl.concat(counted).group_by(_KEYS).agg(pl.col(BILLED).sum())
    whole = whole.filter(pl.sum_horizontal(BILLED) > 0)
    return whole.with_columns(pl.col("time").map_elements(iso, pl.String)).sort(_KEYS)


def _shown(product: Product, start_ms: int, campaigns: list[int]) -> pl.DataFrame:
    parameters = [("campaign_id", ",".join(map(str, campaigns))), ("group_by", "campaign_id"), ("limit", "10000")]
    parameters += [("start", iso(start_ms)), ("end", "now"), ("granularity", "hour")]
    rows = Client(product.settings).get("/v1/metrics", parameters)["data"]
    shown = pl.DataFrame([{k: row[k] for k in (*_KEYS, *BILLED)} for row in rows])
    return shown.filter(pl.sum_horizontal(BILLED) > 0).sort(_KEYS)


def _differences(expected: pl.DataFrame, shown: pl.DataFrame) -> str:
    """Hour by hour, what must be counted and what is."""
    sums = [pl.col(m).sum() for m in BILLED]
    both = expected.group_by("time").agg(sums).join(shown.group_by("time").agg(sums), on="time", how="full")
    lines = [f"{row[0] or row[5]}: {row[1:5]} must be counted, {row[6:]} are" for row in both.sort("time").rows()]
    return "\n".join(lines)


def run(rate: int, minutes: float, work: Path) -> list[str]:
    """Run it; returns what was wrong."""
    product = Product(Folder(work / "stack"), _chunk(now_ms(), 10, 0), now_ms(), [])
    readings = Readings()
    print(f"{minutes:.0f} minutes of {rate:,} events/s, {_SPEED} times as fast as time", flush=True)
    try:
        product.up("--ingest-workers", "1", "--stream-workers", "1", **_KEPT)
        began_ms = now_ms()
        counted = _send(product, rate, minutes, readings)
        start_ms = (began_ms - int((minutes * _SPEED + 240) * 60_000)) // HOUR_MS * HOUR_MS
        campaigns, faults = counted["campaign_id"].unique().to_list(), []
        try:
            wait_until(lambda: _shown(product, start_ms, campaigns).equals(counted), 120, "all is shown")
        except AssertionError:
            faults.append(_differences(counted, _shown(product, start_ms, campaigns)))
        readings.print()
        print(f"{counted.select(BILLED[:3]).sum_horizontal().sum():,} events counted; cores {psutil.cpu_count()}")
        return faults + readings.grew() + _kept_too_long(product)
    finally:
        adclick("down", "--dir", str(work / "stack"))


def _kept_too_long(product: Product) -> list[str]:
    """What is still stored that the settings say is deleted."""
    settings, faults = product.settings, []
    for topic in (EVENTS, BLOCKS, ARCHIVE, MINUTES, HOURS):
        if not any(Admin(settings.kafka_connection).starts(topic, settings.event_partitions)):
            faults.append(f"{topic}: nothing was ever deleted")
    redis = Redis(settings.redis)
    keys = [k.decode().split("}:") for k in redis.scan_keys(registry.all_keys(settings.key_prefix))]
    generations = {(partition, rest.split(":")[0]) for partition, rest in keys if rest != "head"}
    counts = Counter(partition for partition, _ in generations)
    faults += [f"{partition}}}: {count} generations" for partition, count in counts.items() if count > 3]
    shards = [ShardKeys.of(settings.key_prefix, shard) for shard in range(settings.block_partitions)]
    ends = [shard.hour_of(key) + HOUR_MS for shard in shards for key in redis.scan_keys(shard.hours())]
    if min(ends) < now_ms() - (settings.hot_hours + 3) * HOUR_MS:
        faults.append(f"Redis still has minutes before {iso(min(ends))}")
    return faults


def main() -> None:
    """Read the environment and run."""
    rate, minutes = int(os.environ.get("RATE") or 20_000), float(os.environ.get("MINUTES") or 20)
    work = tempfile.mkdtemp(prefix="adclick-soak-")
    try:
        faults = run(rate, minutes, Path(work))
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(work)
    print("\n".join(faults) or "flat, and exact")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
