"""The command line: help, mistakes, and what `status` and others say of folders without a stack. In this process, which is fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from infra.cli import main
from infra.cli.app import App
from infra.embedded.stack_folder import Folder


@dataclass(frozen=True)
class Result:
    """What a command did: its exit code, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Adclick(Protocol):
    """Runs a command with these settings in its environment."""

    def __call__(self, *words: str, **env: str) -> Result: ...


@pytest.fixture
def adclick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Adclick:
    """The command, in a folder of the test's own and without any setting but those given."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **env: str) -> Result:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("ADCLICK_")]:
                patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr("sys.argv", ["adclick", *words])
            with pytest.raises(SystemExit) as ended:
                main.main()
        output = capsys.readouterr()
        return Result(int(ended.value.code or 0), output.out, output.err)

    return run


@pytest.mark.parametrize(
    ("words", "code", "expected"),
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
        (["query", "--granularty", "hour"], 2, "Did you mean --granularity?"),
        (["query", "--campain", "7"], 2, "Possible options: --campaign, --compare"),
        (["reconcile", "--date", "2026-11-20", "--dry-rum"], 2, "adclick reconcile --help"),
        (["--jsn", "config"], 2, "--json"),
        (["migrat"], 2, "Did you mean migrate?"),
        (["keys", "creat"], 2, "creat"),
        (["dead-letters", "lst"], 2, "lst"),
        (["generate"], 2, "--events"),
        (["replay", "x", "--rate"], 2, "requires an argument"),
    ],
)
def test_a_usage_error_is_one_line_without_a_traceback(
    adclick: Adclick, words: list[str], code: int, expected: str
) -> None:
    result = adclick(*words)
    assert result.returncode == code, result.stderr
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("words", [[], ["rebuild"], ["keys"], ["debug"]])
def test_a_group_without_a_command_prints_its_whole_help_to_standard_error(adclick: Adclick, words: list[str]) -> None:
    bare, asked = adclick(*words), adclick(*words, "--help")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert bare.stderr == asked.stdout
    assert bare.stderr.splitlines()[0].startswith(" ".join(["Usage: adclick", *words]))


def test_up_says_what_to_install_where_there_is_no_prometheus(
    adclick: Adclick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    result = adclick("up", "--observe", PATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "prometheus, which is not installed" in result.stderr and "apt-get install prometheus" in result.stderr
    assert not (tmp_path / ".adclick").exists()


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
def test_every_command_has_help_with_an_example(adclick: Adclick, name: str) -> None:
    result = adclick(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_global_options_stand_before_or_after_the_command(adclick: Adclick) -> None:
    before, after = adclick("--json", "config"), adclick("config", "--json", ADCLICK_CURRENCY="EUR")
    assert json.loads(before.stdout)["currency"] == {"value": "USD", "from": "default"}
    assert json.loads(after.stdout)["currency"] == {"value": "EUR", "from": "ADCLICK_CURRENCY"}


def test_status_of_a_stopped_stack_is_an_error(adclick: Adclick, tmp_path: Path) -> None:
    run = tmp_path / "stack" / "run"
    run.mkdir(parents=True)
    endpoints = {"kafka": "127.0.0.1:9", "redis": "redis://127.0.0.1:9/0", "clickhouse": "http://127.0.0.1:9"}
    (tmp_path / "stack" / "endpoints.json").write_text(json.dumps(endpoints))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in ("supervisor", "kafka", "ingest-0"):
        (run / f"{name}.pid").write_text(f"{ended.pid}\n")
    for words in (["status", "--dir", "stack"], ["status", "--dir", "stack", "--json"]):
        result = adclick(*words)
        assert result.returncode == 1
        assert result.stderr == "adclick: no stack is running in stack (adclick up --dir stack starts one)\n"
        assert "normal" not in result.stdout and "never" not in result.stdout
    report = json.loads(result.stdout)
    assert report["dead"] == ["ingest-0", "kafka", "supervisor"]
    assert (report["processes"], report["level"], report["topics"]) == ({}, "unknown", {})


def test_status_of_a_folder_without_a_stack_is_an_error(adclick: Adclick, tmp_path: Path) -> None:
    result = adclick("status", "--dir", str(tmp_path), ADCLICK_KAFKA="127.0.0.1:9", ADCLICK_REDIS="redis://127.0.0.1:9")
    assert (result.returncode, result.stderr) == (
        1,
        f"adclick: no stack is running in {tmp_path} (adclick up --dir {tmp_path} starts one)\n",
    )
    assert "normal" not in result.stdout and "never" not in result.stdout


@pytest.mark.parametrize(
    "words", [["config"], ["replay", "events.ndjson"], ["migrate"], ["query", "--campaign", "7", "--start", "-1h"]]
)
def test_a_client_of_a_folder_without_a_stack_connects_to_no_other_stack(
    adclick: Adclick, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "events.ndjson").write_text("{}\n")
    result = adclick(*words, "--dir", "nowhere", ADCLICK_KAFKA="127.0.0.1:9")
    assert result.returncode == 1
    assert result.stderr == "adclick: no stack has been started in nowhere (adclick up --dir nowhere starts one)\n"


def test_where_nothing_says_where_the_stores_are_it_is_said_that_no_stack_is_there(
    adclick: Adclick, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(None, as_json=False, verbose=False, quiet=False)
    monkeypatch.setenv("ADCLICK_DIR", "elsewhere")
    assert "no stack is in elsewhere" in app.stack_hint()
    monkeypatch.setenv("ADCLICK_REDIS", "redis://127.0.0.1:9")
    assert App(None, as_json=False, verbose=False, quiet=False).stack_hint() == ""


def test_a_variable_that_a_stack_overrides_is_named(adclick: Adclick, tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(json.dumps({"http": "http://127.0.0.1:9", "kafka": "127.0.0.1:9"}))
    same, note = (
        {"ADCLICK_KAFKA": "127.0.0.1:9"},
        f"note: ADCLICK_HTTP is not used: --dir takes that setting from the stack in {tmp_path}",
    )
    result = adclick("config", "--dir", str(tmp_path), ADCLICK_HTTP="http://127.0.0.1:10", **same)
    assert (result.returncode, result.stderr) == (0, f"{note}\n")
    assert adclick("config", "--dir", str(tmp_path), **same).stderr == ""


def test_of_secrets_the_default_alone_is_shown(adclick: Adclick) -> None:
    settings = json.loads(adclick("config", "--json", ADCLICK_API_KEY="k" * 40).stdout)
    assert (settings["user_secret"]["value"], settings["api_key"]["value"]) == ("adclick", "********")


def test_a_stack_that_is_not_ready_yet_is_reported_as_starting(adclick: Adclick, tmp_path: Path) -> None:
    Folder(tmp_path).make()
    Folder(tmp_path).write_pid("supervisor", os.getpid())
    result = adclick("status", "--dir", str(tmp_path), "--json")
    assert (result.returncode, result.stderr) == (1, f"adclick: the stack in {tmp_path} is still starting\n")
    assert list(json.loads(result.stdout)["processes"]) == ["supervisor"]


def test_output_that_cannot_be_written_ends_a_command_without_a_traceback() -> None:
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
