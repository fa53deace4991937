"""The lock, read: which packages it has, what each is needed by, and which of them an installation without development needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCK, JAVA_LOCK = ROOT / "requirements.lock", ROOT / "requirements-java.lock"
_SELF = "adclick"
_ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\\n(?P<rest>(?:[ #].*\n?)*)", re.M)


@dataclass(frozen=True)
class LockedPackage:
    """An entry of the lock. `needed_by`: normalized names; `adclick` for what pyproject.toml names. `lines`: as pip reads them."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]
    needed_by: frozenset[str]
    lines: str


def normalized(name: str) -> str:
    """A package's name as locks and indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def read_lock(path: Path = LOCK) -> list[LockedPackage]:
    """All entries. One package may have several, for different Pythons."""
    packages = []
    for entry in _ENTRY.finditer(path.read_text()):
        lines, _, origin = entry[0].partition("    # via")
        needed_by = {
            normalized(re.sub(r"\[.*\]", "", name))
            for name in re.findall(r"[\w.\[\]-]+", origin)
            if name != "pyproject.toml"
        }
        packages.append(
            LockedPackage(
                normalized(entry["name"]), entry["version"], entry["marker"] or "",
                tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", lines)), frozenset(needed_by), lines.rstrip("\n") + "\n",
            )
        )  # fmt: skip
    return packages


def runtime_packages(*, java: bool) -> list[LockedPackage]:
    """The entries that an installation needs: what `dependencies` names, and all that these need. `java`: a Java as well."""
    locked = read_lock()
    needed = {normalized(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in project()["dependencies"]}
    while more := {package.name for package in locked if package.needed_by & needed} - needed:
        needed |= more
    return [package for package in locked if package.name in needed] + (read_lock(JAVA_LOCK) if java else [])


def requirements_text(packages: Iterable[LockedPackage]) -> str:
    """A file for `pip install --require-hashes -r`."""
    return "".join(package.lines for package in packages)
