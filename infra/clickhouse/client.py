"""ClickHouse, through clickhouse-connect: the only module that imports it.

`migrate` applies the numbered SQL files beside this one, each once. All writes are safe to repeat: tables
replace by key and version, or carry a run id that only one row makes current.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import urllib3
from clickhouse_connect.driver import httputil
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra.errors import AdclickError, BadStatement, Denied, Refused, TimedOut, Unavailable, UserError

# Its errors are raised, too: one line for a person is enough.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# ClickHouse's names of errors, and what ends each refusal. Any other name is waited out as well, without a hint.
_REFUSED = {
    "TOO_MANY_PARTS": "merges lag behind: it takes rows again once they have caught up",
    "MEMORY_LIMIT_EXCEEDED": "give ClickHouse more memory, or wait until other queries have ended",
    "TOO_MANY_SIMULTANEOUS_QUERIES": "raise max_concurrent_queries, or wait until other queries have ended",
    "NOT_ENOUGH_SPACE": "free space on ClickHouse's disk",
    "TABLE_IS_READ_ONLY": "a replicated table has lost its Keeper",
    "UNKNOWN_TABLE": "adclick migrate makes the tables",
    "UNKNOWN_DATABASE": "adclick migrate makes the database",
    "QUOTA_EXCEEDED": "raise the user's quota, or wait for its next interval",
}
# Asked to hold an answer back until it is complete, as clickhouse-connect asks by default, ClickHouse 26.9 keeps it in a file; where
# that cannot be written, as on a full disk, the answer is 200 without a row.
_AS_IT_COMES = {"wait_end_of_query": "0"}
_FULL_DISK = "No space left on device"
_CREDENTIALS = "correct user and password in ADCLICK_CLICKHOUSE"
_DENIED = {
    **dict.fromkeys(("AUTHENTICATION_FAILED", "UNKNOWN_USER", "WRONG_PASSWORD", "REQUIRED_PASSWORD"), _CREDENTIALS),
    "IP_ADDRESS_NOT_ALLOWED": "allow the user to connect from this host",
    "ACCESS_DENIED": "grant it to the user",
    "DATABASE_ACCESS_DENIED": "grant it to the user",
    "READONLY": "the user's profile sets readonly: set it to 0",
}
_TIMED_OUT = {"TIMEOUT_EXCEEDED", "SOCKET_TIMEOUT", "TOO_SLOW"}
# Statements that are wrong in themselves, whatever state ClickHouse is in.
_BAD = re.compile(
    r"SYNTAX_ERROR|EMPTY_QUERY|UNKNOWN_(IDENTIFIER|FUNCTION|AGGREGATE_FUNCTION|TYPE|SETTING|STORAGE|FORMAT|QUERY_PARAMETER)"
    r"|BAD_(ARGUMENTS|QUERY_PARAMETER)|(TOO_MANY|TOO_FEW)_ARGUMENTS_FOR_FUNCTION|NUMBER_OF_(ARGUMENTS|COLUMNS)_DOESNT_MATCH"
    r"|ILLEGAL_\w+|NOT_AN_AGGREGATE|TYPE_MISMATCH|CANNOT_CONVERT_TYPE|CANNOT_PARSE_\w+|NO_COMMON_TYPE|NOT_IMPLEMENTED"
    r"|NO_SUCH_COLUMN_IN_TABLE|NOT_FOUND_COLUMN_IN_BLOCK|THERE_IS_NO_COLUMN|DUPLICATE_COLUMN|INCORRECT_(DATA|NUMBER_OF_COLUMNS)"
    r"|AMBIGUOUS_\w+|ARGUMENT_OUT_OF_BOUND|VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE|FUNCTION_THROW_IF_VALUE_IS_NON_ZERO|TOO_(BIG|DEEP)_AST"
)


class ClickHouse:
    """A client that connects on first use. Thread-safe. Raises Unavailable when the server is away, Refused when it answers and
    declines, BadStatement when a statement is wrong."""

    def __init__(self, url: str, database: str, *, timeout_s: int = 120, connections: int = 8) -> None:
        self._url, self.database, self._timeout_s, self._connections = urlsplit(url), database, timeout_s, connections
        self._client: Any = None
        self._connecting = threading.Lock()

    def _connected(self) -> Any:
        with self._connecting:
            return self._client or self._connect()

    def _connect(self) -> Any:
        self._client = clickhouse_connect.get_client(
            host=self._url.hostname,
            port=self._url.port,
            interface="https" if self._url.scheme == "https" else "http",
            username=unquote(self._url.username or "default"),
            password=unquote(self._url.password or ""),
            autogenerate_session_id=False,
            connect_timeout=3,
            send_receive_timeout=self._timeout_s,
            # With a pool of its own it does not look for a proxy in the environment: it is never behind one.
            pool_mgr=httputil.get_pool_manager(maxsize=self._connections),
            query_retries=0,
            # What does not leave the machine costs more to compress than to send.
            compress=False if self._url.hostname in _LOOPBACK else "lz4",
        )
        return self._client

    def command(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A statement without a table for an answer."""
        with _translated():
            return self._connected().command(sql, parameters=parameters)

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """A query's rows as tuples; parameters are bound by the server as `{name:Type}`."""
        with _translated():
            return list(self._connected().query(sql, parameters=parameters, settings=_AS_IT_COMES).result_rows)

    def arrow(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A query's rows as a pyarrow table."""
        settings = _AS_IT_COMES | {
            "output_format_arrow_string_as_string": 1,
            "output_format_arrow_low_cardinality_as_dictionary": 0,
        }
        with _translated():
            return self._connected().query_arrow(sql, parameters=parameters, settings=settings)

    def sha256(self, sql: str, parameters: dict[str, Any] | None = None) -> str:
        """The SHA-256 of a query's rows as tab-separated lines, as they come."""
        told = hashlib.sha256()
        with (
            _translated(),
            self._connected().raw_stream(
                sql, parameters=parameters, settings=_AS_IT_COMES, fmt="TabSeparated"
            ) as stream,
        ):
            while chunk := stream.read(1 << 20):
                told.update(chunk)
        return told.hexdigest()

    def insert(self, table: str, data: Any) -> None:
        """Append a pyarrow table whose columns are named as the table's."""
        with _translated():
            # Replacing rows within what is inserted takes longer than inserting it, and readers ask for FINAL anyway.
            settings = {"optimize_on_insert": 0}
            self._connected().insert_arrow(f"{self.database}.{table}", data, settings=settings)

    def close(self) -> None:
        """Give the connection back."""
        if self._client is not None:
            self._client.close()
            self._client = None


def migrate(client: ClickHouse) -> list[str]:
    """Bring the database to the newest schema; returns the names of the files applied now. Raises UserError without the
    storage policy that tables name."""
    db = client.database
    files = pending(client)
    if not files:
        return []
    _check_policy(client)
    client.command(f"CREATE DATABASE IF NOT EXISTS {db}")
    client.command(
        f"CREATE TABLE IF NOT EXISTS {db}.migrations (name String, applied_at DateTime DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY name"
    )
    for name in files:
        for statement in re.split(r";\s*\n", (resources.files(__package__) / name).read_text()):
            if statement.strip():
                client.command(statement.replace("{database}", db))
        client.command(f"INSERT INTO {db}.migrations (name) VALUES ('{name}')")
    return files


def pending(client: ClickHouse) -> list[str]:
    """The files that the database has not been brought up to date with, in the order to apply them."""
    files = sorted(f.name for f in resources.files(__package__).iterdir() if f.name.endswith(".sql"))
    exists = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'migrations'"
    if not client.rows(exists, {"database": client.database})[0][0]:
        return files
    done = {name for (name,) in client.rows(f"SELECT name FROM {client.database}.migrations FINAL")}
    return [name for name in files if name not in done]


def _check_policy(client: ClickHouse) -> None:
    rows = client.rows("SELECT volume_name FROM system.storage_policies WHERE policy_name = 'tiered'")
    missing = [volume for volume in ("fast", "slow") if volume not in {name for (name,) in rows}]
    if missing:
        lacks = f"volume {missing[0]} in its storage policy tiered" if rows else "storage policy named tiered"
        raise UserError(f"ClickHouse has no {lacks}", hint="add it to its configuration; docs/operating.md has one")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The client's errors as ours. urllib3's own reach us where a reply breaks off while it is read."""
    try:
        yield
    except (ClickHouseError, urllib3.exceptions.HTTPError, OSError) as error:
        raise decision_on(error) from error


def decision_on(error: Exception) -> AdclickError:
    """What to do about one of the client's errors. An error that is not known to be a wrong statement is waited out."""
    name = getattr(error, "name", None) or ""
    sentence = _first_line(error)
    message = f"ClickHouse: {sentence} ({name})" if name else f"ClickHouse: {sentence}"
    if name in _TIMED_OUT or (not name and _timed_out(error)):
        return TimedOut(message, backend="clickhouse")
    if name in _DENIED:
        return Denied(message, hint=_DENIED[name], backend="clickhouse", code=name)
    if _BAD.fullmatch(name):
        return BadStatement(message)
    if name:
        hint = _REFUSED["NOT_ENOUGH_SPACE"] if _FULL_DISK in sentence else _REFUSED.get(name, "")
        return Refused(message, hint=hint, backend="clickhouse", code=name)
    return Unavailable(message, backend="clickhouse")


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
    text = (str(error).splitlines() or [type(error).__name__])[0]
    # Of the server's answer, its sentence; what is around it names the error's number, the server's version and the URL.
    sentence = re.search(r"DB::Exception: (.*?)(?: \([A-Z][A-Z0-9_]+\))?(?: \(version .*| \(for url .*)?$", text)
    return (sentence[1] if sentence else text)[:300]
