"""The whole product on the real parts: replay, kills and a restart in the middle, and every answer against the truth."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import platform
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka import topics
from infra.kafka.consumers import read_to_end
from infra.kafka.event_producer import EventProducer
from infra.priority import BACKGROUND, LOG, PIPELINE
from infra.settings import read_endpoints
from ingest.dead_letters import letters as dead_letters
from ingest.decoding.json_fields import read_ids_and_times
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from query.demo.oracle import compare_dead_letters
from query.demo.questions import make_questions, make_reconciled_questions
from tests.chaos import outages
from tests.chaos.watcher import Watcher
from tests.conftest import adclick
from tests.integration.test_trace import trace
from tests.product import COUNTS, PATIENCE, SPAN_MS, Product, wait_until

EVENTS = 60_000


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A stack into which events were replayed in two halves, with workers killed at random and a restart in between."""
    work = tmp_path_factory.mktemp("e2e")
    end = now_ms() // MINUTE_MS * MINUTE_MS
    spec = Spec(
        events=EVENTS, seed=11, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=200, late=0.01, malformed=0.005
    )
    events = generate_events(spec)
    product = Product(Folder(work / "stack"), events, spec.start_ms, [])
    lines = events.lines.to_list()
    halves = []
    for number, part in enumerate((lines[: EVENTS // 2], lines[EVENTS // 2 :])):
        halves.append(work / f"{number}.ndjson")
        halves[-1].write_bytes(b"\n".join(part) + b"\n")
    try:
        victims = itertools.cycle(["ingest-0", "stream-0", "archive-0", "ingest-0", "stream-0"])
        for half in halves:
            product.up()
            stop = threading.Event()
            killer = threading.Thread(target=_kill_now_and_then, args=(product, victims, stop))
            killer.start()
            replay_files(product.app, [half], Pace(rate=3_000))
            stop.set()
            killer.join()
            result = adclick("down", "--dir", str(product.folder.path))
            assert result.returncode == 0, result.stderr
            assert product.folder.pids() == {}
        product.up()
        wait_until(product.caught_up, 120, "all is ingested")
        counted = int(sum(events.truth.counts.select(f"stream_{count}" for count in COUNTS).sum().row(0)))
        wait_until(lambda: product.shows(counted), 20, f"{counted} events are shown")
        yield product
    finally:
        adclick("down", "--dir", str(product.folder.path))


def _kill_now_and_then(product: Product, victims: Iterator[str], stop: threading.Event) -> None:
    rng = random.Random(5)
    for name in victims:
        if stop.wait(rng.uniform(1.0, 2.5)):
            return
        product.kill(name)


def test_every_answer_is_exact_after_kills_and_a_restart(product: Product) -> None:
    assert {"ingest-0", "stream-0", "archive-0"} <= set(product.kills)
    assert len(product.kills) >= 6
    client = Client(product.settings)
    questions = make_questions(product.oracle, product.start_ms, product.start_ms + SPAN_MS)
    wrong = [(v.question, v.difference) for v in (product.oracle.check(client, q) for q in questions) if v.difference]
    assert wrong == []
    assert len(questions) > 60


def test_processes_of_the_pipeline_have_lower_priority_than_the_router(product: Product) -> None:
    wait_until(
        lambda: {"ingest-0", "archive-0", "query-0", "notify-0"} <= set(product.folder.processes()), 20, "all run"
    )
    processes = product.folder.processes()
    # Across sessions niceness may not count.
    assert len({os.getsid(process.pid) for process in processes.values()}) == 1

    def is_settled() -> bool:
        nice = {name: process.nice() for name, process in processes.items()}
        routers = nice["query-0"]
        expected = {"redis": routers, "clickhouse": routers}
        expected |= {
            name: max(routers, n)
            for name, n in (("kafka", LOG), ("ingest-0", PIPELINE), ("archive-0", BACKGROUND), ("notify-0", BACKGROUND))
        }
        return {name: nice[name] for name in expected} == expected

    wait_until(is_settled, 10, "each has settled its niceness")
    if tuple(map(int, platform.release().split(".")[:2])) >= (6, 12) and Path("/proc/self/sched").exists():
        slices = {
            name: _slice_ns(processes[name].pid) for name in ("query-0", "redis", "clickhouse", "ingest-0", "kafka")
        }
        assert max(slices[name] for name in ("query-0", "redis", "clickhouse")) < min(
            slices["ingest-0"], slices["kafka"]
        )


def _slice_ns(pid: int) -> int:
    """The time slice of a process: for how long it may keep a core from others."""
    lines = Path(f"/proc/{pid}/sched").read_text().splitlines()
    return int(next(line.split(":")[1] for line in lines if line.startswith("se.slice")))


def test_every_dead_letter_is_there_once_with_its_bytes(product: Product) -> None:
    letters = [(x.value, x.headers["reason"]) for x in dead_letters.read_letters(product.settings)]
    assert compare_dead_letters(product.events.truth, product.events.lines, letters) == ""


def test_the_archive_holds_every_valid_event_and_its_decision(product: Product) -> None:
    root = Path(product.settings.archive)
    wait_until(lambda: len(_archived(root)) == EVENTS - _invalid(product), 30, "all archived")
    by = dict(_archived(root).group_by(pl.col("decision").cast(pl.String)).len().iter_rows())
    truth = product.events.truth
    counted = truth.counts.select(pl.sum("stream_impressions", "stream_clicks", "stream_conversions")).row(0)
    assert by["counted"] == sum(counted)
    assert by["too-late"] == truth.dead.filter(pl.col("reason") == "too-late").height
    assert sum(by.values()) == EVENTS - _invalid(product)


def _archived(root: Path) -> pl.DataFrame:
    return pl.read_parquet(str(root / "**/p*.parquet"), hive_partitioning=False).unique(["partition", "offset"])


def _invalid(product: Product) -> int:
    return product.events.truth.dead.filter(pl.col("reason") != "too-late").height


def test_reconciliation_gives_the_batch_truth_and_a_second_run_changes_nothing(product: Product) -> None:
    day_ms = (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS
    day = iso(day_ms)[:10]
    where = ["--dir", str(product.folder.path), "--date", day, "--json"]
    watcher = Watcher(product, [])
    watching = threading.Thread(target=watcher.run)
    watching.start()
    first = adclick("reconcile", *where)
    watcher.wait_for_last_answers()
    watcher.stop()
    watching.join()
    assert watcher.decreases == []
    # One event in three hundred is too late here, so nearly one dimension in three hundred needs correction.
    assert first.returncode in (0, 3), first.stderr
    ledger = json.loads(first.stdout)
    low, high = day_ms, day_ms + DAY_MS
    late = product.events.truth.counts.filter(pl.col("minute_ms").is_between(low, high, closed="left")).select(
        *(
            pl.sum(f"batch_{m}") - pl.sum(f"stream_{m}")
            for m in ("impressions", "clicks", "conversions", "spend_micros")
        )
    )
    assert set(ledger["causes"]) == {"late"}
    assert tuple(list(ledger["causes"]["late"].values())[1:]) == late.row(0)
    client = Client(product.settings)
    questions = make_reconciled_questions(
        make_questions(product.oracle, product.start_ms, product.start_ms + SPAN_MS), day_ms
    )
    checked = [product.oracle.check(client, q) for q in questions]
    assert [(v.question, v.difference) for v in checked if v.difference] == []
    assert {v.finality for v in checked} == {"reconciled"}
    second = adclick("reconcile", *where)
    assert second.returncode == 0, second.stderr
    assert "unchanged" in second.stderr


def test_a_trace_follows_events_to_their_windows_and_to_the_run_that_bills_them(product: Product) -> None:
    day_ms = (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS
    since, dead = iso(day_ms)[:10], dict(product.events.truth.dead.iter_rows())
    ids, times = read_ids_and_times(product.events.lines.to_list())
    of_day = [n for n, time_ms in enumerate(times) if time_ms is not None and day_ms <= time_ms < day_ms + DAY_MS]
    late = next(n for n in of_day if dead.get(n) == "too-late")
    traced = trace(product.settings, str(ids[late]), "--since", since)
    (message, *_) = traced.document["messages"]
    assert (traced.code, message["decision"], message["billed"]) == (0, "too-late", True), traced.err
    assert (message["runs"][0]["cause"], traced.document["dead_letters"][0]["reason"]) == ("late", "too-late")
    counted = [n for n in of_day if n not in dead]
    newest = max((n for n in range(len(times)) if n not in dead), key=lambda n: times[n] or 0)
    for n, states in ((counted[0], {"reconciled"}), (newest, {"provisional", "closed", "corrected"})):
        traced = trace(product.settings, str(ids[n]), "--since", since)
        assert (traced.code, traced.verdict) == (0, "counted"), traced.err
        (message, *_) = [m for m in traced.document["messages"] if m["decision"] == "counted"]
        windows = {w["granularity"]: w for w in message["windows"]}
        assert {windows[grain]["state"] for grain in ("hour", "day")} <= states
        assert all(windows[grain]["events"] >= 1 for grain in ("hour", "day"))
    assert windows["minute"]["events"] >= 1


def test_an_audit_recomputes_the_day_from_its_archive_and_finds_changed_numbers(product: Product) -> None:
    day_ms = (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS
    where = ["--dir", str(product.folder.path), "--date", iso(day_ms)[:10]]
    audit = adclick("audit", *where)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "0 differ" in audit.stderr
    assert "the archive reproduces what run" in audit.stderr
    # A changed number is found, and so is one that the stream never had.
    client = ClickHouse(product.settings.clickhouse, product.settings.database)
    for table in ("exact_hours", "stream_hours"):
        columns = [name for name, *_ in client.rows(f"DESCRIBE {client.database}.{table}")]
        changed = ", ".join(
            "impressions + 1" if c == "impressions" else "version + 1" if c == "version" else c for c in columns
        )
        client.command(
            f"INSERT INTO {client.database}.{table} SELECT {changed} FROM {client.database}.{table} FINAL"
            " WHERE toDate(time) = {day:Date} LIMIT 1",
            {"day": dt.datetime.fromtimestamp(day_ms / 1000, dt.UTC).date()},
        )
    tampered = adclick("audit", *where)
    assert tampered.returncode == 3
    assert "1 differ" in tampered.stderr
    assert "DOES NOT REPRODUCE" in tampered.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--date", "2199-01-01"], "has not begun"),
        (["--date", iso(now_ms() - 300 * DAY_MS)[:10]], "nothing is archived"),
        (["--date", "2020-01-01"], "can no longer be billed"),
        (["--date", iso(now_ms())[:10]], "still open"),
    ],
)
def test_a_day_that_cannot_be_reconciled_is_refused(product: Product, words: list[str], reason: str) -> None:
    result = adclick("reconcile", "--dir", str(product.folder.path), *words)
    assert result.returncode == 1
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_events_too_late_for_the_stream_are_named_with_what_bills_them_and_then_billed(
    product: Product, tmp_path: Path
) -> None:
    file, where = tmp_path / "old.ndjson", ["--dir", str(product.folder.path)]

    def write(time_ms: int) -> str:
        event = {"event_type": "click", "event_time": time_ms, "campaign_id": 888_888, "ad_id": 1, "advertiser_id": 1}
        lines = (json.dumps({"event_id": f"{time_ms}-{n}", **event, "publisher_id": 1}) for n in range(25))
        file.write_text("\n".join(lines))
        return str(file)

    refused = adclick("replay", write(now_ms() - 800 * DAY_MS), *where)
    assert refused.returncode == 1
    assert "events are older than 735 days" in refused.stderr
    day_ms = (now_ms() - 40 * DAY_MS) // DAY_MS * DAY_MS
    day = iso(day_ms)[:10]
    sent = adclick("replay", write(day_ms + HOUR_MS), *where)
    assert sent.returncode == 0, sent.stderr
    assert "25 events are too late for the stream's minutes, hours and days" in sent.stderr
    assert f"adclick reconcile --date {day}" in sent.stderr
    billed = adclick("reconcile", "--date", day, *where)
    assert billed.returncode in (0, 3), billed.stderr
    question = [
        ("campaign_id", "888888"),
        ("start", iso(day_ms)),
        ("end", iso(day_ms + DAY_MS)),
        ("granularity", "day"),
    ]
    (row,) = Client(product.settings).get("/v1/metrics", question)["data"]
    assert (row["clicks"], row["finality"]) == (25, "reconciled")


def http(product: Product, path: str, key: str | None = "right") -> httpx.Response:
    secret = product.settings.api_key.get_secret_value() if key == "right" else key
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.get(product.settings.http + path, headers=headers, trust_env=False, timeout=20 * PATIENCE)


@pytest.mark.parametrize(
    ("query", "status", "parameter"),
    [
        ("", 400, "campaign_id"),
        ("?campaign_id=7&start=now&end=-1h", 400, "end"),
        ("?campaign_id=7&start=-48h&end=now&granularity=minute", 422, "granularity"),
        ("?campaign_id=7&start=-1h&end=now&grop_by=country", 400, "grop_by"),
        ("?campaign_id=7&start=-1h&end=now&filter=country:%00", 400, "filter"),
    ],
)
def test_a_bad_question_gets_a_problem_document(product: Product, query: str, status: int, parameter: str) -> None:
    answer = http(product, f"/v1/metrics{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["parameter"] == parameter
    assert answer.json()["type"].startswith("/")


def test_all_routes_but_the_public_ones_need_a_key(product: Product) -> None:
    for path in ("/v1/metrics?campaign_id=1&start=-1h&end=now", "/v1/pipeline", "/v1/reconciliations"):
        assert [http(product, path, k).status_code for k in (None, "wrong", "right")] == [401, 401, 200]
    for path in ("/healthz", "/metrics", "/docs", "/openapi.json", "/"):
        assert http(product, path, None).status_code == 200
    # Of the moment: on a machine that is short of time a worker may just be joining again.
    wait_until(lambda: http(product, "/readyz", None).status_code == 200, 20, "all is up")
    assert http(product, "/nowhere").headers["content-type"] == "application/problem+json"


def test_the_table_on_the_command_line_is_the_answer(product: Product) -> None:
    # Fixed, not "-24h": events lie on both sides of that, and a minute may pass between the two.
    start, end = iso(product.start_ms), iso(product.start_ms + SPAN_MS)
    words = ["query", "--dir", str(product.folder.path), "--campaign", "1", "--start", start, "--end", end]
    document = json.loads(adclick(*words, "--granularity", "total", "--json").stdout)
    shown = adclick(*words, "--granularity", "total").stdout
    assert str(document["data"][0]["impressions"]) in shown
    assert "watermark" in adclick(*words, "--granularity", "hour").stderr


BAD = [b'{"event_id":"x' + b"y" * 2_000_000 + b'"}', b"\xff\xfe", b'{"a":' + b"[" * 10_000, b"7", b"[]", b"", None]


def test_bad_input_is_dead_lettered_and_events_beside_it_are_shown_in_open_minutes(product: Product) -> None:
    settings = product.settings
    before = [x.name for x in dead_letters.read_letters(settings)]
    now = now_ms()
    good = {
        "event_id": f"probe-{now}", "event_type": "click", "event_time": now, "campaign_id": 2**63 - 1, "ad_id": 0,
        "advertiser_id": 2**63 - 1, "publisher_id": 0, "cost_micros": 10**12,
    }  # fmt: skip
    values: list[bytes | None] = [
        *BAD,
        json.dumps(good).encode(),
        json.dumps(good | {"event_id": f"null-{now}"}).encode(),
    ]
    keys: list[bytes | None] = [*[b"k"] * len(BAD), good["event_id"].encode(), None]  # type: ignore[attr-defined]
    producer = EventProducer(settings.kafka_connection)
    sent = time.monotonic()
    producer.send(settings.topic(topics.EVENTS), keys, values)
    assert producer.flush(60) == 0
    client = Client(settings)
    question = [("campaign_id", str(2**63 - 1)), ("start", "-5m"), ("end", "now"), ("granularity", "minute")]

    def clicks() -> int:
        return sum(r["clicks"] for r in client.get("/v1/metrics", question)["data"])

    wait_until(lambda: clicks() == 2, 15, "the probe is visible")
    visible_after_s = time.monotonic() - sent
    rows = client.get("/v1/metrics", question)["data"]
    assert sum(r["spend_micros"] for r in rows) == 2 * 10**12
    assert {r["finality"] for r in rows} == {"provisional"}
    new = [x for x in dead_letters.read_letters(settings) if x.name not in set(before)]
    assert sorted((x.value or b"", x.headers["reason"]) for x in new) == sorted(
        (v or b"", "too-large" if v and len(v) > 65_536 else "malformed") for v in BAD
    )
    assert all(x.headers["source"].startswith(f"{topics.EVENTS}/") and x.headers["stage"] == "ingest" for x in new)
    print(f"visible after {visible_after_s:.2f} s")


def test_a_dead_letter_is_edited_and_sent_again(product: Product) -> None:
    settings, now = product.settings, now_ms()
    bad = {
        "event_id": f"edit-{now}", "event_type": "click", "event_time": now, "campaign_id": 777_777, "ad_id": 1, "advertiser_id": 1,
        "publisher_id": 1, "country": "XX",
    }  # fmt: skip
    producer = EventProducer(settings.kafka_connection)
    producer.send(settings.topic(topics.EVENTS), [b"m"], [json.dumps(bad).encode()])
    producer.flush(10)
    where = ["--dir", str(product.folder.path)]

    def letters() -> list[str]:
        return [x.name for x in dead_letters.read_letters(settings) if x.value and f"edit-{now}".encode() in x.value]

    wait_until(letters, 20, "the dead letter is there")
    (name,) = letters()
    listed = json.loads(adclick("dead-letters", "list", "--json", *where).stdout)
    assert [x["detail"] for x in listed if x["name"] == name] == ["country"]
    assert f"edit-{now}" in json.loads(adclick("dead-letters", "show", name, *where).stdout)["value"]
    result = adclick("dead-letters", "replay", name, "--edit", "country=DE", *where)
    assert result.returncode == 0, result.stderr
    client = Client(settings)
    question = [
        ("campaign_id", "777777"),
        ("start", "-5m"),
        ("end", "now"),
        ("granularity", "minute"),
        ("group_by", "country"),
    ]
    wait_until(
        lambda: [(r["country"], r["clicks"]) for r in client.get("/v1/metrics", question)["data"]] == [("DE", 1)],
        15,
        "the edited event is shown",
    )
    late = next(x.name for x in dead_letters.read_letters(settings) if x.headers["reason"] == "too-late")
    refused = adclick("dead-letters", "replay", late, *where)
    assert refused.returncode == 1
    assert "nightly" in refused.stderr


def test_dead_processes_are_restarted_and_a_second_up_is_refused(product: Product) -> None:
    for name in ("redis", "clickhouse", "kafka", "query-0"):
        pid = product.folder.pids()[name]
        product.kill(name)
        wait_until(
            lambda n=name, p=pid: product.folder.processes().get(n, psutil.Process()).pid not in (p, os.getpid()),
            30,
            name,
        )
    wait_until(lambda: _ready(product), 60, "ready again")
    again = adclick("up", "--detach", "--dir", str(product.folder.path))
    assert again.returncode == 1
    assert "already running" in again.stderr


@pytest.mark.parametrize("backend", ["redis", "clickhouse", "kafka"])
def test_a_backend_that_is_away_is_named_and_no_worker_dies(product: Product, backend: str) -> None:
    wait_until(lambda: _ready(product), 60, "ready")
    assert outages.strike(product, backend, 8.0).faults() == []
    wait_until(lambda: _ready(product), 60, f"{backend} is back")


def _ready(product: Product) -> bool:
    try:
        return http(product, "/readyz", None).status_code == 200
    except httpx.HTTPError:
        return False


def test_no_child_outlives_a_killed_supervisor_and_data_survives(product: Product) -> None:
    campaign = product.oracle.busiest(1)[0]
    start, end = product.start_ms + 3 * HOUR_MS, product.start_ms + SPAN_MS
    question = [("campaign_id", str(campaign)), ("start", iso(start)), ("end", iso(end)), ("granularity", "total")]
    before = Client(product.settings).get("/v1/metrics", question)["data"]
    children = psutil.Process(product.folder.pids()["supervisor"]).children(recursive=True)
    product.kill("supervisor")
    _, alive = psutil.wait_procs(children, timeout=10 * PATIENCE)
    assert alive == []
    product.up()
    after = Client(product.settings).get("/v1/metrics", question)["data"]
    assert [r["impressions"] for r in after] == [r["impressions"] for r in before]
    assert [r["spend_micros"] for r in after] == [r["spend_micros"] for r in before]
    assert read_endpoints(product.folder.path)["http"] == product.settings.http
    assert adclick("down", "--dir", str(product.folder.path)).returncode == 0
    assert list(read_to_end_of(product)) == []


def read_to_end_of(product: Product) -> list[Any]:
    """Messages of the first partition; none once nothing answers any more."""
    from infra.errors import AdclickError

    try:
        return list(read_to_end(product.settings.kafka_connection, topics.EVENTS, 0))
    except AdclickError:
        return []
