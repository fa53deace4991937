"""Tokens over HTTP, on the real ClickHouse and Redis: what they show, everywhere a key is accepted, and what is logged of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import polars as pl
import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from query.api.app import create_app
from query.api.secrets_in_urls import HIDDEN
from query.key_use import KeyUse
from query.keys import Keys
from tests import borders, flow
from tests.conftest import adclick
from tests.http_clock import Clock
from tests.product import wait_until

HOUR = (now_ms() - 48 * HOUR_MS) // HOUR_MS * HOUR_MS
OPEN, SECRET, OTHERS = 7, 8, 9
"""Campaigns: of advertiser 1 that a token names, of advertiser 1 that it does not, and of advertiser 2."""
IMPRESSIONS = {(1, OPEN): 1_001, (1, SECRET): 20_002, (2, OTHERS): 300_003, (2, OPEN): 4_000_004}
RECONCILED = iso(HOUR - 5 * DAY_MS)[:10]
_RANGE = {"start": iso(HOUR), "end": iso(HOUR + HOUR_MS), "granularity": "hour"}
PAGE = "https://dash.example.com"
Headers = dict[str, str]


@pytest.fixture
def client(settings: Settings) -> ClickHouse:
    """A ClickHouse with an hour that was corrected a moment ago, and a ledger of a day, each with a row a campaign."""
    clickhouse = ClickHouse(settings.clickhouse, settings.database)
    for (advertiser, campaign), impressions in IMPRESSIONS.items():
        dimensions = f"{campaign}, {advertiser}, 1, 5, 'DE', 'mobile'"
        counted = f"0, {impressions}, 10, 1, 2500000, 0, 0, 0, 1, 1, {now_ms() // 1000}, 0"
        clickhouse.command(
            f"INSERT INTO {settings.database}.stream_hours VALUES ({HOUR // 1000}, {dimensions}, {counted})"
        )
        keys = f"{(HOUR - 5 * DAY_MS) // 1000}, {dimensions}, 'run'"
        clickhouse.command(
            f"INSERT INTO {settings.database}.exact_hours VALUES ({keys}, {impressions}, 0, 0, 0, 0, 0, 0)"
        )
        clickhouse.command(f"INSERT INTO {settings.database}.ledger VALUES ({keys}, 'late', 1, 0, 0, 0)")
    clickhouse.command(
        f"INSERT INTO {settings.database}.runs SELECT '{RECONCILED}', 'run', now64(3), '', 2, 0, 2, 0, 0, '{{}}', 1, 0,"
        " (SELECT uuid FROM system.tables WHERE database = {database:String} AND name = 'exact_hours'),"
        " (SELECT uuid FROM system.tables WHERE database = {database:String} AND name = 'exact_days')",
        {"database": settings.database},
    )
    for tier, border in (("hours", HOUR + HOUR_MS), ("days", HOUR // DAY_MS * DAY_MS)):
        borders.publish(clickhouse, tier, range(settings.block_partitions), border)
    return clickhouse


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def http(settings: Settings, client: ClickHouse, clock: Clock) -> Iterator[httpx.Client]:
    with TestClient(create_app(settings, clock.now, clock.monotonic)) as client:
        yield client


def bearer(text: str) -> Headers:
    return {"Authorization": f"Bearer {text}"}


def root(settings: Settings) -> Headers:
    return bearer(settings.api_key.get_secret_value())


def key(client: ClickHouse, *advertisers: int, rate: float = 1e6, burst: float = 1e6) -> tuple[str, Headers]:
    created, secret = Keys(client).create(
        "test", frozenset(advertisers), admin=False, rate=rate, burst=burst, lasts_ms=None
    )
    return created.id, bearer(secret)


def buy(http: httpx.Client, headers: Headers, **request: Any) -> Headers:
    response = http.post("/v1/tokens", json=request, headers=headers)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    return bearer(response.json()["token"])


def ask(http: httpx.Client, headers: Headers, **parameters: str) -> httpx.Response:
    return http.get("/v1/metrics", params=_RANGE | parameters, headers=headers)


def wait_until_refused(http: httpx.Client, headers: Headers, clock: Clock) -> None:
    """Until the router has read the keys again, as it does by its clock; on a busy machine the first read takes too long."""
    clock.pass_refresh()
    wait_until(lambda: ask(http, headers, advertiser_id="1").status_code == 401, 5, "the key to be refused")


def shown(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return sum(row["impressions"] for row in response.json()["data"])


def test_a_token_of_a_campaign_shows_it_alone_in_every_operation_and_format(
    http: httpx.Client, client: ClickHouse, settings: Settings
) -> None:
    _, mine = key(client, 1)
    narrow = buy(http, mine, campaigns=[OPEN, OTHERS])
    # First what the key itself sees, so that replies of a moment ago are there to be confused.
    assert shown(ask(http, mine, advertiser_id="1")) == IMPRESSIONS[1, OPEN] + IMPRESSIONS[1, SECRET]
    assert shown(ask(http, root(settings), campaign_id=str(OPEN))) == IMPRESSIONS[1, OPEN] + IMPRESSIONS[2, OPEN]
    tag = ask(http, mine, advertiser_id="1").headers["etag"]
    for subject in ({"advertiser_id": "1"}, {"campaign_id": str(OPEN)}, {"campaign_id": f"{OPEN},{OTHERS}"}):
        for more in ({}, {"group_by": "campaign_id"}, {"group_by": "ad_id"}, {"granularity": "total"}):
            response = ask(http, narrow | {"If-None-Match": tag}, **subject | more)
            assert shown(response) == IMPRESSIONS[1, OPEN]
    for name, read in (("csv", pl.read_csv), ("ndjson", pl.read_ndjson), ("arrow", pl.read_ipc_stream)):
        for limit in ({}, {"limit": "5"}):
            body = ask(http, narrow, advertiser_id="1", group_by="campaign_id", format=name, **limit).content
            assert read(io.BytesIO(body))["campaign_id"].to_list() == [OPEN]
    changes = http.get("/v1/metrics/changes", params={"since": "-1h"}, headers=narrow).json()
    assert {row["campaign_id"] for row in changes["data"]} == {OPEN}
    ledger = http.get(f"/v1/reconciliations/{RECONCILED}/ledger", headers=narrow).json()
    assert [row["campaign_id"] for row in ledger["data"]] == [OPEN]
    for path, parameters in (
        ("/v1/metrics", _RANGE | {"campaign_id": str(SECRET)}),
        ("/v1/metrics", _RANGE | {"advertiser_id": "2"}),
        ("/v1/metrics", _RANGE | {"advertiser_id": "1", "filter": f"campaign_id:{SECRET}"}),
        ("/v1/metrics/changes", {"since": "-1h", "campaign_id": str(SECRET)}),
        (f"/v1/reconciliations/{RECONCILED}/ledger", {"campaign_id": str(SECRET)}),
        ("/v1/stream", _RANGE | {"campaign_id": str(SECRET)}),
    ):
        refused = http.get(path, params=parameters, headers=narrow)
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden"), path
    # Cursors of the key are not for its narrower token.
    pages = {"advertiser_id": "1", "group_by": "campaign_id", "limit": "1"}
    cursor = ask(http, mine, **pages).json()["next_cursor"]
    refused = ask(http, narrow, **pages, cursor=cursor)
    assert (refused.status_code, refused.json()["parameter"]) == (400, "cursor")
    changes = {"since": "-1h", "limit": "1"}
    cursor = http.get("/v1/metrics/changes", params=changes, headers=mine).json()["next_cursor"]
    refused = http.get("/v1/metrics/changes", params=changes | {"cursor": cursor}, headers=narrow)
    assert (refused.status_code, refused.json()["parameter"]) == (400, "cursor")


def test_access_tells_what_a_key_or_token_allows(http: httpx.Client, client: ClickHouse, settings: Settings) -> None:
    id_, mine = key(client, 1, 2)
    narrow = buy(http, mine, advertisers=[1], campaigns=[OPEN], expires_in=60, origin=PAGE)
    of_key, of_token = (http.get("/v1/access", headers=headers).json() for headers in (mine, narrow))
    expected = {"key": id_, "name": "test", "admin": False, "scopes": ["read"], "currency": settings.currency}
    assert of_key == expected | {
        "advertisers": [1, 2], "campaigns": None, "expires_at": None, "token": False, "origin": None,
        "may_act_on_alerts": True,
    }  # fmt: skip
    assert of_token.pop("expires_at") > iso(now_ms())
    narrowed = {"advertisers": [1], "campaigns": [OPEN], "token": True, "origin": PAGE, "may_act_on_alerts": False}
    assert of_token == expected | narrowed
    of_root = http.get("/v1/access", headers=root(settings)).json()
    assert (of_root["key"], of_root["advertisers"], of_root["scopes"]) == ("root", None, ["read", "admin"])
    assert http.get("/v1/access").status_code == 401


def test_a_token_ends_with_its_key_and_shares_its_limit(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
    id_, mine = key(client, 1)
    narrow = buy(http, mine)
    assert ask(http, narrow, advertiser_id="1").status_code == 200
    Keys(client).revoke(id_)
    wait_until_refused(http, narrow, clock)
    _, slow = key(client, 1, rate=0.001, burst=3)
    clock.ahead_ms += 300  # keys are read again for an unknown one, but not at once
    one, another = buy(http, slow), buy(http, slow)
    assert [ask(http, headers, advertiser_id="1").status_code for headers in (one, another)] == [200, 429]


def test_a_wrong_purchase_is_refused_by_name(http: httpx.Client, client: ClickHouse) -> None:
    _, mine = key(client, 1)
    wrong: list[tuple[Any, int, str]] = [
        ({"advertisers": [2]}, 403, "advertisers"),
        ({"scopes": ["admin"]}, 403, "scopes"),
        ({"expires_in": 86_401}, 422, "expires_in"),
        ({"expires_in": 0}, 400, "expires_in"),
        ({"expires_in": "1h"}, 400, "expires_in"),
        ({"advertisers": []}, 400, "advertisers"),
        ({"campaigns": [7, "8"]}, 400, "campaigns"),
        ({"campaigns": [2**63 - 1 - n for n in range(500)]}, 422, "campaigns"),
        ({"campaign": [7]}, 400, "body"),
        ([7], 400, "body"),
    ]
    for body, status, parameter in wrong:
        refused = http.post("/v1/tokens", json=body, headers=mine)
        assert (refused.status_code, refused.json()["parameter"]) == (status, parameter), body
    as_json = mine | {"Content-Type": "application/json"}
    for content, headers, status in (
        (b"{", as_json, 400), (b"\xff", as_json, 400), (b"{}", mine | {"Content-Type": "text/plain"}, 415),
        (b" " * 70_000, as_json, 413), (b"", mine, 201), (b"{}", as_json, 201),
    ):  # fmt: skip
        assert http.post("/v1/tokens", content=content, headers=headers).status_code == status, content[:9]
    assert http.post("/v1/tokens", content=iter([b" " * 40_000] * 2), headers=as_json).status_code == 413
    assert http.post("/v1/tokens", json={}).status_code == 401
    refused = http.post("/v1/tokens", json={}, headers=buy(http, mine))
    assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
    put = http.put("/v1/tokens", json={}, headers=mine)
    assert (put.status_code, put.headers["allow"]) == (405, "OPTIONS, POST")


def test_a_token_for_an_origin_is_for_its_pages_alone(http: httpx.Client, client: ClickHouse, clock: Clock) -> None:
    _, mine = key(client, 1)
    bound = buy(http, mine, origin=PAGE.upper() + ":443", expires_in=60)
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    assert http.options("/v1/metrics", headers=preflight).headers["access-control-allow-origin"] == PAGE
    answer = ask(http, bound | {"Origin": PAGE}, advertiser_id="1")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert ask(http, bound, advertiser_id="1").status_code == 200  # a program, or the page of the router itself
    for foreign in ("https://evil.test", "null", "http://dash.example.com"):
        refused = ask(http, bound | {"Origin": foreign}, advertiser_id="1")
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign-origin")
        assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in ask(http, mine | {"Origin": PAGE}, advertiser_id="1").headers
    # The page may read why it is refused, too.
    clock.ahead_ms += 70_000
    expired = ask(http, bound | {"Origin": PAGE}, advertiser_id="1")
    assert (expired.status_code, expired.json()["type"]) == (401, "/problems/token-expired")
    assert expired.headers["access-control-allow-origin"] == PAGE


def test_no_key_or_token_reaches_the_log(http: httpx.Client, client: ClickHouse) -> None:
    id_, mine = key(client, 1)
    narrow = buy(http, mine)
    secrets = [headers["Authorization"].removeprefix("Bearer ") for headers in (mine, narrow)]
    with capture_logs() as lines:
        for secret in secrets:
            for path in ("/v1/metrics", "/", "/missing"):
                for name in ("token", "key", "campaign_id"):
                    refused = http.get(path, params={name: secret}, headers=mine)
                    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/secret-in-url")
                    assert secret not in refused.text
            assert http.get(f"/v1/keys/{secret}", headers=mine).status_code == 400
        assert ask(http, narrow, advertiser_id="1").status_code == 200
    assert [line["query"] for line in lines].count(HIDDEN) == len(secrets) * 10
    assert (lines[-1]["key"], len(lines[-1]["token"])) == (id_, 16)
    for secret in secrets:
        assert not any(part in str(lines) for part in (secret, secret[len(secret) // 2 :]))


def test_admin_keys_manage_keys_that_see_no_more_and_last_no_longer(
    http: httpx.Client, client: ClickHouse, settings: Settings, clock: Clock
) -> None:
    admin = root(settings)
    created = http.post(
        "/v1/keys", json={"name": "Acme", "advertisers": [1], "campaigns": [OPEN]}, headers=admin
    ).json()
    id_, mine = created["id"], bearer(created["key"])
    assert shown(ask(http, mine, advertiser_id="1")) == IMPRESSIONS[1, OPEN]
    assert ask(http, buy(http, mine), advertiser_id="1").status_code == 200
    (listed,) = http.get("/v1/keys", headers=admin).json()["data"]
    assert listed == {name: value for name, value in created.items() if name != "key"} | {
        "last_used_at": listed["last_used_at"],
        "requests": 3,
    }
    assert listed["last_used_at"] >= listed["created_at"]
    another = KeyUse(client)
    for _ in range(2):
        another.count(id_)
        another.flush()
        another.flush()
    assert http.get("/v1/keys", headers=admin).json()["data"][0]["requests"] == 5
    rotated = http.post(f"/v1/keys/{id_}/rotate", headers=admin).json()
    wait_until_refused(http, mine, clock)
    mine = bearer(rotated["key"])
    assert ask(http, mine, advertiser_id="1").status_code == 200
    for _ in range(2):
        revoked = http.delete(f"/v1/keys/{id_}", headers=admin)
        assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    wait_until_refused(http, mine, clock)
    assert http.post(f"/v1/keys/{id_}/rotate", headers=admin).status_code == 409
    audit = http.get("/v1/audit", headers=admin).json()["data"]
    assert [(e["action"], e["actor"]) for e in audit if e["subject"] == id_] == [
        (action, "key root") for action in ("revoke", "rotate", "create")
    ]
    # An admin key of one advertiser, for an hour.
    limited, secret = Keys(client).create("limited", frozenset([1]), admin=True, rate=1e6, burst=1e6, lasts_ms=HOUR_MS)
    clock.ahead_ms += 300
    of_others, other = key(client, 2)
    for method, path, body, status in (
        ("POST", "/v1/keys", {"name": "x", "advertisers": [1, 2], "expires_in": 60}, 403),
        ("POST", "/v1/keys", {"name": "x", "advertisers": None, "expires_in": 60}, 403),
        ("POST", "/v1/keys", {"name": "x", "advertisers": [1]}, 403),
        ("POST", "/v1/keys", {"name": "x", "advertisers": [1], "expires_in": 60, "admin": True}, 201),
        ("POST", "/v1/keys", {"name": "x"}, 400),
        ("POST", "/v1/keys", {"name": " ", "advertisers": [1], "expires_in": 60}, 400),
        ("POST", f"/v1/keys/{of_others}/rotate", {}, 403),
        ("DELETE", f"/v1/keys/{of_others}", None, 403),
        ("DELETE", "/v1/keys/root", None, 409),
        ("DELETE", "/v1/keys/unknown", None, 404),
        # What is about all advertisers is not for it.
        ("GET", "/v1/dead-letters", None, 403),
        ("POST", "/v1/dead-letters/replay", {"names": ["0/0"]}, 403),
        ("POST", "/v1/reconciliations", {"date": "2026-01-01"}, 403),
        ("PUT", "/v1/advertisers/2", {"name": "renamed"}, 403),
        ("DELETE", "/v1/advertisers/2", None, 403),
        ("GET", "/v1/audit", None, 403),
        ("POST", f"/v1/keys/{limited.id}/rotate", {"grace_s": 60}, 200),
    ):
        response = http.request(method, path, json=body, headers=bearer(secret))
        assert response.status_code == status, (method, path, body, response.text)
    seen = {entry["id"] for entry in http.get("/v1/keys", headers=bearer(secret)).json()["data"]}
    assert limited.id in seen and of_others not in seen
    token = buy(http, admin, scopes=["admin"])
    assert http.get("/v1/keys", headers=token).status_code == 200
    for headers in (token, buy(http, admin), other):
        assert http.post("/v1/keys", json={"name": "x", "advertisers": None}, headers=headers).status_code == 403
        assert http.delete(f"/v1/keys/{of_others}", headers=headers).status_code == 403


def test_a_shared_link_shows_what_it_is_for_until_it_is_revoked(
    http: httpx.Client, client: ClickHouse, settings: Settings, clock: Clock
) -> None:
    environment = flow.environment(settings)
    words = ("share", "--advertiser", "1", "--campaign", str(OPEN), "--expires", "2d")
    printed = adclick(*words, "--url", "https://ads.example.com/", cwd=None, **environment)
    assert printed.returncode == 0, printed.stderr
    page, _, secret = printed.stdout.strip().partition("#token=")
    assert page == "https://ads.example.com/"
    assert secret not in printed.stderr
    link = bearer(secret)
    assert shown(ask(http, link, advertiser_id="1")) == IMPRESSIONS[1, OPEN]
    access = http.get("/v1/access", headers=link).json()
    assert (access["admin"], access["advertisers"], access["campaigns"]) == (False, [1], [OPEN])
    (listed,) = Keys(client).all()
    assert listed.share
    assert listed.expires_ms - listed.created_ms == 2 * DAY_MS
    assert [action for _, _, action, *_ in Keys(client).audit(1)] == ["share"]
    Keys(client).revoke(listed.id)
    wait_until_refused(http, link, clock)
