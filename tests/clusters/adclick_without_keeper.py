"""`adclick` for a cluster of ClickHouse without a Keeper: this process carries out ON CLUSTER by itself.

`python -m tests.clusters.adclick_without_keeper WORD…`; the variable `TEST_CLICKHOUSE_NODES` has the URL of each node.
"""

from __future__ import annotations

import os

from infra.cli.main import main
from infra.clickhouse.client import ClickHouse
from tests.clusters.clickhouse_cluster import DdlEverywhere

NODES = "TEST_CLICKHOUSE_NODES"


def _clients(database: str) -> list[ClickHouse]:
    return [ClickHouse(url, database) for url in os.environ[NODES].split()]


if __name__ == "__main__":
    with DdlEverywhere(_clients).installed():
        main()
