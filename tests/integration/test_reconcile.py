"""The nightly job over archived rows with every cause of a difference, killed in each gap between its writes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from batch import archived_rows, coverage, publish, spark_job
from batch.recount import UnbilledEvents
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.errors import UserError
from infra.file_store import FileStore
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import events
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import worker as archive_worker
from ingest.archive.schema import Decision
from query.api.app import create_app
from query.api.metrics import Metrics
from query.keys import Keys
from query.ledger import LedgerReader, parse_ledger_question
from query.question import parse_question
from query.router import Router
from query.row_scope import ALL_ROWS, RowScope
from query.runs import read_runs
from query.signing import Signer
from query.statements.contents import BilledDay, Contents
from query.statements.store import Issue, StatementStore
from tests import borders
from tests.clusters.tcp_proxy import Proxy
from tests.conftest import ADCLICK, adclick
from tests.flow import environment
from tests.hostile_letters import send_hostile_letters
from tests.integration.test_trace import trace
from tests.posts import Posts
from tests.product import wait_until
from tests.unit.test_reach import greatest

DAY = now_ms() // DAY_MS * DAY_MS - DAY_MS
# What was decided about clicks of 7 micros, and by how much the exact count of clicks differs from the stream's.
_PLANTED: dict[str, list[dict[str, Any]]] = {
    "late": [{"decision": Decision.TOO_LATE}] * 3,
    "shed": [{"decision": Decision.SHED}, {"weight": 3}],
    "doubt": [{"decision": Decision.DOUBT}] * 2,
    "cross-partition-duplicate": [{"event_id": "across", "partition": 0}, {"event_id": "across", "partition": 1}],
    "expired-horizon-duplicate": [{"event_id": "expired"}, {"event_id": "expired"}],
    "conflicting-copy": [{"event_id": "unlike"}, {"event_id": "unlike", "publisher_id": 9}],
    "dead-letter-replayed": [{"event_id": "again", "decision": Decision.TOO_LATE, "log_time_ms": now_ms() + HOUR_MS}]
    * 2,
    "": [{}, {}, {"event_id": "copied"}, {"event_id": "copied", "decision": Decision.COPY, "user": 99}],
}
# Two of them share a register; the rank of one is the highest.
_USERS = (7, 7 | 1 << 62, 5 << 40 | 8191, 0x6789_ABCD_EF01_2345, 3 << 13)
PLANTED_ROWS = sum(map(len, _PLANTED.values()))
_ROW: dict[str, Any] = {
    "event_type": 1, "time_ms": DAY + HOUR_MS, "campaign_id": 1, "ad_id": 2, "advertiser_id": 3, "publisher_id": 4,
    "country": 0, "device": 0, "user": None, "cost_micros": 7, "weight": 1, "lateness": 0, "copy_of": None,
    "decision": Decision.COUNTED,
}  # fmt: skip
MOVED = {
    "late": 3, "shed": -1, "doubt": 2, "cross-partition-duplicate": -1, "expired-horizon-duplicate": -1,
    "conflicting-copy": -1, "dead-letter-replayed": 1,
}  # fmt: skip
DAY_SHOWN = iso(DAY)[:10]
_EXACT, _STREAM = 3 + 2 + 2 + 1 + 1 + 1 + 1 + 3, 3 + 2 + 2 + 1 + 3
_STREAM_UNLIKE = 1


@pytest.fixture
def planted(settings: Settings) -> Settings:
    """Archived rows of yesterday, and the hours that the stream made of them."""
    plant(settings)
    return settings


def plant(settings: Settings) -> None:
    """Write them."""
    rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for number, special in enumerate(x for many in _PLANTED.values() for x in many):
        row = (
            _ROW
            | {
                "event_id": f"e{number}",
                "log_time_ms": DAY + HOUR_MS + number,
                "offset": number,
                "user": _USERS[number % 5],
            }
            | special
        )
        rows[row.pop("partition", 0)].append(row)
    for partition, partition_rows in rows.items():
        wire = pa.Table.from_pylist(partition_rows, schema=archive_schema.SCHEMA)
        archive_worker.write_files(FileStore(settings.archive), partition, 0, 100, wire)
    _reject(settings, "again")
    send_hostile_letters(settings)
    client = ClickHouse.of(settings)
    for publisher, clicks in ((4, _STREAM), (9, _STREAM_UNLIKE)):
        client.command(
            f"INSERT INTO {settings.database}.stream_hours"
            " SELECT toDateTime({time:UInt32}, 'UTC'), 1, 3, 2, {publisher:UInt64}, {country:String}, {device:String}, 0,"
            " 0, {clicks:UInt64}, 0, {clicks:UInt64} * 7, 0, 0, 0, 0, 1, 0, 0",
            {
                "time": (DAY + HOUR_MS) // 1000, "publisher": publisher, "clicks": clicks,
                "country": events.COUNTRIES[0], "device": events.DEVICES[0],
            },
        )  # fmt: skip
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(settings.block_partitions), DAY + DAY_MS)


def _reject(settings: Settings, event_id: str, source: str = "x/0/1000") -> None:
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}letters")
    producer.open()
    headers = (("reason", b"bad-value"), ("source", source.encode()))
    value = b'{"event_id": "%s"}' % event_id.encode()
    producer.write([Record(settings.topic(topics.DEAD_LETTERS), value, None, 0, headers)])


def causes_of(report: str, measure: str = "clicks") -> dict[str, int]:
    """Cause → by how much it changes a measure, of a command's JSON."""
    return {cause: measures[measure] for cause, measures in json.loads(report)["causes"].items()}


