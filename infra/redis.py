"""Redis, through redis-py: the only module that imports it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import AdclickError, BadStatement, Denied, Refused, TimedOut, Unavailable, UserError

# Redis' error codes, and what ends each refusal. Any other code is waited out as well, without a hint.
_REFUSED = {
    "OOM": "raise maxmemory or free memory, and keep maxmemory-policy noeviction",
    "MISCONF": "its disk is full or cannot be written: free space there",
    "READONLY": "it is a replica: ADCLICK_REDIS must name the primary",
    "NOREPLICAS": "fewer replicas are connected than min-replicas-to-write",
    "LOADING": "it reads its file, and answers when that is done",
    "BUSY": "a script runs for too long: SCRIPT KILL ends it",
    "UNKILLABLE": "a script has written and runs for too long: it must end, or Redis be restarted",
    "MASTERDOWN": "it is a replica that lost its primary: ADCLICK_REDIS must name the primary",
    "CLUSTERDOWN": "slots of the cluster are not served: bring back its nodes",
    "MOVED": "ADCLICK_REDIS names a node of a cluster, which holds other keys",
    "ASK": "ADCLICK_REDIS names a node of a cluster, which moves its keys",
    "MAXCLIENTS": "raise maxclients, or close connections",
}
_DENIED = {
    "NOAUTH": "put user and password into ADCLICK_REDIS",
    "WRONGPASS": "correct user and password in ADCLICK_REDIS",
    "NOPERM": "allow this user all commands on keys that begin with adclick",
    "DENIED": "Redis is in protected mode: set a password, or bind it to an address",
}
NEVER_EVICT = "CONFIG SET maxmemory-policy noeviction, and in its configuration file"
"""What to do about `Redis.eviction`."""
# Wrong in themselves, whatever state Redis is in. Redis has no codes for most: they begin with ERR.
_BAD_CODES = {"WRONGTYPE", "CROSSSLOT", "NOPROTO"}
_BAD_ERR = re.compile(
    r"unknown (command|subcommand)|wrong number of arguments|syntax error|is not an integer|is not a valid float|out of range"
    r"|compiling script|Error running script|user_script|Protocol error|no such key",
    re.IGNORECASE,
)
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


class Redis:
    """A connection pool with bytes in and out. Every call raises Unavailable when Redis is away, Refused when it answers and
    declines, BadStatement when a command is wrong.

    redis-py's own retries are off: a command that is not idempotent must not be sent twice behind our back.
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
        """One command."""
        with self._translated():
            return self._client.execute_command(*command)

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
            replies = connection.read_response()
            if replies is None:
                raise Unavailable(f"Redis: {key} was changed by another writer", backend="redis")
            # redis-py raises an error that is a reply, and returns one that is an element of a reply.
            for reply in replies:
                if isinstance(reply, redis.RedisError):
                    raise reply
            return True

    def script(self, source: str) -> Script:
        """A Lua script that is loaded where it is not known yet."""
        return Script(self, source)

    def scan_keys(self, pattern: str) -> list[bytes]:
        """Keys that match, by SCAN."""
        with self._translated():
            return list(self._client.scan_iter(match=pattern, count=1000))

    def eviction(self) -> str:
        """A sentence when Redis may evict keys, with which dedup ids and minutes would be lost; empty when it keeps all, or does
        not say."""
        policy = self._policy()
        if policy in ("", "noeviction"):
            return ""
        return f"Redis may evict keys (maxmemory-policy {policy}), and ids and minutes would be lost with them"

    def _policy(self) -> str:
        # Managed services forbid CONFIG, hardened ones INFO.
        with contextlib.suppress(BadStatement, Denied):
            if policy := self.memory().policy:
                return policy
        with contextlib.suppress(BadStatement, Denied):
            reply = self.pipeline([("CONFIG", "GET", "maxmemory-policy")])[0]
            return bytes(reply[1]).decode() if reply else ""
        return ""

    def memory(self) -> Memory:
        """How much memory Redis may use, and what it does when that is full."""
        lines = b"\r\n".join(self.pipeline([("INFO", section) for section in ("server", "memory", "stats")])).decode()
        fields = dict(line.split(":", 1) for line in lines.split("\r\n") if ":" in line)
        return Memory(
            fields.get("run_id", ""), int(fields.get("used_memory", 0)), int(fields.get("maxmemory", 0)),
            fields.get("maxmemory_policy", ""), int(fields.get("evicted_keys", 0)),
        )  # fmt: skip

    @contextlib.contextmanager
    def lease(self, name: str, seconds: int, busy: str) -> Iterator[int]:
        """Hold a lock that expires by itself, and renew it meanwhile; yields a number that is higher for each later holder.

        Raises UserError(`busy`) when it is taken. Who loses it is not told: what must not happen then has to compare numbers.
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

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def _send(connection: Any, commands: Sequence[bytes]) -> None:
    """In one piece: redis-py sends each command by itself, and Redis would wake up for each."""
    connection.send_packed_command([b"".join(commands)], check_health=False)


def decision_on(error: redis.RedisError) -> AdclickError:
    """What to do about one of redis-py's errors. A reply that is not known to be wrong in itself is waited out."""
    if isinstance(error, redis.TimeoutError):
        return TimedOut(f"Redis: {error}", backend="redis")
    code, text = _code_of(error)
    if code in _DENIED:
        return Denied(f"Redis: {text}", hint=_DENIED[code], backend="redis", code=code)
    if code in _BAD_CODES or (code == "ERR" and _BAD_ERR.search(text)):
        return BadStatement(f"Redis: {text}")
    if code:
        return Refused(f"Redis: {text}", hint=_REFUSED.get(code, ""), backend="redis", code=code)
    return Unavailable(f"Redis: {text}", backend="redis")


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
        denied = taken_off if taken_off in _DENIED else "WRONGPASS"
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
        except Refused as error:
            if error.code != "NOSCRIPT":
                raise
            self._load()
            return self._run(calls)

    def _load(self) -> None:
        self._sha = self._client.call("SCRIPT", "LOAD", self._source).decode()

    def _run(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        return self._client.pipeline([pack("EVALSHA", self._sha, len(keys), *keys, more=args) for keys, args in calls])
