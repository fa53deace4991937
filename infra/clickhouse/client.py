"""ClickHouse, through clickhouse-connect: the only module that imports it.

`migrate` applies the numbered SQL files beside this one, each once. All writes are safe to repeat: tables
replace by key and version, or carry a run id that only one row makes current.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver import httputil
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from infra.errors import AdclickError, TimedOut, Unavailable

# Its errors are raised, too: one line for a person is enough.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ClickHouse:
    """A client that connects on first use. Thread-safe. Raises Unavailable when the server is away."""

    def __init__(self, url: str, database: str, *, timeout_s: int = 120, connections: int = 8) -> None:
        self._url, self.database, self._timeout_s, self._connections = urlsplit(url), database, timeout_s, connections
        self._client: Any = None
        self._connecting = threading.Lock()

    def _connected(self) -> Any:
        with self._connecting:
            return self._client or self._connect()

    def _connect(self) -> Any:
        try:
            self._client = clickhouse_connect.get_client(
                host=self._url.hostname,
                port=self._url.port,
                interface="https" if self._url.scheme == "https" else "http",
                username=unquote(self._url.username or "default"),
                password=unquote(self._url.password or ""),
                autogenerate_session_id=False,
                connect_timeout=3,
                send_receive_timeout=self._timeout_s,
                pool_mgr=httputil.get_pool_manager(maxsize=self._connections),
                query_retries=0,
                # What does not leave the machine costs more to compress than to send.
                compress=False if self._url.hostname in _LOOPBACK else "lz4",
            )
        except (ClickHouseError, OSError) as error:
            raise Unavailable(f"ClickHouse: {_first_line(error)}") from error
        return self._client

    def _guard(self, error: Exception) -> AdclickError:
        if isinstance(error, OperationalError | OSError) or not isinstance(error, DatabaseError):
            return (TimedOut if _timed_out(error) else Unavailable)(f"ClickHouse: {_first_line(error)}")
        return AdclickError(f"ClickHouse: {_first_line(error)}")

    def command(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A statement without a table for an answer."""
        try:
            return self._connected().command(sql, parameters=parameters)
        except (ClickHouseError, OSError) as error:
            raise self._guard(error) from error

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """A query's rows as tuples; parameters are bound by the server as `{name:Type}`."""
        try:
            return list(self._connected().query(sql, parameters=parameters).result_rows)
        except (ClickHouseError, OSError) as error:
            raise self._guard(error) from error

    def arrow(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A query's rows as a pyarrow table."""
        settings = {
            "output_format_arrow_string_as_string": 1,
            "output_format_arrow_low_cardinality_as_dictionary": 0,
        }
        try:
            return self._connected().query_arrow(sql, parameters=parameters, settings=settings)
        except (ClickHouseError, OSError) as error:
            raise self._guard(error) from error

    def sha256(self, sql: str, parameters: dict[str, Any] | None = None) -> str:
        """The SHA-256 of a query's rows as tab-separated lines, as they come."""
        told = hashlib.sha256()
        try:
            with self._connected().raw_stream(sql, parameters=parameters, fmt="TabSeparated") as stream:
                while chunk := stream.read(1 << 20):
                    told.update(chunk)
        except (ClickHouseError, OSError) as error:
            raise self._guard(error) from error
        return told.hexdigest()

    def insert(self, table: str, data: Any) -> None:
        """Append a pyarrow table whose columns are named as the table's."""
        try:
            # Replacing rows within what is inserted takes longer than inserting it, and readers ask for FINAL anyway.
            settings = {"optimize_on_insert": 0}
            self._connected().insert_arrow(f"{self.database}.{table}", data, settings=settings)
        except (ClickHouseError, OSError) as error:
            raise self._guard(error) from error

    def close(self) -> None:
        """Give the connection back."""
        if self._client is not None:
            self._client.close()
            self._client = None


def migrate(client: ClickHouse) -> list[str]:
    """Bring the database to the newest schema; returns the names of the files applied now."""
    db = client.database
    client.command(f"CREATE DATABASE IF NOT EXISTS {db}")
    client.command(
        f"CREATE TABLE IF NOT EXISTS {db}.migrations (name String, applied_at DateTime DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY name"
    )
    done = {name for (name,) in client.rows(f"SELECT name FROM {db}.migrations FINAL")}
    applied = []
    for file in sorted(resources.files(__package__).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".sql") or file.name in done:
            continue
        for statement in re.split(r";\s*\n", file.read_text()):
            if statement.strip():
                client.command(statement.replace("{database}", db))
        client.command(f"INSERT INTO {db}.migrations (name) VALUES ('{file.name}')")
        applied.append(file.name)
    return applied


def _timed_out(error: BaseException | None) -> bool:
    while error is not None:
        if "timeout" in type(error).__name__.lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    """What a person needs of an error: of a refused connection, only that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
