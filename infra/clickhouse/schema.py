"""The numbered SQL files beside this one: each is applied once, and tables that are gone since are made again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

from infra.clickhouse.client import ClickHouse
from infra.errors import UserError

# What a statement of a migration is about.
_SUBJECT = re.compile(
    r"^(?:CREATE (?:TABLE|VIEW|MATERIALIZED VIEW) IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE) \{database\}\.(\w+)",
    re.MULTILINE,
)


def apply_migrations(client: ClickHouse) -> list[str]:
    """Bring the database to the newest schema, and make again what it should have and has not; returns the names of the files
    applied now, and of tables made again. Raises UserError without the storage policy that tables name."""
    db = client.database
    files, missing = pending(client), missing_tables(client)
    if not files and not missing:
        return []
    _check_policy(client)
    client.command(f"CREATE DATABASE IF NOT EXISTS {db}")
    client.command(
        f"CREATE TABLE IF NOT EXISTS {db}.migrations (name String, applied_at DateTime DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY name"
    )
    for name in _files():
        for table, statement in statements(name):
            if name in files or table in missing:
                client.command(statement.replace("{database}", db))
    if files:
        # Where something ends this before, statements are repeated.
        names = ", ".join(f"('{name}')" for name in files)
        client.command(f"INSERT INTO {db}.migrations (name) VALUES {names}")
    return [*missing, *files]


def pending(client: ClickHouse) -> list[str]:
    """The files that the database has not been brought up to date with, in the order to apply them."""
    if "migrations" not in _tables(client):
        return _files()
    done = {name for (name,) in client.rows(f"SELECT name FROM {client.database}.migrations FINAL")}
    return [name for name in _files() if name not in done]


def missing_tables(client: ClickHouse) -> list[str]:
    """Tables and views that applied files made, and that are gone since."""
    files, present = pending(client), _tables(client)
    made = dict.fromkeys(table for name in _files() if name not in files for table, _ in statements(name))
    return [table for table in made if table not in present]


def statements(file: str) -> Iterator[tuple[str, str]]:
    """A file's statements with the table or view that each is about, in order. All of them may be repeated."""
    for statement in re.split(r";\s*\n", (resources.files(__package__) / file).read_text()):
        if statement.strip():
            subject = _SUBJECT.search(statement)
            assert subject is not None, f"{file}: not known what this is about: {statement}"
            yield subject[1], statement


def _files() -> list[str]:
    return sorted(f.name for f in resources.files(__package__).iterdir() if f.name.endswith(".sql"))


def _tables(client: ClickHouse) -> set[str]:
    sql = "SELECT name FROM system.tables WHERE database = {database:String}"
    return {name for (name,) in client.rows(sql, {"database": client.database})}


def _check_policy(client: ClickHouse) -> None:
    rows = client.rows("SELECT volume_name FROM system.storage_policies WHERE policy_name = 'tiered'")
    missing = [volume for volume in ("fast", "slow") if volume not in {name for (name,) in rows}]
    if missing:
        lacks = f"volume {missing[0]} in its storage policy tiered" if rows else "storage policy named tiered"
        raise UserError(f"ClickHouse has no {lacks}", hint="add it to its configuration; docs/operating.md has one")
