"""Statements and grants for each kind of ClickHouse: one server, a cluster, ClickHouse Cloud."""

from __future__ import annotations

import re

import pytest

from infra.clickhouse import ddl, schema
from infra.clickhouse.deployment import MATERIALIZED, SHARDED, Deployment
from infra.clickhouse.grants import ROLES, SECRET, grants, print_grants

STATEMENTS = schema.all_statements()
CLUSTER = Deployment("blue")
KINDS = {
    "one server": Deployment(),
    "without a policy": Deployment(storage_policy=""),
    "cluster": CLUSTER,
    "cluster without a policy": Deployment("blue", ""),
    "cloud": Deployment("cloud"),
}
TABLES = sorted(set(re.findall(r"CREATE TABLE IF NOT EXISTS \{database\}\.(\w+)", "\n".join(STATEMENTS))))


def rewritten(deployment: Deployment) -> list[str]:
    """All statements, without comments."""
    texts = [text for statement in STATEMENTS for text in ddl.rewrite(statement, "db", deployment)]
    return [re.sub(r"--[^\n]*\n", "", text).strip() for text in texts]


def created(deployment: Deployment, name: str) -> str:
    """The statement that makes a table or view."""
    (text,) = (t for t in rewritten(deployment) if re.match(rf"CREATE [A-Z ]+ IF NOT EXISTS db\.{name}\b", t))
    return text


@pytest.mark.parametrize("statement", STATEMENTS)
def test_one_server_gets_the_statements_as_they_are_written(statement: str) -> None:
    assert ddl.rewrite(statement, "db", Deployment()) == [statement.replace("{database}", "db")]


@pytest.mark.parametrize("kind", KINDS)
def test_no_placeholder_is_left(kind: str) -> None:
    assert not [text for text in rewritten(KINDS[kind]) if "{" in text]