def _clicks(settings: Settings, grain: str) -> tuple[int, str]:
    parameters = [("campaign_id", "1"), ("start", iso(DAY)), ("end", iso(DAY + DAY_MS)), ("granularity", grain)]
    router = Router(settings)
    (row,) = router.answer(parse_question(parameters, now_ms(), router.retention)).page.frame.rows(named=True)
    return row["clicks"], row["finality"]


def test_a_run_that_dies_shows_nothing_before_it_is_published_and_the_next_one_completes(
    planted: Settings,
) -> None:
    redis, env = Redis(planted.redis), environment(planted)
    words = ["reconcile", "--date", DAY_SHOWN, "--json"]

    def dies_at(point: str) -> None:
        result = adclick(*words, cwd=None, **env, ADCLICK_FAULT=f"kill@reconcile.{point}")
        assert result.returncode == -signal.SIGKILL, result.stderr
        redis.call("DEL", f"{planted.key_prefix}reconcile")  # its lease would last half a minute

    # From before anything is read, to where exact hours, days and the ledger are written, and only the row that makes them
    # current is not.
    for point in ("proved", "counted", "written", "compared"):
        dies_at(point)
        assert _clicks(planted, "hour") == (_STREAM + _STREAM_UNLIKE, "closed"), point
    dies_at("published")
    assert _clicks(planted, "hour") == (_EXACT, "reconciled")
    assert _clicks(planted, "day") == (_EXACT, "reconciled")
    again = adclick(*words, cwd=None, **env)
    assert (again.returncode, "nothing to do" in again.stdout + again.stderr) == (0, True), again.stderr
    explained = adclick("reconcile", "--explain", "1", "--date", DAY_SHOWN, "--json", cwd=None, **env)
    assert causes_of(explained.stdout) == MOVED
    assert causes_of(explained.stdout, "spend_micros") == {cause: 7 * clicks for cause, clicks in MOVED.items()}


