"""Redis' commands in its own protocol (RESP), packed by hiredis: the only module that imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis


@dataclass(frozen=True)
class Arguments:
    """Several arguments of a command in Redis' own protocol (RESP): packed once, where many commands have the same."""

    count: int
    raw: bytes

    @classmethod
    def of(cls, values: Sequence[Any]) -> Arguments:
        """Of their values: bytes, or what is written as text."""
        command = pack_command(*values) if values else b"*0\r\n"
        return cls(len(values), command[command.index(b"\n") + 1 :])

    @classmethod
    def joined(cls, parts: Sequence[Arguments]) -> Arguments:
        """The arguments of several parts, one after the other."""
        return cls(sum(p.count for p in parts), b"".join([p.raw for p in parts]))


def pack_command(*command: Any) -> bytes:
    """A command in RESP, by hiredis; what is neither bytes, text nor a number is written as text."""
    packer: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
    try:
        return packer(command)
    except TypeError:
        return packer(tuple(v if isinstance(v, bytes) else str(v) for v in command))


def pack_with_arguments(command: Sequence[Any], more: Arguments) -> bytes:
    """A command that goes on with packed arguments: with sixty of them a third of what packing them each time takes."""
    own = Arguments.of(command)
    return b"*%d\r\n%b%b" % (own.count + more.count, own.raw, more.raw)
