"""A worker of a later release, as far as its peers can tell: what it writes has a higher schema version, and it reads all up to that one. Its
migrations may have a file more, which adds a column to a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infra.clickhouse import schema
from ingest import blocks
from stream import chunks

_VARIABLE, _MIGRATION = "TEST_SCHEMA_VERSION", "TEST_MIGRATION"
SQL_FILE = "999_next_release.sql"
_TABLE = "stream_hours"
_SQL = f"ALTER TABLE {{database}}.{_TABLE} ADD COLUMN IF NOT EXISTS viewable UInt64 DEFAULT 0"


def variables(version: int, *, migration: bool = False) -> dict[str, str]:
    """For a process that is to be of a release with this version. `migration`: it has that file."""
    return {_VARIABLE: str(version)} | ({_MIGRATION: "1"} if migration else {})


def of(environment: Mapping[str, str]) -> int:
    """The version of a process with these variables."""
    return int(environment.get(_VARIABLE, blocks.SCHEMA_VERSION))


def become(environment: Mapping[str, str]) -> None:
    """Be of the release that the variables name, if they do."""
    if _VARIABLE in environment:
        version = of(environment)
        blocks.SCHEMA_VERSION = chunks.SCHEMA_VERSION = version
        blocks.READABLE_VERSIONS = tuple(range(1, version + 1))
    if _MIGRATION in environment:
        _add_migration()


def _add_migration() -> None:
    files, statements = schema._files, schema.statements

    def all_statements(file: str) -> Iterator[tuple[str, str]]:
        return iter([(_TABLE, _SQL)]) if file == SQL_FILE else statements(file)

    schema._files = lambda: [*files(), SQL_FILE]
    schema.statements = all_statements
