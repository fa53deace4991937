"""The rights that each process' user of Redis needs, and which of them a user lacks.

The table is that of docs/operating.md. Each command is tried in a form that changes nothing: ACLs are checked before its arguments. Those
that would make a list or a set are tried once SET is allowed, on a string that expires.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import Denied
from infra.redis.access import RedisAccess
from infra.redis.client import Redis
from infra.redis.commands import pack_command


@dataclass(frozen=True)
class Rights:
    """`keys`: patterns, behind the prefix of the installation. `commands`: in small letters."""

    keys: tuple[str, ...]
    commands: tuple[str, ...]


def _rights(keys: str, commands: str) -> Rights:
    return Rights(tuple(keys.split()), tuple(commands.split()))


RIGHTS = {
    "ingest": _rights(
        "dedup:* ingest:* kafka waits",
        "get set strlen getrange lrange rpush expire unlink multi exec watch unwatch scan wait eval evalsha time hset hdel hgetall",
    ),
    "archive": _rights("kafka waits", "get set eval evalsha time hset hdel hgetall expire"),
    "stream": _rights(
        "hot:* reach:* detector kafka waits",
        "get set del unlink exists expire sadd smembers hset hdel hget hmget hgetall hvals hkeys hexists hincrby scan eval evalsha time",
    ),
    "others": _rights(
        "*",
        "get set strlen getrange lrange del unlink exists expire pexpire pttl smembers hset hdel hget hmget hgetall hvals zadd zrevrange "
        "multi exec scan eval evalsha time",
    ),
}
"""Process → what its user needs; `others` are all that are not named."""
_ALL = _rights("*", " ".join(dict.fromkeys(command for rights in RIGHTS.values() for command in rights.commands)))
# Tried in this order on a key that is a string: commands on lists, sets and hashes end with an error of type and make nothing.
_HARMLESS: dict[str, Sequence[Any]] = {
    "ping": (), "info": ("server",), "time": (), "get": ("KEY",), "strlen": ("KEY",), "getrange": ("KEY", 0, 0),
    "lrange": ("KEY", 0, 0), "exists": ("KEY",), "smembers": ("KEY",), "hget": ("KEY", "f"), "hmget": ("KEY", "f"), "hgetall": ("KEY",),
    "hvals": ("KEY",), "hkeys": ("KEY",), "hexists": ("KEY", "f"), "zrevrange": ("KEY", 0, 0), "pttl": ("KEY",),
    "scan": (0, "COUNT", 1), "wait": (0, 1), "eval": ("return 1", 0), "evalsha": ("0" * 40, 0),
    "sadd": ("KEY", "m"), "rpush": ("KEY", "m"), "hdel": ("KEY", "f"),
    # These end with an error of syntax, also where there is no such key.
    "set": ("KEY", 1, "NX", "XX"), "expire": ("KEY", "x"), "pexpire": ("KEY", "x"), "hset": ("KEY", "f", 1, "g"),
    "hincrby": ("KEY", "f", "x"), "zadd": ("KEY", "x", "m"),
    "del": ("KEY",), "unlink": ("KEY",), "watch": ("KEY",), "unwatch": (), "multi": (), "exec": (),
}  # fmt: skip
_MAKES_A_KEY = {"sadd", "rpush"}
"""What these do where the key is no string."""
_PROBE_MS = 10_000
_RUN = re.compile(r"run the '([^']+)'")


def lacking_rights(access: RedisAccess, prefix: str, process: str, timeout_s: float) -> list[str]:
    """What the user of a process may not do, as rules of ACLs that would allow it; `process`: one of RIGHTS, or empty for all of them.
    Raises Unavailable."""
    rights, probe = RIGHTS[process] if process else _ALL, f"doctor-{uuid.uuid4().hex[:8]}"
    keys = {pattern: f"{prefix}{pattern.replace('*', probe)}" for pattern in rights.keys}
    # A key that has a name of its own may be there: it is only read.
    key = next(
        (key for pattern, key in keys.items() if "*" in pattern), keys["waits" if "waits" in keys else rights.keys[0]]
    )
    wanted = [name for name in _HARMLESS if name in {*rights.commands, "ping", "info"}]
    # A connection of its own: where EXEC is denied, a transaction stays open on it.
    with contextlib.closing(Redis(access, timeout_s=timeout_s)) as redis:
        has_string = bool(_MAKES_A_KEY.intersection(wanted)) and _make_string(redis, key)
        tried = [name for name in wanted if has_string or name not in _MAKES_A_KEY]
        replies = redis.replies([_filled(name, key) for name in tried])
        # A GET and a SET that ends with an error of syntax: rules may allow either alone.
        key_replies = [redis.replies([_filled("get", name), _filled("set", name)]) for name in keys.values()]
    lacking = [f"+{match[1]}" for reply in replies if isinstance(reply, Denied) and (match := _RUN.search(str(reply)))]
    for pattern, replies_of_key in zip(keys, key_replies, strict=True):
        if any(isinstance(reply, Denied) and not _RUN.search(str(reply)) for reply in replies_of_key):
            lacking.append(f"~{prefix}{pattern}")
    return list(dict.fromkeys(lacking))


def _make_string(redis: Redis, key: str) -> bool:
    """Make a key that expires by itself, as its user may not be allowed to remove it. False where it may not be made either."""
    (reply,) = redis.replies([pack_command("SET", key, 1, "PX", _PROBE_MS)])
    return not isinstance(reply, Exception)


def _filled(name: str, key: str) -> bytes:
    return pack_command(name.upper(), *(key if word == "KEY" else word for word in _HARMLESS[name]))
