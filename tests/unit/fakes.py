"""Fakes of what unit tests may not reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class MemoryStore:
    """As much of Redis as the registry needs, in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}
        self.ranges_read = 0

    def call(self, *command: Any) -> Any:
        name, key, *rest = command
        match name:
            case "GET":
                return self.held.get(key)
            case "SET":
                self.held[key] = rest[0]
            case "STRLEN":
                return len(self.held.get(key, b""))
            case "RPUSH":
                self.held.setdefault(key, []).append(rest[0])
            case "LRANGE":
                return self.held.get(key, [])[rest[0] : rest[1] + 1]
            case "UNLINK":
                for gone in (key, *rest):
                    self.held.pop(gone.decode() if isinstance(gone, bytes) else gone, None)
            case "EXPIRE":
                pass
            case _:
                raise AssertionError(f"no {name} here")
        return None

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        self.ranges_read += len(wanted)
        return [self.held.get(key, b"")[first : last + 1] for key, first, last in wanted]

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[tuple[Any, ...]] | None]) -> bool:
        commands = accept(self.held.get(key))
        for command in commands or ():
            self.call(*command)
        return commands is not None

    def scan_keys(self, pattern: str) -> list[bytes]:
        return [key.encode() for key in self.held if key.startswith(pattern.removesuffix("*"))]
