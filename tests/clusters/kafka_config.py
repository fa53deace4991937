"""The configuration of a broker of a test's cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
SUPER_USER = "admin"
PASSWORDS = {SUPER_USER: "admin-secret", "alice": "alice-secret"}
"""The users of PLAIN and SCRAM. With ACLs `alice` may do what ACLs allow her, and the super user everything."""
_BROKER, _BROKER_PASSWORD = "broker", "broker-secret"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"
_BEARER = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
# Brokers and controllers among themselves. What clients use may then be switched off, or refuse everything.
_INTERNAL, _CONTROLLER = "INTERNAL", "CONTROLLER"
LISTENERS = (*PROTOCOLS, _INTERNAL, _CONTROLLER)


@dataclass(frozen=True)
class BrokerOptions:
    """What a test may want of brokers. `session_ms`: a broker that is silent for so long is fenced, and others lead its partitions."""

    acls: bool = False
    client_auth: str = "requested"
    session_ms: int = 4_000
    more: Mapping[str, str] | None = None
    """Properties of a test's own."""


def rack_of(node: int) -> str:
    """Where a broker stands."""
    return f"rack-{node}"


def server_properties(
    node: int, ports: Mapping[int, Mapping[str, int]], advertised: Mapping[str, int], options: BrokerOptions
) -> str:
    """The properties of node `node`. `ports`: node → listener → port; `advertised`: the ports that clients are told where they are others.
    Files are named relative to the broker's folder."""
    own, size = ports[node], len(ports)
    in_sync = min(2, size)
    clients = {name: port for name, port in own.items() if name != _CONTROLLER}
    protocols = {name: name for name in PROTOCOLS} | {_INTERNAL: "SASL_PLAINTEXT", _CONTROLLER: "SASL_PLAINTEXT"}
    properties: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p[_CONTROLLER]}" for n, p in ports.items()),
        "listeners": _addresses(own),
        "advertised.listeners": _addresses(clients | dict(advertised)),
        "controller.listener.names": _CONTROLLER,
        "inter.broker.listener.name": _INTERNAL,
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "log.dirs": "data",
        "broker.rack": rack_of(node),
        "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
        "broker.session.timeout.ms": options.session_ms,
        "broker.heartbeat.interval.ms": options.session_ms // 8,
        "default.replication.factor": size,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": size,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": size,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
        "share.coordinator.state.topic.replication.factor": size,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        "auto.create.topics.enable": "false",
        "message.max.bytes": 16 << 20,
        "replica.fetch.max.bytes": 16 << 20,
        "num.network.threads": 1,
        "num.io.threads": 4,
        "log.cleaner.threads": 1,
        "log.cleaner.dedupe.buffer.size": 32 << 20,
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": "server.keystore.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": "ca.pem",
        "ssl.client.auth": options.client_auth,
        # A client's certificate for CN=alice is the same user as her password.
        "ssl.principal.mapping.rules": r"RULE:^CN=([^,]+).*$/$1/,DEFAULT",
    }
    for listener in (_INTERNAL, _CONTROLLER):
        properties |= _jaas(listener, "PLAIN", _plain_login({_BROKER: _BROKER_PASSWORD}, _BROKER))
        properties[f"listener.name.{listener.lower()}.sasl.enabled.mechanisms"] = "PLAIN"
    for listener in ("SASL_PLAINTEXT", "SASL_SSL"):
        properties |= _jaas(listener, "PLAIN", _plain_login(PASSWORDS))
        properties |= _jaas(listener, "SCRAM-SHA-256", f"{_SCRAM} required;")
        properties |= _jaas(listener, "SCRAM-SHA-512", f"{_SCRAM} required;")
        # Without options a broker logs in without a token of its own. Tokens are checked by what Kafka has for tests: signed by nobody.
        properties |= _jaas(listener, "OAUTHBEARER", f"{_BEARER} required;")
    if options.acls:
        properties["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        properties["super.users"] = f"User:{_BROKER};User:{SUPER_USER}"
    properties |= options.more or {}
    return "".join(f"{name}={str(value).replace(chr(92), 2 * chr(92))}\n" for name, value in properties.items())


def scram_options() -> Sequence[str]:
    """What StorageTool is told of the users of SCRAM."""
    users = [(mechanism, user) for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512") for user in PASSWORDS]
    return [
        word
        for mechanism, user in users
        for word in ("--add-scram", f"{mechanism}=[name={user},password={PASSWORDS[user]}]")
    ]


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


def _jaas(listener: str, mechanism: str, text: str) -> dict[str, object]:
    return {f"listener.name.{listener.lower()}.{mechanism.lower()}.sasl.jaas.config": text}


def _plain_login(passwords: Mapping[str, str], own: str = "") -> str:
    """The users whose passwords are accepted, and the one that this broker is to others."""
    words = [f'user_{user}="{password}"' for user, password in passwords.items()]
    if own:
        words = [f'username="{own}"', f'password="{passwords[own]}"', *words]
    return f"{_PLAIN} required {' '.join(words)};"
