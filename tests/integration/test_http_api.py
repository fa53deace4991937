"""The HTTP interface in this process, over the real Redis and ClickHouse: keys, tenants, limits, formats, caches."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import polars as pl
import pytest
from starlette.testclient import TestClient

from infra.clickhouse.borders import table_id
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from query.api.app import create_app
from query.keys import Keys
from query.plan import Piece
from query.question import Question, parse_question
from query.router import Router
from query.sums import Sums
from query.tiers.clickhouse import StoredTiers
from tests import borders
from tests.http_clock import Clock

HOUR = (now_ms() - 48 * HOUR_MS) // HOUR_MS * HOUR_MS
HOURS = 6
MINE, OTHERS = 1, 2
_MINE, _OTHERS = 1_000, 7_770_000
"""Impressions an hour of campaign 7, which both advertisers use."""
_RANGE = [("start", iso(HOUR)), ("end", iso(HOUR + HOURS * HOUR_MS)), ("granularity", "hour")]


@pytest.fixture
def client(settings: Settings) -> ClickHouse:
    """A ClickHouse with closed and settled hours of two advertisers, one of which was corrected a moment ago."""
    clickhouse = ClickHouse.of(settings)
    rows = ", ".join(
        f"({(HOUR + h * HOUR_MS) // 1000}, 7, {advertiser}, {ad}, 5, 'DE', 'mobile', 0, {impressions + h}, 10, 1, 2500000, 0, 0, 0,"
        f" {int(h == 2)}, 1, {now_ms() // 1000 if h == 2 else 0}, 0)"
        for h in range(HOURS)
        for advertiser, ad, impressions in ((MINE, 1, _MINE), (OTHERS, 2, _OTHERS))
    )
    clickhouse.command(f"INSERT INTO {settings.database}.stream_hours VALUES {rows}")
    # What campaign 7 had in the third hour when it closed, a day ago, and has since a moment ago.
    write_cells(clickhouse, HOUR + 2 * HOUR_MS, 7, {MINE: (_MINE, _MINE + 2), OTHERS: (_OTHERS, _OTHERS + 2)}, now_ms())
    # No day is written yet.
    for tier, border in (("hours", HOUR + HOURS * HOUR_MS), ("days", HOUR // DAY_MS * DAY_MS)):
        borders.publish(clickhouse, tier, range(settings.block_partitions), border)
    return clickhouse


def write_cells(client: ClickHouse, hour_ms: int, campaign: int, of: dict[int, tuple[int, int]], changed_ms: int, version: int = 2) -> None:  # fmt: skip
    """Impressions of an hour of a campaign, by advertiser: when it closed and after a correction."""
    cells = [
        (advertiser, number, counts[number > 1], int(number > 1), changed_ms - DAY_MS if number == 1 else changed_ms)
        for advertiser, counts in of.items()
        for number in (1, version)
    ]
    rows = [
        f"('hours', {hour_ms // 1000}, {campaign}, {a}, 0, {number}, {n}, 0, 0, 0, {changed}, {1 - changed}, {at / 1000})"
        for a, number, n, changed, at in cells
    ]
    marks = [f"('hours-sent', {hour_ms // 1000}, 0, 0, 0, {number}, 0, 0, 0, 0, 0, 0, {at / 1000})" for _, number, _, _, at in cells]  # fmt: skip
    client.command(f"INSERT INTO {client.database}.closed_cells VALUES {', '.join([*rows, *marks])}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def http(settings: Settings, client: ClickHouse, clock: Clock) -> Iterator[httpx.Client]:
    """A client that sends no key by itself."""
    with TestClient(create_app(settings, clock.now, clock.monotonic)) as client:
        yield client


def key(client: ClickHouse, *advertisers: int, admin: bool = False, rate: float = 1e6, burst: float = 1e6, lasts_ms: int | None = None) -> tuple[str, dict[str, str]]:  # fmt: skip
    created, token = Keys(client).create(
        "test", frozenset(advertisers), admin=admin, rate=rate, burst=burst, lasts_ms=lasts_ms
    )
    return created.id, {"Authorization": f"Bearer {token}"}


def root(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}


def ask(http: httpx.Client, headers: dict[str, str], *more: tuple[str, str], subject: tuple[str, str] = ("campaign_id", "7")) -> httpx.Response:  # fmt: skip
    return http.get("/v1/metrics", params=[subject, *_RANGE, *more], headers=headers)


def impressions(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [row["impressions"] for row in response.json()["data"]]


def test_two_advertisers_with_one_campaign_id_see_their_own_counts(
    http: httpx.Client, client: ClickHouse, settings: Settings
) -> None:
    _, mine = key(client, MINE)
    assert impressions(ask(http, root(settings))) == [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    assert impressions(ask(http, mine)) == [_MINE + h for h in range(HOURS)]
    assert impressions(ask(http, mine, subject=("advertiser_id", str(MINE)))) == [_MINE + h for h in range(HOURS)]
    assert ask(http, mine, subject=("advertiser_id", str(OTHERS))).status_code == 403
    # All advertisers: for admins alone, and of those no more than they may see.
    assert ask(http, mine, subject=("advertiser_id", "*")).status_code == 403
    _, narrow_admin = key(client, MINE, admin=True)
    only_seven = ("filter", "campaign_id:7")
    everything = impressions(ask(http, root(settings), only_seven, subject=("advertiser_id", "*")))
    assert everything == [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    visible = impressions(ask(http, narrow_admin, only_seven, subject=("advertiser_id", "*")))
    assert visible == [_MINE + h for h in range(HOURS)]


def test_a_top_list_is_the_answer_to_a_question_about_totals(
    http: httpx.Client, client: ClickHouse, settings: Settings
) -> None:
    _, mine = key(client, MINE)
    of_all = http.get(
        "/v1/top", params={"dimension": "ad", "by": "impressions", "range": "3d", "k": "1"}, headers=root(settings)
    )
    whole = HOURS * _OTHERS + sum(range(HOURS))
    assert [(row["ad_id"], row["impressions"]) for row in of_all.json()["data"]] == [(2, whole)]
    own = http.get("/v1/top", params={"dimension": "ad", "by": "impressions", "range": "3d"}, headers=mine).json()
    assert [(row["ad_id"], row["ad_name"], row["impressions"]) for row in own["data"]] == [
        (1, "1", HOURS * _MINE + sum(range(HOURS)))
    ]
    foreign = http.get("/v1/top", params={"advertiser_id": str(OTHERS)}, headers=mine)
    assert foreign.status_code == 403


def test_anomalies_and_budgets_are_those_that_a_key_sees(
    http: httpx.Client, client: ClickHouse, settings: Settings
) -> None:
    _, mine = key(client, MINE)
    rows = ", ".join(
        f"({(HOUR + h * HOUR_MS) // 1000}, 9, {MINE}, 1, 5, 'DE', 'mobile', 0, {1_000 + h % 7}, 10, 1, {(25 if h == 4 else 1) * 2_500_000 + h % 7},"
        " 0, 0, 0, 0, 1, 0, 0)"
        for h in range(-60, HOURS)
    )
    client.command(f"INSERT INTO {settings.database}.stream_hours VALUES {rows}")
    asked = {"advertiser_id": str(MINE), "since": "-3d", "severity": "critical"}
    found = http.get("/v1/anomalies", params=asked, headers=mine)
    assert found.status_code == 200, found.text
    (spike,) = found.json()["data"]
    assert (spike["campaign_id"], spike["kind"], spike["start"]) == (9, "spend-spike", iso(HOUR + 4 * HOUR_MS))
    assert (spike["value"], spike["open"]) == (62_500_004, True)
    # Days before the first one of the hours would come from the table of days.
    first_day = HOUR // DAY_MS * DAY_MS
    entries = {
        "advertisers/1": {"name": "Mine", "timezone": "UTC"},
        "campaigns/9": {
            "name": "Nine",
            "advertiser_id": 1,
            "start": iso(first_day)[:10],
            "budget": "total",
            "budget_micros": 500_000_000,
        },
    }
    for entry, body in entries.items():
        assert http.put(f"/v1/{entry}", json=body, headers=root(settings)).status_code == 200
    budgets = http.get("/v1/budgets", params={"advertiser_id": str(MINE)}, headers=mine).json()
    hours = [h for h in range(-60, HOURS) if HOUR + h * HOUR_MS >= first_day]
    spent = sum((25 if h == 4 else 1) * 2_500_000 + h % 7 for h in hours)
    assert [(b["campaign_id"], b["spent_micros"], b["last_hour_micros"]) for b in budgets["data"]] == [(9, spent, 0)]
    for path in ("/v1/anomalies", "/v1/budgets"):
        assert http.get(path, params={"advertiser_id": str(OTHERS)}, headers=mine).status_code == 403


def test_buckets_of_many_hours_are_summed_over_all_tiers(http: httpx.Client, settings: Settings) -> None:
    by_hour = [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    for more in (
        [("granularity", "total")],
        [("granularity", "day"), ("timezone", "Europe/Berlin")],
        [("granularity", "day")],
    ):
        parameters = [("campaign_id", "7"), *_RANGE[:2], *more]
        response = http.get("/v1/metrics", params=httpx.QueryParams(tuple(parameters)), headers=root(settings))
        assert sum(impressions(response)) == sum(by_hour)
        assert len(impressions(response)) <= 2


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
        "/v1/reconciliations/{date}/causes",
    } <= set(paths)
    others = [str(_OTHERS + h) for h in range(HOURS)] + [str(_MINE + _OTHERS + 2 * h) for h in range(HOURS)]
    reconciled = _reconcile_long_ago(client)
    shown = http.get(f"/v1/reconciliations/{reconciled}/ledger", headers=mine).json()["data"]
    assert [(row["advertiser_id"], row["stream"]["impressions"], row["exact"]["impressions"]) for row in shown] == [
        (MINE, _MINE - 1, _MINE)
    ]
    causes = http.get(f"/v1/reconciliations/{reconciled}/causes", headers=mine).json()
    assert (causes["shown"]["impressions"], causes["billed"]["impressions"]) == (_MINE - 1, _MINE)
    subjects = (("campaign_id", "7"), ("advertiser_id", str(OTHERS)), ("advertiser_id", str(MINE)))
    groups = ("", "ad_id", "campaign_id", "publisher_id,country,device")
    requests = {
        (path.replace("{date}", reconciled).replace("{id}", "7"), _parameters_of(path, subject, group))
        for path in paths
        for subject in subjects
        for group in groups
        # Streams do not end, and ask as /v1/metrics and /v1/alerts do.
        if not path.endswith("/stream")
    }
    for path, parameters in requests:
        response = http.get(path, params=httpx.QueryParams(parameters), headers=mine)
        assert response.status_code in (200, 403, 404 if "/7" in path else 503, 503), (path, response.text)
        assert not any(number in response.text for number in others), (path, parameters)
        refused = http.get(path, params=httpx.QueryParams(parameters))
        assert refused.status_code == (401 if path.startswith(("/v1", "/metrics")) else response.status_code)
    # What changes something is for admin keys; a token is bought by all, alerts are for those that see them, and webhooks are made by
    # all for their own advertisers.
    for_all = {
        "/v1/tokens": 201, "/v1/alerts/{id}/acknowledge": 404, "/v1/mutes": 400, "/v1/mutes/{id}": 404, "/v1/webhooks": 400,
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"get"}:
            changed = http.request(method, path.replace("{id}", "7"), headers=mine)
            otherwise = 404 if path.startswith("/v1/webhooks/") else 403
            assert changed.status_code == for_all.get(path, otherwise), (method, path)
            assert http.request(method, path.replace("{id}", "7")).status_code == 401


def _reconcile_long_ago(client: ClickHouse) -> str:
    """A day of which one late impression of each advertiser was counted by a nightly run."""
    start, date = HOUR - 5 * DAY_MS, iso(HOUR - 5 * DAY_MS)[:10]
    for advertiser, ad, impressions in ((MINE, 1, _MINE), (OTHERS, 2, _OTHERS)):
        keys = f"{start // 1000}, 7, {advertiser}, {ad}, 5, 'DE', 'mobile', 'run'"
        for table in ("exact_hours", "exact_days"):
            client.command(f"INSERT INTO {client.database}.{table} VALUES ({keys}, {impressions}, 0, 0, 0, 0, 0, 0)")
        client.command(f"INSERT INTO {client.database}.ledger VALUES ({keys}, 'late', 1, 0, 0, 0)")
    client.command(
        f"INSERT INTO {client.database}.runs SELECT '{date}', 'run', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 1, 0,"
        f" toUUID('{table_id(client, 'exact_hours')}'),"
        f" toUUID('{table_id(client, 'exact_days')}')"
    )
    return date


def _parameters_of(path: str, subject: tuple[str, str], group: str) -> tuple[tuple[str, str], ...]:
    if path == "/v1/metrics":
        return (subject, *_RANGE, ("group_by", group))
    if path.startswith("/v1/reconciliations"):
        return (subject,)
    advertiser = subject if subject[0] == "advertiser_id" else ("advertiser_id", str(OTHERS))
    if path == "/v1/statements":
        return (advertiser, ("month", iso(HOUR)[:7]))
    if path in ("/v1/budgets", "/v1/top"):
        return (advertiser,) if path == "/v1/budgets" else (advertiser, ("range", "3d"))
    if path in ("/v1/anomalies", "/v1/alerts/backtest", "/v1/alerts"):
        return (subject,)
    if path in ("/v1/trending", "/v1/mutes", "/v1/alerts/summary"):
        return (advertiser,)
    return (subject, ("since", "-1h")) if path == "/v1/metrics/changes" else ()


def test_the_documentation_loads_nothing_from_other_hosts(http: httpx.Client) -> None:
    page = http.get("/docs")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) >= 2
    for file in files:
        assert file.startswith("/docs/"), file
        assert http.get(file).status_code == 200
    assert "'unsafe-eval'" not in page.headers["content-security-policy"]


def test_a_revoked_rotated_or_expired_key_is_refused(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
    keys = Keys(client)
    id_, first = key(client, MINE)
    assert ask(http, first).status_code == 200
    _, token = keys.rotate(id_, grace_ms=0)
    second = {"Authorization": f"Bearer {token}"}
    _, short = key(client, MINE, lasts_ms=1)
    clock.pass_refresh()
    assert ask(http, first).status_code == 401
    assert ask(http, short).status_code == 401
    assert ask(http, second).status_code == 200
    _, token = keys.rotate(id_, grace_ms=60_000)
    clock.pass_refresh()
    assert ask(http, second).status_code == ask(http, {"Authorization": f"Bearer {token}"}).status_code == 200
    keys.revoke(id_)
    clock.pass_refresh()
    assert ask(http, second).status_code == ask(http, {"Authorization": f"Bearer {token}"}).status_code == 401
    assert [action for _, _, action, subject, _ in keys.audit(10) if subject == id_] == [
        "revoke",
        "rotate",
        "rotate",
        "create",
    ]
    stored = str(client.rows(f"SELECT * FROM {client.database}.api_keys"))
    assert token not in stored
    assert token.rpartition("_")[2] not in stored


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer adk_", b"Bearer adk_0_0", b"Bearer \xe9", b"Bearer \x00"],
)
def test_an_invalid_key_is_refused(http: httpx.Client, header: bytes) -> None:
    response = http.get("/v1/metrics", headers={b"authorization": header})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"


def test_a_key_is_limited_to_its_rate(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
    # So slow that no token comes back while the test runs.
    _, slow = key(client, MINE, rate=0.001, burst=3)
    first = [ask(http, slow) for _ in range(3)]
    assert [f.status_code for f in first] == [200, 200, 200]
    assert first[0].headers["ratelimit-policy"] == '"key";q=3;w=3000'
    assert first[0].headers["ratelimit"].startswith('"key";r=2;')
    refused = ask(http, slow)
    assert refused.status_code == 429
    assert 500 < int(refused.headers["retry-after"]) <= 1_000
    assert refused.json()["type"] == "/problems/too-many-requests"
    _, another = key(client, MINE, rate=0.001, burst=3)
    clock.ahead_ms += 300  # keys are read again for an unknown one, but not at once
    assert ask(http, another).status_code == 200


def test_formats_of_rows_alone_are_read_by_standard_readers(http: httpx.Client, settings: Settings) -> None:
    expected = [_MINE + _OTHERS + 2 * h for h in range(HOURS)]
    bodies = {name: ask(http, root(settings), ("format", name)).content for name in ("csv", "ndjson", "arrow")}
    assert pl.read_csv(bodies["csv"])["impressions"].to_list() == expected
    assert pl.read_ndjson(io.BytesIO(bodies["ndjson"]))["impressions"].to_list() == expected
    arrow = pl.read_ipc_stream(io.BytesIO(bodies["arrow"]))
    assert arrow["impressions"].to_list() == expected
    assert arrow["time"].dt.epoch("ms").to_list() == [HOUR + h * HOUR_MS for h in range(HOURS)]
    by_header = ask(http, root(settings) | {"Accept": "text/csv"})
    assert by_header.content == bodies["csv"]
    assert ask(http, root(settings), ("format", "xml")).status_code == 400


def test_an_unchanged_answer_is_not_sent_again(http: httpx.Client, settings: Settings) -> None:
    first = ask(http, root(settings))
    tag = first.headers["etag"]
    assert ask(http, root(settings) | {"If-None-Match": tag}).status_code == 304
    assert ask(http, root(settings) | {"If-None-Match": tag}, ("group_by", "country")).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_long_answers_are_compressed(http: httpx.Client, settings: Settings, encoding: str) -> None:
    import cramjam

    with http.stream("GET", "/v1/metrics", params=[("campaign_id", "7"), *_RANGE], headers=root(settings) | {"Accept-Encoding": encoding}) as response:  # fmt: skip
        assert response.headers["content-encoding"] == encoding
        raw = b"".join(response.iter_raw())
    assert json.loads(bytes(getattr(cramjam, encoding).decompress(raw)))["rows"] == HOURS


def test_changes_list_the_corrected_hours_of_the_advertisers_of_the_key(http: httpx.Client, client: ClickHouse) -> None:
    _, mine = key(client, MINE)
    _, strangers = key(client, 99)

    def changes(headers: dict[str, str], since: str = "-1h") -> dict[str, Any]:
        document: dict[str, Any] = http.get("/v1/metrics/changes", params={"since": since}, headers=headers).json()
        return document

    corrected = changes(mine)
    assert [(r["time"], r["campaign_id"], r["finality"], r["from"]["impressions"], r["to"]["impressions"]) for r in corrected["data"]] == [
        (iso(HOUR + 2 * HOUR_MS), 7, "corrected", _MINE, _MINE + 2)
    ]  # fmt: skip
    assert changes(mine, corrected["as_of"])["data"] == []
    assert changes(strangers)["data"] == []
    assert changes(mine, iso(now_ms() + HOUR_MS))["data"] == []
    assert http.get("/v1/metrics/changes", headers=mine).json()["parameter"] == "since"


@pytest.mark.parametrize("grain", ["total", "day", "hour", "auto"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_pages_of_a_relative_range_keep_the_range_of_the_first_page(
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


def test_pages_of_a_total_continue_a_minute_later(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
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


def test_pages_of_changes_miss_none_while_a_relative_since_moves(
    http: httpx.Client, client: ClickHouse, clock: Clock
) -> None:
    for hour, ago_ms in enumerate((50_000, 40_000)):
        write_cells(client, HOUR + hour * HOUR_MS, 8, {MINE: (0, 1)}, now_ms() - ago_ms, 3 + hour)
    (_, mine), (_, others) = key(client, MINE), key(client, MINE, OTHERS)
    names = {"campaign_id": "8", "since": "-2m", "limit": "1"}
    first = http.get("/v1/metrics/changes", params=names, headers=mine).json()
    clock.ahead_ms = 100_000
    second = http.get("/v1/metrics/changes", params=names | {"cursor": first["next_cursor"]}, headers=mine).json()
    assert [row["time"] for row in (*first["data"], *second["data"])] == [iso(HOUR), iso(HOUR + HOUR_MS)]
    # What changed while the pages were read is in the next question.
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
        f"INSERT INTO {client.database}.runs SELECT '{date}', 'again', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 2, 0,"
        f" toUUID('{table_id(client, 'exact_hours')}'),"
        f" toUUID('{table_id(client, 'exact_days')}')"
    )
    names = {"limit": "1", "cursor": first["next_cursor"]}
    second = http.get(path.format(date), params=names, headers=root(settings)).json()
    assert [row["advertiser_id"] for row in (*first["data"], *second["data"])] == [MINE, OTHERS]
    assert second["run_id"] == first["run_id"] == "run"
    assert http.get(path.format(date), headers=root(settings)).json()["run_id"] == "again"
    other = http.get(path.format(date), params=names | {"campaign_id": "7"}, headers=root(settings))
    assert other.json()["parameter"] == "cursor"


class SlowStoredTiers(StoredTiers):
    """Counts its reads, and takes so long that concurrent questions meet."""

    reads = 0

    def read(self, question: Question, pieces: Sequence[Piece]) -> list[tuple[Sums, int]]:
        self.reads += 1
        time.sleep(0.2)
        return super().read(question, pieces)


def test_concurrent_equal_questions_read_clickhouse_once(settings: Settings, client: ClickHouse) -> None:
    stored = SlowStoredTiers(client, client, settings.block_partitions)
    routers = [Router(settings, stored=stored) for _ in range(2)]  # as in two processes
    question = parse_question([("campaign_id", "7"), *_RANGE], now_ms(), routers[0].retention)
    start = threading.Barrier(200)

    def impressions(number: int) -> list[int]:
        start.wait()
        column: list[int] = routers[number % 2].answer(question).page.frame["impressions"].to_list()
        return column

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(impressions, range(200)))
    assert all(a == [_MINE + _OTHERS + 2 * h for h in range(HOURS)] for a in answers)
    assert stored.reads == 1
