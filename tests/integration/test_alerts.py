"""Alerts over the real ClickHouse: over HTTP, as a stream, from the command line; each tenant sees its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from infra.cli.main import main
from infra.clickhouse.alerts import Alert, alert_id, insert_alerts
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from query.alerts import reader
from query.alerts.mutes import MOST_MUTES
from query.alerts.questions import AlertFilter
from query.alerts.reader import AlertReader
from query.alerts.scope import WHOLE_INSTALLATION, AlertScope
from query.alerts.store import AlertStore
from query.api import live
from query.api.app import create_app
from query.directory.store import DirectoryStore
from query.keys import Keys
from query.row_scope import RowScope
from query.signing import Signer
from tests.flow import environment
from tests.integration.test_http_server import Events, Server
from tests.product import PATIENCE, assert_stays, wait_until

Headers = dict[str, str]
OPENED = now_ms() // 1000 * 1000 - DAY_MS
LATER = iso((now_ms() + 7 * DAY_MS) // 1000 * 1000)
MINE, OTHERS, OPERATOR = 1, 2, 0


def alert(campaign: int, number: int = 1, /, advertiser: int = MINE, **fields: Any) -> Alert:
    """A version of the one alert of a campaign."""
    values: dict[str, Any] = {
        "kind": "spend-spike", "severity": "warning", "state": "open", "opened_ms": OPENED + campaign * 1000, "ended_ms": 0,
        "summary": f"campaign {campaign} of advertiser {advertiser}, version {number}", "detail": {"value": 2**60},
    } | fields  # fmt: skip
    id_ = alert_id(values["kind"], advertiser, campaign, values["opened_ms"])
    return Alert(id=id_, version=number, advertiser_id=advertiser, campaign_id=campaign, **values)


@pytest.fixture
def clickhouse(settings: Settings) -> ClickHouse:
    return ClickHouse(settings.clickhouse, settings.database)


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    """A client with the installation's own key."""
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        yield client


def key(clickhouse: ClickHouse, *advertisers: int, campaigns: frozenset[int] | None = None, admin: bool = False, share: bool = False) -> Headers:  # fmt: skip
    _, secret = Keys(clickhouse).create(
        "test", frozenset(advertisers) or None, admin=admin, rate=1e6, burst=1e6, lasts_ms=None, campaigns=campaigns, share=share
    )  # fmt: skip
    return {"Authorization": f"Bearer {secret}"}


def token(http: httpx.Client, headers: Headers, **claims: Any) -> Headers:
    return {"Authorization": f"Bearer {http.post('/v1/tokens', json=claims, headers=headers).json()['token']}"}


def listed(http: httpx.Client, headers: Headers | None = None, **parameters: str) -> list[dict[str, Any]]:
    response = http.get("/v1/alerts", params=parameters, headers=headers)
    assert response.status_code == 200, response.text
    document = response.json()
    assert document["rows"] == len(document["data"])
    alerts: list[dict[str, Any]] = document["data"]
    return alerts


def campaigns_of(alerts: list[dict[str, Any]]) -> list[int]:
    return [alert["campaign_id"] for alert in alerts]


