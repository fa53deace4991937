"""Users over HTTP: rows of all four tables against Python's sets of users, within what a key may see."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.redis.client import Redis
from infra.settings import Settings, resolve
from query.api.app import create_app
from query.keys import Keys
from query.reach import RUN_DAYS, RUN_HOURS, STREAM_HOURS
from stream.reach.progress import Progress, publish_progress
from stream.reach.registers import STANDARD_ERROR, coupons_of
from tests import borders

DAY = (now_ms() - 3 * DAY_MS) // DAY_MS * DAY_MS
END = DAY + 3 * DAY_MS
RECONCILED = DAY
"""Three whole days, of which the first has a nightly run."""
MINE, OTHERS = 1, 2
# (advertiser, campaign): both advertisers use campaign 7.
SUBJECTS = ((MINE, 7), (MINE, 8), (OTHERS, 7))
EVENTS = 40
"""Impressions of a campaign in an hour."""


class Truth:
    """The users of each (advertiser, campaign, hour), drawn from a crowd, so that hours and campaigns share many."""

    def __init__(self) -> None:
        rng = random.Random(7)
        crowd = [rng.getrandbits(63) for _ in range(6_000)]
        self.users = {
            (a, c, hour): set(rng.sample(crowd, rng.randrange(1, 400)))
            for a, c in SUBJECTS
            for hour in range(DAY, END, HOUR_MS)
        }

    def count(self, of: Iterable[tuple[int, int]], start_ms: int, end_ms: int) -> int:
        hours = [hours for (a, c, hour), hours in self.users.items() if (a, c) in of and start_ms <= hour < end_ms]
        return len(set().union(*hours))


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


@pytest.fixture(scope="module")
def settings(backends: Path) -> Settings:
    """Of a database that all tests share. Nothing here needs topics."""
    return resolve(str(backends)).settings.model_copy(update={"namespace": f"t{uuid.uuid4().hex[:8]}_"})


@pytest.fixture(scope="module")
def client(settings: Settings, truth: Truth) -> ClickHouse:
    """Hours of three days, settled, and their users: in pieces, some twice, and of the reconciled day as its run has them. The stream
    lacks half of that day's users."""
    client = ClickHouse(settings.clickhouse, settings.database)
    apply_migrations(client)
    hours = ", ".join(
        f"({hour // 1000}, {c}, {a}, 1, 5, 'DE', 'mobile', 0, {EVENTS}, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)"
        for a, c, hour in truth.users
    )
    client.command(f"INSERT INTO {settings.database}.stream_hours VALUES {hours}")
    rows = list[tuple[int, int, int, list[int]]]()
    for (a, c, hour), users in truth.users.items():
        some = sorted(users)[: len(users) // 2] if hour < RECONCILED + DAY_MS else sorted(users)
        rows += [(hour, c, a, some[::2]), (hour, c, a, some[1::2]), (hour, c, a, some[:3])]
    insert(client, STREAM_HOURS, rows)
    exact = [(hour, c, a, sorted(u)) for (a, c, hour), u in truth.users.items() if hour < RECONCILED + DAY_MS]
    for part in (exact, exact[::7]):
        insert(client, RUN_HOURS, part, run="run")
    # Of a run that is not current any more.
    insert(client, RUN_HOURS, [(RECONCILED, 7, MINE, list(range(100_000)))], run="former")
    client.command(f"INSERT INTO {settings.database}.exact_reach_runs VALUES ('run', today()), ('former', today())")
    publish_run(client)
    counted = dict.fromkeys(range(settings.event_partitions), Progress(now_ms()))
    publish_progress(Redis(settings.redis), settings.key_prefix, counted)
    for tier, border in (("hours", END), ("days", DAY)):
        borders.publish(client, tier, range(settings.block_partitions), border)
    return client


def insert(client: ClickHouse, table: str, rows: list[tuple[int, int, int, list[int]]], **more: str) -> None:
    """Rows of (hour, campaign, advertiser, users)."""
    columns: dict[str, Any] = {
        "time": pa.array([hour // 1000 for hour, *_ in rows], pa.uint32()),
        "campaign_id": pa.array([c for _, c, *_ in rows], pa.uint64()),
        "advertiser_id": pa.array([a for *_, a, _ in rows], pa.uint64()),
        "coupons": pa.array([coupons_of(np.array(u, np.int64)) for *_, u in rows], pa.list_(pa.uint32())),
    }
    columns |= {name + "_id": pa.array([value] * len(rows)) for name, value in more.items()}
    client.insert(table, pa.table(columns))


def publish_run(client: ClickHouse) -> None:
    """Make `run` the current one of the reconciled day, for which it has the same impressions."""
    db = client.database
    for table in ("exact_hours", "exact_days"):
        time = "time" if table == "exact_hours" else "toStartOfDay(time) AS day"
        client.command(
            f"INSERT INTO {db}.{table} SELECT {time}, campaign_id, advertiser_id, 1, 5, 'DE', 'mobile', 'run', sum(impressions), 0, 0, 0, 0, 0, 0"
            f" FROM {db}.stream_hours WHERE toUnixTimestamp(time) < {(RECONCILED + DAY_MS) // 1000} GROUP BY 1, 2, 3"
        )
    client.command(
        f"INSERT INTO {db}.runs SELECT '{iso(RECONCILED)[:10]}', 'run', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 1, 0,"
        " (SELECT uuid FROM system.tables WHERE database = {database:String} AND name = 'exact_hours'),"
        " (SELECT uuid FROM system.tables WHERE database = {database:String} AND name = 'exact_days')",
        {"database": db},
    )


@pytest.fixture
def http(settings: Settings, client: ClickHouse) -> Iterator[httpx.Client]:
    """As an admin key, over a router without caches."""
    uncached = settings.model_copy(update={"query_cache": "off"})
    with TestClient(create_app(uncached)) as http:
        http.headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        yield http


def ask(http: httpx.Client, **parameters: str) -> dict[str, Any]:
    named = {
        "advertiser_id": "1",
        "start": iso(DAY),
        "end": iso(END),
        "granularity": "total",
        "users": "true",
    } | parameters
    response = http.get("/v1/metrics", params={name: value for name, value in named.items() if value})
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def near(users: int) -> Any:
    """Within five standard errors, of which chance leaves none in a million out."""
    return pytest.approx(users, rel=5 * STANDARD_ERROR, abs=1)


def test_users_of_each_grain_and_group_are_those_of_the_union(
    http: httpx.Client, client: ClickHouse, truth: Truth
) -> None:
    mine = ((MINE, 7), (MINE, 8))
    total = ask(http)
    (row,) = total["data"]
    assert row["users"] == near(truth.count(mine, DAY, END))
    assert row["frequency"] == round(2 * 72 * EVENTS / row["users"] + 1e-9, 2)
    assert total["users_standard_error"] == 0.0115
    assert (total["warnings"], "users_range" in total) == ([], False)
    (everyone,) = ask(http, advertiser_id="*")["data"]
    assert everyone["users"] == near(truth.count(SUBJECTS, DAY, END))
    (shared,) = ask(http, advertiser_id="", campaign_id="7")["data"]
    assert shared["users"] == near(truth.count(((MINE, 7), (OTHERS, 7)), DAY, END))
    for grain, size_ms in (("hour", HOUR_MS), ("day", DAY_MS)):
        answer = ask(http, granularity=grain, group_by="campaign_id", totals="true", order="-users")
        truths = {
            (iso(at), c): truth.count(((a, c),), at, at + size_ms) for a, c in mine for at in range(DAY, END, size_ms)
        }
        assert {(r["time"], r["campaign_id"]): r["users"] for r in answer["data"]} == {
            k: near(n) for k, n in truths.items()
        }
        users = [r["users"] for r in answer["data"]]
        assert users == sorted(users, reverse=True)
        assert answer["totals"]["users"] == row["users"]
    by_campaign = ask(http, group_by="campaign_id", filter="campaign_id:8")["data"]
    assert [(r["campaign_id"], r["users"]) for r in by_campaign] == [(8, near(truth.count(((MINE, 8),), DAY, END)))]
    # A run that the table of days lacks has its hours.
    client.command(f"TRUNCATE TABLE {client.database}.{RUN_DAYS}")
    assert ask(http)["data"] == total["data"]
    # Parts of days, and local ones, which cut the run's day.
    shift = 5 * HOUR_MS
    start, end = DAY + shift, END - DAY_MS + shift
    (part,) = ask(http, start=iso(start), end=iso(end))["data"]
    assert part["users"] == near(truth.count(mine, start, end))
    days = ask(http, start=iso(start), end=iso(end), granularity="day", timezone="Etc/GMT+5")["data"]
    assert [r["users"] for r in days] == [near(truth.count(mine, at, at + DAY_MS)) for at in (start, start + DAY_MS)]


def test_a_key_sees_the_users_of_its_own_campaigns_alone(http: httpx.Client, client: ClickHouse, truth: Truth) -> None:
    _, token = Keys(client).create("theirs", frozenset([OTHERS]), admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    http.headers["Authorization"] = f"Bearer {token}"
    (row,) = ask(http, advertiser_id="", campaign_id="7")["data"]
    assert row["users"] == near(truth.count(((OTHERS, 7),), DAY, END))


def test_without_the_tables_of_users_counts_are_answered_and_a_warning_says_why(
    http: httpx.Client, client: ClickHouse
) -> None:
    assert ask(http)["data"][0]["users"]
    table = f"{client.database}.{RUN_HOURS}"
    client.command(f"RENAME TABLE {table} TO {table}_away")
    try:
        answer = ask(http, totals="true")
    finally:
        client.command(f"RENAME TABLE {table}_away TO {table}")
    assert answer["data"][0]["impressions"] == answer["totals"]["impressions"] == 2 * 72 * EVENTS
    for row in (answer["data"][0], answer["totals"]):
        assert (row["users"], row["frequency"]) == (None, None)
    assert answer["warnings"] == [
        "users are not available: ClickHouse refuses to read them: UNKNOWN_TABLE; adclick migrate makes the tables"
    ]
