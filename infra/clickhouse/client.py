"""ClickHouse, through clickhouse-connect: the only module that imports it.

All writes are safe to repeat: tables replace by key and version, or carry a run id that only one row makes current.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import urllib3
from clickhouse_connect.driver import httputil
from clickhouse_connect.driver.exceptions import (
    ClickHouseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)
from clickhouse_connect.driver.httpclient import HttpClient

from infra.clickhouse import errors
from infra.clickhouse.deployment import ONE_SERVER, WHOLE_RESULTS, Deployment
from infra.errors import AdclickError, Denied, Refused
from infra.settings import Settings
from infra.tls import TlsFiles

# Its errors are raised, too: one line for a person is enough.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


# Its first queries come before the settings of a client: a profile's offset would leave out the only row.
HttpClient.params = dict(WHOLE_RESULTS)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Asked to hold an answer back until it is complete, as clickhouse-connect asks by default, ClickHouse 26.9 keeps it in a file; where
# that cannot be written, as on a full disk, the answer is 200 without a row.
_AS_IT_COMES = {"wait_end_of_query": "0"}
# What clickhouse-connect 1.12 raises by itself, of how it is used or of what is inserted; the server's own errors, and answers that
# are not ClickHouse's, are none of these. InternalError is: a type in an answer that it cannot parse.
_MISUSE = (ProgrammingError, DataError, IntegrityError, InterfaceError, NotSupportedError)


class ClickHouse:
    """A client that connects on first use. Thread-safe. Raises Unavailable when the server is away, Refused when it answers and
    declines, BadStatement when a statement is wrong, UserError for files of TLS that cannot be used."""

    def __init__(
        self,
        url: str,
        database: str,
        *,
        timeout_s: int = 120,
        connections: int = 8,
        tls: TlsFiles | None = None,
        deployment: Deployment = ONE_SERVER,
    ) -> None:
        self._url, self.database, self._timeout_s, self._connections = urlsplit(url), database, timeout_s, connections
        self.tls, self.deployment = tls or TlsFiles("clickhouse"), deployment
        self._client: Any = None
        self._connecting = threading.Lock()
        self._replicas = 0
        """How many have to acknowledge an insert; 0 while that is not known."""

    @staticmethod
    def of(settings: Settings, **options: int) -> ClickHouse:
        """The client of an installation, with `timeout_s` and `connections` as given."""
        return connector(settings)(**options)

    def _connected(self) -> Any:
        with self._connecting:
            return self._client or self._connect()

    def _connect(self) -> Any:
        encrypted, password = self._url.scheme == "https", unquote(self._url.password or "")
        pool_options = {"ssl_context": self.tls.context()} if encrypted else {}
        self._client = clickhouse_connect.get_client(
            host=self._url.hostname,
            port=self._url.port,
            interface="https" if encrypted else "http",
            username=unquote(self._url.username or "default"),
            password=password,
            client_cert=self.tls.certificate if encrypted else None,
            # Without a password the certificate says who the user is.
            tls_mode="strict" if password or not self.tls.certificate else "mutual",
            settings=self.deployment.settings(),
            autogenerate_session_id=False,
            connect_timeout=3,
            send_receive_timeout=self._timeout_s,
            # With a pool of its own it does not look for a proxy in the environment: it is never behind one.
            pool_mgr=httputil.get_pool_manager(maxsize=self._connections, **pool_options),
            query_retries=0,
            # What does not leave the machine costs more to compress than to send.
            compress=False if self._url.hostname in _LOOPBACK else "lz4",
        )
        return self._client

    def command(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A statement without a table for an answer."""
        with self._translated():
            return self._connected().command(sql, parameters=parameters, settings=self._write_settings())

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """A query's rows as tuples; parameters are bound by the server as `{name:Type}`."""
        with self._translated():
            return list(self._connected().query(sql, parameters=parameters, settings=_AS_IT_COMES).result_rows)

    def arrow(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        """A query's rows as a pyarrow table."""
        settings = _AS_IT_COMES | {
            "output_format_arrow_string_as_string": 1,
            "output_format_arrow_low_cardinality_as_dictionary": 0,
        }
        with self._translated():
            return self._connected().query_arrow(sql, parameters=parameters, settings=settings)

    def sha256(self, sql: str, parameters: dict[str, Any] | None = None) -> str:
        """The SHA-256 of a query's rows as tab-separated lines, as they come."""
        digest = hashlib.sha256()
        with (
            self._translated(),
            self._connected().raw_stream(
                sql, parameters=parameters, settings=_AS_IT_COMES, fmt="TabSeparated"
            ) as stream,
        ):
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def insert(self, table: str, data: Any) -> None:
        """Append a pyarrow table whose columns are named as the table's."""
        with self._translated():
            # Replacing rows within what is inserted takes longer than inserting it, and readers ask for FINAL anyway.
            settings = {"optimize_on_insert": 0} | self._write_settings()
            self._connected().insert_arrow(f"{self.database}.{table}", data, settings=settings)

    def _write_settings(self) -> dict[str, Any]:
        """On a cluster all replicas of a shard acknowledge an insert: whichever is read, it has what a border promises."""
        if not self.deployment.is_cluster:
            return {}
        if not self._replicas:
            cluster = self.deployment.cluster
            reply = self._connected().query(
                "SELECT max(replica_num) FROM system.clusters WHERE cluster = {cluster:String}", {"cluster": cluster}
            )
            self._replicas = int(reply.result_rows[0][0])
            if not self._replicas:
                raise Refused(
                    f"ClickHouse: it knows no cluster named {cluster}",
                    hint="correct ADCLICK_CLICKHOUSE_CLUSTER, or add it to remote_servers",
                    backend="clickhouse", code="CLUSTER_DOESNT_EXIST",
                )  # fmt: skip
        return {"insert_quorum": self._replicas}

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise the client's errors as decisions. urllib3's own reach us where a reply is cut short while it is read."""
        try:
            yield
        except (ClickHouseError, urllib3.exceptions.HTTPError, OSError) as error:
            decision = decision_on(error)
            # A replica that keeps writes waiting may have been taken out of the cluster.
            self._replicas = 0
            if isinstance(decision, Denied) and isinstance(error, _MISUSE):
                # The client knows what its user may change as of when it connected: only a new one notices that it may again.
                self._client = None
            raise decision from error

    def close(self) -> None:
        """Give the connection back."""
        if self._client is not None:
            self._client.close()
            self._client = None


def connector(settings: Settings) -> partial[ClickHouse]:
    """What makes clients of an installation. Unlike these, it can be sent to other processes."""
    tls = TlsFiles("clickhouse", settings.clickhouse_ca, settings.clickhouse_certificate, settings.clickhouse_key)
    return partial(ClickHouse, settings.clickhouse, settings.database, tls=tls, deployment=Deployment.of(settings))


Connect = Callable[[], ClickHouse]
"""Makes a client of an installation, also in another process."""


def decision_on(error: Exception) -> AdclickError:
    """What to do about one of the client's errors."""
    return errors.decide(error, is_misuse=isinstance(error, _MISUSE))
