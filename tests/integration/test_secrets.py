"""Secrets of a running stack are in the two files that are for its user alone, and nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from infra.embedded.stack_folder import Folder
from tests.conftest import adclick

# Files of `DIR` that have secrets on purpose.
OWN = {"state.json", "endpoints.json"}


def test_no_secret_is_in_logs_command_lines_settings_metrics_or_answers(backends: Path) -> None:
    state = json.loads((backends / "state.json").read_text())
    endpoints = json.loads((backends / "endpoints.json").read_text())
    secrets = {name: state[name] for name in ("api_key", "user_secret", "clickhouse_password")}
    assert all(len(secret) >= 20 and secret in json.dumps(endpoints) for secret in secrets.values())
    places = {}
    # What a client sends wrongly is in no answer and no log, either: a key in an address, and one that is nearly right.
    http, key = endpoints["http"], secrets["api_key"]
    for path, sent in (
        (f"/v1/metrics?key={key}", key),
        (f"/v1/{key}", key),
        ("/v1/access", key),
        ("/v1/access", f"{key}x"),
    ):
        answer = httpx.get(f"{http}{path}", headers={"Authorization": f"Bearer {sent}"})
        places[f"the answer to {path.replace(key, 'KEY')}"] = f"{answer.text} {answer.headers}"
    places["/metrics"] = httpx.get(f"{http}/metrics").text
    places["/openapi.json"] = httpx.get(f"{http}/openapi.json").text
    for words in (["config"], ["status", "-v", "--json"], ["doctor"]):
        result = adclick(*words, "--dir", str(backends))
        places[f"adclick {' '.join(words)}"] = result.stdout + result.stderr
    wrong = adclick(
        "query", "--campaign", "7", "--start", "-1h", "-v", ADCLICK_HTTP="http://127.0.0.1:9", ADCLICK_API_KEY=key
    )
    places["an error with its traceback"] = wrong.stdout + wrong.stderr
    assert "Traceback" in places["an error with its traceback"]
    processes = Folder(backends).processes()
    assert {"supervisor", "kafka", "redis", "clickhouse", "query-0"} <= processes.keys()
    for name, process in processes.items():
        places[f"the command line of {name}"] = " ".join(process.cmdline())
    logs = sorted((backends / "logs").glob("*.log*"))
    assert {"supervisor.log", "query-0.log"} <= {log.name for log in logs}
    places |= {log.name: log.read_text(errors="replace") for log in logs}
    # The access log has all of these requests.
    assert places["query-0.log"].count("/v1/access") >= 2
    shown = {(name, place) for place, text in places.items() for name, secret in secrets.items() if secret in text}
    assert shown == set()


def test_files_with_secrets_are_readable_for_their_user_alone(backends: Path) -> None:
    assert {name: (backends / name).stat().st_mode & 0o077 for name in OWN} == dict.fromkeys(OWN, 0)
    # Nothing of it can be reached by another user, whatever the modes of the files in it are.
    assert backends.stat().st_mode & 0o077 == 0


def test_configuration_of_the_servers_has_no_password(backends: Path) -> None:
    password = json.loads((backends / "state.json").read_text())["clickhouse_password"]
    files = [file for folder in ("kafka", "clickhouse") for file in (backends / folder).glob("*.*") if file.is_file()]
    assert {"server.properties", "users.xml"} <= {file.name for file in files}
    assert [file.name for file in files if password in file.read_text(errors="replace")] == []
    # Of which ClickHouse needs a digest.
    users = (backends / "clickhouse" / "users.xml").read_text()
    assert re.search(r"<password_sha256_hex>[0-9a-f]{64}</password_sha256_hex>", users)
