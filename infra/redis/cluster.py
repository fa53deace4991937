"""Redis Cluster: sends each command to the node that has its slot, and follows slots that move.

A node that answers MOVED, ASK or CLUSTERDOWN has executed nothing, so a command is sent again after a redirection, and after nothing
else: where a connection fails, the command may have been executed, and the caller decides. The map of slots is read again after each
sign that it is old.

redis-py has a client for clusters as well. It sends commands again after a connection failed, and takes none that are packed.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from infra.errors import AdclickError, Refused, Unavailable
from infra.redis.access import Address
from infra.redis.commands import pack_command
from infra.redis.connections import RedisConnection, Server, raise_first_error
from infra.redis.errors import Redirected, decide
from infra.redis.single import Watched, begin_watching, executed, framed
from infra.redis.slots import SlotMap, first_key, key_slot

_REDIRECTIONS = 5
_ASKING = pack_command("ASKING")
_UNWATCH = pack_command("UNWATCH")
_READ_SLOTS = pack_command("CLUSTER", "SLOTS")
# What a node answers when the map that led to it may be old.
_OLD_MAP = {"MOVED", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"}
_NO_CLUSTER = "cluster support disabled"


class _Call(NamedTuple):
    """Packed commands that go to one node, one after the other: a command, or a transaction. `slot`: None: any node."""

    commands: Sequence[bytes]
    slot: int | None


@dataclass(frozen=True)
class _Target:
    """A node. `asking`: the slot is on its way there, and each call says that it knows."""

    address: Address
    asking: bool = False

    @property
    def prefix(self) -> Sequence[bytes]:
        return (_ASKING,) if self.asking else ()


class Cluster:
    """The nodes of a cluster, as `Servers`. Thread-safe."""

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], Server]) -> None:
        """`seeds`: nodes to ask for the others."""
        self._seeds, self._open_node = list(seeds), open_node
        self._nodes: dict[Address, Server] = {}
        self._map = SlotMap()
        self._is_old = True
        self._reading = threading.Lock()

    # -- what is asked of it --------------------------------------------------------------------------------

    def pipeline(self, commands: Sequence[bytes]) -> list[Any]:
        """As in Servers. Commands of one slot happen in their order. One without a key goes where the first one with a key goes."""
        keys = [first_key(command) for command in commands]
        slots = [None if key is None else key_slot(key) for key in keys]
        default = next((slot for slot in slots if slot is not None), None)
        calls = [
            _Call([command], default if slot is None else slot) for command, slot in zip(commands, slots, strict=True)
        ]
        return [replies[0] for replies in self._exchange(calls)]

    def transactions(self, calls: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """As in Servers. All keys of a call are in one slot."""
        framed_calls = [_Call(framed(commands), _slot_of(commands)) for commands in calls]
        return [executed(replies) for replies in self._exchange(framed_calls)]

    @contextlib.contextmanager
    def watched(self, key: bytes) -> Iterator[Watched]:
        """As in Servers."""
        target, left = _Target(self._owner(key_slot(key))), _REDIRECTIONS
        while True:
            with self._connection(target.address) as connection:
                try:
                    value = begin_watching(connection, key, target.prefix)[-1]
                except Redirected as redirection:
                    self._note_error(redirection)
                    if not left:
                        raise
                    left -= 1
                    target = _target_of(redirection, target)
                    connection.send([_UNWATCH])
                    connection.read(1)
                    continue
                except Refused as error:
                    self._note_error(error)
                    raise
                try:
                    yield Watched(connection, value, target.prefix)
                except Refused as error:
                    self._note_error(error)
                    raise
                return

    def primaries(self, key_slot: int | None = None) -> list[Server]:
        """As in Servers."""
        self._is_old = True
        slots = self._current_map()
        addresses, owner = list(slots.addresses), None if key_slot is None else slots.owner(key_slot)
        addresses.sort(key=lambda address: address != owner)
        return [self._node(address) for address in addresses]

    def close(self) -> None:
        """As in Servers."""
        for node in list(self._nodes.values()):
            node.close()

    # -- calls, and redirections ----------------------------------------------------------------------------

    def _exchange(self, calls: Sequence[_Call]) -> list[list[Any]]:
        """The replies to each call."""
        replies: list[list[Any]] = [[] for _ in calls]
        owners = {slot: _Target(self._owner(slot)) for slot in {call.slot for call in calls}}
        waiting = {number: owners[call.slot] for number, call in enumerate(calls)}
        for left in range(_REDIRECTIONS, -1, -1):
            if not self._exchange_once(calls, waiting, replies):
                break
            redirected = dict[int, _Target]()
            done_slots = set[int | None]()
            # Backwards: a call is not sent again after a later one of its slot has happened.
            for number, target in sorted(waiting.items(), reverse=True):
                redirection = _redirection_in(replies[number])
                if redirection is None or calls[number].slot in done_slots:
                    done_slots.add(calls[number].slot)
                else:
                    redirected[number] = _target_of(redirection, target)
            if not redirected or not left:
                break
            waiting = redirected
        return replies

    def _exchange_once(self, calls: Sequence[_Call], targets: dict[int, _Target], replies: list[list[Any]]) -> bool:
        """Send each call to its target, and put what is answered among the replies: in one round trip for all nodes. Returns whether a
        node has refused any."""
        by_address = dict[Address, list[int]]()
        for number in sorted(targets):
            by_address.setdefault(targets[number].address, []).append(number)
        refused = False
        with contextlib.ExitStack() as connections:
            opened = [(connections.enter_context(self._connection(a)), numbers) for a, numbers in by_address.items()]
            sent = list[int]()
            for connection, numbers in opened:
                commands = [command for n in numbers for command in (*targets[n].prefix, *calls[n].commands)]
                connection.send(commands)
                sent.append(len(commands))
            for (connection, numbers), count in zip(opened, sent, strict=True):
                answers = connection.read(count)
                for reply in answers:
                    if isinstance(reply, Refused):
                        refused = True
                        self._note_error(reply)
                remaining = iter(answers)
                for number in numbers:
                    skipped = len(targets[number].prefix)
                    replies[number] = list(islice(remaining, skipped + len(calls[number].commands)))[skipped:]
        return refused

    def _note_error(self, refusal: Refused) -> None:
        if refusal.code in _OLD_MAP:
            self._is_old = True

    # -- nodes ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connection(self, address: Address) -> Iterator[RedisConnection]:
        try:
            with self._node(address).connection() as connection:
                yield connection
        except Unavailable as error:
            # Of the replies that end a connection, LOADING is one: the node may have been a primary before it was restarted.
            if not isinstance(error, Refused) or error.code in _OLD_MAP:
                self._is_old = True
            raise

    def _node(self, address: Address) -> Server:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes.setdefault(address, self._open_node(address))
        return node

    def _owner(self, slot: int | None) -> Address:
        """The node that has a slot; None: any. Raises Unavailable."""
        slots = self._current_map()
        owner = random.choice(slots.addresses) if slot is None else slots.owner(slot)
        if owner is None:
            self._is_old = True
            raise decide("CLUSTERDOWN", f"CLUSTERDOWN slot {slot} is not served")
        return owner

    def _current_map(self) -> SlotMap:
        """The map of slots, read again where it is old. Raises Unavailable when no node answers."""
        if not self._is_old:
            return self._map
        with self._reading:
            if self._is_old:
                # Before it is read: a sign that comes meanwhile is about the map that is read.
                self._is_old = False
                try:
                    self._map = self._read_map()
                except BaseException:
                    self._is_old = True
                    raise
                self._close_others()
            return self._map

    def _read_map(self) -> SlotMap:
        """From a node that answers, any of them: one that was cut off has an old map, and another one is asked next time."""
        known = list(self._map.addresses)
        random.shuffle(known)
        failure: AdclickError | None = None
        for address in dict.fromkeys([*known, *self._seeds]):
            try:
                reply = self._node(address).exchange([_READ_SLOTS])
                raise_first_error(reply)
            except Unavailable as error:
                failure = _not_a_cluster(address) if _NO_CLUSTER in str(error) else error
                continue
            slots = SlotMap.of_reply(reply[0], address[0])
            if slots.addresses:
                return slots
        raise failure or decide("CLUSTERDOWN", "CLUSTERDOWN no node has slots")

    def _close_others(self) -> None:
        """Close connections to nodes that have no slots any more."""
        for address in set(self._nodes) - set(self._map.addresses) - set(self._seeds):
            self._nodes.pop(address).close_idle()


def _slot_of(commands: Sequence[bytes]) -> int | None:
    return next((key_slot(key) for command in commands if (key := first_key(command)) is not None), None)


def _redirection_in(replies: Sequence[Any]) -> Redirected | None:
    """The redirection among the replies to a call: nothing of it was executed."""
    return next((reply for reply in replies if isinstance(reply, Redirected)), None)


def _target_of(redirection: Redirected, asked: _Target) -> _Target:
    return _Target((redirection.host or asked.address[0], redirection.port), redirection.asking)


def _not_a_cluster(address: Address) -> Refused:
    host, port = address
    hint = "begin ADCLICK_REDIS with redis:// for a single server"
    return Refused(f"Redis: {host}:{port} is no node of a cluster", hint=hint, backend="redis")
