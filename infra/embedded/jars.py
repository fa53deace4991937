"""Jars of Kafka and of the dashboard, resolved by the Ivy that comes with pyspark and checked by SHA-256.

They are fetched into the user's cache, for all checkouts. `make setup`, or `python -m infra.embedded.jars`, also links them into the
virtual environment, for all users of it; without that, `adclick up` fetches them when it is first run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from infra import temp_dirs, user_cache
from infra.embedded import java
from infra.errors import UserError


@dataclass(frozen=True)
class JarSet:
    """Jars that are fetched together. `name`: of their folder, and of the file here with their sums. `modules`: `group:name:version`;
    what they need comes with them."""

    name: str
    title: str
    modules: tuple[str, ...]
    size: str

    def sums(self) -> dict[str, str]:
        """File name → SHA-256 of every jar of the set."""
        text = (resources.files(__package__) / f"{self.name}.sha256").read_text()
        return {name: digest for digest, name in (line.split() for line in text.splitlines())}

    def folders(self) -> list[Path]:
        """The folders where the jars may be, in the order in which they are tried."""
        user = user_cache.user_folder()
        return [self.beside_packages(), *([user / self.name] if user else [])]

    def beside_packages(self) -> Path:
        """Their folder in the virtual environment."""
        return Path(sys.prefix) / "share" / "adclick" / self.name

    def missing(self, where: Path) -> list[str]:
        """Jars that are not in a folder, or not what they should be."""
        bad = []
        for name, digest in self.sums().items():
            try:
                actual = hashlib.sha256((where / name).read_bytes()).hexdigest()
            except OSError:
                actual = ""
            if actual != digest:
                bad.append(name)
        return bad


KAFKA = JarSet("kafka-4.3.1", "Kafka 4.3.1", ("org.apache.kafka:kafka_2.13:4.3.1",), "45 jars, 44 MB; about a minute")
DASHBOARD = JarSet(
    "dashboard-1",
    "the dashboard's libraries",
    ("org.webjars.npm:lit-html:3.2.1", "org.webjars.npm:uplot:1.6.30"),
    "3 jars, 1 MB",
)


# How often a fetch says how far it is.
_PROGRESS_EVERY_S = 5.0
_POLL_S = 0.2


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fetch(jars: JarSet, say: Callable[[str], None] = _say) -> Path:
    """The folder with the jars, fetched now where needed; `say` is told of that, and how far it is. Raises UserError when it fails."""
    for folder in jars.folders():
        if not jars.missing(folder):
            return folder
    try:
        parent = user_cache.writable_folder()
    except OSError as error:
        raise UserError(f"{jars.title} cannot be kept anywhere: {error}", hint="set XDG_CACHE_HOME") from error
    target = parent / jars.name
    if target.exists() and not jars.missing(target):
        return target
    say(f"fetching {jars.title} ({jars.size})")

    def report(count: int) -> None:
        # Ivy reads descriptions of all jars before it fetches the first.
        say(f"{jars.title}: {f'{count} of {len(jars.sums())} jars' if count else 'looking up which jars it needs'}")

    with temp_dirs.folder(f"adclick-{jars.name}-", parent) as work:
        output = retrieve(jars.modules, work / "libs", report)
        # Ivy's exit code is not to be trusted: the sums decide.
        bad = jars.missing(work / "libs")
        if bad:
            raise UserError(
                f"{jars.title} could not be fetched: {len(bad)} of {len(jars.sums())} jars are missing or differ, first {bad[0]}"
                f"{_cause(output)}",
                hint="run the same again; all of Ivy's output is shown by `adclick up -v`, or by `make setup V=1`",
                output=output,
            )
        shutil.rmtree(target, ignore_errors=True)
        try:
            (work / "libs").rename(target)
        except OSError as error:
            # Another process may have been quicker.
            if jars.missing(target):
                raise UserError(f"{target} cannot be written: {error.strerror}") from error
    return target


def fetch_for_stack(say: Callable[[str], None]) -> None:
    """Fetch what a stack needs and is not there, before its processes wait for it. Raises UserError where that is Kafka: a router
    does without a dashboard, and says so in its place."""
    fetch(KAFKA, say)
    try:
        fetch(DASHBOARD, say)
    except UserError as error:
        say(f"note: there will be no dashboard: {error}")


def _cause(output: str) -> str:
    """What Ivy says went wrong first, if it says so."""
    line = next((line for line in output.splitlines() if re.search(r"Exception|ERROR|error", line)), "")
    return f": {line.strip()[:200]}" if line else ""


def link_beside_packages(jars: JarSet) -> None:
    """Put the jars into the virtual environment as well, as links where that is possible."""
    target, source = jars.beside_packages(), fetch(jars, lambda text: _say(f"setup: {text}"))
    if source == target:
        return
    try:
        _link(jars, source, target)
    except OSError as error:
        # It does without: the cache has them.
        print(f"setup: {target} cannot be written: {error.strerror}", file=sys.stderr)


def _link(jars: JarSet, source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in jars.missing(target):
        copy = target / f"{name}.{os.getpid()}"
        try:
            os.link(source / name, copy)
        except OSError:
            shutil.copyfile(source / name, copy)
        copy.replace(target / name)


def logging_jars() -> list[Path]:
    """Jars of Spark's by which Kafka's log gets somewhere: without them it is silent, whatever goes wrong."""
    jars = _spark_jars()
    names = ("slf4j-api-2.*", "log4j-slf4j2-impl-*", "log4j-api-2.*", "log4j-core-*")
    return [jar for name in names if jars is not None for jar in sorted(jars.glob(f"{name}.jar"))]


def _spark_jars() -> Path | None:
    spec = find_spec("pyspark")
    return Path(spec.submodule_search_locations[0]) / "jars" if spec and spec.submodule_search_locations else None


def retrieve(modules: Sequence[str], into: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Copy modules (`group:name:version`) and all they need into a folder; returns what Ivy said. `progress` is called now and then
    with the number of jars that have arrived. Raises UserError."""
    jars = _spark_jars()
    ivy = next(jars.glob("ivy-*.jar"), None) if jars else None
    if ivy is None:
        raise UserError("pyspark's Ivy is missing", hint="install pyspark again: its jars are incomplete")
    # Where a user has no home, Ivy would make one named `?`.
    home = [] if user_cache.user_folder() else [f"-Duser.home={tempfile.gettempdir()}"]
    coordinates = (module.split(":") for module in modules)
    with tempfile.TemporaryDirectory(prefix="adclick-ivy-") as work:
        file = Path(work) / "ivy.xml"
        file.write_text(
            '<ivy-module version="2.0"><info organisation="adclick" module="jars"/><dependencies>'
            + "".join(f'<dependency org="{g}" name="{n}" rev="{v}" conf="default"/>' for g, n, v in coordinates)
            + "</dependencies></ivy-module>"
        )
        command = [
            str(java.find()), *home, "-jar", str(ivy), "-ivy", str(file),
            "-retrieve", f"{into}/[artifact]-[revision].[ext]", "-types", "jar", "bundle",
            "-confs", "default", "-cache", f"{work}/cache",
        ]  # fmt: skip
        with (Path(work) / "output").open("w+", errors="replace") as output:
            _run(command, output, lambda: progress(len(list(Path(work, "cache").rglob("*.jar")))))
            output.seek(0)
            return output.read()


def _run(command: Sequence[str], output: IO[str], progress: Callable[[], None]) -> None:
    """Run Ivy to its end, whatever that is, and report every few seconds. Ctrl-C ends it, too."""
    said_at = time.monotonic()
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=java.network_environment()) as ivy:
        try:
            while ivy.poll() is None:
                time.sleep(_POLL_S)
                if time.monotonic() - said_at >= _PROGRESS_EVERY_S:
                    said_at = time.monotonic()
                    progress()
        except BaseException:
            ivy.kill()
            raise


if __name__ == "__main__":
    try:
        for jar_set in (KAFKA, DASHBOARD):
            link_beside_packages(jar_set)
    except UserError as error:
        if "-v" in sys.argv:
            _say(error.output)
        _say(f"setup: failed: {error}")
        sys.exit(1)
