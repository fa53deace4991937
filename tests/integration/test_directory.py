"""The directory over the real Redis and ClickHouse: over HTTP, as names of rows, and from files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from starlette.testclient import TestClient

from infra.cli.main import main
from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, iso, now_ms
from infra.redis.client import Redis
from infra.settings import Settings
from query.api.app import create_app
from query.directory.editor import DirectoryEditor
from query.directory.entries import Advertiser, Campaign, Entry
from query.directory.reader import DirectoryReader
from query.directory.store import DirectoryStore
from query.keys import Keys
from tests import borders
from tests.flow import environment

HOUR = (now_ms() - 48 * HOUR_MS) // HOUR_MS * HOUR_MS
HOSTILE = ["<img src=x onerror=alert(1)>", "=1+1", "\u202egnp.exe", "عربي", "👩‍👩‍👧", 'a "b", c', "ß" * 500]


@pytest.fixture
def clickhouse(settings: Settings) -> ClickHouse:
    return ClickHouse(settings.clickhouse, settings.database)


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    """A client with the installation's own key."""
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        yield client


def put(http: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    response = http.put(f"/v1/{path}", json=fields)
    assert response.status_code == 200, response.text
    entry: dict[str, Any] = response.json()
    return entry


def fill(http: httpx.Client) -> None:
    """Advertisers 1 and 2, each with a campaign and an ad of it, and a publisher."""
    for number in (1, 2):
        put(http, f"advertisers/{number}", name=f"Advertiser {number}", timezone="Asia/Kolkata")
        put(http, f"campaigns/{number}0", name=f"Été {number}", advertiser_id=number)
        put(http, f"ads/{number}00", name=f"Ad {number}", campaign_id=number * 10)
    put(http, "publishers/5", name="Daily News")


def tenant(clickhouse: ClickHouse, *advertisers: int) -> dict[str, str]:
    _, token = Keys(clickhouse).create("test", frozenset(advertisers), admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    return {"Authorization": f"Bearer {token}"}


def test_entries_are_written_listed_changed_and_deleted(http: httpx.Client, settings: Settings) -> None:
    fill(http)
    facts = {"timezone": "Asia/Kolkata", "status": "paused", "start": "2026-11-01", "end": None, "budget": "daily", "budget_micros": 2**62}  # fmt: skip
    written = put(http, "campaigns/11", name=" Winter ", advertiser_id=1, **facts)
    assert written == {"id": 11, "name": "Winter", "advertiser_id": 1, **facts}
    assert http.get("/v1/campaigns/11").json() == written

    def ids(kind: str, **parameters: str) -> list[int]:
        response = http.get(f"/v1/{kind}", params=parameters)
        assert response.status_code == 200, response.text
        return [entry["id"] for entry in response.json()["data"]]

    assert ids("campaigns") == [11, 10, 20]  # é sorts behind w, as its code point does
    assert ids("campaigns", q="éTÉ") == [10, 20]
    assert ids("campaigns", q="20") == [20]
    assert ids("campaigns", advertiser_id="1", status="paused") == [11]
    assert ids("ads", advertiser_id="2") == [200]
    assert ids("ads", campaign_id="10") == [100]
    first = http.get("/v1/campaigns", params={"limit": "2"}).json()
    second = http.get("/v1/campaigns", params={"limit": "2", "cursor": first["next_cursor"]}).json()
    assert [entry["id"] for entry in first["data"] + second["data"]] == [11, 10, 20]
    assert second["next_cursor"] is None
    assert http.delete("/v1/campaigns/10").status_code == 409
    assert http.delete("/v1/campaigns/11").json() == written
    for method in ("GET", "DELETE"):
        assert http.request(method, "/v1/campaigns/11").status_code == 404
    put(http, "campaigns/20", name="Été 2", advertiser_id=2)  # nothing new
    log = DirectoryStore(ClickHouse(settings.clickhouse, settings.database)).audit(100)
    assert [row[2:4] for row in log if row[3].startswith("campaign")] == [
        ("delete", "campaign/11"), ("create", "campaign/11"), ("create", "campaign/20"), ("create", "campaign/10"),
    ]  # fmt: skip
    assert {row[1] for row in log} == {"key root"}


def test_a_tenant_sees_its_own_entries_and_changes_none(http: httpx.Client, clickhouse: ClickHouse) -> None:
    fill(http)
    mine = tenant(clickhouse, 1)
    shown = {
        kind: [entry["id"] for entry in http.get(f"/v1/{kind}", headers=mine).json()["data"]]
        for kind in ("advertisers", "campaigns", "ads", "publishers")
    }
    assert shown == {"advertisers": [1], "campaigns": [10], "ads": [100], "publishers": [5]}
    for path in ("advertisers/2", "campaigns/20", "ads/200", "campaigns/99"):
        assert http.get(f"/v1/{path}", headers=mine).status_code == 404
    assert http.get("/v1/campaigns?advertiser_id=2", headers=mine).status_code == 403
    assert http.put("/v1/campaigns/10", json={"name": "x", "advertiser_id": 1}, headers=mine).status_code == 403
    assert http.delete("/v1/ads/100", headers=mine).status_code == 403


_REFUSED: list[tuple[str, Any, str]] = [
    ("campaigns/1", {"name": "x", "advertiser_id": 9}, "advertiser_id"),
    ("campaigns/1", {"name": "x"}, "advertiser_id"),
    ("campaigns/1", {"name": "x", "advertiser_id": "1"}, "advertiser_id"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "budget": "daily", "budget_micros": -1}, "budget_micros"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "budget": "daily"}, "budget_micros"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "budget_micros": 1}, "budget"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "timezone": "Mars/Olympus"}, "timezone"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "status": "gone"}, "status"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "start": "2026-02-30"}, "start"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "start": "2026-02-02", "end": "2026-02-01"}, "end"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "colour": "red"}, "colour"),
    ("campaigns/1", {"name": "x", "advertiser_id": 1, "id": 2}, "id"),
    (f"campaigns/{2**63}", {"name": "x", "advertiser_id": 1}, "id"),
    ("publishers/1", {"name": "x" * 10_000}, "name"),
    ("publishers/1", {"name": " "}, "name"),
    ("publishers/1", {"name": "a\nb"}, "name"),
    ("publishers/1", [], "body"),
]


