"""Redis: one server, a cluster, or what Sentinels name as the primary."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from infra.errors import Refused, Unavailable
from infra.redis import leases
from infra.redis.access import Address, RedisAccess
from infra.redis.cluster import Cluster
from infra.redis.commands import Arguments, pack_command, pack_with_arguments
from infra.redis.connections import Server, open_sentinels, open_server, parsed, raise_first_error
from infra.redis.single import Servers, SingleServer, Watched
from infra.redis.slots import pattern_slot

_SCAN_COUNT = 1000
# For how long a write waits for its replicas; below every timeout of a connection that makes such writes.
_WAIT_MS = 1000


class Redis:
    """Connection pools with bytes in and out. Every call raises Unavailable when Redis is away, Refused when it answers and
    declines, BadStatement when a command is wrong.

    No command is sent again but where a node of a cluster has said that it did not execute it: one that is not idempotent must not be
    sent twice without the caller's knowledge. In a cluster all keys of a command, a script or a transaction are in one slot.
    """

    def __init__(self, access: RedisAccess | str, *, timeout_s: float = 10.0) -> None:
        """`access`: from settings, or a URL alone. Connects with the first command. Raises UserError for an address that is none, or
        a file that cannot be read."""
        self._access = access if isinstance(access, RedisAccess) else RedisAccess(access)
        self._servers: Servers = _open(self._access, timeout_s)
        self._unconfirmed = set[str]()
        """Keys whose last conditional write too few replicas have confirmed."""

    def call(self, *command: Any) -> Any:
        """The reply to one command, as redis-py gives it."""
        replies = self._servers.pipeline([pack_command(*command)])
        raise_first_error(replies)
        return parsed(str(command[0]), replies[0])

    def pipeline(self, commands: Iterable[Sequence[Any] | bytes]) -> list[Any]:
        """Many commands, packed or not, in one round trip, with their answers as Redis gives them. In a cluster those of one slot happen
        in their order; a command without a key goes where the first one with a key goes."""
        replies = self.replies(
            command if isinstance(command, bytes) else pack_command(*command) for command in commands
        )
        raise_first_error(replies)
        return replies

    def replies(self, commands: Iterable[bytes]) -> list[Any]:
        """As `pipeline`, with errors among the replies in place of the first one raised; still raises Unavailable where a connection
        fails."""
        packed = list(commands)
        return self._servers.pipeline(packed) if packed else []

    def transactions(self, calls: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """The replies to the packed commands of each call, with one round trip for all. Those of a call happen at one moment."""
        return self._servers.transactions(calls)

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of strings, from first to last, in one round trip."""
        return self.pipeline(("GETRANGE", *bounds) for bounds in wanted)

    def write_if(self, key: str, accept: Callable[[bytes | None], Sequence[Sequence[Any]] | None]) -> bool:
        """MULTI/EXEC, but only while `key` keeps the value for which `accept` gave commands.

        `accept` gets the value and returns None to write nothing. Check and write share one connection and a WATCH, so that a server
        that restarted or was followed by another in between fails the write. With `wait_replicas` it raises Unavailable where too few
        of them confirm what was written: the write has then happened, and may yet be lost.
        """
        with self._servers.watched(key.encode()) as watched:
            if key in self._unconfirmed:
                # While replicas are away the caller tries again and again, and may add the same rows each time.
                self._confirm(key, watched)
            commands = accept(watched.value)
            if commands is None:
                watched.unwatch()
                return False
            replies = watched.execute([pack_command(*command) for command in commands])
            if replies is None:
                raise Unavailable(f"Redis: {key} was changed by another writer", backend="redis")
            raise_first_error(replies)
            self._confirm(key, watched)
            return True

    def _confirm(self, key: str, watched: Watched) -> None:
        """Raise Refused unless as many replicas as wanted have all that was written so far."""
        if wanted := self._access.wait_replicas:
            self._unconfirmed.add(key)
            confirmed = watched.wait_for_replicas(wanted, _WAIT_MS)
            if confirmed < wanted:
                text = f"Redis: {confirmed} of {wanted} replicas confirm what was written"
                hint = "bring back its replicas, or lower redis_wait_replicas"
                raise Refused(text, hint=hint, backend="redis", code="WAIT")
            self._unconfirmed.discard(key)

    def script(self, source: str) -> Script:
        """A Lua script that is loaded where it is not known yet."""
        return Script(self, source)

    def scan_keys(self, pattern: str) -> list[bytes]:
        """The keys that match a pattern, by SCAN. In a cluster: of all nodes, also while a slot moves from one to another if the pattern
        begins with what all its keys have in braces."""
        slot = pattern_slot(pattern.encode())
        keys = dict[bytes, None]()
        # The owner of the slot first: a key that leaves it meanwhile is then seen where it went.
        for server in self._servers.primaries(slot):
            keys |= dict.fromkeys(_scan(server, pattern))
        return list(keys)

    def on_each_primary(self, *command: Any) -> dict[str, Any]:
        """The reply of each primary to a command without a key, by the server's address."""
        packed = pack_command(*command)
        replies = {server.name: server.exchange([packed])[0] for server in self._servers.primaries()}
        raise_first_error(list(replies.values()))
        return replies

    def memories(self) -> list[Memory]:
        """How much memory each primary may use, and what it does when that is full. Raises BadStatement or Denied where it may not be
        asked."""
        # All sections that it gives by default: before Redis 7 INFO takes one name at most.
        replies = self.on_each_primary("INFO")
        return [Memory.of_info(server, bytes(reply).decode()) for server, reply in replies.items()]

    def lease(self, name: str, seconds: int, busy: str) -> contextlib.AbstractContextManager[int]:
        """Hold a lock that expires by itself, and renew it meanwhile: see `hold_lease`."""
        return leases.hold_lease(self, name, seconds, busy)

    def wait_for_lease(
        self, name: str, seconds: int, wait_s: float, busy: str
    ) -> contextlib.AbstractContextManager[int]:
        """Hold a lease once its holder has released it: see `leases.wait_for_lease`."""
        return leases.wait_for_lease(self, name, seconds, wait_s, busy)

    def close(self) -> None:
        """Close the pools."""
        self._servers.close()


