"""The numbered SQL files beside this one: each is applied once, and tables that are gone since are made again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

from infra.clickhouse import ddl
from infra.clickhouse.client import ClickHouse
from infra.errors import UserError

_MIGRATIONS = """CREATE TABLE IF NOT EXISTS {database}.migrations (name String, applied_at DateTime DEFAULT now())
ENGINE = ReplacingMergeTree ORDER BY name"""
# A row of `migrations` that is no file: how many shards the rows of campaigns are spread over.
_SHARDS = "shards="


def apply_migrations(client: ClickHouse) -> list[str]:
    """Bring the database to the newest schema, and make again what it should have and has not; returns the names of the files
    applied now, and of tables made again. Raises UserError without the storage policy that tables name, and where the cluster has
    another number of shards than when the tables were made."""
    db, deployment = client.database, client.deployment
    files, missing = pending(client), missing_tables(client)
    check_shards(client)
    if not files and not missing:
        return []
    if deployment.policy:
        _check_policy(client, deployment.policy)
    client.command(ddl.create_database(db, deployment))
    for statement in ddl.rewrite(_MIGRATIONS, db, deployment):
        client.command(statement)
    for name in _files():
        for table, statement in statements(name):
            if name in files or table in missing:
                for rewritten in ddl.rewrite(statement, db, deployment):
                    client.command(rewritten)
    if files:
        # Where something ends this before, statements are repeated.
        made = [*files, f"{_SHARDS}{count_shards(client)}"] if deployment.is_cluster else files
        names = ", ".join(f"('{name}')" for name in made)
        client.command(f"INSERT INTO {db}.migrations (name) VALUES {names}")
    return [*missing, *files]


def pending(client: ClickHouse) -> list[str]:
    """The files that the database has not been brought up to date with, in the order to apply them."""
    done = _done(client)
    return [name for name in _files() if name not in done]


def missing_tables(client: ClickHouse) -> list[str]:
    """Tables and views that applied files made, and that are gone since; on a cluster also those whose rows' table is."""
    present, stored = _tables(client), client.deployment.stored
    made = dict.fromkeys(
        (table, "VIEW" not in statement.split("{database}")[0])
        for table, statement in _applied_statements(client)
        if "CREATE" in statement.split("{database}")[0]
    )
    return [table for table, has_rows in made if not {table, stored(table) if has_rows else table} <= present]


def _applied_statements(client: ClickHouse) -> Iterator[tuple[str, str]]:
    """What is in the files that the database has been brought up to date with, as `statements`."""
    files = pending(client)
    return (statement for name in _files() if name not in files for statement in statements(name))


def missing_columns(client: ClickHouse) -> dict[str, list[str]]:
    """Table → columns that applied files gave it and that it lacks: it is of an older schema. Tables that are gone are not among them."""
    expected = dict[str, list[str]]()
    for table, statement in _applied_statements(client):
        expected.setdefault(table, []).extend(ddl.columns(statement))
    present = dict[str, set[str]]()
    sql = "SELECT table, name FROM system.columns WHERE database = {database:String}"
    for table, column in client.rows(sql, {"database": client.database}):
        present.setdefault(table, set()).add(column)
    return {
        table: missing
        for table, columns in expected.items()
        if table in present and (missing := [column for column in columns if column not in present[table]])
    }


def check_shards(client: ClickHouse) -> None:
    """Raise UserError where the cluster has another number of shards than when its tables were made: a row that is written again would
    go to another shard than the row that it replaces, and both would count."""
    if not client.deployment.is_cluster:
        return
    made = {int(name.removeprefix(_SHARDS)) for name in _done(client) if name.startswith(_SHARDS)}
    shards = count_shards(client)
    if made - {shards}:
        raise UserError(
            f"ClickHouse's cluster {client.deployment.cluster} has {shards} shards, and tables were made for {made.pop()}",
            hint="restore the number of shards; docs/operating.md says how to move to another one",
        )


def count_shards(client: ClickHouse) -> int:
    """How many shards the cluster has. Raises Unavailable."""
    ((shards,),) = client.rows(
        "SELECT uniqExact(shard_num) FROM system.clusters WHERE cluster = {cluster:String}",
        {"cluster": client.deployment.cluster},
    )
    return int(shards)


def copy_table(client: ClickHouse, table: str, name: str) -> None:
    """Make an empty table like another one. Raises Unavailable."""
    for statement in ddl.copy(table, name, client.database, client.deployment):
        client.command(statement)


def drop_table(client: ClickHouse, table: str) -> None:
    """Drop a table, if it is there. Raises Unavailable."""
    for statement in ddl.drop(table, client.database, client.deployment):
        client.command(statement)


def statements(file: str) -> Iterator[tuple[str, str]]:
    """A file's statements with the table or view that each is about, in order. All of them may be repeated."""
    for statement in re.split(r";\s*\n", (resources.files(__package__) / file).read_text()):
        if statement.strip():
            subject = ddl.SUBJECT.search(statement)
            assert subject is not None, f"{file}: not known what this is about: {statement}"
            yield subject[2], statement


def all_statements() -> list[str]:
    """The statements of all files, and that of the table of migrations."""
    return [_MIGRATIONS, *(statement for name in _files() for _, statement in statements(name))]


def _files() -> list[str]:
    return sorted(f.name for f in resources.files(__package__).iterdir() if f.name.endswith(".sql"))


def _done(client: ClickHouse) -> set[str]:
    if "migrations" not in _tables(client):
        return set()
    return {name for (name,) in client.rows(f"SELECT name FROM {client.database}.migrations FINAL")}


def _tables(client: ClickHouse) -> set[str]:
    sql = "SELECT name FROM system.tables WHERE database = {database:String}"
    return {name for (name,) in client.rows(sql, {"database": client.database})}


def _check_policy(client: ClickHouse, policy: str) -> None:
    rows = client.rows(
        "SELECT volume_name FROM system.storage_policies WHERE policy_name = {policy:String}", {"policy": policy}
    )
    missing = [volume for volume in ("fast", "slow") if volume not in {name for (name,) in rows}]
    if missing:
        lacks = f"volume {missing[0]} in its storage policy {policy}" if rows else f"storage policy named {policy}"
        raise UserError(
            f"ClickHouse has no {lacks}",
            hint="add it to its configuration; docs/operating.md has one, and says how to go without",
        )
