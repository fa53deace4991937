"""What `Redis` asks of its servers, and how one server does it; `cluster.py` does it with many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.redis.commands import pack_command
from infra.redis.connections import RedisConnection, Server, raise_first_error, replies_of

MULTI, EXEC = pack_command("MULTI"), pack_command("EXEC")


@dataclass(frozen=True)
class Watched:
    """A connection that watches a key, and the key's value when that began. `asking`: what stands before each command on it."""

    connection: RedisConnection
    value: bytes | None
    asking: Sequence[bytes] = ()

    def execute(self, commands: Sequence[bytes]) -> list[Any] | None:
        """The replies to a transaction; None where the key was changed. Raises what a reply says when nothing was executed."""
        packed = [*self.asking, MULTI, *commands, EXEC]
        self.connection.send(packed)
        replies = self.connection.read(len(packed))
        raise_first_error(replies)
        return None if replies[-1] is None else replies_of(replies[-1])

    def unwatch(self) -> None:
        """Execute nothing."""
        self.connection.send([pack_command("UNWATCH")])
        raise_first_error(self.connection.read(1))

    def wait_for_replicas(self, count: int, timeout_ms: int) -> int:
        """How many replicas have what this connection wrote; it waits until they are `count`, or for so long."""
        self.connection.send([pack_command("WAIT", count, timeout_ms)])
        replies = self.connection.read(1)
        raise_first_error(replies)
        return int(replies[0])


class Servers(Protocol):
    """Every method raises Unavailable where a server is away. Replies that are errors are returned as what to do about them."""

    def pipeline(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed commands, in one round trip unless servers redirect."""

    def transactions(self, calls: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """The replies to the packed commands of each call, which happen at one moment, in one round trip for all."""

    def watched(self, key: bytes) -> contextlib.AbstractContextManager[Watched]:
        """Begin to watch a key."""

    def primaries(self, key_slot: int | None = None) -> list[Server]:
        """All servers with keys, as they are now; that with the slot comes first."""

    def close(self) -> None:
        """Close all connections."""


class SingleServer:
    """One Redis, or the primary that Sentinels name."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def pipeline(self, commands: Sequence[bytes]) -> list[Any]:
        """As in Servers."""
        return self._server.exchange(commands)

    def transactions(self, calls: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """As in Servers."""
        replies = iter(self._server.exchange([command for commands in calls for command in framed(commands)]))
        return [executed([next(replies) for _ in framed(commands)]) for commands in calls]

    @contextlib.contextmanager
    def watched(self, key: bytes) -> Iterator[Watched]:
        """As in Servers."""
        with self._server.connection() as connection:
            yield Watched(connection, begin_watching(connection, key)[-1])

    def primaries(self, key_slot: int | None = None) -> list[Server]:
        """As in Servers."""
        return [self._server]

    def close(self) -> None:
        """As in Servers."""
        self._server.close()


def framed(commands: Sequence[bytes]) -> list[bytes]:
    """A transaction of packed commands."""
    return [MULTI, *commands, EXEC]


def executed(replies: Sequence[Any]) -> list[Any]:
    """The replies to the commands of a transaction, from those to all of `framed`. Raises what made it fail, and what failed in it."""
    raise_first_error(replies)
    parts = replies_of(replies[-1])
    raise_first_error(parts)
    return parts


def begin_watching(connection: RedisConnection, key: bytes, asking: Sequence[bytes] = ()) -> list[Any]:
    """Watch a key; returns the replies, of which the last is its value. Raises the first that is an error."""
    commands = [*asking, pack_command("WATCH", key), *asking, pack_command("GET", key)]
    connection.send(commands)
    replies = connection.read(len(commands))
    raise_first_error(replies)
    return replies
