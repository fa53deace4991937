"""A cluster of ClickHouse servers on this machine: shards and replicas, of which any can be killed and started again.

The engine has no Keeper. So a table of the engine Distributed writes to all replicas of a shard itself (`internal_replication` is false),
and `DdlEverywhere` carries out ON CLUSTER.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra import http_client
from infra.clickhouse.client import ClickHouse
from infra.embedded.lifeline import die_with_parent
from tests.clusters.tcp_proxy import Proxy
from tests.ports import unused_port

NAME, USER, PASSWORD = "blue", "adclick", "of-the-tests"
_START_S = 60.0
_ENGINES = (
    "MergeTree", "ReplacingMergeTree", "AggregatingMergeTree", "Distributed", "Memory",
    "ReplicatedMergeTree", "ReplicatedReplacingMergeTree", "ReplicatedAggregatingMergeTree",
)  # fmt: skip
EVERYTHING = (
    "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP, TRUNCATE, OPTIMIZE, SYSTEM, KILL QUERY ON *.*",
    "REMOTE ON *.*",
    "CLUSTER ON *.*",
    *(f"TABLE ENGINE ON {engine}" for engine in _ENGINES),
)
_CONFIG = """<clickhouse>
  <logger><level>warning</level><log>{folder}/server.log</log><errorlog>{folder}/error.log</errorlog></logger>
  <listen_host>127.0.0.1</listen_host><http_port>{http}</http_port><tcp_port>{tcp}</tcp_port>
  <path>{folder}/data/</path><users_config>{folder}/users.xml</users_config>
  <max_server_memory_usage>1500000000</max_server_memory_usage><mark_cache_size>67108864</mark_cache_size>
  <background_pool_size>2</background_pool_size><max_concurrent_queries>200</max_concurrent_queries>
  <storage_configuration><disks><cold><path>{folder}/slow/</path></cold></disks>
    <policies><tiered><volumes><fast><disk>default</disk></fast><slow><disk>cold</disk></slow></volumes></tiered></policies>
  </storage_configuration>
  <remote_servers><{name}>{shards}</{name}></remote_servers>
</clickhouse>
"""
_USERS = """<clickhouse><profiles><default><max_threads>2</max_threads></default>{profiles}</profiles><quotas><default/></quotas><users>
  <default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
    <grants><query>GRANT SYSTEM LISTEN ON *.*</query><query>GRANT SELECT ON system.numbers</query></grants></default>
  {users}
