"""A cluster of ClickHouse servers for the session, and settings of installations on it. Kafka and Redis are those of the stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.kafka import topic_setup
from infra.settings import Settings, resolve
from tests.clusters.clickhouse_cluster import ClickHouseCluster, DdlEverywhere, own_settings


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseCluster]:
    """Two shards of two replicas."""
    cluster = ClickHouseCluster(tmp_path_factory.mktemp("clickhouse"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def ddl(cluster: ClickHouseCluster) -> Iterator[DdlEverywhere]:
    """While a test runs, ON CLUSTER is carried out in this process."""
    with DdlEverywhere(cluster.clients).installed() as ddl:
        yield ddl


@pytest.fixture
def empty_settings(cluster: ClickHouseCluster) -> Iterator[Settings]:
    """Of an installation on the cluster without tables, and without a stack."""
    settings = Settings.model_validate(own_settings(cluster))
    yield settings
    for client in cluster.clients(settings.database):
        client.command(f"DROP DATABASE IF EXISTS {settings.database}")


@pytest.fixture
def new_settings(
    backends: Path, cluster: ClickHouseCluster, ddl: DdlEverywhere, tmp_path: Path
) -> Iterator[Callable[[], Settings]]:
    """As the fixture of the integration tests, with tables on the cluster."""
    databases = list[str]()

    def make() -> Settings:
        own = own_settings(cluster)
        own |= {"archive": str(tmp_path / f"{own['namespace']}archive"), "event_partitions": 2, "block_partitions": 2}
        settings = resolve(str(backends)).settings.model_copy(update=own)
        databases.append(settings.database)
        topic_setup.ensure(settings)
        apply_migrations(ClickHouse.of(settings))
        return settings

    yield make
    for client in cluster.clients(""):
        for database in databases:
            client.command(f"DROP DATABASE IF EXISTS {database}")
