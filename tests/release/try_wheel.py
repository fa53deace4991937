"""`make wheel-test PYTHON=python3.12`: the wheel in a virtual environment outside of the checkout, as a user installs and runs it.

Builds it twice, which must give the same bytes; installs it with the locked requirements, each checked by its hash; then, in an empty
folder and with an empty cache: a stack, an event file of known counts, the answer over HTTP and by the command, a nightly run, down. No
Java of the machine is visible, unless JAVA=machine asks for it, and none is installed then.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.product import wait_until
from tests.release import wheel

CAMPAIGN = 7
COUNTS = {"impression": 700, "click": 200, "conversion": 100}
COPIES = 2
COST_MICROS = 250


class Failed(Exception):
    """What the wheel does not do: one line."""


class Machine:
    """A user's machine: an empty home, an empty cache, a PATH without Java."""

    def __init__(self, folder: Path, python: str, *, java: bool) -> None:
        self.work, self._venv, self._python = folder / "work", folder / "venv", python
        for made in (self.work, folder / "home", folder / "cache"):
            made.mkdir()
        path = os.environ["PATH"] if java else str(_path_without_java(folder / "bin"))
        names = [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]
        kept = {name: os.environ[name] for name in (*names, "LANG", "TMPDIR") if name in os.environ}
        self.env = kept | {
            "PATH": f"{self._venv / 'bin'}{os.pathsep}{path}", "HOME": str(folder / "home"), "ADCLICK_RECONCILE_AT": "off",
            "XDG_CACHE_HOME": str(folder / "cache"), "PIP_CACHE_DIR": _pip_cache(), "no_proxy": "127.0.0.1",
        }  # fmt: skip

    def run(self, *words: str, limit_s: float = 1800) -> str:
        """Standard output of a command in the empty folder; what it says of its progress is shown. Raises Failed."""
        result = subprocess.run(words, cwd=self.work, env=self.env, stdout=subprocess.PIPE, text=True, timeout=limit_s)
        if result.returncode:
            raise Failed(f"{' '.join(words)[:200]} ended with {result.returncode}: {result.stdout[-500:]}")
        return result.stdout

    def install(self, dist: Path) -> None:
        """Make the virtual environment as docs/releasing.md says."""
        subprocess.run([self._python, "-m", "venv", str(self._venv)], check=True)
        pip = (str(self._venv / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
        self.run(*pip, "--require-hashes", "--no-deps", "-r", str(dist / wheel.BUILD_TOOLS))
        self.run(*pip, "--require-hashes", "--no-build-isolation", "-r", str(dist / wheel.REQUIREMENTS))
        self.run(*pip, "--no-deps", str(next(dist.glob("adclick-*.whl"))))
        self.run(*pip[:-1], "check")


def _path_without_java(folder: Path) -> Path:
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            # Neither Java, nor a Python of ours.
            if not program.name.startswith(("java", "python", "pip", "adclick")):
                with contextlib.suppress(FileExistsError):
                    (folder / program.name).symlink_to(program)
    return folder


def _pip_cache() -> str:
    return subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True
    ).stdout.strip()


def write_events(path: Path) -> None:
    """Events of the last minutes, each of them several times."""
    now_ms = time.time_ns() // 1_000_000
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    events = [
        {"event_id": f"wheel-{n}", "event_type": kind, "event_time": now_ms - n % 120_000, "campaign_id": CAMPAIGN, "ad_id": 1,
         "advertiser_id": 2, "publisher_id": 3, "country": "DE", "device": "mobile", "user_id": f"u{n % 50}", "cost_micros": COST_MICROS}
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events) * COPIES)


EXPECTED = {
    "impressions": COUNTS["impression"], "clicks": COUNTS["click"], "conversions": COUNTS["conversion"],
    "spend_micros": COST_MICROS * sum(COUNTS.values()),
}  # fmt: skip


def use(machine: Machine) -> None:
    """A first session: every number is that of the events. Raises Failed."""
    with step("adclick up --detach"):
        endpoints: dict[str, Any] = json.loads(machine.run("adclick", "up", "--detach", "--json"))
    try:
        place = machine.run("python", "-P", "-c", "import infra; print(infra.__file__)").strip()
        if not Path(place).is_relative_to(machine.work.parent / "venv"):
            raise Failed(f"it runs {place}, not what was installed")
        with urllib.request.urlopen(endpoints["http"], timeout=30) as page:
            if b"modulepreload" not in page.read():
                raise Failed("the dashboard is not served")
        write_events(machine.work / "events.ndjson")
        question = (
            "adclick",
            "query",
            "--campaign",
            str(CAMPAIGN),
            "--start",
            "-1h",
            "--end",
            "now",
            "--granularity",
            "total",
            "--json",
        )
        with step("adclick replay, until the answer is exact"):
            machine.run("adclick", "replay", "events.ndjson")
            rows: list[dict[str, Any]] = []

            def exact() -> bool:
                rows[:] = json.loads(machine.run(*question))["data"]
                return len(rows) == 1 and {name: rows[0][name] for name in EXPECTED} == EXPECTED

            wait_until(exact, 30, lambda: f"the answer is exact: it is {rows}, and not {EXPECTED}")
        with step("adclick reconcile, of today"):
            today = time.strftime("%Y-%m-%d", time.gmtime())
            print(machine.run("adclick", "reconcile", "--date", today, "--force"), end="")
    finally:
        with step("adclick down"):
            machine.run("adclick", "down")
    left = list(machine.work.glob(".adclick/run/*.pid"))
    if left:
        raise Failed(f"processes are left: {left}")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    began = time.monotonic()
    yield
    print(f"wheel-test: {name}: {time.monotonic() - began:.1f} s", flush=True)


def main() -> int:
    """All steps, for one Python."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--java", choices=["wheel", "machine"], default="wheel", help="Which Java it is run with.")
    options = parser.parse_args()
    version = subprocess.run([options.python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"wheel-test: {version}, Java of the {options.java}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="adclick-wheel-test-") as name:
            folder = Path(name)
            with step("building it twice"):
                built = wheel.build(folder / "dist")
                sums = {
                    hashlib.sha256(file.read_bytes()).hexdigest() for file in (built, wheel.build(folder / "again"))
                }
            if len(sums) > 1:
                raise Failed("two builds of the same commit differ")
            wheel.write_requirements(folder / "dist", java=options.java == "wheel")
            machine = Machine(folder, options.python, java=options.java == "machine")
            with step("installing it, and what it needs"):
                machine.install(folder / "dist")
            print(f"wheel-test: {machine.run('adclick', '--version').strip()}", flush=True)
            use(machine)
    except (Failed, AssertionError, subprocess.SubprocessError) as error:
        print(f"wheel-test: failed: {error}", file=sys.stderr)
        return 1
    print(
        f"wheel-test: {version}: {sum(COUNTS.values()):,} events, each sent {COPIES} times, were counted once",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