def test_lists_have_the_current_version_of_each_alert_and_its_page_all_versions(
    http: httpx.Client, clickhouse: ClickHouse
) -> None:
    worse = alert(7, 2, severity="critical")
    closed = alert(7, 3, severity="critical", state="closed", ended_ms=OPENED + HOUR_MS)
    insert_alerts(clickhouse, [alert(8), alert(7), worse])
    insert_alerts(clickhouse, [closed, alert(7), alert(9, kind="ctr-drop")])
    insert_alerts(clickhouse, [closed])  # once more, as after a failure
    (newest, middle, oldest) = listed(http)
    assert campaigns_of([newest, middle, oldest]) == [9, 8, 7]
    assert {name: oldest[name] for name in ("id", "version", "severity", "state", "opened", "ended", "summary", "detail")} == {
        "id": worse.id, "version": 3, "severity": "critical", "state": "closed", "opened": iso(OPENED + 7000),
        "ended": iso(OPENED + HOUR_MS), "summary": closed.summary, "detail": {"value": 2**60},
    }  # fmt: skip
    assert (newest["ended"], newest["acknowledged"], newest["muted_until"]) == (None, None, None)
    assert campaigns_of(listed(http, severity="critical")) == [7]
    assert campaigns_of(listed(http, state="open")) == [9, 8]
    assert campaigns_of(listed(http, kind="ctr-drop")) == [9]
    assert campaigns_of(listed(http, campaign_id="7,8")) == [8, 7]
    assert campaigns_of(listed(http, campaign_id="7,8", advertiser_id=str(OTHERS))) == []
    assert campaigns_of(listed(http, since=iso(OPENED + 8000))) == [9, 8]
    one = http.get(f"/v1/alerts/{worse.id}").json()
    assert [(v["version"], v["severity"], v["state"]) for v in one["history"]] == [
        (1, "warning", "open"), (2, "critical", "open"), (3, "critical", "closed"),
    ]  # fmt: skip
    assert {name: value for name, value in one.items() if name != "history"} == oldest


def test_a_tenant_sees_its_own_alerts_and_nothing_of_others_not_even_by_id(
    http: httpx.Client, clickhouse: ClickHouse
) -> None:
    own, whole, narrow = alert(7), alert(0), alert(8)
    others, operators = alert(7, advertiser=OTHERS), alert(0, advertiser=OPERATOR, kind="lag")
    insert_alerts(clickhouse, [own, whole, narrow, others, operators])
    all_ids = {a.id for a in (own, whole, narrow, others, operators)}
    seen = {
        "tenant": (key(clickhouse, MINE), {own.id, whole.id, narrow.id}),
        "of one campaign": (key(clickhouse, MINE, campaigns=frozenset({7})), {own.id}),
        "of campaigns 0 and 7": (key(clickhouse, MINE, campaigns=frozenset({0, 7})), {own.id}),
        "of advertisers 0 and 1": (key(clickhouse, OPERATOR, MINE), {own.id, whole.id, narrow.id}),
        "of all advertisers": (key(clickhouse), all_ids - {operators.id}),
        "admin of one advertiser": (key(clickhouse, MINE, admin=True), {own.id, whole.id, narrow.id}),
        "admin": (key(clickhouse, admin=True), all_ids),
        "shared link": (key(clickhouse, MINE, share=True), {own.id, whole.id, narrow.id}),
    }
    seen["token"] = (token(http, seen["tenant"][0], campaigns=[8]), {narrow.id})
    for name, (headers, ids) in seen.items():
        assert {a["id"] for a in listed(http, headers)} == ids, name
        for id_ in all_ids:
            assert http.get(f"/v1/alerts/{id_}", headers=headers).status_code == (200 if id_ in ids else 404), name
    tenant = seen["tenant"][0]
    for path in (f"/v1/alerts/{others.id}/acknowledge", f"/v1/alerts/{operators.id}/acknowledge"):
        assert http.post(path, headers=tenant).status_code == 404
    for advertiser in (OTHERS, OPERATOR):
        assert http.get("/v1/alerts", params={"advertiser_id": str(advertiser)}, headers=tenant).status_code == 403
        assert http.get("/v1/mutes", params={"advertiser_id": str(advertiser)}, headers=tenant).status_code == 403
        refused = http.put("/v1/mutes", json={"advertiser_id": advertiser, "until": LATER}, headers=tenant)
        assert refused.status_code == 403
    assert campaigns_of(listed(http, advertiser_id=str(OPERATOR))) == [0]
    assert http.get("/v1/alerts").status_code == 200
    assert http.get("/v1/alerts", headers={"Authorization": ""}).status_code == 401


