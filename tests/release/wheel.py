"""`make wheel`: the wheel and the locked requirements that it is installed with, in `dist`, the same bytes for the same commit.

It is built from a copy of the files that git tracks, so that nothing else in the checkout gets into it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.release.locked import ROOT, project, requirements_text, runtime_packages

REQUIREMENTS, BUILD_TOOLS = "requirements.txt", "build-tools.txt"
SUMS = "SHA256SUMS"


def commit_time_s() -> int:
    """The time that goes into what is built: that of the commit, unless SOURCE_DATE_EPOCH names another."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(_git("log", "-1", "--format=%ct"))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _copy_tracked(target: Path) -> None:
    for name in _git("ls-files", "-z").split("\0"):
        source = ROOT / name
        if name and source.is_file() and not name.startswith(("tests/", "docs/", ".")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


def build(out: Path) -> Path:
    """Build the wheel into a folder; returns it. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="adclick-wheel-") as folder:
        source, built = Path(folder, "source"), Path(folder, "built")
        # Modes of files go into the wheel, too.
        former = os.umask(0o022)
        try:
            source.mkdir()
            _copy_tracked(source)
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(built), str(source)],
                check=True, env=os.environ | {"SOURCE_DATE_EPOCH": str(commit_time_s()), "PYTHONHASHSEED": "0"},
            )  # fmt: skip
        finally:
            os.umask(former)
        (wheel,) = built.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, out / wheel.name))


def write_requirements(out: Path, *, java: bool = True) -> None:
    """The locked requirements beside the wheel; with a Java, for machines that have none. Some packages come as source, and are built
    with the locked setuptools, not with whatever is newest: it is a file of its own, installed first."""
    packages = runtime_packages(java=java)
    tools = [package for package in packages if package.name == "setuptools"]
    head = f"# What adclick {project()['version']} was tested with; docs/releasing.md says how to install it.\n"
    (out / BUILD_TOOLS).write_text(head + requirements_text(tools))
    (out / REQUIREMENTS).write_text(head + requirements_text(packages))


def write_sums(out: Path) -> None:
    """`SHA256SUMS` of all that is in the folder."""
    files = sorted(file for file in out.iterdir() if not file.name.startswith(SUMS))
    (out / SUMS).write_text(
        "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    )


def main() -> None:
    """Build into `dist`, and say what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out
    for former in (*out.glob("adclick-*"), out / REQUIREMENTS, out / BUILD_TOOLS, out / SUMS):
        former.unlink(missing_ok=True)
    wheel = build(out)
    write_requirements(out)
    write_sums(out)
    if _git("status", "--porcelain", "--untracked-files=no"):
        print("wheel: it has changes that are not committed", file=sys.stderr)
    print(f"{wheel}  {wheel.stat().st_size // 1024} kB, as of commit {_git('rev-parse', '--short', 'HEAD').strip()}")


if __name__ == "__main__":
    main()
