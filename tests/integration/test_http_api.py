"""The HTTP interface in this process, over the real Redis and ClickHouse: keys, tenants, limits, formats, what is kept."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import polars as pl
import pytest
from starlette.testclient import TestClient

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from query.api import app as api
from query.keys import REFRESH_S, Keys
from query.request import parse
from query.router import Router

HOUR = (now_ms() - 48 * HOUR_MS) // HOUR_MS * HOUR_MS
HOURS = 6
MINE, OTHERS = 1, 2
_MINE, _OTHERS = 1_000, 7_770_000
"""Impressions an hour of campaign 7, which both advertisers use."""
_RANGE = [("start", iso(HOUR)), ("end", iso(HOUR + HOURS * HOUR_MS)), ("granularity", "hour")]


@pytest.fixture
def client(settings: Settings) -> ClickHouse:
    """With closed and settled hours of two advertisers, one hour of which was corrected a moment ago."""
    made = ClickHouse(settings.clickhouse, settings.database)
    rows = ", ".join(
        f"({(HOUR + h * HOUR_MS) // 1000}, 7, {advertiser}, {ad}, 5, 'DE', 'mobile', 0, {impressions + h}, 10, 1, 2500000, 0, 0, 0,"
        f" {int(h == 2)}, 1, {now_ms() // 1000 if h == 2 else 0})"
        for h in range(HOURS)
        for advertiser, ad, impressions in ((MINE, 1, _MINE), (OTHERS, 2, _OTHERS))
    )
    made.command(f"INSERT INTO {settings.database}.stream_hours VALUES {rows}")
    # No day is written yet.
    for tier, border in (("hours", HOUR + HOURS * HOUR_MS), ("days", HOUR // DAY_MS * DAY_MS)):
        for shard in range(settings.block_partitions):
            made.command(f"INSERT INTO {settings.database}.tier_borders VALUES ('{tier}', {shard}, {border}, {border})")
    return made


@pytest.fixture
def http(settings: Settings, client: ClickHouse) -> Iterator[httpx.Client]:
    """Asks without a key."""
    with TestClient(api.create(settings)) as asked:
        yield asked


def key(client: ClickHouse, *advertisers: int, admin: bool = False, rate: float = 1e6, burst: float = 1e6, lasts_ms: int | None = None) -> tuple[str, dict[str, str]]:  # fmt: skip
    made, token = Keys(client).create(
        "test", frozenset(advertisers), admin=admin, rate=rate, burst=burst, lasts_ms=lasts_ms
    )
    return made.id, {"Authorization": f"Bearer {token}"}


def root(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}


def ask(http: httpx.Client, headers: dict[str, str], *more: tuple[str, str], subject: tuple[str, str] = ("campaign_id", "7")) -> httpx.Response:  # fmt: skip
    return http.get("/v1/metrics", params=[subject, *_RANGE, *more], headers=headers)


def impressions(found: httpx.Response) -> list[int]:
    assert found.status_code == 200, found.text
    return [row["impressions"] for row in found.json()["data"]]


def test_a_campaigns_number_is_shared_and_its_numbers_are_not(
    http: httpx.Client, client: ClickHouse, settings: Settings
) -> None:
    _, mine = key(client, MINE)
    assert impressions(ask(http, root(settings))) == [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    assert impressions(ask(http, mine)) == [_MINE + h for h in range(HOURS)]
    assert impressions(ask(http, mine, subject=("advertiser_id", str(MINE)))) == [_MINE + h for h in range(HOURS)]
    assert ask(http, mine, subject=("advertiser_id", str(OTHERS))).status_code == 403


def test_buckets_of_many_hours_are_summed_whatever_tier_they_come_from(http: httpx.Client, settings: Settings) -> None:
    by_hour = [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    for more in (
        [("granularity", "total")],
        [("granularity", "day"), ("timezone", "Europe/Berlin")],
        [("granularity", "day")],
    ):
        told = [("campaign_id", "7"), *_RANGE[:2], *more]
        found = http.get("/v1/metrics", params=httpx.QueryParams(tuple(told)), headers=root(settings))
        assert sum(impressions(found)) == sum(by_hour)
        assert len(impressions(found)) <= 2


def test_no_operation_shows_another_tenants_numbers(http: httpx.Client, client: ClickHouse, settings: Settings) -> None:
    _, mine = key(client, MINE)
    document = http.get("/openapi.json").json()
    paths = [p for p, operations in document["paths"].items() if "get" in operations]
    assert {
        "/v1/metrics",
        "/v1/metrics/changes",
        "/v1/pipeline",
        "/v1/reconciliations",
        "/v1/reconciliations/{date}/ledger",
    } <= set(paths)
    others = [str(_OTHERS + h) for h in range(HOURS)] + [str(_MINE + _OTHERS + 2 * h) for h in range(HOURS)]
    reconciled = _reconcile_long_ago(client)
    shown = http.get(f"/v1/reconciliations/{reconciled}/ledger", headers=mine).json()["data"]
    assert [(row["advertiser_id"], row["stream"]["impressions"], row["exact"]["impressions"]) for row in shown] == [
        (MINE, _MINE - 1, _MINE)
    ]
    # Streams do not end, and ask as /v1/metrics does.
    for path in [p for p in paths if p != "/v1/stream"]:
        for subject in (("campaign_id", "7"), ("advertiser_id", str(OTHERS)), ("advertiser_id", str(MINE))):
            for group in ("", "ad_id", "campaign_id", "publisher_id,country,device"):
                told = httpx.QueryParams(_asked(path, subject, group))
                path = path.replace("{date}", reconciled)
                found = http.get(path, params=told, headers=mine)
                assert found.status_code in (200, 403, 503), (path, found.text)
                assert not any(number in found.text for number in others), (path, subject)
                refused = http.get(path, params=told)
                assert refused.status_code == (401 if path.startswith(("/v1", "/metrics")) else found.status_code)
    operations = {method for found in document["paths"].values() for method in found}
    assert operations == {"get"}


def _reconcile_long_ago(client: ClickHouse) -> str:
    """A day of which one late impression of each advertiser was counted by a nightly run."""
    start, date = HOUR - 5 * DAY_MS, iso(HOUR - 5 * DAY_MS)[:10]
    for advertiser, ad, impressions in ((MINE, 1, _MINE), (OTHERS, 2, _OTHERS)):
        keys = f"{start // 1000}, 7, {advertiser}, {ad}, 5, 'DE', 'mobile', 'run'"
        client.command(f"INSERT INTO {client.database}.exact_hours VALUES ({keys}, {impressions}, 0, 0, 0, 0, 0)")
        client.command(f"INSERT INTO {client.database}.ledger VALUES ({keys}, 'late', 1, 0, 0, 0)")
    client.command(
        f"INSERT INTO {client.database}.runs VALUES ('{date}', 'run', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 1, 0)"
    )
    return date


def _asked(path: str, subject: tuple[str, str], group: str) -> tuple[tuple[str, str], ...]:
    if path == "/v1/metrics":
        return (subject, *_RANGE, ("group_by", group))
    if path.endswith("/ledger"):
        return (subject,)
    return (subject, ("since", "-1h")) if path == "/v1/metrics/changes" else ()


def test_the_documentation_comes_from_here(http: httpx.Client) -> None:
    page = http.get("/docs")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) >= 2
    for file in files:
        assert file.startswith("/docs/"), file
        assert http.get(file).status_code == 200
    assert "'unsafe-eval'" not in page.headers["content-security-policy"]


def test_a_key_is_worth_nothing_once_it_is_revoked_rotated_or_over(http: httpx.Client, client: ClickHouse) -> None:
    keys = Keys(client)
    id_, first = key(client, MINE)
    assert ask(http, first).status_code == 200
    _, token = keys.rotate(id_, grace_ms=0)
    second = {"Authorization": f"Bearer {token}"}
    _, short = key(client, MINE, lasts_ms=1)
    time.sleep(REFRESH_S + 0.1)
    assert ask(http, first).status_code == 401
    assert ask(http, short).status_code == 401
    assert ask(http, second).status_code == 200
    _, token = keys.rotate(id_, grace_ms=60_000)
    time.sleep(REFRESH_S + 0.1)
    assert ask(http, second).status_code == ask(http, {"Authorization": f"Bearer {token}"}).status_code == 200
    keys.revoke(id_)
    time.sleep(REFRESH_S + 0.1)
    assert ask(http, second).status_code == ask(http, {"Authorization": f"Bearer {token}"}).status_code == 401
    assert [action for _, _, action, subject, _ in keys.audit(10) if subject == id_] == [
        "revoke",
        "rotate",
        "rotate",
        "create",
    ]
    held = str(client.rows(f"SELECT * FROM {client.database}.api_keys"))
    assert token not in held
    assert token.rpartition("_")[2] not in held


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer adk_", b"Bearer adk_0_0", b"Bearer \xe9", b"Bearer \x00"],
)
def test_what_is_no_key_opens_nothing(http: httpx.Client, header: bytes) -> None:
    found = http.get("/v1/metrics", headers={b"authorization": header})
    assert found.status_code == 401
    assert found.headers["content-type"] == "application/problem+json"


def test_a_key_may_ask_as_often_as_it_says(http: httpx.Client, client: ClickHouse) -> None:
    _, slow = key(client, MINE, rate=0.5, burst=3)
    first = [ask(http, slow) for _ in range(3)]
    assert [f.status_code for f in first] == [200, 200, 200]
    assert first[0].headers["ratelimit-policy"] == '"key";q=3;w=6'
    assert first[0].headers["ratelimit"].startswith('"key";r=2;')
    refused = ask(http, slow)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert refused.json()["type"] == "/problems/too-many-requests"
    _, another = key(client, MINE, rate=0.5, burst=3)
    time.sleep(0.3)
    assert ask(http, another).status_code == 200


def test_rows_alone_are_read_by_what_reads_such_files(http: httpx.Client, settings: Settings) -> None:
    wanted = [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    found = {name: ask(http, root(settings), ("format", name)).content for name in ("csv", "ndjson", "arrow")}
    assert pl.read_csv(found["csv"])["impressions"].to_list() == wanted
    assert pl.read_ndjson(io.BytesIO(found["ndjson"]))["impressions"].to_list() == wanted
    arrow = pl.read_ipc_stream(io.BytesIO(found["arrow"]))
    assert arrow["impressions"].to_list() == wanted
    assert arrow["time"].dt.epoch("ms").to_list() == [HOUR + h * HOUR_MS for h in range(HOURS)]
    by_header = ask(http, root(settings) | {"Accept": "text/csv"})
    assert by_header.content == found["csv"]
    assert ask(http, root(settings), ("format", "xml")).status_code == 400


def test_an_answer_that_is_still_right_is_not_sent_again(http: httpx.Client, settings: Settings) -> None:
    first = ask(http, root(settings))
    tag = first.headers["etag"]
    assert ask(http, root(settings) | {"If-None-Match": tag}).status_code == 304
    assert ask(http, root(settings) | {"If-None-Match": tag}, ("group_by", "country")).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_long_answers_are_compressed(http: httpx.Client, settings: Settings, encoding: str) -> None:
    import cramjam

    with http.stream("GET", "/v1/metrics", params=[("campaign_id", "7"), *_RANGE], headers=root(settings) | {"Accept-Encoding": encoding}) as found:  # fmt: skip
        assert found.headers["content-encoding"] == encoding
        raw = b"".join(found.iter_raw())
    assert json.loads(bytes(getattr(cramjam, encoding).decompress(raw)))["rows"] == HOURS


def test_corrected_hours_are_told_to_those_whose_they_are(http: httpx.Client, client: ClickHouse) -> None:
    _, mine = key(client, MINE)
    _, strangers = key(client, 99)

    def told(headers: dict[str, str], since: str = "-1h") -> dict[str, Any]:
        answer: dict[str, Any] = http.get("/v1/metrics/changes", params={"since": since}, headers=headers).json()
        return answer

    found = told(mine)
    assert [(r["time"], r["campaign_id"], r["finality"]) for r in found["data"]] == [
        (iso(HOUR + 2 * HOUR_MS), 7, "corrected")
    ]
    assert told(strangers)["data"] == []
    assert told(mine, iso(now_ms() + HOUR_MS))["data"] == []
    assert http.get("/v1/metrics/changes", headers=mine).json()["parameter"] == "since"


class Clock:
    """The clock of the HTTP interface, which a test may set forward."""

    ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(api, "now_ms", clock)
    return clock


@pytest.mark.parametrize("grain", ["total", "day", "hour", "auto"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_pages_of_a_relative_range_are_of_the_range_of_the_first(
    http: httpx.Client, settings: Settings, clock: Clock, grain: str, zone: str
) -> None:
    names = {
        "campaign_id": "7",
        "start": "-50h",
        "end": "-1h",
        "granularity": grain,
        "group_by": "ad_id,campaign_id",
    }
    names |= {"timezone": zone, "limit": "1"}
    whole = http.get("/v1/metrics", params=names | {"limit": "100"}, headers=root(settings)).json()["data"]
    pages, cursor = [], ""
    while cursor is not None:
        answer = http.get("/v1/metrics", params=names | ({"cursor": cursor} if cursor else {}), headers=root(settings))
        assert answer.status_code == 200, answer.text
        pages += answer.json()["data"]
        cursor = answer.json()["next_cursor"]
        clock.ahead_ms += HOUR_MS
    assert pages == whole
    assert sum(row["impressions"] for row in whole) == sum(_MINE + _OTHERS + 2 * h for h in range(HOURS))


def test_pages_of_a_total_go_on_a_minute_later(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
    """Of two advertisers' ads in the hours of `client`, with a range that has moved on by the second page."""
    (_, both), (_, mine) = key(client, MINE, OTHERS), key(client, MINE)
    names = {
        "campaign_id": "7",
        "start": "-50h",
        "end": "now",
        "granularity": "total",
        "group_by": "ad_id",
        "limit": "1",
    }
    first = http.get("/v1/metrics", params=names, headers=both).json()
    clock.ahead_ms = HOUR_MS
    second = http.get("/v1/metrics", params=names | {"cursor": first["next_cursor"]}, headers=both).json()
    assert [row["ad_id"] for row in (*first["data"], *second["data"])] == [1, 2]
    assert [row["time"] for row in second["data"]] == [row["time"] for row in first["data"]]
    refused = http.get("/v1/metrics", params=names | {"cursor": first["next_cursor"]}, headers=mine)
    assert (refused.status_code, refused.json()["parameter"]) == (400, "cursor")


