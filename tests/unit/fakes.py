"""Fakes of backends, which unit tests may not reach. Each passes the suite in `tests/contracts.py` that the real one passes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infra.errors import BadStatement, Denied, Unavailable
from infra.redis.client import Redis
from query.tier_cache import UNLOCK

_OF_KIND = {"GET": bytes, "STRLEN": bytes, "GETRANGE": bytes, "RPUSH": list, "LRANGE": list}
"""Commands on one kind of value alone."""


class Clock:
    """A clock that a test sets, in seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeRedis(Redis):
    """A Redis in this process, with the commands that dedup and the tiers' cache send. Not thread-safe.

    `clock`: seconds by which keys expire. While `away` is set every command raises Unavailable. `info` is what INFO answers;
    commands named in `forbidden` are denied; `commands` counts those that came, by name.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__("redis://fake:1")  # which connects with the first command alone
        self.values: dict[str, bytes | list[bytes]] = {}
        self.commands: Counter[str] = Counter()
        self.info = {"run_id": "fake", "maxmemory_policy": "noeviction", "evicted_keys": "0"}
        self.forbidden: set[str] = set()
        self.away = False
        self._clock = clock
        self._expires: dict[str, float] = {}
        self._writes: Counter[str] = Counter()

    def call(self, *command: Any) -> Any:
        name, *arguments = command
        self.commands[name] += 1
        if self.away:
            raise Unavailable("Redis: it is away", backend="redis")
        if name in self.forbidden:
            raise Denied(f"Redis: NOPERM {name}", hint="", backend="redis", code="NOPERM")
        match name:
            case "INFO":
                return "".join(f"{field}:{value}\r\n" for field, value in self.info.items()).encode()
            case "CONFIG":
                return [b"maxmemory-policy", self.info["maxmemory_policy"].encode()]
            case "EVAL":
                script, _, key, token = arguments
                assert script == UNLOCK, "no other script is known"
                return self._remove(_text(key)) if self._value(_text(key)) == _raw(token) else None
            case "UNLINK":
                return sum(self._remove(_text(key)) for key in arguments)
        return self._keyed(name, _text(arguments[0]), *arguments[1:])

    def _keyed(self, name: str, key: str, *arguments: Any) -> Any:
        """A command on one key."""
        value = self._value(key)
        if name in _OF_KIND and value is not None and not isinstance(value, _OF_KIND[name]):
            raise BadStatement("Redis: WRONGTYPE Operation against a key holding the wrong kind of value")
        match name:
            case "GET":
                return value
            case "SET":
                return self._set(key, *arguments)
            case "STRLEN":
                return len(value or b"")
            case "GETRANGE":
                first, last = arguments
                return (value or b"")[first : last + 1]
            case "RPUSH":
                rows = [*(value or []), *map(_raw, arguments)]
                self._write(key, rows, self._expires.get(key))
                return len(rows)
            case "LRANGE":
                first, last = arguments
                return list((value or [])[first : last + 1])
            case "EXPIRE":
                if value is not None:
                    self._write(key, value, self._clock() + arguments[0])
                return int(value is not None)
            case "PTTL":
                if value is None:
                    return -2
                return round((self._expires[key] - self._clock()) * 1000) if key in self._expires else -1
            case _:
                raise AssertionError(f"this fake has no {name}")

    def _set(self, key: str, content: Any, *options: Any) -> bool | None:
        expires, rest = None, list(options)
        while rest:
            match rest.pop(0):
                case "NX":
                    if self._value(key) is not None:
                        return None
                case "EX":
                    expires = self._clock() + rest.pop(0)
                case "PX":
                    expires = self._clock() + rest.pop(0) / 1000
                case option:
                    raise AssertionError(f"this fake has no SET … {option}")
        self._write(key, _raw(content), expires)
        return True

    def _value(self, key: str) -> Any:
        if key in self._expires and self._clock() >= self._expires[key]:
            self._remove(key)
        return self.values.get(key)

    def _write(self, key: str, value: bytes | list[bytes], expires: float | None) -> None:
        self._remove(key)
        self.values[key] = value
        if expires is not None:
            self._expires[key] = expires

    def _remove(self, key: str) -> int:
        self._writes[key] += 1
        self._expires.pop(key, None)
        return int(self.values.pop(key, None) is not None)

    def on_each_primary(self, *command: Any) -> dict[str, Any]:
        return {"fake:1": self.call(*command)}

    def pipeline(self, commands: Iterable[Sequence[Any] | bytes]) -> list[Any]:
        return [self.call(*command) for command in commands]

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Sequence[Any]] | None]) -> bool:
        value, writes = self.call("GET", key), self._writes[key]
        commands = accept(value)
        if commands is None:
            return False
        if self._writes[key] != writes:
            raise Unavailable(f"Redis: {key} was changed by another writer", backend="redis")
        errors = list[BadStatement]()
        # As in Redis, a command that fails keeps none of the others from being executed.
        for command in commands:
            try:
                self.call(*command)
            except BadStatement as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return True

    def scan_keys(self, pattern: str) -> list[bytes]:
        if self.away:
            raise Unavailable("Redis: it is away", backend="redis")
        prefix = pattern.removesuffix("*")
        return [key.encode() for key in list(self.values) if key.startswith(prefix) and self._value(key) is not None]


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
