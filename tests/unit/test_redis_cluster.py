"""Which node of a Redis Cluster a command goes to, and what happens when the slot is elsewhere by then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot as independent_key_slot

from infra.errors import Refused, Unavailable
from infra.redis.access import Address, RedisAccess
from infra.redis.cluster import Cluster
from infra.redis.commands import Arguments, pack_command, pack_with_arguments
from infra.redis.errors import Redirected, decide
from infra.redis.slots import SLOTS, SlotMap, first_key, key_slot, pattern_slot
from ingest.dedup.registry import redis_key
from stream.hot.layout import Op, ShardKeys, touched_keys

A, B, C = ("a", 1), ("b", 2), ("c", 3)


# -- slots ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40) | st.lists(st.sampled_from([b"{", b"}", b"x", b"yz"]), max_size=8).map(b"".join))
def test_a_key_is_in_the_slot_that_redis_computes(key: bytes) -> None:
    assert key_slot(key) == independent_key_slot(key)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("x:{s1}:h:*", b"x:{s1}:h:5"),
        ("x:{s1}:*", b"x:{s1}:"),
        ("x*{s1}", None),
        ("x:*", None),
        ("x:{s*}", None),
        ("x:{}:*", None),
    ],
)
def test_a_pattern_has_a_slot_where_all_its_keys_share_one(pattern: str, key: bytes | None) -> None:
    assert pattern_slot(pattern.encode()) == (None if key is None else key_slot(key))


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), b"a"),
        (("get", b"\r\n$1\r\n"), b"\r\n$1\r\n"),
        (("UNLINK", "a", "b"), b"a"),
        (("EVALSHA", "f" * 40, 2, "a", "b", "c"), b"a"),
        (("EVAL", "return 1", 0, "c"), None),
        (("MEMORY", "USAGE", "a"), b"a"),
        (("TIME",), None),
        (("INFO", "memory"), None),
        (("SCAN", "0", "MATCH", "x*"), None),
    ],
)
def test_the_key_of_a_packed_command_is_found(command: tuple[Any, ...], key: bytes | None) -> None:
    assert first_key(pack_command(*command)) == key
    more = Arguments.of(["more"])
    assert first_key(pack_with_arguments(command, more)) == key or len(command) == 1


def test_all_keys_of_a_shard_and_of_a_partition_are_in_one_slot() -> None:
    keys, cell = ShardKeys.of("adclick:", 3), ShardKeys.of("adclick:", 3).cell(60_000, 7)
    shard = [keys.span, keys.campaigns, keys.advertiser(5), *cell.keys, keys.hour(0)]
    assert {key_slot(key) for key in shard} == {key_slot(b"{s3}")}
    partition = [redis_key("adclick:", 2, *parts) for parts in (("head",), (5, 0), (5, "open"))]
    assert {key_slot(key.encode()) for key in partition} == {key_slot(b"{p2}")}


def test_the_keys_that_operations_touch_are_each_listed_once() -> None:
    cell = ShardKeys.of("x:", 0).cell(60_000, 7)
    open_key, parts = cell.open_key, [cell.open_key + part for part in (b":r", b":a", b":p", b":c", b":d")]
    operations = {
        (Op.PUT_CELL, cell.hour_key, b"7:1", b"rows", b""): [cell.hour_key],
        (Op.MOVE_CELL, *cell.move(b"rows", b"")): [cell.hour_key, open_key, *parts],
        (Op.ADD_ROWS, open_key, b"1", b"rows", b""): [open_key],
        (Op.ADD_ROWS, open_key, b"1", b"rows", b"roll-ups"): [open_key, *parts],
        (Op.REPLACE_ROWS, open_key, b"1", b"rows", b""): [open_key, *parts],
        (Op.ADD_LATE, cell.hour_key, b"7+", b"rows"): [cell.hour_key],
        (Op.ADD_CAMPAIGN, b"set", b"7"): [b"set"],
    }
    for operation, keys in operations.items():
        assert touched_keys([operation]) == keys
    assert touched_keys(list(operations)) == [cell.hour_key, open_key, *parts, b"set"]


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "mode", "addresses", "first"),
    [
        ("redis://h/0", "", [("h", 6379)], "redis://h:6379/0"),
        ("redis+cluster://u:p@h1:7000,h2/0?x=1", "cluster", [("h1", 7000), ("h2", 6379)], "redis://u:p@h1:7000/0?x=1"),
        ("rediss+cluster://[::1]:7000,h2", "cluster", [("::1", 7000), ("h2", 6379)], "rediss://[::1]:7000"),
        ("redis+sentinel://h1,h2:1/main/2", "sentinel", [("h1", 26379), ("h2", 1)], "redis://h1:26379/2"),
    ],
)
def test_a_url_names_nodes_or_sentinels(url: str, mode: str, addresses: list[Address], first: str) -> None:
    access = RedisAccess(url)
    assert (access.mode, access.addresses, access.url_of(addresses[0])) == (mode, addresses, first)
    assert access.service == ("main" if mode == "sentinel" else "")


def test_a_node_that_does_not_know_its_own_host_is_where_it_was_asked() -> None:
    slots = SlotMap.of_reply([[0, 99, [b"", 7000, b"id"]], [100, 200, [b"?", 7001]], [201, 201, [b"h", 7002]]], "asked")
    assert [slots.owner(slot) for slot in (0, 99, 100, 201, 202)] == [
        ("asked", 7000),
        ("asked", 7000),
        ("asked", 7001),
        ("h", 7002),
        None,
    ]


# -- routing --------------------------------------------------------------------------------------------------------


class FakeNodes:
    """Nodes that answer from a table, and remember what they were sent. A slot is that of a key."""

    def __init__(self) -> None:
        self.owners: list[tuple[int, int, Address]] = [(0, SLOTS // 2 - 1, A), (SLOTS // 2, SLOTS - 1, B)]
        self.sent: list[tuple[Address, bytes]] = []
        self.away: set[Address] = set()
        self.answer: Callable[[Address, bytes], Any] = lambda node, _: node[0]
        self.maps_read = 0

    def open(self, address: Address) -> Any:
        return _FakeNode(self, address)

    def commands(self) -> list[tuple[str, str]]:
        """(node, command) of each that was sent."""
        return [(node[0], _plain(command)) for node, command in self.sent]


class _FakeNode:
    def __init__(self, nodes: FakeNodes, address: Address) -> None:
        self._nodes, self._address = nodes, address
        self._replies: list[Any] = []

    @contextlib.contextmanager
    def connection(self) -> Iterator[_FakeNode]:
        if self._address in self._nodes.away:
            raise Unavailable("Redis: away", backend="redis")
        yield self

    def send(self, commands: Sequence[bytes]) -> None:
        for command in commands:
            self._nodes.sent.append((self._address, command))
            self._replies.append(b"OK" if b"ASKING" in command else self._nodes.answer(self._address, command))

    def read(self, count: int) -> list[Any]:
        taken, self._replies = self._replies[:count], self._replies[count:]
        return taken

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        if self._address in self._nodes.away:
            raise Unavailable("Redis: away", backend="redis")
        assert commands == [pack_command("CLUSTER", "SLOTS")]
        self._nodes.maps_read += 1
        return [[[first, last, [node[0].encode(), node[1]]] for first, last, node in self._nodes.owners]]

    def close_idle(self) -> None:
        pass


def _plain(command: bytes) -> str:
    return " ".join(command.decode().split("\r\n")[2::2])


def _key_of(node: Address, number: int = 0) -> str:
    """A key whose slot the node has at first."""
    keys = (f"k{n}" for n in range(10_000))
    return [k for k in keys if (key_slot(k.encode()) < SLOTS // 2) == (node == A)][number]


def _moved(to: Address, code: str = "MOVED") -> Redirected:
    return Redirected(f"{code} 1 {to[0]}:{to[1]}", code=code, host=to[0], port=to[1])


@pytest.fixture
def nodes() -> FakeNodes:
    return FakeNodes()


@pytest.fixture
def cluster(nodes: FakeNodes) -> Cluster:
    return Cluster([A, B], nodes.open)


def test_commands_go_to_the_nodes_of_their_slots_and_replies_come_in_order(nodes: FakeNodes, cluster: Cluster) -> None:
    of_a, of_b = _key_of(A), _key_of(B)
    commands = [pack_command("GET", key) for key in (of_b, of_a, of_b)]
    assert cluster.pipeline(commands) == ["b", "a", "b"]
    assert nodes.commands() == [("b", f"GET {of_b}"), ("b", f"GET {of_b}"), ("a", f"GET {of_a}")]


def test_a_command_without_a_key_goes_where_the_first_key_is(nodes: FakeNodes, cluster: Cluster) -> None:
    assert cluster.pipeline([pack_command("TIME"), pack_command("GET", _key_of(B))]) == ["b", "b"]


def test_a_slot_that_has_moved_is_followed_and_the_map_is_read_again(nodes: FakeNodes, cluster: Cluster) -> None:
    key = _key_of(A)
    command = pack_command("GET", key)
    assert cluster.pipeline([command]) == ["a"]
    nodes.owners = [(0, SLOTS - 1, C)]
    nodes.answer = lambda node, _: _moved(C) if node == A else node[0]
    assert cluster.pipeline([command]) == ["c"]
    assert nodes.maps_read == 1
    nodes.sent.clear()
    assert cluster.pipeline([command]) == ["c"]
    assert (nodes.maps_read, nodes.commands()) == (2, [("c", f"GET {key}")])


def test_a_key_that_is_on_its_way_is_asked_for_once_and_the_map_stays(nodes: FakeNodes, cluster: Cluster) -> None:
    key = _key_of(A)
    nodes.answer = lambda node, _: _moved(B, "ASK") if node == A else node[0]
    assert cluster.pipeline([pack_command("GET", key)]) == ["b"]
    assert nodes.commands() == [("a", f"GET {key}"), ("b", "ASKING"), ("b", f"GET {key}")]
    assert cluster.pipeline([pack_command("GET", _key_of(B))]) == ["b"]
    assert nodes.maps_read == 1


def test_a_command_is_not_sent_again_behind_a_later_one_of_its_slot(nodes: FakeNodes, cluster: Cluster) -> None:
    first, second = "{x}1", "{x}2"
    owner = A if key_slot(b"x") < SLOTS // 2 else B
    nodes.answer = lambda node, command: _moved(C, "ASK") if first in _plain(command) and node == owner else node[0]
    replies = cluster.pipeline([pack_command("INCR", first), pack_command("INCR", second)])
    assert isinstance(replies[0], Refused) and replies[0].code == "ASK"
    assert replies[1] == owner[0]
    nodes.sent.clear()
    # The other way round both happen in their order.
    assert cluster.pipeline([pack_command("INCR", second), pack_command("INCR", first)]) == [owner[0], "c"]


def test_a_transaction_follows_as_a_whole(nodes: FakeNodes, cluster: Cluster) -> None:
    key = _key_of(A)

    def answer(node: Address, command: bytes) -> Any:
        if _plain(command) == "EXEC":
            return decide("EXECABORT", "EXECABORT") if node == A else [b"1"]
        return _moved(B, "ASK") if node == A and key in _plain(command) else b"OK"

    nodes.answer = answer
    assert cluster.transactions([[pack_command("INCR", key)]]) == [[b"1"]]
    of_b = [command for node, command in nodes.commands() if node == "b"]
    assert of_b == ["ASKING", "MULTI", f"INCR {key}", "EXEC"]


def test_nothing_is_sent_again_after_a_lost_connection_and_the_next_call_asks_for_the_map(
    nodes: FakeNodes, cluster: Cluster
) -> None:
    command = pack_command("INCR", _key_of(A))
    assert cluster.pipeline([command]) == ["a"]

    def break_off(node: Address, _: bytes) -> Any:
        raise Unavailable("Redis: connection lost", backend="redis")

    nodes.answer = break_off
    nodes.sent.clear()
    with pytest.raises(Unavailable):
        cluster.pipeline([command])
    assert len(nodes.sent) == 1
    nodes.away, nodes.owners, nodes.answer = {A}, [(0, SLOTS - 1, B)], lambda node, _: node[0]
    assert cluster.pipeline([command]) == ["b"]


@pytest.mark.parametrize("watched", [False, True])
def test_a_node_that_was_restarted_and_still_loads_is_not_taken_for_the_primary_that_it_was(
    nodes: FakeNodes, cluster: Cluster, watched: bool
) -> None:
    key = _key_of(A)
    assert cluster.pipeline([pack_command("GET", key)]) == ["a"]

    def load(node: Address, _: bytes) -> Any:
        if node == A:
            # Which ends the connection in redis-py.
            raise decide("LOADING", "LOADING Redis is loading the dataset in memory")
        return node[0]

    nodes.answer, nodes.owners = load, [(0, SLOTS - 1, B)]
    with pytest.raises(Refused, match="LOADING"):
        if watched:
            with cluster.watched(key.encode()):
                pass
        else:
            cluster.pipeline([pack_command("GET", key)])
    assert cluster.pipeline([pack_command("GET", key)]) == ["b"]


def test_redirections_end(nodes: FakeNodes, cluster: Cluster) -> None:
    nodes.answer = lambda node, _: _moved(B if node == A else A)
    (reply,) = cluster.pipeline([pack_command("GET", _key_of(A))])
    assert isinstance(reply, Redirected)
    assert len(nodes.sent) <= 10


def test_a_slot_without_a_node_and_a_cluster_without_nodes_are_waited_for(nodes: FakeNodes, cluster: Cluster) -> None:
    nodes.owners = [(0, SLOTS // 2 - 1, A)]
    with pytest.raises(Refused) as refused:
        cluster.pipeline([pack_command("GET", _key_of(B))])
    assert refused.value.code == "CLUSTERDOWN"
    nodes.owners = [(0, SLOTS - 1, A)]
    assert cluster.pipeline([pack_command("GET", _key_of(B))]) == ["a"]
    nodes.away = {A, B}
    with pytest.raises(Unavailable):
        cluster.primaries()


def test_watching_follows_a_slot_and_unwatches_where_it_was(nodes: FakeNodes, cluster: Cluster) -> None:
    key = _key_of(A)
    nodes.answer = lambda node, command: (
        _moved(B) if node == A and key in _plain(command) else None if "EXEC" in _plain(command) else b"v"
    )
    with cluster.watched(key.encode()) as watched:
        assert watched.value == b"v"
        assert watched.execute([pack_command("SET", key, "w")]) is None, "the key was changed"
    assert [command for node, command in nodes.commands() if node == "a"] == [f"WATCH {key}", f"GET {key}", "UNWATCH"]
