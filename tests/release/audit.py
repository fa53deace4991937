"""`make audit-dependencies`: the locked packages against published advisories, by pip-audit and OSV.

Exit 0: none is known. 1: some are, or a check failed. 3: nothing was audited, since the advisories cannot be reached; what can be checked
without them was. OSV_URL names a mirror. What packages carry within them (Spark's jars, Redis) is not looked at: a scanner finds it in the
bill of materials of `make sbom`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.release.licences import check_installed, installed
from tests.release.locked import JAVA_LOCK, read_lock

_LIMIT_S = 900


class NotAudited(Exception):
    """Why the advisories could not be asked: one line."""


def pins() -> list[str]:
    """`name==version` of all that is locked, for development, too."""
    return sorted({f"{package.name}=={package.version}" for package in [*read_lock(), *read_lock(JAVA_LOCK)]})


def ask_osv(folder: Path) -> list[dict[str, Any]]:
    """What pip-audit, which is installed for this alone, says of each package. Raises NotAudited."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    tool = subprocess.run([python, "-m", "pip", "install", "-q", "pip-audit"], capture_output=True, text=True)
    if tool.returncode:
        raise NotAudited(f"pip-audit cannot be installed: {_last_line(tool.stderr)}")
    # `-s osv`: the package index's own advisories pass over a package that they do not know, and still end with success.
    command = [
        python,
        "-m",
        "pip_audit",
        "-s",
        "osv",
        "--no-deps",
        "--disable-pip",
        "-f",
        "json",
        "--progress-spinner",
        "off",
    ]
    command += ["--osv-url", os.environ["OSV_URL"]] if os.environ.get("OSV_URL") else []
    reports = []
    for file in _write_pins(folder):
        result = subprocess.run([*command, "-r", str(file)], capture_output=True, text=True, timeout=_LIMIT_S)
        try:
            reports += json.loads(result.stdout)["dependencies"]
        except (ValueError, KeyError):
            raise NotAudited(_last_line(result.stderr)) from None
    return reports


def _write_pins(folder: Path) -> Iterator[Path]:
    """Files of requirements. pip-audit refuses a package in two versions, as some are locked for different Pythons: each has its file."""
    left = pins()
    while left:
        batch = {pin.partition("==")[0]: pin for pin in left}
        file = folder / f"pins-{len(left)}.txt"
        file.write_text("\n".join(batch.values()) + "\n")
        left = [pin for pin in left if pin not in batch.values()]
        yield file


def findings(reports: list[dict[str, Any]], asked: list[str]) -> Iterator[str]:
    """What reports say against packages, a line each; and of which packages that were asked for they say nothing."""
    answered = set()
    for package in reports:
        if "skip_reason" in package:
            continue
        answered.add(f"{package['name']}=={package['version']}")
        for advisory in package["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no version"
            yield f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}"
    yield from (f"{pin}: no report has anything about it" for pin in asked if pin not in answered)


def check_offline() -> list[str]:
    """What can be told without advisories: each package is the one that is locked, fits the others, and may be used."""
    versions = {(package.name, package.version) for package in read_lock()}
    locked = {name for name, _ in versions}
    others = [
        f"{name} {found.version} is installed, and not what is locked"
        for name, found in installed().items()
        if name in locked and (name, found.version) not in versions
    ]
    consistent = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    return [*others, *check_installed(), *(consistent.stdout.splitlines() if consistent.returncode else ())]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it says nothing"


def main() -> int:
    """Audit, and print what was found."""
    problems, code = check_offline(), 0
    try:
        with tempfile.TemporaryDirectory(prefix="adclick-audit-") as folder:
            problems += findings(ask_osv(Path(folder)), pins())
        print(f"audit-dependencies: {len(pins())} locked packages compared with published advisories")
    except (NotAudited, subprocess.TimeoutExpired) as error:
        code = 3
        print(
            f"audit-dependencies: not audited, the advisories cannot be reached: {error}\n"
            "audit-dependencies: set OSV_URL to a mirror, or give the bill of materials of `make sbom` to a scanner. Checked without "
            "them: installed versions, their requirements, licences",
            file=sys.stderr,
        )
    for problem in problems:
        print(f"audit-dependencies: {problem}", file=sys.stderr)
    return 1 if problems else code


if __name__ == "__main__":
    sys.exit(main())
