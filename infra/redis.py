"""Redis, through redis-py: the only module that imports it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import Unavailable

_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError, redis.exceptions.ReadOnlyError)


class Redis:
    """A connection pool with bytes in and out. Every call raises Unavailable when Redis is away.

    redis-py's own retries are off: a command that is not idempotent must not be sent twice behind our back.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._client = redis.Redis.from_url(
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

    def write_if(self, key: str, good: Callable[[bytes | None], bool], commands: Sequence[Sequence[Any]]) -> bool:
        """MULTI/EXEC of `commands`, but only while `key` holds a value that is `good`.

        Check and write share one connection and a WATCH: a server that restarted in between fails the write.
        """
        try:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.watch(key)
                if not good(pipe.get(key)):  # type: ignore[arg-type]
                    return False
                pipe.multi()
                for command in commands:
                    pipe.execute_command(*command)
                pipe.execute()
                return True
        except redis.WatchError as error:
            raise Unavailable(f"Redis: {key} was changed by another writer") from error
        except _AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

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

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


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
