"""A Redis Cluster of real servers, started by a test: primaries and replicas that can be killed, paused, started again, and whose slots
can be moved."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from infra.embedded.lifeline import die_with_parent
from infra.embedded.start_commands import redis_binary
from infra.redis.slots import SLOTS, key_slot
from tests.clusters.tcp_proxy import Proxy
from tests.ports import unused_port

_BUS = 10_000
"""By how much higher the port is at which nodes talk to each other: Redis 6 has no setting for it."""
_READY_S = 30.0


class RedisNode:
    """A server of the cluster, in a folder of its own."""

    def __init__(
        self, folder: Path, port: int, options: Sequence[str] = (), binary: str | None = None, *, proxied: bool = False
    ) -> None:
        self.folder, self.port, self._options, self._binary = folder, port, options, binary or redis_binary()
        self.network = Proxy(f"127.0.0.1:{port}") if proxied else None
        """What is between clients and it, and between its replicas and it; not what nodes of a cluster tell each other."""
        self.announced = self.network.port if self.network else port
        """The port that a cluster names for it."""
        if proxied:
            announce = ("ip", "127.0.0.1"), ("port", str(self.announced)), ("bus-port", str(port + _BUS))
            self._options = [
                *options,
                *(word for name, value in announce for word in (f"--cluster-announce-{name}", value)),
            ]
        self.client: Any = redis.Redis(port=port, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process; it must run."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    @property
    def id(self) -> str:
        """The name that the cluster has for it."""
        return str(self.client.execute_command("CLUSTER", "MYID").decode())

    def start(self, file: str = "") -> None:
        """Start it, with what is in its folder. `file`: name of a configuration file there, made where it is missing: a Sentinel writes
        to one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [self._binary]
        if file:
            (self.folder / file).touch()
            command.append(str(self.folder / file))
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self._options]
        with (self.folder / "log").open("ab") as log:
            # It ends with the thread that started it, also where that is killed.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        _wait_until(self._answers, f"the node at {self.port} answers")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()[-500:]
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def cut_off_replicas(self) -> None:
        """Close the connections of replicas: one that is paused gets nothing from now on, not even what is under way."""
        self.client.execute_command("CLIENT", "KILL", "TYPE", "replica")


