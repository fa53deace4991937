"""Users of ClickHouse whose profiles were made for others: what is written is stored, and what is answered is whole."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.deployment import CLOUD, ONE_SERVER, Deployment
from infra.errors import AdclickError, Refused
from tests.clusters.clickhouse_cluster import ClickHouseCluster

# More groups than a block has rows: limits are looked at after each block.
ROWS, GROUPS = 300_000, 150_000
PROFILES = {
    "reads_in_part": {"max_rows_to_read": "1000", "read_overflow_mode": "break"},
    "groups_in_part": {"max_rows_to_group_by": "10", "group_by_overflow_mode": "any"},
    "results_in_part": {"max_result_rows": "10", "result_overflow_mode": "break"},
    "sorts_in_part": {"max_rows_to_sort": "10", "sort_overflow_mode": "break"},
    "is_given_three": {"limit": "3"},
    "skips_one": {"offset": "1"},
    "reads_some_results": {"additional_result_filter": "0"},
    "reads_some_rows": {"additional_table_filters": "{'db.numbers': 'n != 5', 'system.settings': '0'}"},
    "inserts_later": {"async_insert": "1", "wait_for_async_insert": "0"},
    "reads_old_answers": {
        "use_query_cache": "1", "query_cache_nondeterministic_function_handling": "ignore", "query_cache_system_table_handling": "ignore",
    },
    "reads_deleted_rows": {"apply_deleted_mask": "0"},
    "merges_within_partitions": {"do_not_merge_across_partitions_select_final": "1", "optimize_move_to_prewhere_if_final": "1"},
    "joins_any": {"join_default_strictness": "ANY"},
    "counts_by_constants": {"enable_positional_arguments": "0"},
    "lives_elsewhere": {"session_timezone": "America/New_York", "date_time_output_format": "iso"},
    "loses_rows_of_views": {"materialized_views_ignore_errors": "1"},
    "reads_nulls": {"aggregate_functions_null_for_empty": "1", "join_use_nulls": "1"},
    "makes_nullable_columns": {"data_type_default_nullable": "1"},
}  # fmt: skip
SUM = f"SELECT sum(n) FROM db.numbers WHERE n < {ROWS}"
BY_GROUP = f"SELECT g, count() FROM db.numbers WHERE n < {ROWS} GROUP BY g ORDER BY g"


WHOLE = (
    (SUM, [(ROWS * (ROWS - 1) // 2,)]),
    (BY_GROUP, [(g, ROWS // GROUPS) for g in range(GROUPS)]),
    (f"SELECT n FROM db.numbers WHERE n < {GROUPS} ORDER BY g DESC", [(n,) for n in range(GROUPS - 1, -1, -1)]),
    ("SELECT sum(n) FROM db.numbers WHERE n > 1000000000000", [(0,)]),
    ("SELECT n FROM db.kept ORDER BY n", [(2,)]),
    ("SELECT version FROM db.versions FINAL", [(2,)]),
    ("SELECT count() FROM db.versions FINAL WHERE version = 1", [(0,)]),
    ("SELECT count() FROM (SELECT 1 AS k) AS a JOIN (SELECT arrayJoin([1, 1]) AS k) AS b USING (k)", [(2,)]),
    ("SELECT n % 2, count() FROM db.numbers WHERE n < 4 GROUP BY 1 ORDER BY 1 DESC", [(1, 2), (0, 2)]),
    ("SELECT toString(toDateTime(0))", [("1970-01-01 00:00:00",)]),
)
"""Statements, and their rows."""


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
        client.command("CREATE TABLE db.kept (n UInt64) ENGINE = MergeTree ORDER BY n")
        client.command("INSERT INTO db.kept VALUES (1), (2)")
        client.command("DELETE FROM db.kept WHERE n = 1")
        versions = "(k UInt8, version UInt8) ENGINE = ReplacingMergeTree(version) ORDER BY k PARTITION BY version"
        client.command(f"CREATE TABLE db.versions {versions}")
        for version in (1, 2):
            client.command(f"INSERT INTO db.versions VALUES (7, {version})")
        client.command("CREATE TABLE db.source (n UInt8) ENGINE = MergeTree ORDER BY n")
        view = "ENGINE = MergeTree ORDER BY n AS SELECT throwIf(n = 5) AS n FROM db.source"
        client.command(f"CREATE MATERIALIZED VIEW db.view {view}")
        yield server
    finally:
        server.close()


def client_of(server: ClickHouseCluster, user: str) -> ClickHouse:
    return ClickHouse(server.nodes[0].url(user), "db")


@pytest.mark.parametrize("profile", PROFILES)
def test_an_answer_is_whole_or_an_error(server: ClickHouseCluster, profile: str) -> None:
    client = client_of(server, profile)
    for sql, whole in WHOLE:
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


def test_an_insert_that_a_view_does_not_get_is_an_error(server: ClickHouseCluster) -> None:
    client = client_of(server, "loses_rows_of_views")
    with pytest.raises(AdclickError, match="FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"):
        client.insert("source", pa.table({"n": pa.array([5], pa.uint8())}))


def test_every_setting_of_a_statement_is_one_that_clickhouse_knows(server: ClickHouseCluster) -> None:
    sql = "SELECT groupArray(name) FROM system.settings"
    ((known,),) = server.clients("db")[0].rows(sql)
    for cluster in ("", "blue", CLOUD):
        assert Deployment(cluster).settings().keys() - set(known) == set()


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_statement_means_is_not_up_to_the_profile(server: ClickHouseCluster, profile: str) -> None:
    wanted = ONE_SERVER.settings()
    sql = "SELECT groupArray((name, value)) FROM system.settings WHERE name IN {names:Array(String)}"
    ((in_force,),) = client_of(server, profile).rows(sql, {"names": list(wanted)})
    assert dict(in_force) == wanted
