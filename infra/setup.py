"""Set-up of a fresh machine, with nothing but the standard library: `make setup` runs this.

Makes `.venv` from the hashed lock, fetches a Java where the machine has none, and Kafka's jars into a per-user
cache, checked by SHA-256. Each step is skipped when it is done already, and can be run again when it failed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".adclick-lock"
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-java.lock", ROOT / "pyproject.toml"]


def say(text: str) -> None:
    """A line for the person who waits."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Stop with one line."""
    say(f"failed: {text}")
    sys.exit(1)


def run(what: str, *command: str) -> None:
    """Run a step quietly; on failure show the end of what it printed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-15:]), file=sys.stderr)
        fail(f"{what}. See the lines above; `make setup` can simply be run again")


def fingerprint() -> str:
    """Changes when anything that the virtual environment is made from changes."""
    digest = hashlib.sha256(sys.version.encode() + str(VENV).encode())
    for lock in LOCKS:
        digest.update(lock.read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    """The virtual environment with the locked packages, and this project in it."""
    if STAMP.exists() and STAMP.read_text() == fingerprint():
        return
    if STAMP.exists():
        STAMP.unlink()
    if not (VENV / "bin" / "python").exists():
        say("making .venv")
        run("python -m venv", sys.executable, "-m", "venv", "--clear", str(VENV))
    python = str(VENV / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    say("installing the locked packages (about 800 MB; a minute or two)")
    lock = (ROOT / "requirements.lock").read_text()
    tools = VENV / "build-tools.lock"
    tools.write_text(_entry(lock, "setuptools"))
    run("installing the build tools", *pip, "--require-hashes", "--no-deps", "-r", str(tools))
    # Packages that come as source are built with the locked setuptools, not with whatever is newest.
    run("installing the packages", *pip, "--require-hashes", "--no-build-isolation", "-r", "requirements.lock")
    run("installing adclick", *pip, "--no-deps", "--no-build-isolation", "--editable", ".")
    say("compiling (a quarter of a minute)")
    run("compiling", str(VENV / "bin" / "python"), "-m", "ingest.warm_up")
    STAMP.write_text(fingerprint())


def _entry(lock: str, package: str) -> str:
    """One package's lines of the lock."""
    lines, taking = [], False
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            taking = line.startswith(f"{package}==")
        if taking and not line.strip().startswith("#"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def find_java() -> bool:
    """True when there is a Java 17 or newer; otherwise it is fetched."""
    probe = [str(VENV / "bin" / "python"), "-m", "infra.embedded.java"]
    if subprocess.run(probe, cwd=ROOT, capture_output=True).returncode == 0:
        return True
    say("no Java 17 or newer here: installing one into .venv (100 MB)")
    run(
        "installing Java",
        str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--require-hashes", "-r", "requirements-java.lock",
    )  # fmt: skip
    return subprocess.run(probe, cwd=ROOT, capture_output=True).returncode == 0


def main() -> None:
    """Everything, in order."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fail(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; try `make PYTHON=python3.11`")
    if sys.platform != "linux":
        fail("adclick runs on Linux (x86-64, or arm64 where wheels exist)")
    if shutil.disk_usage(ROOT).free < 3 << 30:
        fail("3 GB of free disk space are needed")
    os.environ.pop("PYTHONPATH", None)
    make_venv()
    if not find_java():
        fail("the Java that was installed does not start")
    jars = subprocess.run([str(VENV / "bin" / "python"), "-m", "infra.embedded.jars"], cwd=ROOT)
    if jars.returncode:
        sys.exit(1)


if __name__ == "__main__":
    main()