def test_a_run_that_loses_its_disk_or_its_database_reports_it_and_shows_nothing(planted: Settings) -> None:
    words, env = ["reconcile", "--date", DAY_SHOWN], environment(planted)

    def fails_with(reason: str, run: subprocess.CompletedProcess[str]) -> None:
        assert (run.returncode, reason in run.stderr, "Traceback" in run.stderr) == (1, True, False), run.stderr
        assert _clicks(planted, "hour") == (_STREAM + _STREAM_UNLIKE, "closed")

    # As on a full disk, only that each file is refused more than so many bytes.
    limit = f"ulimit -f 1; exec {sys.executable} -m infra {' '.join(words)}"
    full = ["bash", "-c", limit]
    fails_with("is full", subprocess.run(full, env=os.environ | env, capture_output=True, text=True, timeout=1200))
    network = Proxy(planted.clickhouse)
    variables = env | {"ADCLICK_CLICKHOUSE": network.url, "ADCLICK_FAULT": "stop@reconcile.counted"}
    with (
        network,
        subprocess.Popen(
            [*ADCLICK, *words], env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run,
    ):
        wait_until(lambda: psutil.Process(run.pid).status() == psutil.STATUS_STOPPED, 60, "the day is counted")
        network.cut()
        run.send_signal(signal.SIGCONT)
        output = run.communicate(timeout=600)
    fails_with("ClickHouse", subprocess.CompletedProcess(words, run.returncode, *output))


def test_events_that_arrive_after_a_day_was_billed_raise_an_alert(planted: Settings) -> None:
    hook = Posts()
    env = environment(planted) | {"ADCLICK_ALERT_WEBHOOK": f"http://127.0.0.1:{hook.server_port}/"}
    try:
        assert adclick("reconcile", "--date", DAY_SHOWN, "-q", cwd=None, **env).returncode == 3
        (alert,) = map(json.loads, hook.bodies)
        assert (alert["date"], {c: m["clicks"] for c, m in alert["causes"].items()}) == (DAY_SHOWN, MOVED)
        assert b"adclick_reconciliation_alert_days 1.0\n" in Metrics(planted).render()
        # Nothing was read from Kafka in that run, so all that is archived of the day came later, but for what was taken for a copy.
        today = [_ROW | {"event_id": "new", "offset": 200, "log_time_ms": now_ms(), "time_ms": DAY + DAY_MS}]
        old = [
            _ROW
            | {
                "event_id": "old",
                "offset": 201,
                "log_time_ms": now_ms(),
                "time_ms": DAY - 70 * DAY_MS,
                "decision": Decision.TOO_LATE,
            }
        ]
        wire = pa.Table.from_pylist(today + old, schema=archive_schema.SCHEMA)
        archive_worker.write_files(FileStore(planted.archive), 0, 200, 202, wire)
        later = adclick("reconcile", "--date", iso(DAY + DAY_MS)[:10], "--force", cwd=None, **env)
        assert later.returncode == 3, later.stderr
        assert "without a cause" not in later.stderr  # its hour has not closed yet
        assert f"is still open: from {iso(DAY + DAY_MS)} on, the stream answers" in later.stderr
        assert f"{iso(DAY - 70 * DAY_MS)[:10]}: 1 events are archived, and it was never reconciled" in later.stderr
        assert {"date": DAY_SHOWN, "unbilled": PLANTED_ROWS - 1}.items() <= json.loads(hook.bodies[1]).items()
        shown = {run["date"]: run["unbilled"] for run in read_runs(ClickHouse.of(planted))}
        assert shown[DAY_SHOWN] == PLANTED_ROWS - 1
        metrics = Metrics(planted).render().decode()
        assert f"adclick_unbilled_events {PLANTED_ROWS - 1}.0\n" in metrics
        # The forced run is of a part of its day alone.
        (newest,) = re.findall(r"^adclick_newest_reconciled_day_timestamp_seconds (\S+)$", metrics, re.M)
        assert float(newest) * 1000 == DAY
    finally:
        hook.shutdown()


def test_the_ledger_explains_every_difference(planted: Settings) -> None:
    env, date = environment(planted), DAY_SHOWN
    assert adclick("reconcile", "--date", date, "-q", cwd=None, **env).returncode == 3
    explained = adclick("reconcile", "--explain", "1", "--date", date, "--json", cwd=None, **env)
    report = json.loads(explained.stdout)
    assert (report["stream"]["clicks"], report["billed"]["clicks"]) == (_STREAM + _STREAM_UNLIKE, _EXACT)
    assert causes_of(explained.stdout) == MOVED
    assert report["users"] == len(_USERS) + 1  # that of the copy
    _check_reach(planted)
    shown = adclick("reconcile", "--explain", "1", "--date", date, cwd=None, **env).stdout
    assert "were copies sent under another key" in shown
    client, signer = ClickHouse.of(planted), Signer("test")
    run_files = client.rows(f"SELECT path, bytes, sha256 FROM {planted.database}.run_files")
    files = Path(planted.archive).rglob("*.parquet")
    assert set(run_files) == {(str(f), f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}
    rows, cursor = [], list[tuple[str, str]]()
    while True:
        question = parse_ledger_question(
            date, [("campaign_id", "1"), ("limit", "2"), *cursor], RowScope(frozenset({3})), signer
        )
        document = LedgerReader(client).answer(question, signer)
        assert document is not None
        rows += document["data"]
        if document["next_cursor"] is None:
            break
        cursor = [("cursor", document["next_cursor"])]
    assert {row["cause"]: row["share"]["clicks"] for row in rows} == MOVED
    assert {(r["publisher_id"], r["stream"]["clicks"], r["exact"]["clicks"]) for r in rows} == {
        (4, _STREAM, _EXACT), (9, _STREAM_UNLIKE, 0),
    }  # fmt: skip
    foreign = parse_ledger_question(date, [("cause", "doubt")], RowScope(frozenset({4})), signer)
    of_another = LedgerReader(client).answer(foreign, signer)
    assert of_another is not None
    assert of_another["rows"] == 0
    assert LedgerReader(client).answer(parse_ledger_question("2020-01-01", [], ALL_ROWS, signer), signer) is None
    _check_bill(planted)
    _check_traces(planted)


def _check_traces(settings: Settings) -> None:
    """Each planted event is billed by the published run, or not, for the cause that the ledger has; and so in a statement of that run."""
    client = ClickHouse.of(settings)
    (run,) = read_runs(client)
    date = dt.date.fromisoformat(DAY_SHOWN)
    days = [BilledDay(date, [0, _EXACT, 0, 7 * _EXACT], "reconciled", run["run_id"])]
    contents = Contents(3, "three", date.replace(day=1), "USD", days, [])
    StatementStore(client).add(Issue(1, contents.digest, now_ms(), 1, (run["run_id"],), contents))
    traced: dict[str, list[tuple[str | None, bool]]] = {}
    for event_id in ("e0", "e4", "e5", "across", "expired", "unlike", "again", "copied", "e15"):
        answer = trace(settings, event_id, "--since", DAY_SHOWN)
        messages = [m for m in answer.document["messages"] if m["decision"] != "copy"]
        traced[event_id] = [(m["runs"][0]["cause"], m["billed"]) for m in messages]
        for m in messages:
            assert [(s["issue"], s["has_it"]) for s in m["statements"]] == [(1, m["billed"])], event_id
            windows = {w["granularity"]: w for w in m["windows"]}
            # All planted clicks are of one hour and one set of dimensions, but for the conflicting copy.
            other = event_id == "unlike" and not m["billed"]
            assert (windows["hour"]["state"], windows["hour"]["events"]) == ("reconciled", 0 if other else _EXACT)
    assert traced == {
        "e0": [("late", True)], "e4": [("shed", True)], "e5": [("doubt", True)],
        "across": [(None, True), ("cross-partition-duplicate", False)],
        "expired": [(None, True), ("expired-horizon-duplicate", False)],
        "unlike": [(None, True), ("conflicting-copy", False)],
        "again": [("dead-letter-replayed", True), (None, False)],
        "copied": [(None, True)], "e15": [(None, True)],
    }  # fmt: skip
    assert "billed by run" in trace(settings, "e0", "--date", DAY_SHOWN, as_json=False).out
    # Archived once the run had read the archive: the next run of the day counts it.
    row = _ROW | {"event_id": "after", "offset": 300, "log_time_ms": now_ms()}
    wire = pa.Table.from_pylist([row], schema=archive_schema.SCHEMA)
    archive_worker.write_files(FileStore(settings.archive), 0, 300, 301, wire)
    assert (
        f"adclick reconcile --date {DAY_SHOWN} counts it"
        in trace(settings, "after", "--date", DAY_SHOWN).document["summary"]
    )


def _check_reach(settings: Settings) -> None:
    """The run's registers are those of all users of its hour, and of the day, which has no other."""
    for table, start_ms in (("exact_reach_hours", DAY + HOUR_MS), ("exact_reach_days", DAY)):
        ((time_s, *keys, coupons),) = ClickHouse.of(settings).rows(
            "SELECT toUnixTimestamp(time), campaign_id, advertiser_id, arraySort(c -> bitAnd(c, 8191), coupons)"
            f" FROM {settings.database}.{table} FINAL"
        )
        assert (time_s * 1000, *keys) == (start_ms, _ROW["campaign_id"], _ROW["advertiser_id"])
        assert list(coupons) == greatest(list(_USERS))


def _check_bill(settings: Settings) -> None:
    """The causes of the reconciled day over HTTP: all of it for admins, nothing of it for another tenant."""
    keys = Keys(ClickHouse.of(settings))
    tokens = {
        advertiser: keys.create("t", frozenset({advertiser}), admin=False, rate=1e6, burst=1e6, lasts_ms=None)[1]
        for advertiser in (3, 4)
    }
    with TestClient(create_app(settings)) as http:

        def get(path: str, token: str) -> Any:
            response = http.get(f"/v1/reconciliations{path}", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == 200, response.text
            return response.json()

        clicks = {"shown": _STREAM + _STREAM_UNLIKE, "billed": _EXACT}
        admin = get(f"/{DAY_SHOWN}/causes", settings.api_key.get_secret_value())
        for document in (admin, get(f"/{DAY_SHOWN}/causes?campaign_id=1", tokens[3])):
            assert {c["cause"]: c["clicks"] for c in document["causes"]} == MOVED
            for measure, factor in {"impressions": 0, "clicks": 1, "conversions": 0, "spend_micros": 7}.items():
                assert {name: document[name][measure] for name in clicks} == {n: factor * c for n, c in clicks.items()}
                moved = sum(cause[measure] for cause in document["causes"])
                assert document["shown"][measure] + moved == document["billed"][measure]
        files = {str(f) for f in Path(settings.archive).rglob("*.parquet")}
        assert ({f["path"] for f in admin["files"]}, admin["file_count"]) == (files, len(files))
        assert re.fullmatch("[0-9a-f]{64}", admin["digest"])
        (run,) = get(f"?from={DAY_SHOWN}&to={DAY_SHOWN}", tokens[3])["data"]
        assert {name: run[name]["clicks"] for name in clicks} == clicks
        assert run["drift"] == round((_EXACT - _STREAM - _STREAM_UNLIKE) / _EXACT, 6)
        assert "rows" not in run
        # Of a tenant without rows, nothing but that there was a run.
        nothing = dict.fromkeys(("impressions", "clicks", "conversions", "spend_micros"), 0)
        others = get(f"/{DAY_SHOWN}/causes", tokens[4])
        assert (others["shown"], others["billed"], others["causes"]) == (nothing, nothing, [])
        (run,) = get("", tokens[4])["data"]
        assert (run["shown"], run["billed"], run["drift"], run["current"]) == (nothing, nothing, 0, True)
        for outside in ("?to=0001-01-01", "?from=9999-01-01&to=9999-12-31"):
            assert get(outside, tokens[3])["data"] == []


def test_only_differences_of_closed_and_unchanged_hours_are_unexplained(settings: Settings) -> None:
    client, began_s, closed_hours = ClickHouse.of(settings), DAY // 1000 + 100, 3
    # Publisher → the hour, clicks by the exact count and by the stream, when the stream changed the row; and the cause expected.
    rows: dict[int, tuple[tuple[int, int, int, int], str]] = {
        1: ((2, 10, 10, 0), ""),
        2: ((2, 10, 9, 0), "unexplained"),
        3: ((2, 10, 9, began_s - 1), "unexplained"),
        4: ((2, 10, 11, began_s), "open"),
        5: ((3, 10, 0, 0), "open"),
        6: ((3, 10, 4, 0), "open"),
        7: ((3, 10, 10, 0), ""),
        8: ((23, 100, 0, 0), "open"),
    }
    place = "1, 3, 2, {publisher:UInt64}, 'DE', 'mobile'"
    for publisher, ((hour, counted, stream, changed_at), _) in rows.items():
        parameters = {"time": DAY // 1000 + hour * 3600, "publisher": publisher}
        numbers = [
            (f"exact_hours SELECT toDateTime({{time:UInt32}}, 'UTC'), {place}, 'r', 0, {counted}, 0, 0, 0, 0, 0")
        ]
        if stream:
            numbers += [
                f"stream_hours SELECT toDateTime({{time:UInt32}}, 'UTC'), {place}, 0, 0, {stream}, 0, 0, 0, 0, 0, 0, 1, {changed_at}, 0"
            ]
        for values in numbers:
            client.command(f"INSERT INTO {settings.database}.{values}", parameters)
    date = dt.datetime.fromtimestamp(DAY / 1000, dt.UTC).date()
    comparison = publish.compare(client, date, "r", 0.001, DAY + closed_hours * HOUR_MS, began_s)
    causes = client.rows(f"SELECT publisher_id, cause FROM {settings.database}.ledger FINAL ORDER BY publisher_id")
    assert dict(causes) == {publisher: cause for publisher, (_, cause) in rows.items() if cause}
    assert (comparison.dimensions, comparison.corrected, comparison.drifted) == (8, 2, 2)
    assert comparison.alert(1.0)
    client.command(f"ALTER TABLE {settings.database}.ledger DELETE WHERE 1 SETTINGS mutations_sync = 2")
    all_open = publish.compare(client, date, "r", 0.001, DAY, began_s)
    assert (set(all_open.causes), all_open.corrected, all_open.alert(0.005)) == ({"open"}, 0, False)
    assert all_open.causes["open"]["clicks"] == sum(counted - stream for (_, counted, stream, _), _ in rows.values())


def test_a_run_of_an_open_day_covers_the_hours_that_had_closed(settings: Settings) -> None:
    client, db = ClickHouse.of(settings), settings.database
    place = "1, 3, 2, 4, 'DE', 'mobile'"
    for hour in (1, 2, 3):
        at = f"toDateTime({DAY // 1000 + hour * 3600}, 'UTC')"
        client.command(f"INSERT INTO {db}.exact_hours SELECT {at}, {place}, 'forced', 0, 100, 0, 0, 0, 0, 0")
        client.command(f"INSERT INTO {db}.stream_hours SELECT {at}, {place}, 0, 0, {hour}, 0, 0, 0, 0, 0, 0, 1, 0, 0")
    client.command(
        f"INSERT INTO {db}.exact_days SELECT toDateTime({DAY // 1000}, 'UTC'), {place}, 'forced', 0, 300, 0, 0, 0, 0, 0"
    )
    borders.publish(client, "hours", range(settings.block_partitions), DAY + DAY_MS)

    def answer(grain: str) -> list[tuple[int, str]]:
        router = Router(settings)
        parameters = [("campaign_id", "1"), ("start", iso(DAY)), ("end", iso(DAY + DAY_MS)), ("granularity", grain)]
        rows = router.answer(parse_question(parameters, now_ms(), router.retention)).page.frame.rows(named=True)
        return [(row["clicks"], row["finality"]) for row in rows]

    assert answer("hour") == [(1, "closed"), (2, "closed"), (3, "closed")]
    date = dt.datetime.fromtimestamp(DAY / 1000, dt.UTC).date()
    run_input, comparison = spark_job.RunInput(3, 0, "digest", UnbilledEvents(), 3, {}), publish.Comparison(3, 0, 0)
    proof = coverage.Proof([], [], [], archived_rows.NO_REJECTED_IDS, [])

    def publish_with(closed_ms: int, fence: int) -> None:
        open_from_ms = publish.open_from(date, closed_ms)
        publish.publish(
            client,
            date,
            "forced",
            fence,
            run_input,
            comparison,
            proof,
            0.0,
            False,
            open_from_ms,
            tables=publish.exact_tables(client),
        )
        assert publish.current_run(client, date) == ("forced", "digest", open_from_ms)

    expected = [
        (DAY + 3 * HOUR_MS + 5, [(100, "reconciled"), (100, "reconciled"), (3, "closed")], (203, "closed")),
        (DAY - HOUR_MS, [(1, "closed"), (2, "closed"), (3, "closed")], (6, "closed")),
        (DAY + DAY_MS, [(100, "reconciled")] * 3, (300, "reconciled")),
    ]
    for fence, (closed_ms, hours, day) in enumerate(expected, 1):
        publish_with(closed_ms, fence)
        # Routers know of a run a second later.
        wait_until(lambda hours=hours: answer("hour") == hours, 30, f"{hours} are shown")
        assert answer("day") == answer("total") == [day]


@pytest.mark.parametrize("shards", [1, 2])
def test_the_watermark_of_hours_is_unknown_until_every_shard_has_published_its_own(
    settings: Settings, shards: int
) -> None:
    client = ClickHouse.of(settings)
    assert publish.read_watermark(client, shards) is None
    for shard in range(2):
        for minutes in (5, 3):  # the second is an older writing that arrives late
            borders.publish(client, "hours", [shard], 0, DAY + (minutes + shard) * 60_000)
            borders.publish(client, "days", [shard], 0, DAY + DAY_MS)
        watermark_ms = publish.read_watermark(client, shards)
        assert watermark_ms == (DAY + 5 * 60_000 if shard + 1 >= shards else None)


def test_a_message_that_is_in_no_log_is_reported(settings: Settings) -> None:
    send_hostile_letters(settings)
    topic = settings.topic(topics.EVENTS)
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}events")
    producer.open()
    for _ in range(2):
        producer.write([Record(topic, b"{}", None, 0)] * 5)
    # Each transaction takes an offset more: these are no holes. Of the messages 0 to 4 and 6 to 10, 4 is missing.
    _reject(settings, "bad", f"{topic}/0/3")
    rows = [_ROW | {"event_id": f"e{n}", "offset": n, "log_time_ms": DAY} for n in (0, 1, 2, 6, 7, 8, 9, 10)]
    wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
    store = FileStore(settings.archive)
    (name,) = archive_worker.write_files(store, 0, 0, 100, wire)
    files = archive_files.parse_names(store.files())
    ends = Admin(settings.kafka_connection).ends(topic, settings.event_partitions)
    date = dt.datetime.fromtimestamp(DAY / 1000, dt.UTC).date()
    proof = coverage.prove(settings, files, date, ends)
    assert [str(hole) for hole in proof.missing] == ["0/4 to 6"]
    assert [str(stretch) for stretch in proof.looked_at] == ["0/0 to 12"]
    _reject(settings, "bad", f"{topic}/0/4")
    assert coverage.prove(settings, files, date, ends).missing == []
    store.write(name, store.open(name).read_buffer()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        coverage.prove(settings, files, date, ends)
