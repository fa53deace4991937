"""The README's working session works, line by line; what it leaves in Redis is in the data model."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.redis.client import Redis
from infra.settings import resolve
from tests.conftest import product_environment

ROOT = Path(__file__).parents[2]
DATA_MODEL = ROOT / "docs" / "data-model.md"
_LIMIT_S = 900
_MARK = "-- end of line --"
_CAUGHT_UP = """until COMMAND > status && awk -v least="$(date -u -d '-15 min' +%FT%T)" '
    $1 == "ad-events" && $2 == 0 { read = 1 } $1 == "watermark" && $2 > least { counted = 1 } END { exit !(read && counted) }
' status; do sleep 1; done; cat status"""
_CLOSED = "until COMMAND 2> refusal; do grep -q 'still open' refusal || (cat refusal >&2; exit 1); sleep 2; done"
# What stands for something else in a key of the page.
_VARIABLE_PARTS = {
    "{pN}": r"\{p\d+\}", "{sN}": r"\{s\d+\}", "GEN": r"\d+", "NUMBER": r"\d+", "HOUR": r"\d+", "MINUTE": r"\d+",
    "CAMPAIGN": r"\d+", "ADVERTISER": r"\d+", "PLACE": r"\d+", "COMPUTED": r"\d+", "KIND": "[rapcd]", "WORKER": r"[\w.-]+", "KEY": r"\S+",
    "SHA256": "[0-9a-f]{64}", "LEASE": r"(migrate|reconcile|statements|directory|notify|webhooks:\d+)",
}  # fmt: skip


def session_lines() -> list[str]:
    """The commands of the README's working session."""
    section = (ROOT / "README.md").read_text().split("## A working session")[1].split("\n## ")[0]
    block = section.split("```console\n")[1].split("```")[0]
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def run_lines(lines: list[str], folder: Path) -> list[str]:
    """Run them in one shell, in this folder; the standard output of each. Two are repeated, as the README says."""
    script = ["set -euo pipefail", "shopt -s expand_aliases", "alias adclick=.venv/bin/adclick"]
    for line in lines:
        command = line.split("  #")[0].strip()
        if command.startswith("adclick status"):
            line = _CAUGHT_UP.replace("COMMAND", command)
        if command.startswith("adclick reconcile"):
            line = _CLOSED.replace("COMMAND", command)
        script += [line, f"echo '{_MARK}'"]
    # curl heeds the proxies that the product must not.
    env = product_environment() | {"ADCLICK_RECONCILE_AT": "off", "no_proxy": "127.0.0.1"}
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=env, capture_output=True, text=True, timeout=_LIMIT_S
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout.split(f"{_MARK}\n")[:-1]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which the session ran up to its `down`, and the output of each of its lines."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    lines = session_lines()
    assert lines[-1].startswith("adclick down")
    try:
        yield folder, dict(zip(lines, run_lines(lines[:-1], folder), strict=False))
    finally:
        run_lines(lines[-1:], folder)


@pytest.mark.timeout(2 * _LIMIT_S)
def test_the_session_prints_what_the_readme_shows(session: tuple[Path, dict[str, str]]) -> None:
    _, printed = session

    def output(*words: str) -> str:
        (text,) = [text for line, text in printed.items() if all(word in line for word in words)]
        return text

    assert "http://" in output("adclick up")
    assert "country" in output("--granularity hour") and len(output("--granularity hour").splitlines()) > 20
    assert "watermark" in output("adclick status")
    assert "bad-value" in output("dead-letters list")
    assert "late" in output("adclick reconcile")
    assert "reconciled" in output("--granularity day")
    reply = json.loads(output("curl"))
    assert reply["data"] and {"impressions", "clicks", "spend_micros", "finality"} <= reply["data"][0].keys()


@pytest.mark.timeout(2 * _LIMIT_S)
def test_every_key_in_redis_is_in_the_data_model(session: tuple[Path, dict[str, str]]) -> None:
    folder, _ = session
    rows = re.findall(r"^\| `(adclick:[^`]+)` \| (\w+) \| .* \| (.*) \|$", DATA_MODEL.read_text(), re.M)
    known = [(re.compile(_pattern(key)), kind, goes) for key, kind, goes in rows]
    assert len(known) > 10
    unknown = []
    with contextlib.closing(Redis(resolve(str(folder / ".adclick")).settings.redis)) as redis:
        keys = redis.scan_keys("*")
        assert keys
        for key in keys:
            kind, ttl_s = redis.call("TYPE", key), int(redis.call("TTL", key))
            entry = next((e for e in known if e[0].fullmatch(key.decode())), None)
            # −2: it has gone since.
            if ttl_s != -2 and (entry is None or kind != entry[1].encode() or (entry[2] == "never" and ttl_s >= 0)):
                unknown.append((key, kind, ttl_s))
    assert unknown == []


def _pattern(key: str) -> str:
    parts = re.split(r"(\{pN\}|\{sN\}|\b[A-Z][A-Z0-9]+\b)", key)
    return "".join(_VARIABLE_PARTS.get(part, re.escape(part)) for part in parts)


@pytest.mark.timeout(2 * _LIMIT_S)
@pytest.mark.parametrize(
    ("topic", "summary"),
    [
        ("ad-events", '"event_id"'),
        ("ad-events-dead", "bad-value: "),
        ("ad-blocks", r"rows, part 1 of \d+, source 0/\[0, "),
        ("ad-archive", r"events, part 1 of \d+, source 0/\["),
        ("ad-minutes", r"chunk 1 of shard 0, part 1 of \d+"),
        ("ad-hour-state", r"chunk \d+ of shard 0, part 1 of \d+"),
    ],
    ids=lambda word: word if word.startswith("ad-") else "",
)
def test_messages_of_each_kind_are_decoded(session: tuple[Path, dict[str, str]], topic: str, summary: str) -> None:
    folder, _ = session
    (listed,) = run_lines([f"adclick debug read {topic}/0 --last 1000 --json"], folder)
    matches = [entry for entry in json.loads(listed) if re.search(summary, entry["summary"])]
    assert matches
    (shown,) = run_lines([f"adclick debug read {topic}/0/{matches[0]['offset']} --rows 3 --json"], folder)
    message = json.loads(shown)
    assert message["summary"] == matches[0]["summary"]
    assert len(message["rows"]) <= 3
