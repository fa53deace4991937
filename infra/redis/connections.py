"""Connections to Redis servers, through redis-py: the only module that imports it.

redis-py's own retries are off: a command that is not idempotent must not be sent twice without the caller's knowledge.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import AdclickError, Refused, TimedOut, UserError
from infra.redis import errors
from infra.redis.access import RedisAccess
from infra.redis.errors import Redirected
from infra.tls import CORRECT_PORT, handshake_failure, is_handshake_timeout

_CONNECT_TIMEOUT_S = 2.0
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
# Options of a URL with Sentinels that are for these.
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

# Where redis-py has no types.
_sentinel: Any = redis.sentinel
_connection: Any = redis.connection
_callbacks: dict[str, Callable[[Any], Any]] = redis.Redis(protocol=2).response_callbacks


class RedisConnection:
    """A connection of a pool, for one caller at a time."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.is_stale = False
        """Whether the server said that it is no primary any more."""

    def send(self, commands: Sequence[bytes]) -> None:
        """Send packed commands in one piece: redis-py sends each command by itself, and Redis would wake up for each."""
        self._raw.send_packed_command([b"".join(commands)], check_health=False)

    def read(self, count: int) -> list[Any]:
        """The next replies, in order. One that is an error is in the list as what to do about it."""
        return [self._read_one() for _ in range(count)]

    def _read_one(self) -> Any:
        try:
            reply = self._raw.read_response()
        except redis.ResponseError as error:
            reply = error
        if isinstance(reply, redis.RedisError):
            decision = decision_on(reply)
            self.is_stale |= isinstance(decision, Refused) and decision.code in _STALE
            return decision
        return reply


class Server:
    """One server, or the primary that Sentinels name, by a pool of connections. Connects with the first command."""

    def __init__(self, name: str, pool: Any) -> None:
        """`name`: its address, or what Sentinels call it."""
        self.name, self._pool = name, pool

    @contextlib.contextmanager
    def connection(self) -> Iterator[RedisConnection]:
        """One of the pool. Raises Unavailable where it fails; replies may then still be on their way, and it is not used again."""
        try:
            raw = self._pool.get_connection()
        except redis.RedisError as error:
            self.close_idle()
            raise decision_on(error) from error
        connection = RedisConnection(raw)
        try:
            yield connection
        except redis.RedisError as error:
            raw.disconnect()
            self.close_idle()
            raise decision_on(error) from error
        except BaseException:
            raw.disconnect()
            raise
        finally:
            if connection.is_stale:
                raw.disconnect()
                self.close_idle()
            self._pool.release(raw)

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed commands, in one round trip; errors as in `RedisConnection.read`. Raises Unavailable."""
        if not commands:
            return []
        with self.connection() as connection:
            connection.send(commands)
            return connection.read(len(commands))

    def close_idle(self) -> None:
        """Close the connections that no caller has: what one has met, they would, of a server that is gone or no primary any more."""
        self._pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close the pool."""
        self._pool.disconnect()


def open_server(access: RedisAccess, url: str, timeout_s: float) -> Server:
    """The server at a URL with one host. Raises UserError for an address that is none, or for a file that cannot be read."""
    options = _options(access, url, timeout_s)
    name = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return Server(name, redis.ConnectionPool(**options))


def open_sentinels(access: RedisAccess, timeout_s: float) -> Server:
    """The primary that Sentinels name: each new connection asks them. Raises UserError as `open_server` does."""
    url = access.url_of(access.addresses[0])
    asked = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items() if name in _SENTINEL_OPTIONS}
    options = _options(access, _without_options(url, _SENTINEL_OPTIONS), timeout_s)
    is_encrypted = options.pop("connection_class", None) is not None
    for name in ("host", "port"):
        options.pop(name, None)
    encryption = {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinels = _sentinel.Sentinel(
        access.addresses,
        sentinel_kwargs={
            "socket_timeout": _CONNECT_TIMEOUT_S, "socket_connect_timeout": _CONNECT_TIMEOUT_S, "retry": Retry(NoBackoff(), 0),
            "username": asked.get("sentinel_username"), "password": asked.get("sentinel_password"), "protocol": 2,
            "ssl": is_encrypted, **encryption,
        },
    )  # fmt: skip
    return Server(
        access.service, _sentinel.SentinelConnectionPool(access.service, sentinels, ssl=is_encrypted, **options)
    )


def _options(access: RedisAccess, url: str, timeout_s: float) -> dict[str, Any]:
    """Options of redis-py's connections."""
    try:
        options = dict[str, Any](_connection.parse_url(url))
    except ValueError as error:
        hint = "like redis://HOST:6379/0"
        raise UserError(f"ADCLICK_REDIS is no address of a Redis: {error}", hint=hint) from error
    options = {
        "socket_timeout": timeout_s, "socket_connect_timeout": _CONNECT_TIMEOUT_S, "retry": Retry(NoBackoff(), 0), "protocol": 2,
    } | options  # fmt: skip
    if options.get("connection_class") is redis.SSLConnection:
        access.tls.check()
        files = {"ssl_ca_certs": access.tls.ca, "ssl_certfile": access.tls.certificate, "ssl_keyfile": access.tls.key}
        options |= {name: file for name, file in files.items() if file}
    return options


def _without_options(url: str, names: Sequence[str]) -> str:
    parts = urlsplit(url)
    query = "&".join(part for part in parts.query.split("&") if part.partition("=")[0] not in names)
    return urlunsplit(parts._replace(query=query))


def parsed(name: str, reply: Any) -> Any:
    """The reply to a command as redis-py gives it: `SET` is True, `HGETALL` a dict."""
    callback = _callbacks.get(name.upper())
    return reply if callback is None else callback(reply)


def raise_first_error(replies: Sequence[Any]) -> None:
    """Raise the first of the replies that is an error."""
    for reply in replies:
        if isinstance(reply, AdclickError):
            raise reply


def replies_of(executed: Sequence[Any]) -> list[Any]:
    """The replies in that to EXEC, errors as in `RedisConnection.read`: redis-py returns one that is an element of a reply."""
    return [decision_on(part) if isinstance(part, redis.RedisError) else part for part in executed]


def decision_on(error: redis.RedisError) -> AdclickError:
    """What to do about one of redis-py's errors. A reply that is not known to be wrong in itself is waited out."""
    if (failure := handshake_failure("redis", "Redis", error)) is not None:
        return failure
    if is_handshake_timeout(error):
        hint = CORRECT_PORT.format(setting="REDIS")
        return TimedOut("Redis: it does not answer in TLS on this port", hint=hint, backend="redis")
    if isinstance(error, redis.TimeoutError):
        return TimedOut(f"Redis: {error}", backend="redis")
    code, text = _code_of(error)
    if isinstance(error, redis.exceptions.AskError):  # of which MovedError is one
        return Redirected(text, code=code, host=error.host, port=error.port)
    return errors.decide(code, text)


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
