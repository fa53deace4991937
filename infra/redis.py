"""Redis, through redis-py: the only module that imports it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import Unavailable, UserError

_AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
)


class Redis:
    """A connection pool with bytes in and out. Every call raises Unavailable when Redis is away.

    redis-py's own retries are off: a command that is not idempotent must not be sent twice behind our back.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def call(self, *command: Any) -> Any:
        """One command."""
        try:
            return self._client.execute_command(*command)
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

    def pipeline(self, commands: Iterable[Sequence[Any]], *, atomic: bool = False) -> list[Any]:
        """Many commands in one round trip; `atomic` puts them into MULTI/EXEC."""
        try:
            with self._client.pipeline(transaction=atomic) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(pipe.execute())
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[bytes] | None]) -> bool:
        """MULTI/EXEC, but only while `key` keeps the value for which `accept` gave commands (packed, see `pack`).

        `accept` gets the value and returns None to write nothing. Check and write share one connection and a WATCH, so
        that a server that restarted in between fails the write.
        """
        pool = self._client.connection_pool
        try:
            connection = pool.get_connection()
            try:
                connection.send_packed_command([pack("WATCH", key), pack("GET", key)], check_health=False)
                connection.read_response()
                commands = accept(connection.read_response())
                if commands is None:
                    connection.send_packed_command([pack("UNWATCH")], check_health=False)
                    connection.read_response()
                    return False
                connection.send_packed_command([pack("MULTI"), *commands, pack("EXEC")], check_health=False)
                for _ in range(1 + len(commands)):
                    connection.read_response()
                if connection.read_response() is None:
                    raise Unavailable(f"Redis: {key} was changed by another writer")
                return True
            except BaseException:
                # Replies may still be on their way: this connection cannot be used again.
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
        except redis.ResponseError as error:
            raise Unavailable(f"Redis refused a write: {error}") from error

    def script(self, source: str) -> Script:
        """A Lua script that is loaded where it is not known yet."""
        return Script(self, source)

    def scan_hash(self, key: str, count: int = 20_000) -> Iterable[dict[bytes, bytes]]:
        """The fields of a big hash in pages; a field may come twice."""
        cursor: Any = 0
        while True:
            cursor, page = self.call("HSCAN", key, cursor, "COUNT", count)
            yield page
            if int(cursor) == 0:
                return

    def scan_keys(self, pattern: str) -> list[bytes]:
        """Keys that match, by SCAN."""
        try:
            return list(self._client.scan_iter(match=pattern, count=1000))
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

    @contextlib.contextmanager
    def lease(self, name: str, seconds: int, busy: str) -> Iterator[None]:
        """Hold a lock that expires by itself, and renew it meanwhile. Raises UserError(`busy`) when it is taken."""
        lock = self._client.lock(name, timeout=seconds, blocking=False, thread_local=False)
        try:
            if not lock.acquire():
                raise UserError(busy, hint=f"wait for it, or {seconds} s after it died")
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
        done = threading.Event()

        def renew() -> None:
            while not done.wait(seconds / 3):
                with contextlib.suppress(redis.RedisError):
                    lock.reacquire()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(redis.RedisError):
                lock.release()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def pack(*command: bytes | str | int) -> bytes:
    """A command in Redis' own protocol (RESP)."""
    parts = [c if isinstance(c, bytes) else str(c).encode() for c in command]
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(p), p) for p in parts]))


def pack_hset(key: str, fields: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> bytes:
    """HSET of many fields of one width and values of one width, as (n, width) bytes: 0.05 µs each instead of 4."""
    count, field_width = fields.shape
    value_width = values.shape[1]
    head_f, head_v = f"${field_width}\r\n".encode(), f"${value_width}\r\n".encode()
    line_end = np.frombuffer(b"\r\n", np.uint8)
    columns = [np.frombuffer(head_f, np.uint8), fields, line_end, np.frombuffer(head_v, np.uint8), values, line_end]
    packed = np.empty((count, sum(c.shape[-1] for c in columns)), np.uint8)
    at = 0
    for column in columns:
        packed[:, at : at + column.shape[-1]] = column
        at += column.shape[-1]
    name = key.encode()
    return b"*%d\r\n$4\r\nHSET\r\n$%d\r\n%b\r\n%b" % (2 + 2 * count, len(name), name, packed.tobytes())


class Script:
    """EVALSHA with the fallback to EVAL."""

    def __init__(self, client: Redis, source: str) -> None:
        self._client, self._source, self._sha = client, source, ""

    def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if not self._sha:
            self._sha = self._client.call("SCRIPT", "LOAD", self._source).decode()
        try:
            return self._client.call("EVALSHA", self._sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return self._client.call("EVAL", self._source, len(keys), *keys, *args)
