"""Kafka's jars in a per-user cache, resolved by the Ivy that comes with pyspark and checked by SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from infra.embedded import java
from infra.errors import UserError

KAFKA = "4.3.1"


def sums() -> dict[str, str]:
    """File name → SHA-256 of every jar that Kafka needs."""
    text = (resources.files(__package__) / f"kafka-{KAFKA}.sha256").read_text()
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def folder() -> Path:
    """Where the jars are kept."""
    return Path(platformdirs.user_cache_dir("adclick")) / f"kafka-{KAFKA}"


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
    target = folder()
    if target.exists() and not missing(target):
        return target
    print(f"setup: fetching Kafka {KAFKA} (45 jars, 44 MB; about a minute)", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix="fetch-"))
    try:
        told = retrieve([f"org.apache.kafka:kafka_2.13:{KAFKA}"], work / "libs")
        # Ivy's exit code is not to be trusted: the sums decide.
        bad = missing(work / "libs")
        if bad:
            print("\n".join(told.splitlines()[-12:]), file=sys.stderr)
            raise UserError(
                f"Kafka's jars could not be fetched: {len(bad)} of {len(sums())} are missing or differ, first {bad[0]}",
                hint="see the lines above; `make setup` can simply be run again",
            )
        shutil.rmtree(target, ignore_errors=True)
        (work / "libs").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def retrieve(modules: Sequence[str], into: Path) -> str:
    """Copy modules (`group:name:version`) and all they need into a folder; returns what Ivy said. Raises UserError."""
    spec = find_spec("pyspark")
    ivy = (
        next(Path(spec.submodule_search_locations[0]).glob("jars/ivy-*.jar"), None)
        if spec and spec.submodule_search_locations
        else None
    )
    if ivy is None:
        raise UserError("pyspark's Ivy is missing", hint="run `make setup` again")
    wanted = (module.split(":") for module in modules)
    with tempfile.TemporaryDirectory(prefix="adclick-ivy-") as work:
        file = Path(work) / "ivy.xml"
        file.write_text(
            '<ivy-module version="2.0"><info organisation="adclick" module="jars"/><dependencies>'
            + "".join(f'<dependency org="{g}" name="{n}" rev="{v}" conf="default"/>' for g, n, v in wanted)
            + "</dependencies></ivy-module>"
        )
        return subprocess.run(
            [
                str(java.find()), "-jar", str(ivy), "-ivy", str(file),
                "-retrieve", f"{into}/[artifact]-[revision].[ext]", "-types", "jar", "bundle",
                "-confs", "default", "-cache", f"{work}/cache",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | java.environment(),
        ).stdout  # fmt: skip


if __name__ == "__main__":
    try:
        fetch()
    except UserError as error:
        print(f"setup: failed: {error}", file=sys.stderr)
        sys.exit(1)