@pytest.mark.parametrize("kind", ["without a policy", "cluster without a policy", "cloud"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_without_a_policy_neither_it_nor_its_volumes_are_named_and_nothing_else_is_lost(
    statement: str, kind: str
) -> None:
    deployment = KINDS[kind]
    named = Deployment(deployment.cluster if deployment.is_cluster else "", "tiered")
    for text, before in zip(
        ddl.rewrite(statement, "db", deployment), ddl.rewrite(statement, "db", named), strict=False
    ):
        assert "storage_policy" not in text
        assert "VOLUME" not in text
        # What is left is what was there without these words, and rows are deleted after as many days.
        lost = re.sub(r"storage_policy = 'tiered', |time \+ INTERVAL \d+ DAY TO VOLUME 'slow', ", "", before)
        assert text == lost
        assert re.findall(r"(\d+) DAY(?! TO)", text) == re.findall(r"(\d+) DAY(?! TO)", before)


def test_another_policy_takes_the_place_of_tiered() -> None:
    assert "storage_policy = 'warm_cold'" in created(Deployment(storage_policy="warm_cold"), "stream_hours")
    assert "tiered" not in "\n".join(rewritten(Deployment(storage_policy="warm_cold")))


@pytest.mark.parametrize("table", TABLES)
def test_a_cluster_has_each_table_replicated_and_one_over_all_shards_under_its_name(table: str) -> None:
    local, over = created(CLUSTER, f"{table}_local"), created(CLUSTER, table)
    (engine,) = re.findall(r"ENGINE = (\w+MergeTree|MergeTree)(?=\W)", created(Deployment(), table))
    assert re.match(rf"CREATE TABLE IF NOT EXISTS db\.{table}_local ON CLUSTER 'blue' \(", local)
    # Without a path: the server's own default has the UUID in it.
    assert re.search(rf"ENGINE = Replicated{engine}(\((?!')\w+\))?\s", local)
    key = "intHash64(campaign_id)" if table in SHARDED else "0"
    assert over == (
        f"CREATE TABLE IF NOT EXISTS db.{table} ON CLUSTER 'blue' AS db.{table}_local"
        f" ENGINE = Distributed('blue', 'db', '{table}_local', {key})"
    )


@pytest.mark.parametrize("table", sorted(SHARDED))
def test_rows_that_replace_each_other_are_on_one_shard(table: str) -> None:
    (order,) = re.findall(r"ORDER BY \(([^)]*)\)", created(Deployment(), table))
    assert "campaign_id" in order.split(", ")


@pytest.mark.parametrize("statement", [s for s in STATEMENTS if re.search("^ALTER TABLE", s, re.M)])
def test_a_cluster_is_altered_on_all_nodes_and_columns_under_both_names(statement: str) -> None:
    (table,) = re.findall(r"^ALTER TABLE \{database\}\.(\w+)", statement, re.M)
    texts = [re.sub(r"--[^\n]*\n", "", text).strip() for text in ddl.rewrite(statement, "db", CLUSTER)]
    heads = [text.split(" ON CLUSTER 'blue' ")[0] for text in texts]
    if " UPDATE" in statement:
        assert texts == []  # it fills in rows that only one server can have
    elif "ADD COLUMN" in statement:
        assert heads == [f"ALTER TABLE db.{table}_local", f"ALTER TABLE db.{table}"]
        assert len({text.split("'blue' ")[1] for text in texts}) == 1
    else:
        assert heads == [f"ALTER TABLE db.{table}_local"]


@pytest.mark.parametrize("view", sorted(MATERIALIZED))
def test_a_materialized_view_reads_and_writes_rows_of_its_own_node(view: str) -> None:
    text = created(CLUSTER, view)
    assert f"db.{view} ON CLUSTER 'blue' TO db." in text
    names = set(re.findall(r"\bdb\.(\w+)", text)) - {view}
    assert len(names) == 2
    assert all(name.endswith("_local") and name.removesuffix("_local") in SHARDED for name in names)


def test_materialized_views_are_those_of_the_files() -> None:
    assert set(re.findall(r"CREATE MATERIALIZED VIEW IF NOT EXISTS \{database\}\.(\w+)", "\n".join(STATEMENTS))) == (
        MATERIALIZED
    )


def test_other_views_are_over_all_shards() -> None:
    views = [text for text in rewritten(CLUSTER) if " VIEW " in text and "MATERIALIZED" not in text]
    assert views
    for text in views:
        assert re.match(r"CREATE (OR REPLACE VIEW|VIEW IF NOT EXISTS) db\.\w+ ON CLUSTER 'blue' AS", text)
        assert not re.findall(r"_local\b", text)


def test_cloud_gets_neither_a_cluster_nor_another_engine() -> None:
    texts = rewritten(KINDS["cloud"])
    assert not [text for text in texts if re.search(r"ON CLUSTER|Replicated|Distributed|_local\b", text)]
    engines = {engine for text in texts for engine in re.findall(r"ENGINE = (\w+(?:\(\w+\))?)", text)}
    assert engines == {engine for text in STATEMENTS for engine in re.findall(r"ENGINE = (\w+(?:\(\w+\))?)", text)}


def test_a_copy_of_a_table_on_a_cluster_has_local_tables_of_its_own() -> None:
    assert ddl.copy("exact_hours", "audit_1", "db", CLUSTER) == [
        "CREATE TABLE db.audit_1_local ON CLUSTER 'blue' AS db.exact_hours_local",
        "CREATE TABLE IF NOT EXISTS db.audit_1 ON CLUSTER 'blue' AS db.audit_1_local"
        " ENGINE = Distributed('blue', 'db', 'audit_1_local', intHash64(campaign_id))",
    ]
    assert [text.split(" ON ")[0] for text in ddl.drop("audit_1", "db", CLUSTER)] == [
        "DROP TABLE IF EXISTS db.audit_1",
        "DROP TABLE IF EXISTS db.audit_1_local",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_statement_of_a_migration_is_covered_by_the_migrators_grants(kind: str) -> None:
    granted = grants("migrator", STATEMENTS, "db", KINDS[kind])
    wanted = {
        "ADD COLUMN": "ALTER ADD COLUMN", "ADD INDEX": "ALTER ADD INDEX", "MATERIALIZE INDEX": "ALTER MATERIALIZE INDEX",
        "MODIFY SETTING": "ALTER SETTINGS", "MODIFY TTL": "ALTER TTL", "UPDATE": "ALTER UPDATE",
    }  # fmt: skip
    for text in rewritten(KINDS[kind]):
        if text.startswith("ALTER"):
            (command,) = {name for name in wanted if re.search(rf"\b{name}\b", text)}
            assert f"{wanted[command]} ON db.*" in granted
        else:
            assert "CREATE TABLE ON db.*" in granted  # which implies CREATE VIEW
            assert "DROP VIEW ON db.*" in granted or "OR REPLACE" not in text
        for engine in re.findall(r"ENGINE = (\w+)", text):
            assert f"TABLE ENGINE ON {engine}" in granted
    assert ("SELECT ON system.storage_policies" in granted) == bool(KINDS[kind].policy)
    assert ("CLUSTER ON *.*" in granted) == KINDS[kind].is_cluster


@pytest.mark.parametrize("kind", KINDS)
def test_readers_see_every_table_but_those_with_secrets(kind: str) -> None:
    granted = "\n".join(grants("reader", STATEMENTS, "db", KINDS[kind]))
    seen = set(re.findall(r"SELECT ON db\.(\w+?)(?:_local)?$", granted, re.M))
    assert seen == {*TABLES, "current_runs"} - set(SECRET)
    assert not re.search("INSERT|CREATE|ALTER|DROP", granted)


def test_grants_are_printed_as_sql_for_three_roles() -> None:
    lines = print_grants(STATEMENTS, "db", CLUSTER).splitlines()
    statements = [line for line in lines if not line.startswith("--")]
    assert all(re.fullmatch(r"GRANT ON CLUSTER 'blue' [A-Z ]+ ON [\w.*]+ TO db_(\w+);", line) for line in statements)
    assert [role for role in ROLES if any(line.endswith(f"TO db_{role};") for line in statements)] == list(ROLES)
