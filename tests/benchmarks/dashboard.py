"""`make bench-dashboard`: what a dashboard asks for an advertiser of 200 campaigns, while the pipeline runs at under half of full speed.

Thirty days of hours and a year of days of 1,000 campaigns, a fifth of them the advertiser's, are in ClickHouse; an hour of minutes is
in Redis, and `adclick replay` sends events that happen now. One client without the cache asks four questions in turn: totals of seven
days beside those of the seven before, thirty days by day, the fifty campaigns of thirty days that spent most, by name, and the
minutes of the last hour by campaign.

After each one the stores are asked for the same sums directly (`straight_…`), by a client that knows the ranges, the tables, and the
campaigns of each shard: one SELECT with FINAL for each table, one pipeline of HMGET and HVALS, and their rows summed by our own loop.
It makes no answer of them. Figures go to `.bench/dashboard.json`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.redis.client import Redis
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from query.question import MEASURES
from query.tiers.fold import fold
from stream.hot import cell_format
from stream.hot.layout import ROLLED, ShardKeys, SpanField, cell_field, late_field
from tests.benchmarks.latency import full_speed
from tests.benchmarks.query import carried, load, plant, router
from tests.benchmarks.stack import Bench, bench, save
from tests.product import wait_until

_ADVERTISER, _OWN_CAMPAIGNS, _CAMPAIGNS = 1, 200, 1_000
_SECONDS, _WARM_S, _PORT = 60.0, 8.0, 18_473
_EVENTS_OF_THE_HOUR = 3_000_000
# Of half of full speed.
_SHARE = 0.45
Range = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """A question of the dashboard, and of what it is answered: columns of ClickHouse, and days before now; 0: minutes alone."""

    parameters: dict[str, str]
    days: int = 0
    group: str = ""


_SINCE_29 = {"start": "-29d", "end": "now"}
KINDS = {
    "totals": Kind({"start": "-7d", "end": "now", "granularity": "total", "compare": "previous"}, 7, "time >= {cut}"),
    "days": Kind(_SINCE_29 | {"granularity": "day"}, 29, "toStartOfDay(time)"),
    "breakdown": Kind(
        _SINCE_29
        | {"granularity": "total", "group_by": "campaign_id", "order": "-spend_micros", "limit": "50", "names": "true"},
        29,
        "campaign_id",
    ),
    "minutes": Kind({"start": "-60m", "end": "now", "granularity": "minute", "group_by": "campaign_id"}),
}


class Stores:
    """Asks ClickHouse and Redis directly, on connections that are kept."""

    def __init__(self, stack: Bench, hours_until_ms: int) -> None:
        """`hours_until_ms`: before this answers are read from ClickHouse."""
        self._hours_until_ms = hours_until_ms
        self._clickhouse = ClickHouse(stack.settings.clickhouse, stack.settings.database)
        self._redis = Redis(stack.settings.redis)
        self._shards = [ShardKeys.of(stack.settings.key_prefix, n) for n in range(stack.settings.block_partitions)]
        members = self._redis.pipeline([("SMEMBERS", keys.advertiser(_ADVERTISER)) for keys in self._shards])
        self._campaigns = [sorted(map(int, shard)) for shard in members]

    def ask(self, kind: Kind) -> dict[Any, int]:
        """The impressions that ClickHouse has, by group."""
        now = now_ms()
        hour_ms = self._hours_until_ms
        if not kind.days:
            self.minutes(now // MINUTE_MS * MINUTE_MS - HOUR_MS, now)
            return {}
        unit = DAY_MS if kind.parameters["granularity"] == "day" else HOUR_MS
        start_ms = (now - kind.days * DAY_MS) // unit * unit
        ranges = [(start_ms, hour_ms)]
        if "compare" in kind.parameters:
            ranges.append((start_ms - kind.days * DAY_MS, hour_ms - kind.days * DAY_MS))
        self.minutes(hour_ms, now)
        return self._stored(kind.group.format(cut=f"toDateTime({start_ms // 1000}, 'UTC')"), ranges)

    def minutes(self, start_ms: int, end_ms: int) -> int:
        """The impressions of all campaigns: in cells, the rows by device of large ones, and by flush for open minutes."""
        commands = list[tuple[Any, ...]]()
        for keys, campaigns in zip(self._shards, self._campaigns, strict=True):
            packed_ms = int(self._redis.call("HGET", keys.span, SpanField.PACKED) or 0)
            for campaign in campaigns:
                for hour in range(start_ms // HOUR_MS * HOUR_MS, end_ms, HOUR_MS):
                    cells = [cell_field(campaign, m) for m in range(60) if start_ms <= hour + m * MINUTE_MS < end_ms]
                    fields = [late_field(campaign), *cells, *(cell + ROLLED["device"] for cell in cells)]
                    commands.append(("HMGET", keys.hour(hour), *fields))
                for minute in range(max(start_ms, packed_ms), end_ms, MINUTE_MS):
                    key = keys.by_flush(minute, campaign)
                    commands += [("HVALS", key), ("HVALS", key + ROLLED["device"])]
        replies = self._redis.pipeline(commands)
        values, places = list[bytes](), list[int]()
        for place, (command, reply) in enumerate(zip(commands, replies, strict=True)):
            if command[0] == "HMGET":
                late, *reply = reply
                reply += [rows for _, rows in cell_format.late_entries(late or b"")]
            rows = [value for value in reply if value]
            values += rows
            places += [place] * len(rows)
        return (
            int(fold(values, places, [], [("advertiser_id", [_ADVERTISER])]).sums["impressions"].sum()) if values else 0
        )

    def _stored(self, group: str, ranges: Sequence[Range]) -> dict[Any, int]:
        days, hours, sums = list[Range](), list[Range](), dict[Any, int]()
        for start_ms, end_ms in ranges:
            first, last = -(-start_ms // DAY_MS) * DAY_MS, end_ms // DAY_MS * DAY_MS
            days.append((first, last))
            hours += [(start_ms, first), (last, end_ms)]
        for table, parts in (("stream_days", days), ("stream_hours", hours)):
            within = [
                f"(time >= toDateTime({a // 1000}, 'UTC') AND time < toDateTime({b // 1000}, 'UTC'))"
                for a, b in parts
                if a < b
            ]
            if not within:
                continue
            rows = self._clickhouse.rows(
                f"SELECT {group}, {', '.join(f'sum({m})' for m in MEASURES)} FROM {self._clickhouse.database}.{table} FINAL"
                f" WHERE advertiser_id = {_ADVERTISER} AND ({' OR '.join(within)}) GROUP BY 1"
                " SETTINGS do_not_merge_across_partitions_select_final = 1"
            )
            for key, impressions, *_ in rows:
                sums[key] = sums.get(key, 0) + int(impressions)
        return sums


class Asker:
    """One client of the router, which keeps its connection."""

    def __init__(self, address: str, key: str) -> None:
        where = urlsplit(address)
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, kind: Kind) -> bytes:
        """The answer to a question."""
        parameters = kind.parameters | {"advertiser_id": str(_ADVERTISER)}
        self._http.request("GET", f"/v1/metrics?{urlencode(parameters)}", headers=self._headers)
        answer = self._http.getresponse()
        raw = answer.read()
        assert answer.status == 200, raw
        return raw


def fill_last_hour(stack: Bench, events: int) -> None:
    """Send the events of the last hour, and wait until they are counted."""
    start_ms = now_ms() - HOUR_MS
    spec = Spec(
        events=events, start_ms=start_ms, span_ms=HOUR_MS - MINUTE_MS, campaigns=_CAMPAIGNS,
        campaigns_per_advertiser=_OWN_CAMPAIGNS, late=0.001, malformed=0.0, future=0.0, bursts=0.0,
    )  # fmt: skip
    file = stack.work / "hour.ndjson"
    write_lines(generate_events(spec), file)
    replay_files(stack.app, [file], Pace())
    file.unlink()
    client, newest = Client(stack.settings), iso(start_ms + HOUR_MS - 3 * MINUTE_MS)

    def counted() -> bool:
        return bool((mark := client.get("/v1/pipeline", [])["watermark"]) and mark >= newest)

    wait_until(counted, 300.0, "the minutes of the last hour are counted")


def name_campaigns(stack: Bench) -> None:
    """Put the campaigns into the directory."""
    client = ClickHouse(stack.settings.clickhouse, stack.settings.database)
    client.command(
        f"INSERT INTO {client.database}.directory (kind, id, name, advertiser_id, timezone, status, changed_at, version)"
        " SELECT 'campaign', number + 1, concat('Campaign no. ', toString(number + 1)),"
        f" 1 + intDiv(number, {_OWN_CAMPAIGNS}), 'UTC', 'active', now64(3), 1 FROM numbers({_CAMPAIGNS})"
    )


def compare_days(answer: bytes, straight: dict[Any, int]) -> None:
    """All days but the last must be the same."""
    rows = msgspec.json.decode(answer)["data"]
    ours = {row["time"][:10]: row["impressions"] for row in rows[:-1]}
    theirs = {str(day)[:10]: impressions for day, impressions in sorted(straight.items())[: len(rows) - 1]}
    assert ours == theirs, (ours, theirs)


def measure(stack: Bench, address: str, seconds: float) -> dict[str, Any]:
    """Ask all questions in turn, and the stores for the same."""
    asker = Asker(address, stack.settings.api_key.get_secret_value())
    (minutes,) = [t for t in msgspec.json.decode(asker.ask(KINDS["days"]))["statistics"]["tiers"] if t["tier"] == "hot"]
    stores = Stores(stack, round(dt.datetime.fromisoformat(minutes["start"]).timestamp() * 1000))
    compare_days(asker.ask(KINDS["days"]), stores.ask(KINDS["days"]))
    ms = dict[str, list[float]]()

    def timed(name: str, ask: Any, kind: Kind) -> None:
        began = time.perf_counter()
        ask(kind)
        ms.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    for kind in KINDS.values():
        asker.ask(kind)
        stores.ask(kind)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, kind in KINDS.items():
            timed(name, asker.ask, kind)
            timed(f"straight_{name}", stores.ask, kind)
    report: dict[str, Any] = {"asked_of_each": len(ms["totals"])}
    for name, taken in ms.items():
        for suffix, share in (("p50", 0.5), ("p95", 0.95)):
            report[f"{name}_{suffix}_ms"] = round(sorted(taken)[int(share * (len(taken) - 1))], 1)
    report["minutes_rows"] = msgspec.json.decode(asker.ask(KINDS["minutes"]))["rows"]
    return report


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--events", type=int, default=_EVENTS_OF_THE_HOUR, help="of the last hour")
    parser.add_argument("--days", type=int, default=30, help="of hours that are stored")
    options = parser.parse_args()
    rate = int(full_speed() * _SHARE)
    report: dict[str, Any] = {"load_events_per_s": rate, "events_of_the_hour": options.events}
    with bench() as stack:
        report["stored_rows"] = plant(stack, _OWN_CAMPAIGNS, options.days)
        name_campaigns(stack)
        stack.start(1, 1)
        fill_last_hour(stack, options.events)
        with load(stack, rate, _OWN_CAMPAIGNS):
            time.sleep(_WARM_S)
            with router(stack, _PORT, "off") as address, carried(stack, report, "meanwhile"):
                report |= measure(stack, address, options.seconds)
    save("dashboard", report)
    stack.app.table(["", ""], list(report.items()))


if __name__ == "__main__":
    main()
