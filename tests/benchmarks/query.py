"""`make bench-query`: how fast answers come while the pipeline runs at half of full speed, beside what the stores take alone.

Thirty days of hours and a year of days of 1,000 campaigns are in ClickHouse (20 million rows and more), and `adclick replay`
sends events that happen now. Latencies are those of one client, without the cache; throughput is that of sixteen, with it.
Six in ten questions are about the minutes of the last hour, three about the hours of seven days, one about those of thirty
or the days of a year. Figures go to `.bench/query.json`.
"""

from __future__ import annotations

import argparse
import http.client
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import psutil

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.priority import PIPELINE, give_way
from infra.redis.client import Redis
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, generate_events
from stream.hot.layout import ROLLED, ShardKeys, cell_field
from tests import borders
from tests.benchmarks.latency import full_speed
from tests.benchmarks.stack import ADCLICK, Bench, bench, save, slices
from tests.flow import worker_environment

_CAMPAIGNS, _DAYS, _YEAR = 1_000, 30, 365
_ROWS_AN_HOUR, _ROWS_A_DAY = 28, 10
# The load goes on for as long as all that is measured; a producer needs a moment to start.
_LOAD_S, _WARM_S, _SETTLED_S, _STARTS_MS = 100.0, 12.0, 4.0, 3_000
_GENERATED_PER_S = 150_000
_ALONE_S, _TOGETHER_S, _CLIENTS, _POPULAR = 40.0, 15.0, 16, 1_000
_DIMENSIONS = ("", "country", "device", "ad_id", "publisher_id")
Parameters = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """One kind of question: how often it is asked, of a hundred, and its parameters but for the campaign."""

    name: str
    share: int
    parameters: Parameters
    groups: tuple[str, ...] = ("",)


KINDS = (
    Kind("minutes", 55, {"start": "-60m", "end": "now", "granularity": "minute"}, _DIMENSIONS),
    Kind("minutes_two", 5, {"start": "-60m", "end": "now", "granularity": "minute"}, ("country,device", "ad_id,publisher_id")),
    Kind("hours_7d", 30, {"start": "-7d", "end": "now", "granularity": "hour"}, ("", "country")),
    Kind("hours_30d", 5, {"start": "-30d", "end": "now", "granularity": "hour"}),
    Kind("days_year", 5, {"start": "-364d", "end": "now", "granularity": "day"}),
)  # fmt: skip


class _Statistics(msgspec.Struct):
    elapsed_ms: float
    tiers_ms: float


class _Told(msgspec.Struct):
    statistics: _Statistics


@dataclass
class Asker:
    """One client, which keeps its connection."""

    address: str
    key: str
    rng: random.Random
    ms: dict[str, list[float]] = field(default_factory=dict)
    overhead_ms: list[float] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        where = urlsplit(self.address)
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)

    def ask(self, kind: Kind) -> None:
        """A question of a kind, about a campaign as popular as it is large."""
        campaign = min(_CAMPAIGNS, int(self.rng.paretovariate(0.7)))
        told = kind.parameters | {"campaign_id": str(campaign)}
        if group := self.rng.choice(kind.groups):
            told["group_by"] = group
        began = time.perf_counter()
        self._http.request("GET", f"/v1/metrics?{urlencode(told)}", headers={"Authorization": f"Bearer {self.key}"})
        answer = self._http.getresponse()
        raw = answer.read()
        self.ms.setdefault(kind.name, []).append((time.perf_counter() - began) * 1000)
        assert answer.status == 200, raw
        told_by = msgspec.json.decode(raw, type=_Told).statistics
        self.overhead_ms.append(told_by.elapsed_ms - told_by.tiers_ms)
        self.asked += 1

    def any(self) -> None:
        """A question of any kind."""
        self.ask(self.rng.choices(KINDS, [kind.share for kind in KINDS])[0])


