"""Commands against backends that are not of an embedded stack: empty ones, ones that are away, ones of a stack that has stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra import migration
from infra.clickhouse import schema
from infra.clickhouse.client import ClickHouse
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.settings import Settings, resolve
from tests.conftest import ADCLICK, adclick
from tests.flow import environment
from tests.product import wait_until

CLOSED = "127.0.0.1:9"


@pytest.fixture
def fresh(backends: Path, tmp_path: Path) -> Settings:
    """Backends that hold nothing of this installation yet."""
    own = {"namespace": f"f{uuid.uuid4().hex[:8]}_", "archive": str(tmp_path / "archive")}
    return resolve(str(backends)).settings.model_copy(update=own)


def start(settings: Settings, folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start a command as on a cluster: everything by variables, in a folder without a stack."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ADCLICK_")}
    return subprocess.Popen(
        [*ADCLICK, *words], env=clean | environment(settings) | env, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_migrate_makes_each_topic_and_table_once_also_when_three_run_at_once(fresh: Settings, tmp_path: Path) -> None:
    running = [start(fresh, tmp_path, "migrate", "--json") for _ in range(3)]
    reports = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    topic_names = [topic.name for topic in topics.wanted(fresh)]
    assert Counter(name for changes in reports for name in changes["topics"]) == Counter(topic_names)
    files = Counter(name for changes in reports for name in changes["tables"])
    assert set(files.values()) == {1}
    assert "001_tiers.sql" in files
    assert (migration.missing_topics(fresh), migration.table_problems(fresh)) == ([], [])
    assert {name: Admin(fresh.kafka_connection).partitions()[name] for name in topic_names} == {
        topic.name: topic.partitions for topic in topics.wanted(fresh)
    }
    assert migration.migrate(fresh) == migration.MigrationReport([], [])


def test_missing_topics_or_tables_are_reported_in_one_line(fresh: Settings, tmp_path: Path) -> None:
    events = tmp_path / "events.ndjson"
    events.write_text('{"event_id": "1"}\n')
    lacking = {
        "Kafka at": (["ingest"], ["archive"], ["stream"], ["replay", str(events)]),
        "ClickHouse's database": (["serve"], ["reconcile", "--date", "2026-11-20"], ["audit", "--date", "2026-11-20"]),
    }
    running = [
        (missing, words, start(fresh, tmp_path, *words))
        for missing, all_words in lacking.items()
        for words in all_words
    ]
    for missing, words, process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, ""), (words, err)
        assert err.count("\n") == 1, (words, err)
        assert err.startswith(f"adclick: {missing}"), (words, err)
        assert "adclick migrate makes" in err, words
    assert fresh.topic(topics.EVENTS) not in Admin(fresh.kafka_connection).partitions()


def test_status_names_the_topics_and_tables_that_a_cluster_lacks(fresh: Settings, tmp_path: Path) -> None:
    process = start(fresh, tmp_path, "status", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, bool(out)) == (1, True), err
    assert set(json.loads(out)["problems"]) == {"kafka", "clickhouse"}
    assert err.count("adclick migrate makes") == 2
    assert err.count("\n") == 1
    schema.apply_migrations(ClickHouse(fresh.clickhouse, fresh.database))
    process = start(fresh, tmp_path, "status", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "lacks topic" in json.loads(out)["problems"]["kafka"]


def test_status_of_a_cluster_needs_no_folder_and_names_the_backend_that_is_away(
    settings: Settings, tmp_path: Path
) -> None:
    away = start(settings, tmp_path, "status", "--json", ADCLICK_CLICKHOUSE=f"http://me:p%40ss@{CLOSED}")
    plain = start(settings, tmp_path, "status", ADCLICK_REDIS=f"redis://:p@ss@{CLOSED}/0")
    reports: list[dict[str, Any]] = []

    def healthy() -> bool:
        process = start(settings, tmp_path, "status", "--json")
        reports.append(json.loads(process.communicate(timeout=60)[0]))
        return process.returncode == 0

    wait_until(healthy, 60, "status is healthy")
    report = reports[-1]
    assert (report["processes"], report["dead"], report["problems"]) == ({}, [], {})
    assert report["level"] == "unknown"  # no ingest worker has reported
    assert report["topics"] == {settings.topic(topics.EVENTS): 0, settings.topic(topics.ARCHIVE): 0}

    out, err = away.communicate(timeout=60)
    assert away.returncode == 1
    assert "clickhouse" in json.loads(out)["problems"]
    assert "ClickHouse: " in err
    assert err.count("\n") == 1

    out, err = plain.communicate(timeout=60)
    assert plain.returncode == 1
    assert "overload    unknown" in out
    assert "Redis: " in err
    for secret in ("p@ss", "p%40ss"):
        assert secret not in out + err


def test_status_of_a_running_stack_exits_with_0_and_names_a_process_that_is_not_running(backends: Path) -> None:
    reports: list[subprocess.CompletedProcess[str]] = []

    def healthy() -> bool:
        reports.append(adclick("status", "--json", "--dir", str(backends)))
        return reports[-1].returncode == 0

    wait_until(healthy, 60, "status is healthy")
    report = json.loads(reports[-1].stdout)
    assert {"supervisor", "kafka", "redis", "clickhouse", "archive-0", "query-0"} == set(report["processes"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid_file = backends / "run" / "stream-7.pid"
    pid_file.write_text(f"{ended.pid}\n")
    try:
        incomplete = adclick("status", "--json", "--dir", str(backends))
    finally:
        pid_file.unlink()
    assert incomplete.returncode == 1
    assert json.loads(incomplete.stdout)["dead"] == ["stream-7"]
    assert incomplete.stderr.startswith("adclick: stream-7 is not running")


def test_ctrl_c_ends_a_command_with_one_line(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ADCLICK_")}
    # A server that accepts connections and never answers: the command waits in the middle of its work.
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        env = clean | {
            "ADCLICK_REDIS": f"redis://{where}",
            "ADCLICK_CLICKHOUSE": f"http://{where}",
            "ADCLICK_HTTP": f"http://{where}",
        }

        def interrupted(words: list[str], after_s: float) -> tuple[int, str, str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "infra", *words], env=env | {"ADCLICK_API_KEY": "x"}, cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            connection, _ = server.accept()
            with connection:
                # Once it waits for the answer: a signal that comes just before is seen only when that wait times out.
                connection.recv(1)
                time.sleep(after_s)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
            return process.returncode, out, err

        for words in (["migrate"], ["query", "--campaign", "7", "--start", "-1h"], ["keys", "list"]):
            # On a busy machine its wait may be over before the signal comes.
            outcomes = (interrupted(words, after_s) for after_s in (0.5, 0.5, 1.0, 1.0, 2.0, 2.0))
            outcome = next((o for o in outcomes if "Timeout reading" not in o[2]), None)
            assert outcome == (130, "", "stopped\n"), words