def _open(access: RedisAccess, timeout_s: float) -> Servers:
    if access.mode == "cluster":

        def open_node(address: Address) -> Server:
            return open_server(access, access.url_of(address), timeout_s)

        seeds = access.addresses
        open_node(seeds[0])  # which raises what is wrong with the settings
        return Cluster(seeds, open_node)
    if access.mode == "sentinel":
        return SingleServer(open_sentinels(access, timeout_s))
    return SingleServer(open_server(access, access.url, timeout_s))


def _scan(server: Server, pattern: str) -> Iterator[bytes]:
    cursor = b"0"
    while True:
        replies = server.exchange([pack_command("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)])
        raise_first_error(replies)
        cursor, keys = replies[0]
        yield from keys
        if cursor == b"0":
            return


@dataclass(frozen=True)
class Memory:
    """What a server, by its address, reports of its memory. `limit_bytes` 0: no limit; `policy` is empty where it is not reported."""

    server: str
    run_id: str
    used_bytes: int
    limit_bytes: int
    policy: str
    evicted_keys: int

    @classmethod
    def of_info(cls, server: str, text: str) -> Memory:
        """From the reply to INFO."""
        fields = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        return cls(
            server, fields.get("run_id", ""), int(fields.get("used_memory", 0)), int(fields.get("maxmemory", 0)),
            fields.get("maxmemory_policy", ""), int(fields.get("evicted_keys", 0)),
        )  # fmt: skip


class Script:
    """A Lua script, called by EVALSHA; by EVAL where Redis does not know it."""

    def __init__(self, client: Redis, source: str) -> None:
        self._client, self._source = client, source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """The result of one call. `keys`: all that it touches."""
        return self.each([(keys, Arguments.of(args))])[0]

    def each(self, calls: Sequence[tuple[Sequence[str | bytes], Arguments]]) -> list[Any]:
        """Run it with each of several (keys, arguments), in one round trip."""
        packed = partial(self._pack, "EVALSHA", self._sha)
        replies = self._client.replies(packed(*call) for call in calls)
        unknown = [number for number, reply in enumerate(replies) if _is_unknown(reply)]
        if unknown:
            packed = partial(self._pack, "EVAL", self._source)
            answers = self._client.replies(packed(*calls[number]) for number in unknown)
            for number, reply in zip(unknown, answers, strict=True):
                replies[number] = reply
        raise_first_error(replies)
        return replies

    @staticmethod
    def _pack(name: str, script: str, keys: Sequence[str | bytes], args: Arguments) -> bytes:
        return pack_with_arguments((name, script, len(keys), *keys), args)


def _is_unknown(reply: Any) -> bool:
    """Whether a server has not seen the script yet, and so has not run it."""
    return isinstance(reply, Refused) and reply.code == "NOSCRIPT"