def plant(stack: Bench, campaigns_per_advertiser: int = 5, days_of_hours: int = _DAYS) -> int:
    """Thirty days of hours and a year of days, all settled; returns how many rows."""
    client = ClickHouse(stack.settings.clickhouse, stack.settings.database)
    db, last = client.database, now_ms() // HOUR_MS * HOUR_MS
    today = last // DAY_MS * DAY_MS

    def insert(table: str, start_ms: int, windows: int, size_ms: int, rows: int) -> int:
        total = windows * _CAMPAIGNS * rows
        client.command(
            f"""INSERT INTO {db}.{table}
                SELECT toDateTime({start_ms // 1000} + {size_ms // 1000} * intDiv(number % {windows * rows}, {rows}), 'UTC'),
                    1 + intDiv(number, {windows * rows}) AS campaign, 1 + intDiv(campaign - 1, {campaigns_per_advertiser}), campaign * 1000 + number % 10,
                    100 + number % 50, ['AT','BE','BR','DE','FR','GB','IN','US'][1 + cityHash64(number) % 8],
                    ['ctv','desktop','mobile','other','tablet'][1 + number % 5], number % 4,
                    cityHash64(number, 1) % 1000, cityHash64(number, 2) % 30, number % 3, cityHash64(number, 3) % 1000000,
                    0, 0, 0, 0, 1, 0, 0
                FROM numbers({total})"""
        )
        return total

    total = 0
    for day in range(days_of_hours + 1):
        start_ms = today - (days_of_hours - day) * DAY_MS
        hours = min(24, (last - start_ms) // HOUR_MS)
        total += insert("stream_hours", start_ms, hours, HOUR_MS, _ROWS_AN_HOUR) if hours else 0
    total += insert("stream_days", today - _YEAR * DAY_MS, _YEAR, DAY_MS, _ROWS_A_DAY)
    for tier, border in (("hours", last), ("days", today)):
        borders.publish(client, tier, range(stack.settings.block_partitions), border)
    for table in ("stream_hours", "stream_days"):
        client.command(f"OPTIMIZE TABLE {db}.{table} FINAL")
    return total


@contextmanager
def load(stack: Bench, rate: int, campaigns_per_advertiser: int = 5) -> Iterator[None]:
    """Events that happen now, at a rate, for as long as the block lasts; it begins with them."""
    events = int(rate * _LOAD_S)
    start_ms = now_ms() + int(events / _GENERATED_PER_S * 1000) + _STARTS_MS
    spec = Spec(
        events=events, start_ms=start_ms, span_ms=int(_LOAD_S * 1000), campaigns=_CAMPAIGNS,
        campaigns_per_advertiser=campaigns_per_advertiser, late=0.001, malformed=0.0, future=0.0, bursts=0.0,
    )  # fmt: skip
    files = list[Path]()
    for part in slices(spec):
        files.append(stack.work / f"load-{len(files)}.ndjson")
        write_lines(generate_events(part), files[-1])
    time.sleep(max(0.0, (start_ms - _STARTS_MS - now_ms()) / 1000))
    words = ["replay", *map(str, files), "--rate", str(rate), "--dir", str(stack.stack), "-q"]
    with subprocess.Popen(
        [*ADCLICK, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # A producer has a machine of its own, mostly.
        process_group=0, preexec_fn=partial(give_way, PIPELINE),
    ) as sender:  # fmt: skip
        try:
            yield
            assert sender.poll() is None, "the load ended before the measurement did: a longer one is needed"
        finally:
            sender.terminate()


@contextmanager
def router(stack: Bench, port: int, cache: str) -> Iterator[str]:
    """A query worker of our own; yields its address."""
    address = f"http://127.0.0.1:{port}"
    own = stack.settings.model_copy(update={"http": address, "query_cache": cache, "access_log": "off"})
    environment = worker_environment(own, f"query-{port}")
    with subprocess.Popen([*ADCLICK, "serve", "-q"], env=environment, process_group=0) as worker:
        # Others may answer on the same port.
        while not any(c.status == psutil.CONN_LISTEN for c in psutil.Process(worker.pid).net_connections()):
            assert worker.poll() is None, "the query worker did not start"
            time.sleep(0.1)
        yield address
        worker.terminate()


@contextmanager
def carried(stack: Bench, report: dict[str, Any], name: str) -> Iterator[None]:
    """Report how many events a second the pipeline took in meanwhile."""
    before, began = stack.consumed(), time.monotonic()
    yield
    report[f"events_per_s_{name}"] = round((stack.consumed() - before) / (time.monotonic() - began))


def straight(stack: Bench, seconds: float) -> dict[str, float]:
    """What the stores take for the like when they are asked without us."""
    clickhouse, redis = ClickHouse(stack.settings.clickhouse, stack.settings.database), Redis(stack.settings.redis)
    rng, taken = random.Random(3), {"clickhouse_7d": list[float](), "redis_hmget": list[float]()}

    def select() -> None:
        campaign = min(_CAMPAIGNS, int(rng.paretovariate(0.7)))
        clickhouse.rows(
            f"SELECT toUnixTimestamp(time), sum(impressions), sum(clicks), sum(conversions), sum(spend_micros)"
            f" FROM {clickhouse.database}.stream_hours FINAL WHERE campaign_id = {campaign} AND time >= now() - 7 * 86400"
            " GROUP BY 1 SETTINGS do_not_merge_across_partitions_select_final = 1"
        )

    def hmget() -> None:
        campaign, hour = min(_CAMPAIGNS, int(rng.paretovariate(0.7))), now_ms() // HOUR_MS * HOUR_MS
        fields = [cell_field(campaign, minute) + ROLLED["device"] for minute in range(60)]
        shards = (ShardKeys.of(stack.settings.key_prefix, s) for s in range(stack.settings.block_partitions))
        redis.pipeline([("HMGET", keys.hour(hour), *fields) for keys in shards])

    asks: list[tuple[str, Callable[[], None]]] = [("clickhouse_7d", select), ("redis_hmget", hmget)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, ask in asks:
            began = time.perf_counter()
            ask()
            taken[name].append((time.perf_counter() - began) * 1000)
    return {
        f"straight_{name}_{p}_ms": _at(ms, q) for name, ms in taken.items() for p, q in (("p50", 0.5), ("p99", 0.99))
    }


def _at(ms: list[float], share: float) -> float:
    return round(sorted(ms)[int(share * (len(ms) - 1))], 2) if ms else float("nan")


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=_ALONE_S, help="for the one client")
    options = parser.parse_args()
    rate = full_speed() // 2
    report: dict[str, Any] = {"load_events_per_s": rate}
    with bench() as stack:
        report["stored_rows"] = plant(stack)
        key = stack.settings.api_key.get_secret_value()
        stack.start(1, 1)
        with load(stack, rate):
            time.sleep(_WARM_S)
            with router(stack, 18_470, "off") as address:
                alone = Asker(address, key, random.Random(1))
                for kind in KINDS:
                    alone.ask(kind)
                alone.ms.clear()
                with carried(stack, report, "one_client"):
                    deadline = time.monotonic() + options.seconds
                    while time.monotonic() < deadline:
                        alone.any()
                report |= straight(stack, 5.0)
            # On one port, as `up --query-workers 2` has them.
            with router(stack, 18_471, "on") as address, router(stack, 18_471, "on"):
                # Two that start take both cores for a while.
                time.sleep(_SETTLED_S)
                again = Asker(address, key, random.Random(1))
                popular = Kind("cached", 0, {"start": "-7d", "end": "-1h", "granularity": "hour"})
                for _ in range(_POPULAR):
                    again.rng.seed(1)
                    again.ask(popular)
                cached = again.ms["cached"][1:]
                report |= {"cached_p50_ms": _at(cached, 0.5), "cached_p99_ms": _at(cached, 0.99)}
                many = [Asker(address, key, random.Random(n)) for n in range(_CLIENTS)]
                deadline = time.monotonic() + _TOGETHER_S

                def run(one: Asker) -> None:
                    while time.monotonic() < deadline:
                        one.any()

                threads = [threading.Thread(target=run, args=(one,)) for one in many]
                with carried(stack, report, f"{_CLIENTS}_clients"):
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                report["answers_per_s"] = round(sum(one.asked for one in many) / _TOGETHER_S)
    for kind in KINDS:
        ms = alone.ms.get(kind.name, [])
        report |= {
            f"{kind.name}_p50_ms": _at(ms, 0.5),
            f"{kind.name}_p99_ms": _at(ms, 0.99),
            f"{kind.name}_asked": len(ms),
        }
    report["overhead_p50_ms"] = _at(alone.overhead_ms, 0.5)
    save("query", report)
    stack.app.table(["", ""], list(report.items()))


if __name__ == "__main__":
    main()
