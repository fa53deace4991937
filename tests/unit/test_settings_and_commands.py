"""Settings say where they come from; a person's mistakes are told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from infra.clickhouse.client import ClickHouse, migrate
from infra.embedded.lifeline import no_children_after_failure
from infra.embedded.state import Folder
from infra.errors import UsageError, UserError
from infra.settings import resolve
from ingest.replay import Pace, parse_pace
from ingest.shedding import Level, Policy, next_level
from ingest.synthetic.command import duration_ms
from ingest.worker import worker_name
from query.serve import run as run_router


def adclick(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ADCLICK_")}
    return subprocess.run(
        [sys.executable, "-m", "infra", *words], capture_output=True, text=True, env=clean | env, timeout=600
    )


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ADCLICK_KAFKA", "ADCLICK_CONFIG", "ADCLICK_DIR", "ADCLICK_CURRENCY"):
        monkeypatch.delenv(name, raising=False)


def test_each_setting_tells_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "endpoints.json").write_text(json.dumps({"kafka": "stack:1", "api_key": "s3cret"}))
    (tmp_path / "c.toml").write_text('currency = "EUR"\nkafka = "file:1"\n')
    monkeypatch.setenv("ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    assert resolve().origins["kafka"].endswith("c.toml")
    monkeypatch.setenv("ADCLICK_KAFKA", "variable:1")
    found = resolve()
    assert (found.settings.kafka, found.origins["kafka"]) == ("variable:1", "ADCLICK_KAFKA")
    assert (found.settings.currency, found.origins.get("redis")) == ("EUR", None)
    named = resolve(str(tmp_path / "stack"))
    assert named.settings.kafka == "stack:1"
    assert resolve(str(tmp_path / "stack"), stack=False).settings.kafka == "variable:1"
    assert named.masked()["api_key"] == ("********", str(tmp_path / "stack" / "endpoints.json"))


def test_passwords_in_addresses_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADCLICK_CLICKHOUSE", "http://me:pass@host:8123")
    monkeypatch.setenv("ADCLICK_ARCHIVE", "s3://bucket/x?access_key=me&secret_key=pass&region=here")
    assert resolve().masked()["clickhouse"][0] == "http://me:********@host:8123"
    assert resolve().masked()["archive"][0] == "s3://bucket/x?access_key=********&secret_key=********&region=here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CURRENCY", "euro"),
        ("EVENT_PARTITIONS", "0"),
        ("FLUSH_MS", "soon"),
        ("RECONCILE_AT", "25:00"),
        ("RECONCILE_AT", "0 3 * *"),
        ("RECONCILE_AT", "0 3 31 2 *"),
        ("SHED", "maybe"),
    ],
)
def test_a_wrong_setting_names_itself(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ADCLICK_{name}", value)
    with pytest.raises(UserError, match=f"setting {name.lower()}.*ADCLICK_{name}"):
        resolve()


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("kafak = 1\n")
    monkeypatch.setenv("ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    with pytest.raises(UserError, match="kafak"):
        resolve()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["reconcil"], 2, "reconcile"),
        (["reconcile"], 2, "--date"),
        (["reconcile", "--date", "tomorrow"], 2, "tomorrow"),
        (["reconcile", "--date", "2026-11-20", "--wait", "-1"], 2, "--wait"),
        (["reconcile", "--date", "2026-11-20", "--wait", "nan"], 2, "--wait"),
        (["reconcile", "--date", "2026-11-20", "--wait", "inf"], 2, "--wait"),
        (["replay", "nowhere.ndjson"], 1, "nowhere.ndjson does not exist"),
        (["replay", "x", "--rate", "fast"], 2, "fast"),
        (["generate", "--events", "10", "--span", "1y", "--out", "x"], 2, "1y"),
        (["generate", "--events", "10", "--out", "missing/x"], 1, "missing/x"),
        (["query", "--campaign", "7"], 2, "--start"),
        (["query", "--start", "-1h"], 2, "--campaign"),
        (["query"], 2, "--campaign"),
        (["down"], 0, "nothing is running"),
        (["up", "--ingest-workers", "-1"], 2, "ingest-workers"),
        (["up", "--detatch"], 2, "Did you mean --detach?"),
        (["query", "--campain", "7"], 2, "Did you mean --campaign?"),
        (["reconcile", "--date", "2026-11-20", "--dry-rum"], 2, "adclick reconcile --help"),
        (["--jsn", "config"], 2, "--json"),
        (["migrat"], 2, "Did you mean migrate?"),
        (["keys", "creat"], 2, "creat"),
        (["dead-letters", "lst"], 2, "lst"),
        (["generate"], 2, "--events"),
        (["replay", "x", "--rate"], 2, "requires an argument"),
    ],
)
def test_a_mistake_is_told_in_one_line_without_a_traceback(words: list[str], code: int, says: str) -> None:
    done = adclick(*words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "name",
    [
        "up",
        "down",
        "status",
        "config",
        "migrate",
        "demo",
        "generate",
        "replay",
        "query",
        "reconcile",
        "dead-letters",
        "ingest",
        "archive",
        "stream",
        "serve",
    ],
)
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = adclick(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert "--json" in done.stdout


def test_global_options_stand_before_or_after_the_command() -> None:
    before, after = adclick("--json", "config"), adclick("config", "--json", ADCLICK_CURRENCY="EUR")
    assert json.loads(before.stdout)["currency"] == {"value": "USD", "from": "default"}
    assert json.loads(after.stdout)["currency"] == {"value": "EUR", "from": "ADCLICK_CURRENCY"}


def test_paces_and_durations() -> None:
    assert (parse_pace("max"), parse_pace("real-time"), parse_pace("2.5")) == (
        Pace(),
        Pace(real_time=True),
        Pace(rate=2.5),
    )
    assert [duration_ms(t) for t in ("90s", "30m", "26h", "2d")] == [90_000, 1_800_000, 93_600_000, 172_800_000]
    for wrong in ("0", "-1", "nan"):
        with pytest.raises(UsageError):
            parse_pace(wrong)


def test_overload_levels_have_hysteresis() -> None:
    policy, level = Policy(), Level.NORMAL
    seen = []
    for lag in (0, 499_999, 500_000, 450_000, 399_999, 1_000_000, 10_000_000, 8_000_001, 7_999_999, 0):
        level = next_level(level, lag, policy)
        seen.append(level)
    assert seen == [0, 0, 1, 1, 0, 2, 3, 3, 2, 0]


@pytest.mark.parametrize(
    ("at", "now", "first_up", "done", "day"),
    [
        ("off", "2026-11-21T04:00", "2026-11-01T00:00", None, None),
        ("03:00", "2026-11-21T02:59", "2026-11-20T12:00", None, None),
        ("03:00", "2026-11-21T03:00", "2026-11-20T12:00", None, "2026-11-20"),
        ("03:00", "2026-11-21T03:00", "2026-11-21T03:30", None, None),
        ("03:00", "2026-11-21T23:00", "2026-11-20T12:00", "2026-11-19", "2026-11-20"),
        ("03:00", "2026-11-21T23:00", "2026-11-20T12:00", "2026-11-20", None),
        ("03:00", "2026-11-21T02:00", "2026-11-10T12:00", "2026-11-18", "2026-11-19"),
        # On Mondays, for all days since the last one (the 23rd is one).
        ("0 3 * * 1", "2026-11-22T04:00", "2026-11-10T12:00", "2026-11-18", None),
        ("0 3 * * 1", "2026-11-23T04:00", "2026-11-10T12:00", "2026-11-18", "2026-11-19"),
        # Missed since the first start: one after the other.
        ("03:00", "2026-11-25T04:00", "2026-11-20T12:00", None, "2026-11-20"),
        ("03:00", "2026-11-25T04:00", "2026-11-20T12:00", "2026-11-20", "2026-11-21"),
        ("03:00", "2026-11-25T04:00", "2026-11-20T02:00", None, "2026-11-19"),
    ],
)
def test_a_day_is_due_at_the_moment_after_its_end(
    at: str, now: str, first_up: str, done: str | None, day: str | None
) -> None:
    import datetime as dt

    from infra.embedded.schedule import due

    moments = [dt.datetime.fromisoformat(t + ":00+00:00") for t in (now, first_up)]
    found = due(at, moments[0], moments[1], dt.date.fromisoformat(done) if done else None)
    assert found == (dt.date.fromisoformat(day) if day else None)


def test_status_of_a_stack_that_has_stopped_says_so_and_shows_nothing_as_normal(tmp_path: Path) -> None:
    run = tmp_path / "stack" / "run"
    run.mkdir(parents=True)
    endpoints = {"kafka": "127.0.0.1:9", "redis": "redis://127.0.0.1:9/0", "clickhouse": "http://127.0.0.1:9"}
    (tmp_path / "stack" / "endpoints.json").write_text(json.dumps(endpoints))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in ("supervisor", "kafka", "ingest-0"):
        (run / f"{name}.pid").write_text(f"{ended.pid}\n")
    for words in (["status", "--dir", "stack"], ["status", "--dir", "stack", "--json"]):
        done = adclick(*words)
        assert done.returncode == 1
        assert done.stderr == "adclick: no stack is running in stack (adclick up starts one)\n"
        assert "normal" not in done.stdout
    report = json.loads(done.stdout)
    assert report["dead"] == ["ingest-0", "kafka", "supervisor"]
    assert (report["processes"], report["level"], report["topics"]) == ({}, "unknown", {})


def test_status_of_a_folder_that_was_never_up_says_so(tmp_path: Path) -> None:
    done = adclick("status", "--dir", str(tmp_path), ADCLICK_KAFKA="127.0.0.1:9", ADCLICK_REDIS="redis://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (
        1,
        f"adclick: no stack is running in {tmp_path} (adclick up starts one)\n",
    )
    assert "normal" not in done.stdout


@pytest.mark.parametrize(
    "words", [["config"], ["replay", "events.ndjson"], ["migrate"], ["query", "--campaign", "7", "--start", "-1h"]]
)
def test_a_client_of_a_folder_without_a_stack_does_not_turn_to_another_one(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "events.ndjson").write_text("{}\n")
    done = adclick(*words, "--dir", "nowhere", ADCLICK_KAFKA="127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr == "adclick: no stack has been started in nowhere (adclick up --dir nowhere starts one)\n"


def test_a_stack_that_has_never_been_ready_is_still_starting(tmp_path: Path) -> None:
    Folder(tmp_path).make()
    Folder(tmp_path).write_pid("supervisor", os.getpid())
    done = adclick("status", "--dir", str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (1, f"adclick: the stack in {tmp_path} is still starting\n")
    assert list(json.loads(done.stdout)["processes"]) == ["supervisor"]


def test_a_worker_without_a_name_has_one_that_no_other_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADCLICK_WORKER", raising=False)
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "vm")
    names = {worker_name("ingest") for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith("ingest-vm-1-") for name in names)
    monkeypatch.setenv("ADCLICK_WORKER", "ingest-7")
    assert worker_name("ingest") == "ingest-7"


class _WithoutPolicy:
    """A ClickHouse whose storage policies are these volumes of `tiered`; it must not be written to."""

    database = "adclick"

    def __init__(self, *volumes: str) -> None:
        self._volumes = volumes

    def rows(self, sql: str, _parameters: object = None) -> list[tuple[object, ...]]:
        if "storage_policies" in sql:
            return [(volume,) for volume in self._volumes]
        return [(0,)]

    def command(self, sql: str, _parameters: object = None) -> None:
        raise AssertionError(f"written before the policy was checked: {sql}")


@pytest.mark.parametrize(
    ("volumes", "says"),
    [((), "no storage policy named tiered"), (("default",), "no volume fast"), (("fast",), "no volume slow")],
)
def test_a_clickhouse_without_the_storage_policy_is_told_before_anything_is_made(
    volumes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError, match=rf"{says}.*operating\.md"):
        migrate(cast("ClickHouse", _WithoutPolicy(*volumes)))


def test_output_that_nobody_takes_ends_a_command_quietly_or_in_one_line() -> None:
    for words in (["config"], ["--help"], ["config", "--json"]):
        command = " ".join([sys.executable, "-m", "infra", *words])
        full = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True, timeout=60)
        assert (full.returncode, full.stderr) == (1, "adclick: No space left on device\n"), words
        closed = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True, timeout=60)
        assert closed.stderr.count("\n") <= 1
        assert "Traceback" not in closed.stderr
        with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as head:
            assert head.stdout is not None
            assert head.stderr is not None
            head.stdout.close()
            assert head.stderr.read() == ""
        assert head.returncode in (0, 1)


@pytest.mark.parametrize(
    ("http", "certificate", "says"),
    [
        ("https://127.0.0.1:0", "", "needs a certificate"),
        ("http://127.0.0.1:0", "cert.pem", "does not use it"),
    ],
)
def test_a_router_does_not_serve_plainly_what_was_to_be_encrypted(http: str, certificate: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_router(resolve().settings.model_copy(update={"http": http, "tls_certificate": certificate}))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, UserError])
def test_children_of_a_step_that_fails_end_with_it(failure: type[BaseException]) -> None:
    argv = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"]
    with subprocess.Popen(argv) as earlier:
        with pytest.raises(failure), no_children_after_failure():
            started = subprocess.Popen(argv)
            raise failure("stop")
        assert started.wait(60) == -signal.SIGKILL
        assert earlier.poll() is None
        with no_children_after_failure():
            kept = subprocess.Popen(argv)
        assert kept.poll() is None
        for child in (earlier, kept):
            child.kill()
            child.wait(60)