</users></clickhouse>
"""
_ON_CLUSTER = f" ON CLUSTER '{NAME}'"
_MADE = re.compile(r"(CREATE (?:TABLE|VIEW|MATERIALIZED VIEW) (?:IF NOT EXISTS )?\w+\.\w+)")
# Statements of tests that are written for one server.
_MUTATION = re.compile(r"^((?:ALTER|TRUNCATE) TABLE \w+\.\w+)(?= DELETE |$)")


@dataclass
class Node:
    """A server: its place in the cluster, its ports, and its process while it runs. `door` is the network between clients and it, `network`
    that between other servers and it, if there are any to strike."""

    shard: int
    replica: int
    folder: Path
    http: int
    tcp: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    door: Proxy | None = None
    network: Proxy | None = None

    def url(self, user: str = USER) -> str:
        """As a setting has it."""
        return f"http://{user}:{PASSWORD}@127.0.0.1:{self.door.port if self.door else self.http}"

    def put_behind_proxies(self) -> None:
        """From now on clients and other servers are told of proxies."""
        self.door, self.network = Proxy(f"127.0.0.1:{self.http}"), Proxy(f"127.0.0.1:{self.tcp}")

    def start(self) -> None:
        """Start it, and return once it answers."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Begin to start it. To be called in the main thread: it ends with the thread that called this."""
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.clusters.clickhouse_node", str(self.folder)],
                stdout=output, stderr=output, preexec_fn=die_with_parent,
            )  # fmt: skip

    def wait(self) -> None:
        """Return once it answers."""
        assert self.process is not None
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self} does not start: {(self.folder / 'output').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}/ping")
            return bool(http_client.open_url(request, 2).read() == b"Ok.\n")
        return False

    def kill(self) -> None:
        """As a machine that fails: at once, and with nothing to clean up."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def _ports() -> tuple[int, int]:
    first = unused_port(2)
    return first, first + 1


class ClickHouseCluster:
    """`shards` × `replicas` nodes in a folder. `users`: name → what is granted to it, beside USER, who may do everything. `profiles`:
    name of a user → settings of its profile; such a user may do everything, too. `proxied`: each node is behind proxies."""

    def __init__(
        self,
        folder: Path,
        shards: int = 2,
        replicas: int = 2,
        users: Mapping[str, Sequence[str]] | None = None,
        profiles: Mapping[str, Mapping[str, str]] | None = None,
        *,
        proxied: bool = False,
    ) -> None:
        self.nodes = [
            Node(shard, replica, folder / f"{shard}-{replica}", *_ports())
            for shard in range(1, shards + 1)
            for replica in range(1, replicas + 1)
        ]
        for node in self.nodes if proxied else ():
            node.put_behind_proxies()
        self._profiles = dict(profiles or {})
        self._users = {USER: EVERYTHING} | dict(users or {}) | dict.fromkeys(self._profiles, EVERYTHING)
        self._clients = dict[str, list[ClickHouse]]()

    def start(self) -> None:
        """Start all nodes, and return once each answers."""
        for node in self.nodes:
            self._lay_out(node)
            node.spawn()
        for node in self.nodes:
            node.wait()

    def remove_user(self, name: str) -> None:
        """Remove one from the configuration, and start all nodes again with it."""
        del self._users[name]
        for node in self.nodes:
            self._lay_out(node)
            node.kill()
            node.start()

    def close(self) -> None:
        """Kill all nodes."""
        for client in (client for clients in self._clients.values() for client in clients):
            client.close()
        for node in self.nodes:
            node.kill()
            for proxy in filter(None, (node.door, node.network)):
                proxy.close()

    @property
    def urls(self) -> list[str]:
        """Of each node."""
        return [node.url() for node in self.nodes]

    def clients(self, database: str) -> list[ClickHouse]:
        """A client of each node by itself. They are kept: connecting takes longer than a statement."""
        if database not in self._clients:
            self._clients[database] = [ClickHouse(url, database) for url in self.urls]
        return self._clients[database]

    def _lay_out(self, node: Node) -> None:
        for name in ("data", "slow"):
            (node.folder / name).mkdir(parents=True, exist_ok=True)
        (node.folder / "config.xml").write_text(
            _CONFIG.format(folder=node.folder, http=node.http, tcp=node.tcp, name=NAME, shards=self._shards(node))
        )
        users = "\n".join(_user(name, granted, self._profiles) for name, granted in self._users.items())
        profiles = "".join(
            _element(name, "".join(_element(*s) for s in p.items())) for name, p in self._profiles.items()
        )
        (node.folder / "users.xml").write_text(_USERS.format(users=users, profiles=profiles))

    def _shards(self, own: Node) -> str:
        """As a node has it: one that finds its own port there asks itself without a connection."""

        def entry(node: Node) -> str:
            port = node.network.port if node.network and node is not own else node.tcp
            return (
                f"<replica><host>127.0.0.1</host><port>{port}</port><user>{USER}</user>"
                f"<password>{PASSWORD}</password></replica>"
            )

        numbers = sorted({node.shard for node in self.nodes})
        by_shard = ["".join(entry(node) for node in self.nodes if node.shard == shard) for shard in numbers]
        return "".join(f"<shard><internal_replication>false</internal_replication>{part}</shard>" for part in by_shard)


def own_settings(cluster: ClickHouseCluster) -> dict[str, object]:
    """Settings of an installation of a test's own on a cluster, by its first node."""
    return {"namespace": f"t{uuid.uuid4().hex[:8]}_", "clickhouse": cluster.urls[0], "clickhouse_cluster": NAME}


def _element(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _user(name: str, granted: Sequence[str], profiles: Mapping[str, object]) -> str:
    queries = "".join(f"<query>GRANT {grant}</query>" for grant in granted)
    profile = name if name in profiles else "default"
    return (
        f"<{name}><password>{PASSWORD}</password><networks><ip>127.0.0.1</ip></networks><profile>{profile}</profile>"
        f"<quota>default</quota><grants>{queries}</grants></{name}>"
    )


class DdlEverywhere:
    """Carries out statements with ON CLUSTER as ClickHouse does it through Keeper: on each node, with the same UUID. Tables are not
    replicated: Distributed writes to each replica."""

    def __init__(self, clients: Callable[[str], Sequence[ClickHouse]]) -> None:
        """`clients`: of each node, by the name of a database."""
        self._clients = clients
        self.statements = list[str]()
        """As they were issued."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[DdlEverywhere]:
        """While the block runs, every client in this process does so."""
        command = ClickHouse.command
        everywhere = self

        def carried_out(self: ClickHouse, sql: str, parameters: dict[str, Any] | None = None) -> Any:
            if self.deployment.is_cluster:
                sql = _MUTATION.sub(rf"\1_local{_ON_CLUSTER}", sql)
            if _ON_CLUSTER not in sql:
                return command(self, sql, parameters)
            everywhere.statements.append(sql)
            return everywhere.run(sql, self.database, command)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClickHouse, "command", carried_out)
            yield self

    def run(self, sql: str, database: str, command: Any) -> None:
        """On all nodes; raises what a node that is away raises."""
        sql = sql.replace(_ON_CLUSTER, "").replace("ENGINE = Replicated", "ENGINE = ")
        sql = _MADE.sub(rf"\1 UUID '{uuid.uuid4()}'", sql, count=1)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda client: command(client, sql), self._clients(database)))
