"""Kafka brokers of a test's own: one or three, at which clients may connect by every protocol and mechanism at once."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from infra.embedded import jars, java, kafka_storage
from infra.embedded.lifeline import die_with_parent
from infra.embedded.start_commands import KAFKA_LOGGING
from tests.clusters import kafka_config
from tests.clusters.certificates import Authority, Identity
from tests.clusters.kafka_config import LISTENERS, PASSWORDS, PROTOCOLS, SUPER_USER, BrokerOptions
from tests.clusters.started import Started
from tests.clusters.tcp_proxy import Proxy
from tests.ports import unused_port
from tests.product import PATIENCE, wait_until

_PROPERTIES = "server.properties"
_STOP_S = 20.0
_SET = AlterConfigOpType.SET
_REQUEST_S = 5.0
_LEVELS = list[bytes]()
"""What Kafka's tool wrote into the first storage of this process, with the users of SCRAM: it takes two seconds for each."""


class KafkaCluster(Started):
    """Brokers 1 to `brokers`, each of them a controller, too. With three, topics have three replicas, two of which must be in sync.

    They end with the thread that started them: call `start` and `restart` from one that outlives them.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        options: BrokerOptions | None = None,
        *,
        server: Identity | None = None,
        proxied: str = "",
    ) -> None:
        """`folder`: where all of it lies, empty or not there yet. `server`: the certificate of all brokers, in place of a good one.
        `proxied`: a protocol whose clients reach each broker by a proxy, see `proxies`."""
        self._folder, self._options = folder, options or BrokerOptions()
        self.authority = Authority(folder / "tls")
        self.certificate = self.authority.issue("alice", ())
        """A client's: with it `alice` needs no password."""
        self._server = server or self.authority.issue("localhost")
        first = unused_port(brokers * len(LISTENERS))
        self._ports = {
            node: {name: first + (node - 1) * len(LISTENERS) + n for n, name in enumerate(LISTENERS)}
            for node in range(1, brokers + 1)
        }
        # Hexadecimal, for a Base64 one may begin with what looks like an option.
        self._cluster_id = uuid.uuid4().hex[:22]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._halted = set[int]()
        self._proxied = proxied
        self.proxies = {node: Proxy(f"127.0.0.1:{ports[proxied]}") for node, ports in self._ports.items() if proxied}
        """The network between these clients and each broker."""

    # -- brokers ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Format the brokers' storage, start all of them, and wait until they answer."""
        for node in self._ports:
            self._lay_out(node)
            data = self._folder / str(node) / "data"
            data.mkdir()
            if _LEVELS:
                kafka_storage.copy_storage(data, _LEVELS[0], self._cluster_id, node)
            else:
                self._format(node)
                _LEVELS.append(kafka_storage.levels_of(data))
        for node in self._ports:
            self._spawn(node)
        self.wait_until_ready()

    def kill(self, broker: int) -> None:
        """SIGKILL it, and wait until it is gone."""
        self._processes[broker].kill()
        self._processes[broker].wait()
        self._halted.discard(broker)

    def stop(self, broker: int) -> None:
        """SIGTERM it, and wait until it has handed over and ended."""
        self._processes[broker].terminate()
        self._processes[broker].wait(_STOP_S * PATIENCE)

    def restart(self, broker: int) -> None:
        """Start one that was killed or stopped, and wait until it is part of the cluster."""
        assert broker not in self.running, f"broker {broker} still runs"
        starter = list[str]()
        if len(self._ports) == 1:
            starter = [sys.executable, "-P", "-m", "infra.embedded.kafka_server", _PROPERTIES, "data"]
        elif 2 * len(self.running) > len(self._ports):
            # Its controllers still count it in, and it would believe that until they no longer do.
            wait_until(lambda: broker not in self._known_to(self.running[0]), 20, f"broker {broker} is fenced")
        self._spawn(broker, starter)
        self.wait_until_ready()

    def halt(self, broker: int) -> None:
        """SIGSTOP it: its connections stay, and nothing answers."""
        self._processes[broker].send_signal(signal.SIGSTOP)
        self._halted.add(broker)

    def present(self, server: Identity) -> None:
        """Have brokers show another certificate from now on, without a restart: its subject and names must be those of the former one."""
        admin = self.admin()  # which has to live until the results are there
        for node in self._ports:
            shutil.copyfile(server.keystore, self._folder / str(node) / "server.keystore.pem")
            # To set the location anew, though it is the same, has the broker read the file again.
            entries = [
                ConfigEntry(
                    f"listener.name.{name}.ssl.keystore.location", "server.keystore.pem", incremental_operation=_SET
                )
                for name in ("ssl", "sasl_ssl")
            ]
            resource = ConfigResource(ConfigResource.Type.BROKER, str(node), incremental_configs=entries)
            admin.incremental_alter_configs([resource])[resource].result(_REQUEST_S * PATIENCE)

    def resume(self, broker: int) -> None:
        """Let one that was halted go on."""
        self._processes[broker].send_signal(signal.SIGCONT)
        self._halted.discard(broker)

    def close(self) -> None:
        """Kill what runs. May be called twice."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for proxy in self.proxies.values():
            proxy.close()

    @property
    def running(self) -> list[int]:
        """The brokers that run and are not halted."""
        return [n for n, process in self._processes.items() if process.poll() is None and n not in self._halted]

    def pid(self, broker: int) -> int:
        """The process of a broker."""
        return self._processes[broker].pid

    def log(self, broker: int) -> str:
        """What a broker has logged: errors alone."""
        return (self._folder / str(broker) / "log").read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until all brokers that run now answer, and know of each other."""
        brokers = self.running

        def is_ready() -> bool:
            assert self.running == brokers, f"a broker has ended\n{self._logs()}"
            return all(set(brokers) <= self._known_to(broker) for broker in brokers)

        wait_until(is_ready, 40, lambda: f"brokers {brokers} answer\n{self._logs()}")

    def _known_to(self, broker: int) -> set[int]:
        """The brokers that one counts in; none while it does not answer."""
        server = self.address(broker, "SASL_PLAINTEXT")
        host, port = server.split(":")
        try:
            socket.create_connection((host, int(port)), _REQUEST_S).close()
            admin = AdminClient(self._super_config() | {"bootstrap.servers": server})
            # It asks this one alone: others may know more.
            return set(admin.list_topics(timeout=_REQUEST_S).brokers)
        except (OSError, KafkaException):
            return set()

    def _logs(self) -> str:
        return "\n".join(f"broker {node}: {self.log(node)[-2_000:]}" for node in self._processes)

    def _lay_out(self, node: int) -> None:
        folder = self._folder / str(node)
        (folder / "tmp").mkdir(parents=True)
        (folder / "log4j2.properties").write_text(KAFKA_LOGGING)
        shutil.copyfile(self._server.keystore, folder / "server.keystore.pem")
        shutil.copyfile(self.authority.file, folder / "ca.pem")
        advertised = {self._proxied: self.proxies[node].port} if self.proxies else {}
        properties = kafka_config.server_properties(node, self._ports, advertised, self._options)
        (folder / _PROPERTIES).write_text(properties)

    def _format(self, node: int) -> None:
        folder = self._folder / str(node)
        words = ["kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", _PROPERTIES]
        result = subprocess.run(
            [*_java_line(folder), *words, *kafka_config.scram_options()],
            cwd=folder, env=java.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout.decode(errors="replace")

    def _spawn(self, node: int, starter: Sequence[str] = ()) -> None:
        folder = self._folder / str(node)
        command = [*_java_line(folder), "kafka.Kafka"]
        with (folder / "log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [*starter, *command] if starter else [*command, _PROPERTIES],
                cwd=folder, env=java.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
                preexec_fn=die_with_parent,
            )  # fmt: skip

    # -- clients ------------------------------------------------------------------------------------------------

    def addresses(self, protocol: str = "PLAINTEXT") -> str:
        """The bootstrap addresses of a protocol, by comma."""
        assert protocol in PROTOCOLS
        return ",".join(self.address(node, protocol) for node in self._ports)

    def address(self, broker: int, protocol: str = "PLAINTEXT") -> str:
        """Where clients reach one broker."""
        if protocol == self._proxied:
            return self.proxies[broker].address
        return f"127.0.0.1:{self._ports[broker][protocol]}"

    def client_config(
        self,
        protocol: str = "PLAINTEXT",
        mechanism: str = "PLAIN",
        user: str = "alice",
        password: str | None = None,
        *,
        certificate: Identity | None = None,
    ) -> dict[str, Any]:
        """What confluent-kafka is told to connect as a user; `certificate` is for mutual TLS. With OAUTHBEARER the user has a token."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.addresses(protocol), "security.protocol": protocol, "log_level": 0,
            "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 500,
        }  # fmt: skip
        if protocol.endswith("SSL"):
            config["ssl.ca.location"] = str(self.authority.file)
        if certificate is not None:
            config["ssl.certificate.location"] = str(certificate.certificate)
            config["ssl.key.location"] = str(certificate.key)
        if protocol.startswith("SASL"):
            config["sasl.mechanism"] = mechanism
            if mechanism == "OAUTHBEARER":
                config["oauth_cb"] = lambda _: (unsecured_token(user), time.time() + _TOKEN_S)
            else:
                config["sasl.username"] = user
                config["sasl.password"] = PASSWORDS[user] if password is None else password
        return config

    def admin(self) -> AdminClient:
        """A client that may do everything."""
        return AdminClient(self._super_config())

    def _super_config(self) -> dict[str, Any]:
        return self.client_config("SASL_PLAINTEXT", user=SUPER_USER)

    def create_topic(self, topic: str, partitions: int = 1, **config: str) -> None:
        """Make a topic with a replica on each broker, and wait until every partition has a leader."""
        new = NewTopic(topic, partitions, config=config)
        admin = self.admin()  # which has to live until the result is there
        admin.create_topics([new])[topic].result(_REQUEST_S * PATIENCE)
        wait_until(lambda: all(self.leader_of(topic, p) for p in range(partitions)), 10, f"{topic} has leaders")

    def leader_of(self, topic: str, partition: int = 0) -> int | None:
        """The broker that leads a partition; None while there is none."""
        partitions = self.admin().list_topics(topic, _REQUEST_S * PATIENCE).topics[topic].partitions
        leader = partitions[partition].leader if partition in partitions else -1
        return leader if leader > 0 else None

    @property
    def controller(self) -> int:
        """The broker that leads the metadata quorum, as the newest election has it that a running broker knows of."""
        states = [json.loads(self._quorum_state(broker).read_text()) for broker in self.running]
        return int(max(states, key=lambda state: (state["leaderEpoch"], state["leaderId"]))["leaderId"])

    def _quorum_state(self, broker: int) -> Path:
        return self._folder / str(broker) / "data" / "__cluster_metadata-0" / "quorum-state"


_TOKEN_S = 3_600


def unsecured_token(user: str, lifetime_s: float = _TOKEN_S) -> str:
    """A token for OAUTHBEARER that nobody has signed, which Kafka's own validator for tests accepts."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": user, "iat": now, "exp": now + lifetime_s})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return ".".join([*encoded, ""])


def _java_line(folder: Path) -> list[str]:
    """Java and its options, for a process whose working directory is a broker's folder."""
    class_path = os.pathsep.join([*map(str, jars.logging_jars()), str(_kafka_jars() / "*")])
    return [
        str(java.find()), "-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
        "-Djava.awt.headless=true", f"-Djava.io.tmpdir={java.unpack_folder(folder / 'tmp')}",
        "-Dlog4j2.configurationFile=log4j2.properties", "-cp", class_path,
    ]  # fmt: skip


@cache  # which reads 44 MB to check them
def _kafka_jars() -> Path:
    return jars.fetch(jars.KAFKA)
