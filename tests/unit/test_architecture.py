"""The tree is the map: which way imports run, and where each client library lives."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "ingest", "stream", "batch", "query")
MAY_IMPORT = {
    "infra": {"infra"},
    "ingest": {"infra", "ingest"},
    "stream": {"infra", "ingest", "stream"},
    "batch": {"infra", "ingest", "stream", "batch"},
    "query": {"infra", "ingest", "stream", "query"},
}
CLIENTS = {
    "confluent_kafka": "infra/kafka.py",
    "redis": "infra/redis.py",
    "numba": "infra/compiled.py",
    "llvmlite": "infra/compiled.py",
    "clickhouse_connect": "infra/clickhouse/client.py",
    "faust": "stream/agents.py",
    "pyspark": "batch/exact.py",
    "py4j": "batch/exact.py",
    "pybloom_live": "ingest/dedup/bloom.py",
    "fastapi": "query/api/app.py",
    "prometheus_client": "query/api/metrics.py",
    "circuitbreaker": "query/tiers/guard.py",
    "sse_starlette": "query/api/live.py",
    "opentelemetry": "query/api/tracing.py",
    "uvicorn": "query/api/server.py",
    "werkzeug": "query/api/negotiation.py",
    "cachetools": "query/recent.py",
    "httpx": "query/client.py",
}
PURE = [
    "ingest/events.py", "ingest/decode.py", "ingest/scan.py", "ingest/tokens.py", "ingest/grouping.py", "ingest/lateness.py", "ingest/shedding.py", "ingest/salting.py", "ingest/partials.py",
    "ingest/blocks.py", "ingest/dedup/decision.py", "stream/windows.py", "stream/state.py", "stream/chunks.py",
    "stream/sinks/rows.py", "query/plan.py", "query/answer.py", "query/request.py",
]  # fmt: skip


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def sources() -> list[Path]:
    return [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        used = {name.split(".")[0] for name in imports(file)} & set(PACKAGES)
        assert used <= MAY_IMPORT[package], file


@pytest.mark.parametrize(("library", "home"), CLIENTS.items())
def test_a_client_library_has_one_home(library: str, home: str) -> None:
    users = {str(f.relative_to(ROOT)) for f in sources() if library in {name.split(".")[0] for name in imports(f)}}
    assert users == {home}


@pytest.mark.parametrize("file", PURE)
def test_the_core_is_pure(file: str) -> None:
    impure = {
        "infra.kafka",
        "infra.redis",
        "infra.clickhouse.client",
        "infra.settings",
        "time",
        "os",
        "threading",
        "asyncio",
    }
    assert not imports(ROOT / file) & (impure | set(CLIENTS))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def test_no_registry_and_no_path_of_a_machine_is_in_the_repository() -> None:
    hosts = [
        "py" + "pi",
        "python" + "hosted",
        "maven" + r"\.org",
        "npm" + "js",
        r"(?<![\w.])" + "registry" + r"\.(?:[\w-]+\.)+(?:org|com|io|net)\b",
        "deb" + r"ian\.org",
    ]
    # "/work" and "/root" as whole words that begin a path.
    paths = ["(?<![\\w.}])/" + "work/", "(?<![\\w.}])/" + "root/", "(?<![\\w.}])/" + "home/"]
    pattern = re.compile("|".join([rf"[\w.-]*{h}[\w.-]*" for h in hosts] + paths))
    found = {
        str(f.relative_to(ROOT)): m.group() for f in tracked() if (m := pattern.search(f.read_text(errors="replace")))
    }
    assert found == {}


def test_the_top_level_is_what_was_asked_for() -> None:
    top = {f.relative_to(ROOT).parts[0] for f in tracked()}
    fixed = {"pyproject.toml", "README.md", "ingest", "stream", "batch", "query", "infra", "tests"}
    assert fixed <= top
    allowed = {"Makefile", "LICENSE", "docs", "requirements.lock", "requirements-java.lock"}
    assert {name for name in top - fixed - allowed if not name.startswith(".")} == set()


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in sources()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}
