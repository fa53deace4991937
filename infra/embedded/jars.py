"""Kafka's jars, resolved by the Ivy that comes with pyspark and checked by SHA-256.

They are fetched into the user's cache, for all checkouts, and linked into the virtual environment, for all users of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from infra import scratch, user_cache
from infra.embedded import java
from infra.errors import UserError

KAFKA = "4.3.1"


def sums() -> dict[str, str]:
    """File name → SHA-256 of every jar that Kafka needs."""
    text = (resources.files(__package__) / f"kafka-{KAFKA}.sha256").read_text()
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _beside_packages() -> Path:
    return Path(sys.prefix) / "share" / "adclick" / f"kafka-{KAFKA}"


def _folders() -> list[Path]:
    """Where the jars may be."""
    user = user_cache.user_folder()
    return [_beside_packages(), *([user / f"kafka-{KAFKA}"] if user else [])]


def missing(where: Path) -> list[str]:
    """Jars that are not there, or not what they should be."""
    bad = []
    for name, digest in sums().items():
        try:
            found = hashlib.sha256((where / name).read_bytes()).hexdigest()
        except OSError:
            found = ""
        if found != digest:
            bad.append(name)
    return bad


def fetch() -> Path:
    """The folder with the jars, fetched now where needed. Raises UserError when that fails."""
    for folder in _folders():
        if not missing(folder):
            return folder
    try:
        parent = user_cache.writable_folder()
    except OSError as error:
        raise UserError(f"Kafka's jars cannot be kept anywhere: {error}", hint="set XDG_CACHE_HOME") from error
    target = parent / f"kafka-{KAFKA}"
    if target.exists() and not missing(target):
        return target
    print(f"setup: fetching Kafka {KAFKA} (45 jars, 44 MB; about a minute)", file=sys.stderr, flush=True)
    with scratch.folder("adclick-kafka-", parent) as work:
        output = retrieve([f"org.apache.kafka:kafka_2.13:{KAFKA}"], work / "libs")
        # Ivy's exit code is not to be trusted: the sums decide.
        bad = missing(work / "libs")
        if bad:
            raise UserError(
                f"Kafka's jars could not be fetched: {len(bad)} of {len(sums())} are missing or differ, first {bad[0]}"
                f"{_cause(output)}",
                hint="`make setup` can simply be run again; V=1 shows all of its output",
                output=output,
            )
        shutil.rmtree(target, ignore_errors=True)
        try:
            (work / "libs").rename(target)
        except OSError as error:
            # Another process may have been quicker.
            if missing(target):
                raise UserError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _cause(output: str) -> str:
    """What Ivy says went wrong first, if it says so."""
    line = next((line for line in output.splitlines() if re.search(r"Exception|ERROR|error", line)), "")
    return f": {line.strip()[:200]}" if line else ""


def link_beside_packages() -> None:
    """Put the jars into the virtual environment as well, as links where that is possible."""
    target, source = _beside_packages(), fetch()
    if source == target:
        return
    try:
        _link(source, target)
    except OSError as error:
        # It does without: the cache has them.
        print(f"setup: {target} cannot be written: {error.strerror}", file=sys.stderr)


def _link(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in missing(target):
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


def retrieve(modules: Sequence[str], into: Path) -> str:
    """Copy modules (`group:name:version`) and all they need into a folder; returns what Ivy said. Raises UserError."""
    jars = _spark_jars()
    ivy = next(jars.glob("ivy-*.jar"), None) if jars else None
    if ivy is None:
        raise UserError("pyspark's Ivy is missing", hint="run `make setup` again")
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
        return subprocess.run(
            [
                str(java.find()), *home, "-jar", str(ivy), "-ivy", str(file),
                "-retrieve", f"{into}/[artifact]-[revision].[ext]", "-types", "jar", "bundle",
                "-confs", "default", "-cache", f"{work}/cache",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=java.network_environment(),
        ).stdout  # fmt: skip


if __name__ == "__main__":
    try:
        link_beside_packages()
    except UserError as error:
        if "-v" in sys.argv:
            print(error.output, file=sys.stderr)
        print(f"setup: failed: {error}", file=sys.stderr)
        sys.exit(1)
