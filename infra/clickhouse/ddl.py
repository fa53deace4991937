"""Statements of the SQL files, written for one server, as another kind of ClickHouse takes them. Pure.

The files are the one description of the tables. What is rewritten are the few places where kinds differ: engine, storage policy, and
on a cluster the names, `ON CLUSTER`, and the table of the engine Distributed over the nodes' own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from infra.clickhouse.deployment import TIERED, Deployment

SUBJECT = re.compile(
    r"^(CREATE TABLE IF NOT EXISTS|CREATE (?:MATERIALIZED )?VIEW IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE) \{database\}\.(\w+)",
    re.MULTILINE,
)
"""The beginning of a statement: what it does, and which table or view it is about."""
_POLICY = re.compile(rf"storage_policy = '{TIERED}'(, )?")
_TO_VOLUME = re.compile(r"\w+ \+ INTERVAL \d+ DAY TO VOLUME '\w+', ")
_ENGINE = re.compile(r"\bENGINE = (\w*MergeTree)\b")
_NAME = re.compile(r"\{database\}\.(\w+)")
_ADDED = re.compile(r"ADD COLUMN IF NOT EXISTS .*", re.DOTALL)
# A mutation with a subquery, which replicated tables refuse. It fills in rows of releases that knew no other kind than one server.
_FILLS_IN = re.compile(r"^ALTER TABLE \S+ UPDATE\s", re.MULTILINE)


def rewrite(statement: str, database: str, deployment: Deployment) -> list[str]:
    """The statements that do on a kind of ClickHouse what one of a file does on one server, in order. Each may be repeated."""
    if _FILLS_IN.search(statement) and deployment.cluster:
        return []
    statement = _with_policy(statement, deployment.policy)
    if not deployment.is_cluster:
        return [statement.replace("{database}", database)]
    return [text.replace("{database}", database) for text in _on_cluster(statement, deployment)]


def _with_policy(statement: str, policy: str) -> str:
    if policy:
        return _POLICY.sub(lambda match: f"storage_policy = '{policy}'{match[1] or ''}", statement)
    return _POLICY.sub("", _TO_VOLUME.sub("", statement))


def _on_cluster(statement: str, deployment: Deployment) -> Iterable[str]:
    subject = SUBJECT.search(statement)
    assert subject is not None, statement
    action, table = subject.groups()
    head, on_cluster = subject[0], f" ON CLUSTER '{deployment.cluster}'"
    if action == "CREATE TABLE IF NOT EXISTS":
        local = statement.replace(head, f"{action} {{database}}.{deployment.stored(table)}{on_cluster}")
        yield _ENGINE.sub(r"ENGINE = Replicated\1", local)
        yield _distributed(table, deployment.placement(table), deployment)
    elif action == "ALTER TABLE":
        yield statement.replace(head, f"{action} {{database}}.{deployment.stored(table)}{on_cluster}")
        # The other table knows names and types, and neither settings nor indexes.
        if added := _ADDED.search(statement):
            yield f"{action} {{database}}.{table}{on_cluster} {added[0]}"
    elif "MATERIALIZED" in action:
        # On each node from its own rows to its own rows: both tables are spread by the same key.
        local = _NAME.sub(lambda match: f"{{database}}.{deployment.stored(match[1])}", statement)
        yield local.replace(head, head + on_cluster)
    else:
        yield statement.replace(head, head + on_cluster)


def _distributed(table: str, sharding_key: str, deployment: Deployment) -> str:
    """The table over the local ones of all nodes, under the name that is read and written."""
    cluster, local = deployment.cluster, deployment.stored(table)
    return (
        f"CREATE TABLE IF NOT EXISTS {{database}}.{table} ON CLUSTER '{cluster}' AS {{database}}.{local}"
        f" ENGINE = Distributed('{cluster}', '{{database}}', '{local}', {sharding_key})"
    )


def columns(statement: str) -> list[str]:
    """The columns that a statement makes or adds, by name; none of a view's."""
    text = re.sub(r"--[^\n]*", "", statement)
    if added := re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", text):
        return added
    subject = SUBJECT.search(text)
    if subject is None or subject[1] != "CREATE TABLE IF NOT EXISTS":
        return []
    names, depth, begins = list[str](), 0, True
    for word in re.findall(r"\w+|[^\w\s]", text[text.index("(", subject.end()) :]):
        if depth == 1 and begins and re.match(r"\w", word) and word not in ("INDEX", "PROJECTION", "CONSTRAINT"):
            names.append(word)
        depth += {"(": 1, ")": -1}.get(word, 0)
        begins = depth == 1 and word in "(,"
        if not depth:
            break
    return names


def create_database(database: str, deployment: Deployment) -> str:
    """The statement that makes the database."""
    return f"CREATE DATABASE IF NOT EXISTS {database}" + (
        f" ON CLUSTER '{deployment.cluster}'" if deployment.is_cluster else ""
    )


def copy(table: str, name: str, database: str, deployment: Deployment) -> list[str]:
    """Statements that make an empty table like another one."""
    if not deployment.is_cluster:
        return [f"CREATE TABLE {database}.{name} AS {database}.{table}"]
    cluster, local = deployment.cluster, deployment.stored(name)
    return [
        f"CREATE TABLE {database}.{local} ON CLUSTER '{cluster}' AS {database}.{deployment.stored(table)}",
        _distributed(name, deployment.placement(table), deployment).replace("{database}", database),
    ]


def drop(table: str, database: str, deployment: Deployment) -> list[str]:
    """Statements that drop a table, if it is there."""
    if not deployment.is_cluster:
        return [f"DROP TABLE IF EXISTS {database}.{table}"]
    names = (table, deployment.stored(table))
    return [f"DROP TABLE IF EXISTS {database}.{name} ON CLUSTER '{deployment.cluster}' SYNC" for name in names]
