"""Redis, through redis-py: the only module that imports it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import TimedOut, Unavailable, UserError

_AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
)


# A number that is higher than any before, also after Redis lost its memory: its clock, unless that stood still.
_HIGHER = """
local time = redis.call('TIME')
local next = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(redis.call('GET', KEYS[1]) or '0') + 1)
redis.call('SET', KEYS[1], string.format('%.0f', next))
return next
"""


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
            raise _away(error) from error

    def pipeline(self, commands: Iterable[Sequence[Any] | bytes]) -> list[Any]:
        """Many commands, packed or not, in one round trip, with their answers as Redis gives them."""
        told = [command if isinstance(command, bytes) else pack(*command) for command in commands]
        if not told:
            return []
        with self._connection() as connection:
            _send(connection, told)
            return [connection.read_response() for _ in told]

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of strings, from first to last, in one round trip."""
        return self.pipeline(("GETRANGE", *bounds) for bounds in wanted)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """One of the pool; after an error replies may still be on their way, and it is not used again."""
        pool = self._client.connection_pool
        try:
            connection = pool.get_connection()
            try:
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
        except _AWAY as error:
            raise _away(error) from error

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Sequence[Any]] | None]) -> bool:
        """MULTI/EXEC, but only while `key` keeps the value for which `accept` gave commands.

        `accept` gets the value and returns None to write nothing. Check and write share one connection and a WATCH, so
        that a server that restarted in between fails the write.
        """
        try:
            with self._connection() as connection:
                _send(connection, [pack("WATCH", key), pack("GET", key)])
                connection.read_response()
                commands = accept(connection.read_response())
                if commands is None:
                    _send(connection, [pack("UNWATCH")])
                    connection.read_response()
                    return False
                _send(connection, [pack("MULTI"), *(pack(*command) for command in commands), pack("EXEC")])
                for _ in range(1 + len(commands)):
                    connection.read_response()
                if connection.read_response() is None:
                    raise Unavailable(f"Redis: {key} was changed by another writer")
                return True
        except redis.ResponseError as error:
            raise Unavailable(f"Redis refused a write: {error}") from error

    def script(self, source: str) -> Script:
        """A Lua script that is loaded where it is not known yet."""
        return Script(self, source)

    def scan_keys(self, pattern: str) -> list[bytes]:
        """Keys that match, by SCAN."""
        try:
            return list(self._client.scan_iter(match=pattern, count=1000))
        except _AWAY as error:
            raise _away(error) from error

    @contextlib.contextmanager
    def lease(self, name: str, seconds: int, busy: str) -> Iterator[int]:
        """Hold a lock that expires by itself, and renew it meanwhile; yields a number that is higher for each later holder.

        Raises UserError(`busy`) when it is taken. Who loses it is not told: what must not happen then has to compare numbers.
        """
        lock = self._client.lock(name, timeout=seconds, blocking=False, thread_local=False)
        try:
            if not lock.acquire():
                raise UserError(busy, hint=f"wait for it, or {seconds} s after it died")
            fence = int(self._client.eval(_HIGHER, 1, f"{name}:fence"))
        except _AWAY as error:
            raise _away(error) from error
        done = threading.Event()

        def renew() -> None:
            while not done.wait(seconds / 3):
                with contextlib.suppress(redis.RedisError):
                    lock.reacquire()

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield fence
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(redis.RedisError):
                lock.release()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def _send(connection: Any, commands: Sequence[bytes]) -> None:
    """In one piece: redis-py sends each command by itself, and Redis would wake up for each."""
    connection.send_packed_command([b"".join(commands)], check_health=False)


def _away(error: Exception) -> Unavailable:
    return (TimedOut if isinstance(error, redis.TimeoutError) else Unavailable)(f"Redis: {error}")


@dataclass(frozen=True)
class Arguments:
    """Several arguments of a command, as they are sent: made once, where many commands have the same."""

    count: int
    raw: bytes

    @classmethod
    def of(cls, values: Sequence[Any]) -> Arguments:
        """Of their values: bytes, or what is written as text."""
        parts = [v if isinstance(v, bytes) else str(v).encode() for v in values]
        return cls(len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(p), p) for p in parts]))

    @classmethod
    def joined(cls, parts: Sequence[Arguments]) -> Arguments:
        """Those of several, one after the other."""
        return cls(sum(p.count for p in parts), b"".join([p.raw for p in parts]))


def pack(*command: bytes | str | int, more: Arguments | None = None) -> bytes:
    """A command in Redis' own protocol (RESP): redis-py takes six times as long."""
    told = Arguments.of(command)
    if more is None:
        return b"*%d\r\n%b" % (told.count, told.raw)
    return b"*%d\r\n%b%b" % (told.count + more.count, told.raw, more.raw)


class Script:
    """EVALSHA; a Redis that does not know it is told."""

    def __init__(self, client: Redis, source: str) -> None:
        self._client, self._source, self._sha = client, source, ""

    def __call__(self, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """Run it once."""
        return self.each([(keys, Arguments.of(args))])[0]

    def each(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        """Run it with each of several (keys, arguments), in one round trip."""
        if not self._sha:
            self._load()
        try:
            return self._run(calls)
        except redis.exceptions.NoScriptError:
            self._load()
            return self._run(calls)

    def _load(self) -> None:
        self._sha = self._client.call("SCRIPT", "LOAD", self._source).decode()

    def _run(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        return self._client.pipeline([pack("EVALSHA", self._sha, len(keys), *keys, more=args) for keys, args in calls])
