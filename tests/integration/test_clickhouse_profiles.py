"""Users of ClickHouse whose profiles were made for others: what is written is stored, and what is answered is whole."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.deployment import ONE_SERVER
from infra.errors import Refused
from tests.clusters.clickhouse_cluster import ClickHouseCluster

# More groups than a block has rows: limits are looked at after each block.
ROWS, GROUPS = 300_000, 150_000
PROFILES = {
    "reads_in_part": {"max_rows_to_read": "1000", "read_overflow_mode": "break"},
    "groups_in_part": {"max_rows_to_group_by": "10", "group_by_overflow_mode": "any"},
    "results_in_part": {"max_result_rows": "10", "result_overflow_mode": "break"},
    "sorts_in_part": {"max_rows_to_sort": "10", "sort_overflow_mode": "break"},
    "is_given_three": {"limit": "3"},
    "inserts_later": {"async_insert": "1", "wait_for_async_insert": "0"},
    "reads_old_answers": {
        "use_query_cache": "1", "query_cache_nondeterministic_function_handling": "ignore", "query_cache_system_table_handling": "ignore",
    },
    "reads_nulls": {"aggregate_functions_null_for_empty": "1", "join_use_nulls": "1"},
    "makes_nullable_columns": {"data_type_default_nullable": "1"},
}  # fmt: skip
SUM = f"SELECT sum(n) FROM db.numbers WHERE n < {ROWS}"
BY_GROUP = f"SELECT g, count() FROM db.numbers WHERE n < {ROWS} GROUP BY g ORDER BY g"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseCluster]:
    """One server, with a table of numbers."""
    server = ClickHouseCluster(tmp_path_factory.mktemp("clickhouse"), 1, 1, profiles=PROFILES)
    try:
        server.start()
        client = server.clients("db")[0]
        client.command("CREATE DATABASE db")
        client.command("CREATE TABLE db.numbers (n UInt64, g UInt32) ENGINE = MergeTree ORDER BY n")
        client.command(f"INSERT INTO db.numbers SELECT number, number % {GROUPS} FROM numbers({ROWS})")
        yield server
    finally:
        server.close()


def client_of(server: ClickHouseCluster, user: str) -> ClickHouse:
    return ClickHouse(server.nodes[0].url(user), "db")


@pytest.mark.parametrize("profile", PROFILES)
def test_an_answer_is_whole_or_an_error(server: ClickHouseCluster, profile: str) -> None:
    client = client_of(server, profile)
    for sql, whole in (
        (SUM, [(ROWS * (ROWS - 1) // 2,)]),
        (BY_GROUP, [(g, ROWS // GROUPS) for g in range(GROUPS)]),
        (f"SELECT n FROM db.numbers WHERE n < {GROUPS} ORDER BY g DESC", [(n,) for n in range(GROUPS - 1, -1, -1)]),
        ("SELECT sum(n) FROM db.numbers WHERE n > 1000000000000", [(0,)]),
    ):
        try:
            rows = client.rows(sql)
        except Refused as refusal:
            assert refusal.code in ("TOO_MANY_ROWS", "TOO_MANY_ROWS_OR_BYTES"), refusal
        else:
            assert rows == whole, sql


def test_an_answer_has_what_was_inserted_since_the_one_before(server: ClickHouseCluster) -> None:
    client = client_of(server, "reads_old_answers")
    client.command("CREATE TABLE db.single (n UInt64) ENGINE = MergeTree ORDER BY tuple()")
    for count in (1, 2):
        client.insert("single", pa.table({"n": pa.array([7], pa.uint64())}))
        assert client.rows("SELECT count() FROM db.single") == [(count,)]


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_statement_means_is_not_up_to_the_profile(server: ClickHouseCluster, profile: str) -> None:
    wanted = ONE_SERVER.settings()
    sql = "SELECT groupArray((name, value)) FROM system.settings WHERE name IN {names:Array(String)}"
    ((in_force,),) = client_of(server, profile).rows(sql, {"names": list(wanted)})
    assert dict(in_force) == wanted
