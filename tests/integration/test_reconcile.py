"""The nightly job over archived rows with every planted cause, ended in each gap between its writes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.redis import Redis
from infra.settings import Settings
from ingest import archive, archived, events
from ingest.archived import Decision
from query.request import parse
from query.router import Router
from tests.conftest import adclick
from tests.flow import environment

DAY = now_ms() // DAY_MS * DAY_MS - DAY_MS
# What was decided about clicks of 7 micros, and by how much the exact count of clicks differs from the stream's.
_PLANTED: dict[str, list[dict[str, Any]]] = {
    "late": [{"decision": Decision.TOO_LATE}] * 3,
    "shed": [{"decision": Decision.SHED}, {"weight": 3}],
    "doubt": [{"decision": Decision.DOUBT}] * 2,
    "cross-partition-duplicate": [{"event_id": "across", "partition": 0}, {"event_id": "across", "partition": 1}],
    "expired-horizon-duplicate": [{"event_id": "expired"}, {"event_id": "expired"}],
    "": [{}, {}, {"event_id": "copied"}, {"event_id": "copied", "decision": Decision.COPY}],
}
_MOVED = {"late": 3, "shed": -1, "doubt": 2, "cross-partition-duplicate": -1, "expired-horizon-duplicate": -1}
_EXACT, _STREAM = 3 + 2 + 2 + 1 + 1 + 3, 3 + 2 + 2 + 3


@pytest.fixture
def planted(settings: Settings) -> Settings:
    """Archived rows of yesterday, and the hours that the stream made of them."""
    rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    given: dict[str, Any] = {
        "event_type": 1, "time_ms": DAY + HOUR_MS, "campaign_id": 1, "ad_id": 2, "advertiser_id": 3, "publisher_id": 4,
        "country": 0, "device": 0, "user": None, "cost_micros": 7, "weight": 1, "lateness": 0, "copy_of": None,
        "decision": Decision.COUNTED,
    }  # fmt: skip
    for number, special in enumerate(x for many in _PLANTED.values() for x in many):
        one = given | {"event_id": f"e{number}", "log_time_ms": DAY + HOUR_MS + number, "offset": number} | special
        rows[one.pop("partition", 0)].append(one)
    for partition, found in rows.items():
        wire = pa.Table.from_pylist(found, schema=archived.SCHEMA)
        archive.write_files(Path(settings.archive), partition, 0, 100, wire)
    client = ClickHouse(settings.clickhouse, settings.database)
    client.command(
        f"INSERT INTO {settings.database}.stream_hours"
        " SELECT toDateTime({time:UInt32}, 'UTC'), 1, 3, 2, 4, {country:String}, {device:String}, 0,"
        " 0, {clicks:UInt64}, 0, {clicks:UInt64} * 7, 0, 0, 0, 0, 1, 0",
        {
            "time": (DAY + HOUR_MS) // 1000,
            "country": events.COUNTRIES[0],
            "device": events.DEVICES[0],
            "clicks": _STREAM,
        },
    )
    for tier in ("hours", "days"):
        for shard in range(settings.block_partitions):
            client.command(
                f"INSERT INTO {settings.database}.tier_borders VALUES ({{tier:String}}, {shard}, {DAY + DAY_MS}, {DAY + DAY_MS})",
                {"tier": tier},
            )
    return settings


def _clicks(settings: Settings, grain: str) -> tuple[int, str]:
    asked = [("campaign_id", "1"), ("start", iso(DAY)), ("end", iso(DAY + DAY_MS)), ("granularity", grain)]
    router = Router(settings)
    (row,) = router.answer(parse(asked, now_ms(), router.held)).page.rows(named=True)
    return row["clicks"], row["finality"]


def test_a_run_that_dies_before_it_is_published_shows_nothing_and_the_next_one_finishes(planted: Settings) -> None:
    redis, env = Redis(planted.redis), environment(planted)
    words = ["reconcile", "--date", iso(DAY)[:10], "--json"]
    # Exact hours, days and the ledger are written, and the one row that makes them current is not.
    died = adclick(*words, cwd=None, **env, ADCLICK_FAULT="kill@reconcile.compared")
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert _clicks(planted, "hour") == (_STREAM, "closed")
    redis.call("DEL", f"{planted.key_prefix}reconcile")  # its lease would last half a minute
    done = adclick(*words, cwd=None, **env)
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert {cause: moved["clicks"] for cause, moved in told["causes"].items()} == _MOVED
    assert {cause: moved["spend_micros"] for cause, moved in told["causes"].items()} == {
        cause: 7 * clicks for cause, clicks in _MOVED.items()
    }
    assert _clicks(planted, "hour") == (_EXACT, "reconciled")
    assert _clicks(planted, "day") == (_EXACT, "reconciled")
