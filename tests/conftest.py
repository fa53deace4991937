"""Real backends for integration and end-to-end tests: one embedded stack for the session, a namespace for each test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.errors import AdclickError
from infra.kafka import topic_setup
from infra.settings import Settings, resolve

if TYPE_CHECKING:
    from tests.clusters.kafka_cluster import KafkaCluster

# The first example may wait for a compiler, and machines are shared.
hypothesis.settings.register_profile("adclick", deadline=None)
hypothesis.settings.load_profile("adclick")

ADCLICK = [sys.executable, "-P", "-m", "infra"]
NO_WORKERS = ("--ingest-workers", "0", "--stream-workers", "0", "--notify-workers", "0")
"""Options of `up`."""
# Clients of the tests' own.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
_PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
DEAD_PROXY = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
"""Where nothing listens: what goes through it fails. Our own addresses never do."""
FOREIGN = {
    "SPARK_HOME": "/nowhere", "PYSPARK_SUBMIT_ARGS": "--nonsense", "SPARK_CONF_DIR": "/nowhere", "SPARK_REMOTE": "sc://nowhere",
    "SPARK_LOCAL_DIRS": "/nowhere", "HADOOP_CONF_DIR": "/nowhere", "PYSPARK_PYTHON": "/nowhere", "PYSPARK_DRIVER_PYTHON": "/nowhere",
    "JAVA_TOOL_OPTIONS": "-javaagent:/nowhere.jar", "_JAVA_OPTIONS": "--nonsense",
}  # fmt: skip
"""What another installation of Spark and Java on the machine would want: none of it is for ours."""


def product_environment() -> dict[str, str]:
    """Variables for a process of the product: those of this process without settings, and others that it must ignore."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ADCLICK_") and k.lower() not in _PROXY_NAMES}
    return variables | DEAD_PROXY | FOREIGN


def adclick(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, with no settings but these."""
    clean = product_environment() | {"ADCLICK_RECONCILE_AT": "off"}
    return subprocess.run([*ADCLICK, *words], capture_output=True, text=True, env=clean | env, cwd=cwd, timeout=1200)


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a stack without stream and ingest workers.

    While one works on a single test, `TEST_STACK=FOLDER` names such a stack that is already up, and is left up.
    """
    if running := os.environ.get("TEST_STACK"):
        yield Path(running)
        return
    folder = tmp_path_factory.mktemp("backends") / "stack"
    result = adclick("up", "--detach", "--dir", str(folder), *NO_WORKERS)
    assert result.returncode == 0, result.stderr
    yield folder
    adclick("down", "--dir", str(folder))


@pytest.fixture(scope="session")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One broker that takes every protocol and mechanism, beside the stack; without ACLs. Its topics are the tests' own."""
    from tests.clusters.kafka_cluster import KafkaCluster

    with KafkaCluster(tmp_path_factory.mktemp("secured-kafka")) as cluster:
        yield cluster


@pytest.fixture
def new_settings(backends: Path, tmp_path: Path) -> Iterator[Callable[[], Settings]]:
    """A function that makes settings with topics, keys, a database and an archive of their own. The databases go with the test: their
    tables cost ClickHouse time even while nothing is in them."""
    with contextlib.ExitStack() as databases:

        def make() -> Settings:
            settings = make_settings(backends, tmp_path)
            databases.callback(drop_database, settings)
            return settings

        yield make


def make_settings(backends: Path, folder: Path) -> Settings:
    """Settings with topics, keys and a database of their own on these backends, and an archive in a folder."""
    name = f"t{uuid.uuid4().hex[:8]}_"
    changes = {
        "namespace": name, "archive": str(folder / f"{name}archive"), "event_partitions": 2, "block_partitions": 2,
    }  # fmt: skip
    (folder / f"{name}archive").mkdir()
    settings = resolve(str(backends)).settings.model_copy(update=changes)
    topic_setup.ensure(settings)
    _copy_tables(settings)
    return settings


def _copy_tables(settings: Settings) -> None:
    """Make the tables as migrations make them, in a third of the time: those of a database that is migrated once."""
    template, client = ClickHouse(settings.clickhouse, "template"), ClickHouse(settings.clickhouse, settings.database)
    apply_migrations(template)
    client.command(f"CREATE DATABASE {client.database}")
    created = template.rows(
        "SELECT create_table_query FROM system.tables WHERE database = 'template' ORDER BY engine LIKE '%View', name"
    )
    for (statement,) in created:
        client.command(statement.replace("template.", f"{client.database}."))
    client.command(f"INSERT INTO {client.database}.migrations SELECT * FROM template.migrations")


def drop_database(settings: Settings) -> None:
    """Drop the database of settings that `make_settings` gave."""
    # A test may have left it with no one to serve it.
    with contextlib.suppress(AdclickError):
        ClickHouse(settings.clickhouse, settings.database).command(f"DROP DATABASE IF EXISTS {settings.database}")


@pytest.fixture
def settings(new_settings: Callable[[], Settings]) -> Settings:
    """Settings of the test's own."""
    return new_settings()
