"""The tree is the map: which way imports run, and where each client library lives."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
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
    "cryptography": "infra/tls.py",
    "confluent_kafka": "infra/kafka/client.py",
    "aiokafka": "infra/kafka/sasl.py",
    "google_crc32c": "infra/kafka/record_batches.py",
    "hiredis": "infra/redis/commands.py",
    "redis": "infra/redis/connections.py",
    "numba": "infra/columnar/jit.py",
    "llvmlite": "infra/columnar/jit.py",
    "clickhouse_connect": "infra/clickhouse/client.py",
    "faust": "stream/agents.py",
    "pyspark": "batch/spark_job.py",
    "py4j": "batch/spark_job.py",
    "pybloom_live": "ingest/dedup/bloom.py",
    "fastapi": "query/api/app.py",
    "prometheus_client": "query/api/metrics.py",
    "grafana_foundation_sdk": "infra/monitoring/draw_boards.py",
    "circuitbreaker": "query/circuit.py",
    "sse_starlette": "query/api/live.py",
    "opentelemetry": "query/api/tracing.py",
    "uvicorn": "query/api/server.py",
    "werkzeug": "query/api/negotiation.py",
    "cachetools": "query/reply_cache.py",
    "httpx": "query/client.py",
    "itsdangerous": "query/signing.py",
    "jwt": "query/tokens.py",
    "httptools": "query/webhooks/sending.py",
    "standardwebhooks": "query/webhooks/signature.py",
}
PURE = [
    "ingest/events.py", "ingest/decoding/decode.py", "ingest/decoding/scan.py", "ingest/decoding/tokens.py", "infra/columnar/grouping.py", "ingest/lateness.py", "ingest/shedding.py", "ingest/salting.py", "ingest/partials.py",
    "ingest/blocks.py", "ingest/dedup/copies.py", "stream/closing.py", "stream/window.py", "stream/closed_rows.py", "stream/intake.py", "stream/state.py",
    "stream/published.py", "stream/flush_policy.py", "stream/chunks.py", "stream/hot/cell_format.py", "stream/hot/layout.py",
    "stream/hot/limits.py", "stream/hot/gathering.py", "query/question.py", "query/buckets.py", "query/plan.py", "query/reading.py", "query/sums.py", "query/rows.py", "query/page.py", "query/warnings.py", "query/times.py", "query/row_scope.py", "query/parameters.py", "query/finality.py",
    "query/notify/changes.py", "query/notify/budget_rule.py", "query/notify/pipeline_rules.py",
]  # fmt: skip
IMPURE = {
    "infra.kafka.client", "infra.redis.client", "infra.redis.connections", "infra.clickhouse.client", "infra.settings", "infra.clock.now_ms",
    "time", "os", "threading", "asyncio",
}  # fmt: skip
PURE_TO_USE = {
    "infra/clock.py": "but for now_ms, only constants and formats",
    "infra/columnar/jit.py": "what it compiles is pure; it looks for a folder to keep that in",
    "infra/faults.py": "a point is an empty function outside tests",
    "infra/clickhouse/alerts.py": "an alert is a value; only writing it takes a client",
    "ingest/dedup/bloom.py": "pybloom-live computes, no more",
    "query/signing.py": "itsdangerous computes, no more",
}
"""Files whose own imports do not count against the files that import them."""


@cache  # a file is parsed once, not for each library
def imports(file: Path) -> frozenset[str]:
    """Names of modules, and of what is imported from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def file_of(module: str) -> str | None:
    """A file of ours."""
    path = f"{module.replace('.', '/')}.py"
    return path if (ROOT / path).is_file() else None


def reached_from(file: str) -> dict[str, str]:
    """All files of ours that a file imports, directly or through others → the one that imports it."""
    reached, remaining = {file: ""}, [file]
    while remaining:
        importer = remaining.pop()
        for imported in filter(None, map(file_of, imports(ROOT / importer))):
            if imported not in reached and imported not in PURE_TO_USE:
                reached[imported] = importer
                remaining.append(imported)
    return reached


def sources() -> list[Path]:
    return [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_upstream(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        used = {name.split(".")[0] for name in imports(file)} & set(PACKAGES)
        assert used <= MAY_IMPORT[package], file


@pytest.mark.parametrize(("library", "home"), CLIENTS.items())
def test_each_client_library_is_imported_in_one_module(library: str, home: str) -> None:
    users = {str(f.relative_to(ROOT)) for f in sources() if library in {name.split(".")[0] for name in imports(f)}}
    assert users == {home}


@pytest.mark.parametrize("file", PURE)
def test_the_core_and_all_that_it_imports_are_pure(file: str) -> None:
    for reached, importer in reached_from(file).items():
        impure = imports(ROOT / reached) & (IMPURE | set(CLIENTS))
        assert not impure, f"{reached} (imported by {importer or 'nothing'})"


@pytest.mark.parametrize("sink", ["stream/hot/writer.py", "stream/hot/packer.py", "stream/warm/writer.py"])
def test_sinks_do_not_import_the_state(sink: str) -> None:
    assert not reached_from(sink).keys() & {"stream/state.py", "stream/intake.py", "stream/stage_partition.py"}


@pytest.mark.parametrize("backend", ["kafka", "redis"])
def test_what_connects_to_a_backend_imports_nothing_of_another(backend: str) -> None:
    others = tuple(f"infra.{other}" for other in ("kafka", "redis", "clickhouse") if other != backend)
    for file in (ROOT / "infra" / backend).rglob("*.py"):
        assert not [name for name in imports(file) if name.startswith(others)], file


def test_class_names_are_unique() -> None:
    homes: dict[str, list[str]] = {}
    for file in sources():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def test_the_repository_names_no_package_registry_and_no_local_path() -> None:
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
    # What is around a match is no part of the pattern: it would be tried from each letter of the tree on.
    pattern = re.compile("|".join(hosts + paths))
    texts = {file: file.read_text(errors="replace") for file in tracked()}
    matches = {file: match for file, text in texts.items() if (match := pattern.search(text))}
    assert {str(f.relative_to(ROOT)): texts[f][max(0, m.start() - 30) : m.end() + 30] for f, m in matches.items()} == {}


def test_the_top_level_has_only_known_entries() -> None:
    top = {f.relative_to(ROOT).parts[0] for f in tracked()}
    fixed = {"pyproject.toml", "README.md", "ingest", "stream", "batch", "query", "infra", "tests"}
    assert fixed <= top
    allowed = {"Makefile", "LICENSE", "docs", "requirements.lock", "requirements-java.lock"}
    assert {name for name in top - fixed - allowed if not name.startswith(".")} == set()


def test_every_package_is_part_of_what_is_installed() -> None:
    folders = {
        ".".join(f.parent.relative_to(ROOT).parts) for name in PACKAGES for f in (ROOT / name).rglob("__init__.py")
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == folders


def test_files_have_at_most_500_lines() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in sources()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}