def test_what_cannot_be_taken_names_the_field_at_fault(http: httpx.Client) -> None:
    put(http, "advertisers/1", name="Acme")
    for path, body, parameter in _REFUSED:
        response = http.put(f"/v1/{path}", json=body)
        assert (response.status_code, response.json().get("parameter")) == (400, parameter), body
    as_json = {"Content-Type": "application/json"}
    assert http.put("/v1/publishers/1", content=b'{"name": "\xff"}', headers=as_json).status_code == 400
    assert http.put("/v1/publishers/1", content=iter([b" " * 50_000] * 2), headers=as_json).status_code == 413
    assert http.get("/v1/publishers").json()["data"] == http.get("/v1/campaigns").json()["data"] == []
    for number, name in enumerate(HOSTILE):
        put(http, f"publishers/{number}", name=name)
    assert {entry["name"] for entry in http.get("/v1/publishers").json()["data"]} == set(HOSTILE)


def numbers_of(clickhouse: ClickHouse, settings: Settings, ids: list[tuple[int, int, int]], hours: int = 1) -> dict[str, str]:  # fmt: skip
    """Closed hours with a row for each (advertiser, campaign, ad); returns the question about advertiser 1's ads."""
    rows = ", ".join(
        f"({(HOUR + hour * HOUR_MS) // 1000}, {campaign}, {advertiser}, {ad}, 5, 'DE', 'mobile', 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)"
        for hour in range(hours)
        for advertiser, campaign, ad in ids
    )
    clickhouse.command(f"INSERT INTO {settings.database}.stream_hours VALUES {rows}")
    borders.publish(clickhouse, "hours", range(settings.block_partitions), HOUR + hours * HOUR_MS)
    return {
        "start": iso(HOUR), "end": iso(HOUR + hours * HOUR_MS), "granularity": "hour", "group_by": "campaign_id,ad_id,publisher_id",
        "names": "true",
    }  # fmt: skip


def test_rows_have_the_names_that_the_key_may_see_in_every_format(
    http: httpx.Client, clickhouse: ClickHouse, settings: Settings
) -> None:
    fill(http)
    # Advertiser 1 uses the id of a campaign of advertiser 2, too, whose name it must not see; ad 999 has no entry.
    question = numbers_of(clickhouse, settings, [(1, 10, 100), (1, 10, 999), (1, 20, 200), (2, 20, 200)]) | {"advertiser_id": "1"}  # fmt: skip
    columns = ["campaign_id", "campaign_name", "ad_id", "ad_name", "publisher_id", "publisher_name"]
    everything = [
        (10, "Été 1", 100, "Ad 1", 5, "Daily News"),
        (10, "Été 1", 999, "999", 5, "Daily News"),
        (20, "Été 2", 200, "Ad 2", 5, "Daily News"),
    ]
    own = [*everything[:2], (20, "20", 200, "200", 5, "Daily News")]

    def ask(headers: dict[str, str], form: str) -> httpx.Response:
        response = http.get("/v1/metrics", params=question | {"format": form}, headers=headers)
        assert response.status_code == 200, response.text
        return response

    for headers, expected in (({}, everything), (tenant(clickhouse, 1), own)):
        document = ask(headers, "json").json()
        assert [column["name"] for column in document["meta"]][1:7] == columns
        assert [tuple(row[column] for column in columns) for row in document["data"]] == expected
        assert (document["warnings"], list(document["data"][0])[1:7]) == ([], columns)
        for form, read in (("csv", pl.read_csv), ("ndjson", pl.read_ndjson), ("arrow", pl.read_ipc_stream)):
            frame: pl.DataFrame = read(io.BytesIO(ask(headers, form).content))
            assert frame.columns[1:7] == columns
            assert frame.select(pl.col("^.*_name$").cast(pl.String), pl.col("^.*_id$"))[columns].rows() == expected
    put(http, "ads/999", name="New", campaign_id=10)
    assert "New" in http.get("/v1/metrics", params=question | {"format": "csv", "fill": "zero"}).text


