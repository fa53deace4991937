"""How to reach Kafka: addresses, transport security and credentials, in the form of each client that connects.

Librdkafka (confluent-kafka), aiokafka (within Faust) and the fetcher of `infra.kafka.fetch` get the same from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.kafka.tokens import TokenSource
from infra.tls import TlsFiles

PARTITIONERS = {"crc32": "consistent_random", "murmur2": "murmur2_random", "fnv1a": "fnv1a_random"}
"""How keys become partitions, by librdkafka's names; messages without a key go to any."""

OAUTHBEARER = "OAUTHBEARER"

NO_OTHER_KAFKA = {
    "kafka_ca": "", "kafka_certificate": "", "kafka_key": "", "kafka_key_password": "", "kafka_user": "",
    "kafka_password": "", "kafka_token_command": "", "kafka_oidc_endpoint": "", "kafka_oidc_client_id": "",
    "kafka_oidc_client_secret": "", "kafka_oidc_scope": "", "kafka_oidc_ca": "", "kafka_security_protocol": "PLAINTEXT",
}  # fmt: skip
"""Settings of a Kafka of one's own, as they are for that of an embedded stack."""


def check_protocol(protocol: str, given: Mapping[str, Any]) -> str:
    """The security protocol, if the other settings of Kafka that are `given` are those that it needs. Raises ValueError."""
    has_user = bool(given.get("kafka_user") and given.get("kafka_password"))
    if protocol.startswith("SASL"):
        if given.get("kafka_sasl_mechanism") == OAUTHBEARER:
            _check_token_source(given)
        elif not has_user:
            raise ValueError("needs kafka_user and kafka_password")
    elif has_user or given.get("kafka_token_command") or given.get("kafka_oidc_endpoint"):
        raise ValueError("must begin with SASL for a user or a token to be sent")
    if not protocol.endswith("SSL") and (given.get("kafka_ca") or given.get("kafka_certificate")):
        raise ValueError("must end with SSL for certificates to be used")
    return protocol


def _check_token_source(given: Mapping[str, Any]) -> None:
    parts = ("kafka_oidc_endpoint", "kafka_oidc_client_id", "kafka_oidc_client_secret")
    named = [name for name in parts if given.get(name)]
    if given.get("kafka_token_command"):
        if named:
            raise ValueError(f"takes kafka_token_command or {named[0]}, and both are set")
    elif len(named) < len(parts):
        raise ValueError(f"needs kafka_token_command, or {', '.join(parts)}, for OAUTHBEARER")


@dataclass(frozen=True)
class Sasl:
    """Credentials. `tokens`: for OAUTHBEARER."""

    mechanism: str
    user: str = ""
    password: str = field(default="", repr=False)
    tokens: TokenSource = field(default_factory=TokenSource)


@dataclass(frozen=True)
class Connection:
    """How to reach Kafka. Without `tls` and `sasl` in the clear, by nobody in particular."""

    servers: str
    tls: TlsFiles | None = None
    sasl: Sasl | None = None
    properties: tuple[tuple[str, str], ...] = ()
    """Properties of librdkafka. They take precedence over ours, but for what numbers depend on."""

    @property
    def protocol(self) -> str:
        """The security protocol, as Kafka names it."""
        if self.sasl is None:
            return "PLAINTEXT" if self.tls is None else "SSL"
        return "SASL_PLAINTEXT" if self.tls is None else "SASL_SSL"

    @property
    def rack(self) -> str:
        """Where this process runs, by the brokers' names; empty where nobody says."""
        return dict(self.properties).get("client.rack", "")

    def librdkafka(self) -> dict[str, Any]:
        """Librdkafka's properties for it, without a callback for tokens."""
        config: dict[str, Any] = {"bootstrap.servers": self.servers}
        if self.protocol != "PLAINTEXT":
            config["security.protocol"] = self.protocol
        if self.tls is not None:
            files = {
                "ssl.ca.location": self.tls.ca,
                "ssl.certificate.location": self.tls.certificate,
                "ssl.key.location": self.tls.key or self.tls.certificate,
                "ssl.key.password": self.tls.key_password,
            }
            config |= {name: value for name, value in files.items() if value}
        if self.sasl is not None:
            config["sasl.mechanism"] = self.sasl.mechanism
            if self.sasl.mechanism != OAUTHBEARER:
                config |= {"sasl.username": self.sasl.user, "sasl.password": self.sasl.password}
        return config