def test_pages_of_changes_leave_none_out_while_since_moves_on(
    http: httpx.Client, client: ClickHouse, clock: Clock
) -> None:
    corrected_s = [now_ms() // 1000 - 50, now_ms() // 1000 - 40]
    for hour, at in enumerate(corrected_s):
        keys = f"{(HOUR + hour * HOUR_MS) // 1000}, 8, {MINE}, 1, 5, 'DE', 'mobile', 0"
        client.command(f"INSERT INTO {client.database}.stream_hours VALUES ({keys}, 1, 0, 0, 0, 0, 0, 0, 1, 1, {at})")
    (_, mine), (_, others) = key(client, MINE), key(client, MINE, OTHERS)
    names = {"campaign_id": "8", "since": "-2m", "limit": "1"}
    first = http.get("/v1/metrics/changes", params=names, headers=mine).json()
    clock.ahead_ms = 100_000
    second = http.get("/v1/metrics/changes", params=names | {"cursor": first["next_cursor"]}, headers=mine).json()
    assert [row["time"] for row in (*first["data"], *second["data"])] == [iso(HOUR), iso(HOUR + HOUR_MS)]
    # What changed while the pages were read may sort before the cursor: the next question begins before the first of them.
    assert second["as_of"] == first["as_of"]
    for change in ({"campaign_id": "7"}, {"since": "-1h"}, {"granularity": "day"}):
        other = names | {"cursor": first["next_cursor"]} | change
        assert http.get("/v1/metrics/changes", params=other, headers=mine).json()["parameter"] == "cursor"
    other = names | {"cursor": first["next_cursor"]}
    assert http.get("/v1/metrics/changes", params=other, headers=others).json()["parameter"] == "cursor"


def test_pages_of_a_ledger_are_of_one_run(http: httpx.Client, client: ClickHouse, settings: Settings) -> None:
    date, path = _reconcile_long_ago(client), "/v1/reconciliations/{}/ledger"
    first = http.get(path.format(date), params={"limit": "1"}, headers=root(settings)).json()
    client.command(
        f"INSERT INTO {client.database}.runs VALUES ('{date}', 'again', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 2, 0)"
    )
    names = {"limit": "1", "cursor": first["next_cursor"]}
    second = http.get(path.format(date), params=names, headers=root(settings)).json()
    assert [row["advertiser_id"] for row in (*first["data"], *second["data"])] == [MINE, OTHERS]
    assert second["run_id"] == first["run_id"] == "run"
    assert http.get(path.format(date), headers=root(settings)).json()["run_id"] == "again"
    other = http.get(path.format(date), params=names | {"campaign_id": "7"}, headers=root(settings))
    assert other.json()["parameter"] == "cursor"


def test_many_who_ask_at_once_are_one_question_to_clickhouse(settings: Settings, client: ClickHouse) -> None:
    asked = []
    routers = [Router(settings), Router(settings)]  # as in two processes
    for router in routers:
        read = router._stored.read

        def counted(*args: Any, read: Any = read) -> Any:
            asked.append(args)
            time.sleep(0.2)
            return read(*args)

        router._stored.read = counted  # type: ignore[method-assign, assignment]
    question = parse([("campaign_id", "7"), *_RANGE], now_ms(), routers[0].held)
    start = threading.Barrier(200)

    def one(number: int) -> list[int]:
        start.wait()
        found: list[int] = routers[number % 2].answer(question).page.frame["impressions"].to_list()
        return found

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
    assert all(a == [_MINE + _OTHERS + 2 * h for h in range(HOURS)] for a in answers)
    assert len(asked) == 1