class FailingStore(DirectoryStore):
    """Away while `fails` is set."""

    fails = False

    def read_since(self, version: int) -> pl.DataFrame:
        if self.fails:
            from infra.errors import Unavailable

            raise Unavailable("ClickHouse: gone")
        return super().read_since(version)


def test_a_reader_follows_by_version_and_keeps_what_it_has(clickhouse: ClickHouse, settings: Settings) -> None:
    now = [0.0]
    store = FailingStore(clickhouse)
    here, there = (DirectoryReader(s, lambda: now[0]) for s in (store, DirectoryStore(clickhouse)))
    editor = DirectoryEditor(DirectoryStore(clickhouse), there, Redis(settings.redis), settings.key_prefix)
    assert here.current().snapshot.count("advertiser") == 0
    editor.put([Advertiser(1, "Acme")], "me")
    now[0] += 5.0
    assert here.begin()().snapshot.entries("advertiser", [1]) == [Advertiser(1, "Acme")]
    store.fails = True
    now[0] += 5.0
    lookup = here.current()
    assert (lookup.snapshot.count("advertiser"), lookup.stale_s) == (1, 5.0)
    store.fails = False
    editor.put([Advertiser(1, "Acme Ltd")], "me")
    # Put back to an earlier version, as a restored backup would be.
    clickhouse.command(f"TRUNCATE TABLE {settings.database}.directory")
    now[0] += 60.0
    assert here.newest().count("advertiser") == 0


def test_concurrent_batches_are_checked_one_against_the_other(clickhouse: ClickHouse, settings: Settings) -> None:
    def editor() -> DirectoryEditor:
        store = DirectoryStore(clickhouse)
        return DirectoryEditor(store, DirectoryReader(store), Redis(settings.redis), settings.key_prefix)

    batch: list[Entry] = [Advertiser(1, "Acme"), *(Campaign(number, f"Campaign {number}", 1) for number in range(200))]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: editor().put(batch, "me"), range(4)))
    assert sorted(outcome.created for outcome in outcomes) == [0, 0, 0, 201]
    assert sum(outcome.unchanged for outcome in outcomes) == 3 * 201
    assert len(DirectoryStore(clickhouse).audit(10_000)) == 201


def test_files_are_imported_once_and_exported_as_they_were(
    http: httpx.Client, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, list[str]]:
        """Exit code, standard output, lines of standard error."""
        monkeypatch.setattr("sys.argv", ["adclick", "directory", *words])
        capsys.readouterr()  # the access log of `http`
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err.splitlines()

    Path("some.ndjson").write_text(
        '{"kind":"advertiser","id":1,"name":"Acme"}\n{"kind":"campaign","id":7,"name":"=Winter, 1","advertiser_id":1}\n'
        '{"kind":"campaign","id":8,"name":"Two","advertiser_id":9}\n{"kind":"campaign","id":7,"name":"Again","advertiser_id":1}\n'
    )
    refused = [
        "some.ndjson:3: no such advertiser: 9; it must be in the directory before its campaigns",
        "some.ndjson:4: campaign 7 is on line 2 already",
    ]
    for counts in ("2 created, 0 changed, 0 unchanged", "0 created, 0 changed, 2 unchanged"):
        assert run("import", "some.ndjson") == (1, "", [*refused, f"some.ndjson: {counts}; 2 not taken"])
    assert http.get("/v1/campaigns/7").json()["name"] == "=Winter, 1"
    Path("wrong.csv").write_text("id,title\n1,Acme\n")
    wrong = ["adclick: wrong.csv: no such column: 'title' (there are kind, id, name)"]
    assert run("import", "wrong.csv", "--kind", "publisher") == (1, "", wrong)
    assert run("export", "--out", "all.csv") == (0, "", ["all.csv: 2 entries"])
    code, output, _ = run("import", "all.csv", "--json")
    assert (code, json.loads(output)) == (0, {"created": 0, "changed": 0, "unchanged": 2, "refused": []})
    assert len(json.loads(run("audit", "--json")[1])) == 2