def test_pages_neither_repeat_nor_miss_while_alerts_come(http: httpx.Client, clickhouse: ClickHouse) -> None:
    # Three of each moment: the id decides.
    before = [alert(n, opened_ms=OPENED + n // 3 * 1000) for n in range(1, 31)]
    insert_alerts(clickhouse, before)
    seen, cursor = list[dict[str, Any]](), None
    for number in range(100):
        parameters = {"limit": "4", "since": "-3d"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/v1/alerts", params=parameters).json()
        seen += page["data"]
        assert ("as_of" in page) == (cursor is None)
        cursor = page["next_cursor"]
        if cursor is None:
            break
        # A newer one and an older one; and one whose beginning, severity and state change.
        moved = alert(10, 2 + number, opened_ms=OPENED + number * 1000, severity="critical", state="closed")
        moved = Alert(**{**vars(moved), "id": before[9].id})
        insert_alerts(clickhouse, [alert(1000 + number), alert(2000 + number, opened_ms=OPENED - number - 1), moved])
    ordered = sorted(before, key=lambda a: (-a.opened_ms, a.id))
    assert [(a["id"], a["version"]) for a in seen] == [(a.id, 1) for a in ordered]
    assert http.get("/v1/alerts", params={"limit": "4", "cursor": "x"}).status_code == 400


def test_what_has_opened_long_ago_follows_what_has_opened_lately(http: httpx.Client, clickhouse: ClickHouse) -> None:
    days = [0, 1, 29, 31, 31, 65, 200, 390]
    insert_alerts(clickhouse, [alert(n, opened_ms=OPENED - day * DAY_MS) for n, day in enumerate(days, 1)])
    assert sorted(campaigns_of(listed(http))) == list(range(1, 9))
    assert sorted(campaigns_of(listed(http, since="-50d"))) == [1, 2, 3, 4, 5]
    seen, parameters = list[int](), {"limit": "2"}
    while True:
        page = http.get("/v1/alerts", params=parameters).json()
        seen += campaigns_of(page["data"])
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert sorted(seen) == list(range(1, 9)) and seen[:3] == [1, 2, 3] and seen[5:] == [6, 7, 8]


def test_an_acknowledgement_is_of_a_version_and_is_in_the_audit_log(http: httpx.Client, clickhouse: ClickHouse) -> None:
    mine = key(clickhouse, MINE)
    first, second = alert(7), alert(7, 2, severity="critical")
    insert_alerts(clickhouse, [first])
    path = f"/v1/alerts/{first.id}/acknowledge"
    acknowledged = http.post(path, headers=mine).json()
    assert acknowledged["acknowledged"]["version"] == 1
    insert_alerts(clickhouse, [second])
    again = http.post(path, json={"version": 1}).json()
    assert (again["version"], again["acknowledged"]) == (2, acknowledged["acknowledged"])
    assert http.post(path).json()["acknowledged"]["version"] == 2
    assert [a["acknowledged"]["by"] for a in listed(http, mine)] == ["key root"]
    unknown = http.post(path, json={"version": 3}, headers=mine)
    assert (unknown.status_code, unknown.json()["parameter"]) == (422, "version")
    log = http.get("/v1/audit").json()["data"]
    of_alerts = [
        (row["action"], row["subject"], row["actor"].split()[0]) for row in log if row["subject"].startswith("alert/")
    ]
    assert of_alerts == [("acknowledge", f"alert/{first.id}", "key")] * 2
    assert DirectoryStore(clickhouse).audit(10) == []
    assert all("/" not in subject for _, _, _, subject, _ in Keys(clickhouse).audit(100))


def test_links_and_tokens_that_only_read_change_nothing(http: httpx.Client, clickhouse: ClickHouse) -> None:
    mine, raised = key(clickhouse, MINE), alert(7)
    insert_alerts(clickhouse, [raised])
    mute = {"advertiser_id": MINE, "until": LATER}
    id_ = http.put("/v1/mutes", json=mute, headers=mine).json()["id"]
    root = {"Authorization": http.headers["Authorization"]}
    readers = [key(clickhouse, MINE, share=True), token(http, mine), token(http, root)]
    for headers in readers:
        assert http.get("/v1/access", headers=headers).json()["may_act_on_alerts"] is False
        assert http.post(f"/v1/alerts/{raised.id}/acknowledge", headers=headers).status_code == 403
        assert http.put("/v1/mutes", json=mute, headers=headers).status_code == 403
        assert http.delete(f"/v1/mutes/{id_}", headers=headers).status_code == 403
    for headers in (token(http, root, scopes=["read", "admin"]), mine):
        assert http.post(f"/v1/alerts/{raised.id}/acknowledge", headers=headers).status_code == 200


def test_a_mute_hides_alerts_in_every_router_until_it_ends(settings: Settings, http: httpx.Client, clickhouse: ClickHouse) -> None:  # fmt: skip
    mine, narrow = key(clickhouse, MINE), key(clickhouse, MINE, campaigns=frozenset({7}))
    insert_alerts(clickhouse, [alert(7), alert(8), alert(8, kind="ctr-drop"), alert(0), alert(7, advertiser=OTHERS)])
    kind = {"advertiser_id": MINE, "kind": "spend-spike", "until": LATER}
    with TestClient(create_app(settings)) as other:
        other.headers["Authorization"] = http.headers["Authorization"]

        def seen(**parameters: str) -> list[tuple[int, int, str]]:
            alerts = listed(other, None, **parameters)
            return sorted((a["advertiser_id"], a["campaign_id"], a["kind"]) for a in alerts)

        everything = seen()
        muted = http.put("/v1/mutes", json=kind | {"campaign_id": 8}, headers=mine).json()
        assert muted | {"at": ""} == kind | {"id": muted["id"], "campaign_id": 8, "by": muted["by"], "at": ""}
        wait_until(lambda: (MINE, 8, "spend-spike") not in seen(), 5, "the other router follows")
        assert set(everything) - set(seen()) == {(MINE, 8, "spend-spike")}
        of_kind = http.put("/v1/mutes", json=kind, headers=mine).json()
        assert set(everything) - set(seen()) == {(MINE, 0, "spend-spike"), (MINE, 7, "spend-spike"), (MINE, 8, "spend-spike")}  # fmt: skip
        whole = http.put("/v1/mutes", json={"advertiser_id": MINE, "until": LATER}, headers=mine).json()
        assert seen() == [(OTHERS, 7, "spend-spike")]
        assert seen(muted="true") == everything
        # What is marked as muted is what is left out.
        marks = {(a["advertiser_id"], a["muted_until"]) for a in listed(other, muted="true")}
        assert marks == {(MINE, LATER), (OTHERS, None)}
        ids = [m["id"] for m in other.get("/v1/mutes").json()["data"]]
        assert sorted(ids) == sorted([muted["id"], of_kind["id"], whole["id"]])
        # A key for some campaigns sees what hides its alerts, and ends none of it.
        assert {m["campaign_id"] for m in http.get("/v1/mutes", headers=narrow).json()["data"]} == {None}
        assert http.delete(f"/v1/mutes/{whole['id']}", headers=narrow).status_code == 403
        assert http.delete(f"/v1/mutes/{muted['id']}", headers=narrow).status_code == 404
        assert http.delete(f"/v1/mutes/{muted['id']}", headers=key(clickhouse, OTHERS)).status_code == 404
        for mute in (whole, of_kind, muted):
            assert http.delete(f"/v1/mutes/{mute['id']}", headers=mine).json() == mute
        wait_until(lambda: seen() == everything, 5, "the other router follows")
        assert http.delete(f"/v1/mutes/{whole['id']}", headers=mine).status_code == 404
        # Muted once more, and for less: the newest one counts.
        for days in (7, 1):
            until = iso((now_ms() + days * DAY_MS) // 1000 * 1000)
            assert http.put("/v1/mutes", json=kind | {"until": until}, headers=mine).json()["until"] == until
        assert {a["muted_until"] for a in listed(other, mine, muted="true", kind="spend-spike")} == {until}
    actions = [row["action"] for row in http.get("/v1/audit").json()["data"] if row["subject"].startswith("mute/")]
    assert actions == ["mute"] * 2 + ["unmute"] * 3 + ["mute"] * 3


def test_a_mute_ends_by_itself_and_an_advertiser_has_so_many(http: httpx.Client, clickhouse: ClickHouse) -> None:
    store, now = AlertStore(clickhouse), now_ms()
    insert_alerts(clickhouse, [alert(7)])
    http.put("/v1/mutes", json={"advertiser_id": MINE, "until": LATER})
    assert [len(store.mutes(at, [MINE])) for at in (now, now + 8 * DAY_MS)] == [1, 0]
    rows = ", ".join(
        f"('mu_{n}', 1, '', {OTHERS}, {n}, 0, {now + DAY_MS}, 'key k', now64(3), 0)" for n in range(MOST_MUTES)
    )
    clickhouse.command(f"INSERT INTO {clickhouse.database}.alert_mutes VALUES {rows}")
    refused = http.put("/v1/mutes", json={"advertiser_id": OTHERS, "until": LATER})
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/too-many-mutes")


HOSTILE: list[tuple[str, str, Any, int]] = [
    ("GET", "/v1/alerts?kind=%27%20OR%201=1", None, 400), ("GET", "/v1/alerts?campaign_id=1)%20OR%20(1", None, 400),
    ("GET", "/v1/alerts?cursor=%00", None, 400), ("GET", "/v1/alerts?since=9999-99-99", None, 400),
    ("GET", "/v1/alerts?limit=1e9", None, 400), ("GET", "/v1/alerts?muted=yes", None, 400), ("GET", "/v1/alerts?unknown=1", None, 400),
    ("GET", "/v1/alerts?state=open&state=closed", None, 400), ("GET", "/v1/alerts/stream?since=-1h", None, 400),
    ("GET", "/v1/alerts/%27%3B%20DROP%20TABLE%20alerts", None, 404), ("GET", "/v1/alerts/%00", None, 404),
    ("GET", "/v1/alerts/" + "x" * 5000, None, 404), ("GET", "/v1/alerts/\u202e", None, 404), ("GET", "/v1/alerts/x?limit=1", None, 400),
    ("POST", "/v1/alerts/%27/acknowledge", {}, 404), ("POST", "/v1/alerts/x/acknowledge", {"version": -1}, 400),
    ("POST", "/v1/alerts/x/acknowledge", {"version": 2**70}, 400), ("POST", "/v1/alerts/x/acknowledge", {"by": "root"}, 400),
    ("POST", "/v1/alerts/x/acknowledge", [], 400), ("PUT", "/v1/mutes", {}, 400), ("PUT", "/v1/mutes", [1], 400),
    ("PUT", "/v1/mutes", {"advertiser_id": "1", "until": LATER}, 400), ("PUT", "/v1/mutes", {"advertiser_id": 2**63, "until": LATER}, 400),
    ("PUT", "/v1/mutes", {"advertiser_id": 1, "until": "\x00"}, 400), ("PUT", "/v1/mutes", {"advertiser_id": 1, "until": 5}, 400),
    ("PUT", "/v1/mutes", {"advertiser_id": 1, "until": "2199-01-01T00:00:00Z"}, 422),
    ("PUT", "/v1/mutes", {"advertiser_id": 1, "until": LATER, "kind": "'; DROP TABLE x"}, 400),
    ("DELETE", "/v1/mutes/%27", None, 404), ("DELETE", "/v1/mutes/\ud83e\udd8a", None, 404), ("GET", "/v1/mutes?advertiser_id=x", None, 400),
]  # fmt: skip


def test_hostile_requests_are_refused_with_a_problem_document(http: httpx.Client) -> None:
    for method, path, body, status in HOSTILE:
        response = http.request(method, path.encode("utf-16", "surrogatepass").decode("utf-16"), json=body)
        assert response.status_code == status, (method, path, body, response.text)
        assert response.headers["content-type"] == "application/problem+json"
        assert "Traceback" not in response.text
    unknown = http.get("/v1/alerts/stream", headers={"Last-Event-ID": "al_1"})
    assert (unknown.status_code, unknown.json()["parameter"]) == (400, "Last-Event-ID")


# -- the stream ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    running = Server(settings)
    yield running
    running.process.kill()
    running.process.wait()


def versions_of(events: list[dict[str, str]]) -> list[tuple[int, int]]:
    """Campaign and version of what a stream has sent, in order."""
    return [
        (a["campaign_id"], a["version"]) for e in events if "event" not in e for a in json.loads(e["data"])
    ]  # fmt: skip


def test_each_version_is_streamed_once_also_after_a_reconnect(server: Server, clickhouse: ClickHouse) -> None:
    mine = key(clickhouse, MINE)
    insert_alerts(clickhouse, [alert(1)])
    page = httpx.get(f"{server.settings.http}/v1/alerts", headers=mine).json()
    assert campaigns_of(page["data"]) == [1]

    def follow(**more: str) -> Events:
        return Events(server, mine | more, "/v1/alerts/stream", [])

    first = follow()
    wait_until(lambda: first.events, 10, "the first event")
    assert versions_of(first.events) == []
    insert_alerts(clickhouse, [alert(1, 2), alert(2), alert(7, advertiser=OTHERS), alert(0, advertiser=OPERATOR)])
    wait_until(lambda: len(versions_of(first.events)) == 2, 5, "two versions")
    insert_alerts(clickhouse, [alert(1, 2), alert(3)])  # one of them once more
    wait_until(lambda: len(versions_of(first.events)) == 3, 5, "a third one")
    assert sorted(versions_of(first.events)) == [(1, 2), (2, 1), (3, 1)]
    first.close()
    insert_alerts(clickhouse, [alert(1, 3, state="closed")])
    resumed = follow(**{"Last-Event-ID": first.events[-1]["id"]})
    from_list = follow(**{"Last-Event-ID": page["as_of"]})
    wait_until(lambda: versions_of(resumed.events) == [(1, 3)], 5, "what was missed")
    wait_until(lambda: len(versions_of(from_list.events)) == 4, 5, "what came after the list")
    insert_alerts(clickhouse, [alert(4)])
    wait_until(lambda: versions_of(resumed.events) == [(1, 3), (4, 1)], 5, "what comes now")
    assert_stays(lambda: len(versions_of(resumed.events)) == 2, 3, "once")
    assert sorted(versions_of(from_list.events)) == [(1, 2), (1, 3), (2, 1), (3, 1), (4, 1)]


def test_a_stream_leaves_out_what_is_muted_and_ends_with_its_key(server: Server, clickhouse: ClickHouse) -> None:
    created, secret = Keys(clickhouse).create(
        "test", frozenset({MINE}), admin=False, rate=1e6, burst=1e6, lasts_ms=None
    )
    mine = {"Authorization": f"Bearer {secret}"}
    body = {"advertiser_id": MINE, "campaign_id": 7, "until": LATER}
    assert httpx.put(f"{server.settings.http}/v1/mutes", json=body, headers=mine).status_code == 200
    asked: list[list[tuple[str, str]]] = [[], [("muted", "true")], [("severity", "critical")]]
    streams = [Events(server, mine, "/v1/alerts/stream", parameters) for parameters in asked]
    for stream in streams:
        wait_until(lambda stream=stream: stream.events, 10, "the first event")
    insert_alerts(clickhouse, [alert(7), alert(8), alert(9, severity="critical")])
    wait_until(lambda: len(versions_of(streams[1].events)) == 3, 5, "all of them")
    wait_until(lambda: len(versions_of(streams[0].events)) == 2, 5, "those that are not muted")
    wait_until(lambda: versions_of(streams[2].events) == [(9, 1)], 5, "the critical one")
    assert sorted(versions_of(streams[0].events)) == [(8, 1), (9, 1)]
    Keys(clickhouse).revoke(created.id)
    for stream in streams:
        wait_until(stream.ended.is_set, 10, "the stream ends")
        assert stream.events[-1]["event"] == "problem"


def test_a_key_has_a_limit_of_streams(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAMS_A_KEY", 0)
    with TestClient(create_app(settings)) as http:
        headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
        refused = http.get("/v1/alerts/stream", headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-streams")


def test_a_stream_that_is_far_behind_catches_up_in_steps(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(reader, "_MOST_AT_ONCE", 10)
    monkeypatch.setattr(reader, "_MOST_RECENT", 20)
    alerts, filter_ = AlertReader(AlertStore(clickhouse), Signer("secret")), AlertFilter(WHOLE_INSTALLATION)
    mine = AlertFilter(AlertScope(RowScope(frozenset({MINE}))))
    begun = {name: alerts.begin(f) for name, f in (("all", filter_), ("mine", mine))}
    old = ", ".join(
        f"('al_old{n}', 1, 'lag', 'warning', 'open', {n % 2}, 5, {OPENED}, 0, '', '{{}}', now64(3) - INTERVAL {9 - n // 5} HOUR)"
        for n in range(45)
    )
    clickhouse.command(f"INSERT INTO {clickhouse.database}.alerts VALUES {old}")
    for number in range(50):
        insert_alerts(clickhouse, [alert(number, advertiser=1 + number % 2)])
    for name, chosen, expected in (("all", filter_, 95), ("mine", mine, 22 + 25)):
        position = type(begun[name])(begun[name].from_ms - DAY_MS)
        sent, steps, deadline = list[str](), 0, time.monotonic() + PATIENCE
        # What is read of the last minutes is up to half a second old: a fast machine takes all its steps in less.
        while (len(sent) < expected and time.monotonic() < deadline) or steps < 60:
            step = alerts.next(position, chosen, now_ms())
            sent += [a["id"] for a in step.alerts]
            position, steps = step.position, steps + 1
        assert len(sent) == len(set(sent)) == expected, name


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_line_lists_acknowledges_and_mutes(
    settings: Settings, clickhouse: ClickHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    first = alert(7)
    insert_alerts(clickhouse, [first, alert(0, advertiser=OPERATOR, kind="lag", summary="\x1b[2J ingest is behind")])

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["adclick", "alerts", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    def data(*words: str) -> Any:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    assert [a["advertiser_id"] for a in data("list")] == [MINE, OPERATOR]
    assert [a["kind"] for a in data("list", "--advertiser", "0")] == ["lag"]
    assert [row["alerts"] for row in data("summary")["data"]] == [0, 1, 0, 0]
    assert "0 months of campaigns" in run("summary")[2]
    table = run("list", "--severity", "warning", "--state", "open")[1]
    assert first.id in table and first.summary in table and "\x1b" not in table
    assert data("ack", first.id)["acknowledged"]["version"] == 1
    assert data("show", first.id)["history"][0]["detail"] == {"value": 2**60}
    assert first.summary in run("show", first.id)[1]
    mute = data("mute", "--advertiser", "1", "--campaign", "7", "--for", "7d")
    assert mute["campaign_id"] == 7
    assert [a["advertiser_id"] for a in data("list")] == [OPERATOR]
    assert [a["advertiser_id"] for a in data("list", "--muted")] == [MINE, OPERATOR]
    assert data("mutes") == [mute]
    assert mute["id"] in run("mutes")[1]
    assert data("unmute", mute["id"]) == mute
    assert len(data("list")) == 2
    for words, code, expected in (
        (("unmute", mute["id"]), 1, "no such mute"), (("show", "al_none"), 1, "no such alert"), (("ack", "al_none"), 1, "no such alert"),
        (("list", "--since", "soon"), 2, "since must be"), (("list", "--kind", "A"), 2, "kind must be"),
        (("mute", "--advertiser", "1", "--for", "91d"), 2, "90 days"), (("mute", "--advertiser", "1", "--for", "x"), 2, "duration"),
    ):  # fmt: skip
        status, out, err = run(*words)
        assert (status, out) == (code, ""), err
        assert expected in err and "Traceback" not in err
