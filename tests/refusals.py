"""Ways in which a Redis answers and refuses, as reported by users of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis as Client

Command = tuple[Any, ...]


@dataclass(frozen=True)
class Refusal:
    """Commands that make a Redis refuse and stop refusing; `code`: its own for that; `reads`: whether it still answers reads."""

    code: str
    begin: list[Command]
    end: list[Command]
    reads: bool = True


_NO_FILE = "a-folder"
_KICK_ALL: Command = ("CLIENT", "KILL", "TYPE", "normal")
REFUSALS = [
    Refusal("OOM", [("CONFIG", "SET", "maxmemory", "1mb")], [("CONFIG", "SET", "maxmemory", "0")]),
    # As after a failover, for a client that is still connected to the former primary.
    Refusal("READONLY", [("REPLICAOF", "127.0.0.1", "1")], [("REPLICAOF", "NO", "ONE")]),
    Refusal(
        "NOREPLICAS",
        [("CONFIG", "SET", "min-replicas-to-write", "1")],
        [("CONFIG", "SET", "min-replicas-to-write", "0")],
    ),
    # The folder makes each snapshot fail, as a full disk does.
    Refusal(
        "MISCONF",
        [("CONFIG", "SET", "dbfilename", _NO_FILE), ("CONFIG", "SET", "save", "3600 1"), ("BGSAVE",)],
        [("CONFIG", "SET", "save", ""), ("CONFIG", "SET", "dbfilename", "dump.rdb")],
    ),
    Refusal("NOPERM", [("ACL", "SETUSER", "default", "-@write")], [("ACL", "SETUSER", "default", "+@all")]),
    Refusal(
        "NOAUTH", [("CONFIG", "SET", "requirepass", "new"), _KICK_ALL], [("CONFIG", "SET", "requirepass", "")], reads=False
    ),
    Refusal(
        "max number of clients", [("CONFIG", "SET", "maxclients", "1"), _KICK_ALL],
        [("CONFIG", "SET", "maxclients", "1000")], reads=False,
    ),
]  # fmt: skip


@contextmanager
def refusing(url: str, refusal: Refusal) -> Iterator[None]:
    """A Redis that refuses, for as long as the block lasts."""
    client: Any = Client.from_url(url, single_connection_client=True)
    Path(client.config_get("dir")["dir"], _NO_FILE).mkdir(exist_ok=True)
    try:
        for command in refusal.begin:
            client.execute_command(*command)
        yield
    finally:
        for command in refusal.end:
            client.execute_command(*command)
        client.close()