class RedisCluster:
    """Primaries that share the slots evenly, and as many replicas of each."""

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 1000,
        options: Sequence[str] = (),
        binary: str | None = None,
        proxied: bool = False,
    ) -> None:
        """`options`: more of each server's command line. `binary`: another server than the stack's own. `proxied`: clients reach each
        node by a proxy, its `network`."""
        count = primaries * (1 + replicas)
        first = unused_port(count, beside=_BUS)
        common = [
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", str(node_timeout_ms),
            # A replica takes over however long it has been cut off.
            "--cluster-replica-validity-factor", "0", "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
            "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", *options,
        ]  # fmt: skip
        self.nodes = [
            RedisNode(folder / str(port), port, common, binary, proxied=proxied) for port in range(first, first + count)
        ]
        self._primaries = primaries

    def start(self) -> None:
        """Start all nodes, and make a cluster of them; returns once each of them serves, and replicas are in sync."""
        for node in self.nodes:
            node.start()
        bounds = [SLOTS * n // self._primaries for n in range(self._primaries + 1)]
        for number, node in enumerate(self.nodes):
            # So that no two primaries have to settle which one has the higher epoch.
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._primaries:
                node.client.execute_command("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
            if number:
                node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        _wait_until(
            lambda: all(len(_nodes_known(n)) == len(self.nodes) for n in self.nodes), "all nodes know each other"
        )
        for number, node in enumerate(self.nodes[self._primaries :]):
            node.client.execute_command("CLUSTER", "REPLICATE", self.nodes[number % self._primaries].id)
        _wait_until(self._is_whole, "all nodes serve, and replicas are in sync")

    def _is_whole(self) -> bool:
        states = [node.client.execute_command("CLUSTER", "INFO") for node in self.nodes]
        if not all(b"cluster_state:ok" in state for state in states):
            return False
        links = [node.client.info("replication") for node in self.nodes[self._primaries :]]
        return all(link["role"] == "slave" and link["master_link_status"] == "up" for link in links) and all(
            len(node.client.execute_command("CLUSTER", "SLOTS")) == self._primaries for node in self.nodes
        )

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.resume()
            node.kill()
            node.client.close()
            if node.network:
                node.network.close()

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of all nodes."""
        return [f"127.0.0.1:{node.announced}" for node in self.nodes]

    @property
    def url(self) -> str:
        """The value of ADCLICK_REDIS."""
        return f"redis+cluster://{','.join(self.addresses[:2])}"

    # -- who has what ---------------------------------------------------------------------------------------

    def owner(self, key: str) -> RedisNode:
        """The primary that has a key's slot, as the nodes that run see it."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                for first, last, (_, port, *_), *_ in _slots(node):
                    if first <= slot <= last:
                        return self.node_at(port)
        raise AssertionError(f"no node has slot {slot}")

    def replica_of(self, primary: RedisNode) -> RedisNode:
        """A replica of a primary that runs, once the primary has one that it sees."""
        _wait_until(lambda: bool(_replicas(primary)), "the primary has a replica")
        return self.node_at(_replicas(primary)[0])

    def node_at(self, port: int) -> RedisNode:
        """The node that the cluster has at a port."""
        return next(node for node in self.nodes if node.announced == port)

    def other_primary(self, node: RedisNode) -> RedisNode:
        """Another primary."""
        ports = {port for _, _, (_, port, *_), *_ in _slots(node)}
        return self.node_at(next(port for port in sorted(ports) if port != node.announced))

    # -- what happens to it ---------------------------------------------------------------------------------

    def fail_over(self, primary: RedisNode, *, while_behind: Callable[[], object] | None = None) -> RedisNode:
        """Kill a primary; returns its replica once that has taken over. `while_behind`: what is written in it is lost: the replica is cut
        off before."""
        replica = self.replica_of(primary)
        if while_behind is not None:
            replica.pause()
            primary.cut_off_replicas()
            while_behind()
        primary.kill()
        replica.resume()
        others = [node for node in self.nodes if node is not primary]
        self._wait_until_it_serves(replica, others)
        return replica

    def hand_over(self, primary: RedisNode) -> RedisNode:
        """Have a replica take over from a primary that runs, as before a planned restart: nothing is lost. Returns the replica."""
        replica = self.replica_of(primary)
        replica.client.execute_command("CLUSTER", "FAILOVER")
        self._wait_until_it_serves(replica, self.nodes)
        return replica

    @staticmethod
    def _wait_until_it_serves(node: RedisNode, others: Sequence[RedisNode]) -> None:
        _wait_until(lambda: node.client.info("replication")["role"] == "master", "the replica takes over")
        _wait_until(lambda: all(_serves(other, node.announced) for other in others), "all nodes know that it did")

    def restart(self, node: RedisNode) -> None:
        """Start a node that was killed, and wait until it is in sync as a replica, and known as one."""
        node.start()
        others = [other for other in self.nodes if other is not node]

        def is_in_sync() -> bool:
            link = node.client.info("replication")
            return (
                link["role"] == "slave"
                and link["master_link_status"] == "up"
                and all(_has_replica(other, node.announced) for other in others)
            )

        _wait_until(is_in_sync, "it is a replica, in sync, and known as one")

    def begin_move(self, slot: int, source: RedisNode, target: RedisNode) -> None:
        """Mark a slot as being moved."""
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: RedisNode, target: RedisNode, keys: Sequence[bytes] | None = None) -> None:
        """Move keys of a slot that is being moved; None: all."""
        while (
            batch := keys if keys is not None else source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        ):
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *batch)
            if keys is not None:
                return

    def end_move(self, slot: int, source: RedisNode, target: RedisNode) -> None:
        """The slot is the target's."""
        for node in (target, source, *self.nodes):
            if node.client.info("replication")["role"] == "master":
                node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target.id)


@contextlib.contextmanager
def running_cluster(folder: Path, **options: Any) -> Iterator[RedisCluster]:
    """A cluster for as long as the block lasts."""
    cluster = RedisCluster(folder, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def _slots(node: RedisNode) -> list[Any]:
    """CLUSTER SLOTS as the node gives it."""
    return list(node.client.execute_command("CLUSTER", "SLOTS"))


def _nodes_known(node: RedisNode) -> list[str]:
    """Lines of CLUSTER NODES, of those that have shaken hands."""
    lines = bytes(node.client.execute_command("CLUSTER", "NODES")).decode().splitlines()
    return [line for line in lines if "handshake" not in line]


def _serves(node: RedisNode, port: int) -> bool:
    with contextlib.suppress(redis.RedisError):
        return any(entry[2][1] == port for entry in _slots(node))
    return False


def _replicas(primary: RedisNode) -> list[int]:
    """The ports of the replicas that a primary sees."""
    entries = [entry for entry in _slots(primary) if entry[2][1] == primary.announced]
    return [port for _, _, _, *replicas in entries for _, port, *_ in replicas]


def _has_replica(node: RedisNode, port: int) -> bool:
    return any(replica[1] == port for _, _, _, *replicas in _slots(node) for replica in replicas)


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_READY_S:.0f} s: {what}"
        time.sleep(0.05)
