"""Redis, through redis-py: the only module that imports it."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import AdclickError, Refused, TimedOut, Unavailable, UserError
from infra.redis import errors
from infra.redis.commands import Arguments, pack_command, pack_with_arguments

# Redis 6 wraps the error of a command in a script: `ERR Error running script (…): @user_script:3: -OOM command not allowed …`.
_IN_SCRIPT = re.compile(r"@user_script: ?\d+: -?(([A-Z]+) .*)")
_CODE = re.compile(r"([A-Z]{3,}) ")
# What Redis says without a code.
_SENTENCES = {
    "max number of clients": "MAXCLIENTS",
    "user executing the script can't": "NOPERM",
    "ACL failure in script": "NOPERM",
    "while the cluster is down": "CLUSTERDOWN",
    "access a non local key": "MOVED",
}
# A connection to what is no longer the primary: the address may lead elsewhere by now.
_STALE = {"READONLY", "MASTERDOWN"}


# A number that is higher than any before, also after Redis lost its memory: its clock, unless that stood still.
_HIGHER = """
local time = redis.call('TIME')
local next = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(redis.call('GET', KEYS[1]) or '0') + 1)
redis.call('SET', KEYS[1], string.format('%.0f', next))
return next
"""


_LEASE_POLL_S = 0.02
_MULTI, _EXEC = pack_command("MULTI"), pack_command("EXEC")


class Redis:
    """A connection pool with bytes in and out. Every call raises Unavailable when Redis is away, Refused when it answers and
    declines, BadStatement when a command is wrong.

    redis-py's own retries are off: a command that is not idempotent must not be sent twice without the caller's knowledge.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        """Raises UserError for an address that is none."""
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0), protocol=2
            )
        except ValueError as error:
            raise UserError(
                f"ADCLICK_REDIS is no address of a Redis: {error}", hint="like redis://HOST:6379/0"
            ) from error

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            decision = decision_on(error)
            if isinstance(decision, Refused) and decision.code in _STALE:
                self._client.connection_pool.disconnect(inuse_connections=False)
            raise decision from error

    def call(self, *command: Any) -> Any:
        """The reply to one command."""
        with self._translated():
            return self._client.execute_command(*command)

    def pipeline(self, commands: Iterable[Sequence[Any] | bytes]) -> list[Any]:
        """Many commands, packed or not, in one round trip, with their answers as Redis gives them."""
        packed = [command if isinstance(command, bytes) else pack_command(*command) for command in commands]
        if not packed:
            return []
        with self._connection() as connection:
            _send(connection, packed)
            return [connection.read_response() for _ in packed]

    def transactions(self, calls: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """The replies to the packed commands of each call, with one round trip for all. Those of a call happen at one moment."""
        packed = [command for commands in calls for command in (_MULTI, *commands, _EXEC)]
        replies = list[list[Any]]()
        with self._connection() as connection:
            _send(connection, packed)
            for commands in calls:
                for _ in range(1 + len(commands)):
                    connection.read_response()
                replies.append(connection.read_response())
                _raise_first_error(replies[-1])
        return replies

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of strings, from first to last, in one round trip."""
        return self.pipeline(("GETRANGE", *bounds) for bounds in wanted)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """One of the pool; after an error replies may still be on their way, and it is not used again."""
        pool = self._client.connection_pool
        with self._translated():
            connection = pool.get_connection()
            try:
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Sequence[Any]] | None]) -> bool:
        """MULTI/EXEC, but only while `key` keeps the value for which `accept` gave commands.

        `accept` gets the value and returns None to write nothing. Check and write share one connection and a WATCH, so
        that a server that restarted in between fails the write.
        """
        with self._connection() as connection:
            _send(connection, [pack_command("WATCH", key), pack_command("GET", key)])
            connection.read_response()
            commands = accept(connection.read_response())
            if commands is None:
                _send(connection, [pack_command("UNWATCH")])
                connection.read_response()
                return False
            _send(
                connection,
                [pack_command("MULTI"), *(pack_command(*command) for command in commands), pack_command("EXEC")],
            )
            for _ in range(1 + len(commands)):
                connection.read_response()
            replies = connection.read_response()
            if replies is None:
                raise Unavailable(f"Redis: {key} was changed by another writer", backend="redis")
            _raise_first_error(replies)
            return True

    def script(self, source: str) -> Script:
        """A Lua script that is loaded where it is not known yet."""
        return Script(self, source)

    def scan_keys(self, pattern: str) -> list[bytes]:
        """The keys that match a pattern, by SCAN."""
        with self._translated():
            return list(self._client.scan_iter(match=pattern, count=1000))

    def memory(self) -> Memory:
        """How much memory Redis may use, and what it does when that is full. Raises BadStatement or Denied where it may not be
        asked."""
        # All sections that it gives by default: before Redis 7 INFO takes one name at most.
        lines = bytes(self.pipeline([("INFO",)])[0]).decode()
        fields = dict(line.split(":", 1) for line in lines.split("\r\n") if ":" in line)
        return Memory(
            fields.get("run_id", ""), int(fields.get("used_memory", 0)), int(fields.get("maxmemory", 0)),
            fields.get("maxmemory_policy", ""), int(fields.get("evicted_keys", 0)),
        )  # fmt: skip

    @contextlib.contextmanager
    def lease(self, name: str, seconds: int, busy: str) -> Iterator[int]:
        """Hold a lock that expires by itself, and renew it meanwhile; yields a number that is higher for each later holder.

        Raises UserError(`busy`) when it is taken. A holder that loses it does not
        learn of it: what it must not do then has to be conditional on the number.
        """
        lock = self._client.lock(name, timeout=seconds, blocking=False, thread_local=False)
        with self._translated():
            if not lock.acquire():
                raise UserError(busy, hint=f"wait for it, or {seconds} s after it died")
            fence = int(self._client.eval(_HIGHER, 1, f"{name}:fence"))
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

    @contextlib.contextmanager
    def wait_for_lease(self, name: str, seconds: int, wait_s: float, busy: str) -> Iterator[int]:
        """Hold a lease, as `lease` does, once its holder has released it. Raises Unavailable(`busy`) after `wait_s`."""
        deadline = time.monotonic() + wait_s
        with contextlib.ExitStack() as lock:
            while True:
                try:
                    fence = lock.enter_context(self.lease(name, seconds, busy))
                    break
                except UserError as error:
                    if time.monotonic() > deadline:
                        raise Unavailable(f"{busy} by another process", hint="retry") from error
                    time.sleep(_LEASE_POLL_S)
            yield fence

    def close(self) -> None:
        """Close the pool."""
        self._client.close()


def _raise_first_error(replies: Sequence[Any]) -> None:
    """redis-py raises an error that is a reply, and returns one that is an element of a reply."""
    for reply in replies:
        if isinstance(reply, redis.RedisError):
            raise reply


def _send(connection: Any, commands: Sequence[bytes]) -> None:
    """In one piece: redis-py sends each command by itself, and Redis would wake up for each."""
    connection.send_packed_command([b"".join(commands)], check_health=False)


def decision_on(error: redis.RedisError) -> AdclickError:
    """What to do about one of redis-py's errors. A reply that is not known to be wrong in itself is waited out."""
    if isinstance(error, redis.TimeoutError):
        return TimedOut(f"Redis: {error}", backend="redis")
    return errors.decide(*_code_of(error))


def _code_of(error: redis.RedisError) -> tuple[str, str]:
    """A reply's code, and its text as Redis sent it; no code where a connection failed."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    for sentence, code in _SENTENCES.items():
        if sentence in text:
            return code, f"{code} {text}"
    if (inner := _IN_SCRIPT.search(text)) is not None:
        return inner[2], inner[1]
    # redis-py takes the code off where it has a class for it, and keeps it beside.
    taken_off = str(getattr(error, "status_code", None) or "")
    if isinstance(error, redis.AuthenticationError):
        denied = taken_off if taken_off in errors.DENIED else "WRONGPASS"
        return denied, f"{denied} {text}"
    if not taken_off and isinstance(error, redis.ResponseError):
        named = _CODE.match(text)
        return (named[1] if named else "ERR"), text
    return taken_off, text if taken_off in ("", "ERR") else f"{taken_off} {text}"


@dataclass(frozen=True)
class Memory:
    """What Redis reports of its memory. `limit_bytes` 0: no limit; `policy` is empty where it is not reported."""

    run_id: str
    used_bytes: int
    limit_bytes: int
    policy: str
    evicted_keys: int


class Script:
    """A Lua script, called by EVALSHA and loaded where Redis does not know it."""

    def __init__(self, client: Redis, source: str) -> None:
        self._client, self._source, self._sha = client, source, ""

    def __call__(self, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """The result of one call."""
        return self.each([(keys, Arguments.of(args))])[0]

    def each(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        """Run it with each of several (keys, arguments), in one round trip."""
        if not self._sha:
            self._load()
        try:
            return self._run(calls)
        except Refused as error:
            if error.code != "NOSCRIPT":
                raise
            self._load()
            return self._run(calls)

    def _load(self) -> None:
        self._sha = self._client.call("SCRIPT", "LOAD", self._source).decode()

    def _run(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        return self._client.pipeline(
            [pack_with_arguments(("EVALSHA", self._sha, len(keys), *keys), args) for keys, args in calls]
        )
