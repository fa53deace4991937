"""The grants that three roles need: who makes the tables, who writes them, who reads numbers. Pure.

Those of the migrator follow from the statements of the SQL files, as they are on the kind of ClickHouse there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from infra.clickhouse import ddl
from infra.clickhouse.deployment import Deployment

ROLES = ("migrator", "writer", "reader")
SECRET = ("api_keys", "webhooks")
"""Tables with digests of keys, and secrets that messages are signed with: they are no numbers."""
# Begin and privilege of each kind of statement, and of each command in an ALTER.
_CREATES = {
    r"CREATE TABLE": "CREATE TABLE",  # which implies CREATE VIEW
    # It drops the former one.
    r"CREATE OR REPLACE VIEW": "DROP VIEW",
}
_ALTERS = {
    r"ADD COLUMN": "ALTER ADD COLUMN",
    r"ADD INDEX": "ALTER ADD INDEX",
    r"MATERIALIZE INDEX": "ALTER MATERIALIZE INDEX",
    r"MODIFY SETTING": "ALTER SETTINGS",
    r"MODIFY TTL": "ALTER TTL",
    r"UPDATE": "ALTER UPDATE",
}
_REMOTE = ("READ ON REMOTE", "WRITE ON REMOTE")


def grants(role: str, statements: Sequence[str], database: str, deployment: Deployment) -> list[str]:
    """What to grant to one of ROLES, as what follows GRANT. `statements`: those of the SQL files."""
    rewritten = [text for statement in statements for text in ddl.rewrite(statement, database, deployment)]
    if role == "migrator":
        return _of_migrator(rewritten, database, deployment)
    if role == "writer":
        return _of_writer(rewritten, database, deployment)
    return _of_reader(rewritten, database, deployment)


def print_grants(statements: Sequence[str], database: str, deployment: Deployment) -> str:
    """SQL for an administrator: roles are to be created, and given to users, beside it."""
    lines = [f"-- Make these roles, and grant each to a user: {', '.join(f'{database}_{role}' for role in ROLES)}"]
    for role, purpose in zip(ROLES, ("adclick migrate", "every other command", "SQL on numbers"), strict=True):
        lines.append(f"-- {role}: {purpose}")
        lines += [
            f"{grant_statement(grant, f'{database}_{role}', deployment)};"
            for grant in grants(role, statements, database, deployment)
        ]
    return "\n".join(lines)


def grant_statement(grant: str, to: str, deployment: Deployment) -> str:
    """The statement that gives one of `grants` to a role or user."""
    on_cluster = f" ON CLUSTER '{deployment.cluster}'" if deployment.is_cluster else ""
    return f"GRANT{on_cluster} {grant} TO {to}"


def _of_migrator(statements: Sequence[str], database: str, deployment: Deployment) -> list[str]:
    privileges = ["CREATE DATABASE", *_matching(_CREATES, statements, "^")]
    privileges += _matching(_ALTERS, [text for text in statements if re.search("^ALTER TABLE", text, re.M)], r"\b")
    # Views are made over what their maker can read; those that write, over what it can write.
    written = {"migrations", *re.findall(r"^CREATE MATERIALIZED VIEW .*? TO \w+\.(\w+)", "\n".join(statements), re.M)}
    granted = [f"{privilege} ON {database}.*" for privilege in (*privileges, "SELECT")]
    granted += [f"INSERT ON {database}.{table}" for table in sorted(written)]
    if deployment.is_cluster:
        granted.append(f"INSERT ON {database}.{deployment.stored('migrations')}")
    if deployment.policy:
        granted.append("SELECT ON system.storage_policies")
    engines = sorted(set(re.findall(r"\bENGINE = (\w+)", "\n".join(statements))))
    return [*granted, *(f"TABLE ENGINE ON {engine}" for engine in engines), *_of_cluster(deployment)]


def _of_writer(statements: Sequence[str], database: str, deployment: Deployment) -> list[str]:
    # `adclick audit` writes a day into a table of its own, like that of exact hours, and drops it.
    (hours,) = (text for text in statements if re.search(r"CREATE TABLE \S+ \S+ \S+ \w+\.exact_hours(_local)? ", text) and "Distributed" not in text)  # fmt: skip
    engines = re.findall(r"\bENGINE = (\w+)", hours) + (["Distributed"] if deployment.is_cluster else [])
    own = [f"{privilege} ON {database}.audit_*" for privilege in ("CREATE TABLE", "DROP TABLE")]
    both = [f"{privilege} ON {database}.*" for privilege in ("SELECT", "INSERT")]
    return [*both, *own, *(f"TABLE ENGINE ON {engine}" for engine in engines), *_of_cluster(deployment)]


def _of_reader(statements: Sequence[str], database: str, deployment: Deployment) -> list[str]:
    made = re.findall(r"^CREATE (?:TABLE|VIEW) IF NOT EXISTS \w+\.(\w+)", "\n".join(statements), re.M)
    hidden = {*SECRET, *map(deployment.stored, SECRET)}
    tables = [f"SELECT ON {database}.{name}" for name in sorted(set(made) - hidden)]
    return tables + (["SELECT ON system.clusters", _REMOTE[0]] if deployment.is_cluster else [])


def _of_cluster(deployment: Deployment) -> Iterable[str]:
    return ("CLUSTER ON *.*", "SELECT ON system.clusters", *_REMOTE) if deployment.is_cluster else ()


def _matching(kinds: Mapping[str, str], statements: Sequence[str], begin: str) -> list[str]:
    return [p for kind, p in kinds.items() if any(re.search(begin + kind + r"\b", text, re.M) for text in statements)]
