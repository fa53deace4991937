"""Our clients, of which there are three kinds, at brokers that want TLS and credentials."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import SecretStr

from infra.errors import Denied, Unavailable, UserError
from infra.kafka import topic_setup
from infra.kafka.admin import Admin
from infra.kafka.column_consumer import ColumnConsumer, Starts
from infra.kafka.consumers import read_to_end
from infra.kafka.records import Record
from infra.kafka.sasl import Connector
from infra.kafka.transactions import TransactionalProducer
from infra.migration import check_cluster
from infra.settings import Settings
from stream.agents import credentials_of
from tests.clusters.certificates import Authority
from tests.clusters.kafka_cluster import KafkaCluster, unsecured_token
from tests.clusters.kafka_config import PASSWORDS
from tests.flow import flow
from tests.product import PATIENCE

WAYS = [
    ("SSL", ""),
    ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
    ("SASL_SSL", "PLAIN"),
    ("SASL_SSL", "SCRAM-SHA-256"),
    ("SASL_SSL", "SCRAM-SHA-512"),
    ("SASL_SSL", "OAUTHBEARER"),
]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def secured(brokers: KafkaCluster, settings: Settings, tmp_path: Path) -> Callable[..., Settings]:
    """A function that gives settings for these brokers."""

    def make(protocol: str, mechanism: str = "", **more: object) -> Settings:
        changes: dict[str, object] = {"kafka": brokers.addresses(protocol), "kafka_security_protocol": protocol}
        if protocol.endswith("SSL"):
            changes["kafka_ca"] = str(brokers.authority.file)
        if protocol == "SSL":
            changes |= {
                "kafka_certificate": str(brokers.certificate.certificate),
                "kafka_key": str(brokers.certificate.key),
            }
        elif mechanism == "OAUTHBEARER":
            token = tmp_path / "token"
            token.write_text(unsecured_token("alice"))
            changes |= {"kafka_sasl_mechanism": mechanism, "kafka_token_command": f"cat {token}"}
        else:
            changes |= {
                "kafka_sasl_mechanism": mechanism,
                "kafka_user": "alice",
                "kafka_password": SecretStr(PASSWORDS["alice"]),
            }
        return settings.model_copy(update=changes | more)

    return make


def fetch_one(settings: Settings, topic: str) -> bytes | None:
    """The first message of a topic by our own fetcher, as a member of a group."""
    kafka = settings.kafka_connection

    def start(partitions: list[int]) -> Starts:
        return Starts(dict.fromkeys(partitions, 0), "", {})

    consumer = ColumnConsumer(kafka, f"{topic}-group", topic, start, lambda _: None, 6_000)
    try:
        deadline = time.monotonic() + 20 * PATIENCE
        while time.monotonic() < deadline:
            for records in consumer.take(1, 0.2).get(0, []):
                if len(records.offsets):
                    return records.values[0]
    finally:
        consumer.close()
    return None


async def consume_one(settings: Settings, topic: str) -> bytes | None:
    """The first message of a topic by the client within Faust."""
    from aiokafka import AIOKafkaConsumer

    auth = credentials_to_aiokafka_auth(credentials_of(settings.kafka_connection))
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest", **auth)
    await consumer.start()
    try:
        message = await asyncio.wait_for(consumer.getone(), 20 * PATIENCE)
        value: bytes | None = message.value
        return value
    finally:
        await consumer.stop()


@pytest.mark.parametrize(("protocol", "mechanism"), WAYS)
def test_each_client_is_let_in(
    brokers: KafkaCluster, secured: Callable[..., Settings], protocol: str, mechanism: str
) -> None:
    settings, topic = secured(protocol, mechanism), f"{protocol}-{mechanism}".lower()
    brokers.create_topic(topic)
    kafka = settings.kafka_connection
    assert topic in Admin(kafka).partitions()
    producer = TransactionalProducer(kafka, topic)
    producer.open()
    producer.write([Record(topic, b"a value", b"a key", 0)])
    assert [m.value() for m in read_to_end(kafka, topic, 0)] == [b"a value"]
    assert fetch_one(settings, topic) == b"a value"
    assert asyncio.run(consume_one(settings, topic)) == b"a value"


def refusals(settings: Settings, address: tuple[str, int]) -> list[str]:
    """What librdkafka's admin client and our own fetcher say."""
    with pytest.raises(Denied) as by_admin:
        Admin(settings.kafka_connection, timeout_s=5.0).partitions(5.0)
    with pytest.raises((Denied, OSError)) as by_fetcher:
        Connector(settings.kafka_connection).open(address, 5.0)
    return [str(by_admin.value), str(by_fetcher.value)]


def address_of(brokers: KafkaCluster, protocol: str) -> tuple[str, int]:
    host, port = brokers.address(1, protocol).split(":")
    return host, int(port)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_named(brokers: KafkaCluster, secured: Callable[..., Settings], mechanism: str) -> None:
    settings = secured("SASL_SSL", mechanism, kafka_password=SecretStr("no-such-password"))
    for refusal in refusals(settings, address_of(brokers, "SASL_SSL")):
        assert "credentials" in refusal
        assert "no-such-password" not in refusal


@pytest.mark.parametrize(
    ("listener", "protocol", "explanation"),
    [
        ("SSL", "PLAINTEXT", "brokers close the connection .*kafka_security_protocol"),
        ("SASL_SSL", "SASL_PLAINTEXT", "brokers close the connection .*kafka_security_protocol"),
        ("PLAINTEXT", "SSL", "SSL .*kafka_security_protocol"),
        ("SSL", "SASL_SSL", "set kafka_security_protocol"),
    ],
)
def test_a_listener_of_another_protocol_is_named(
    brokers: KafkaCluster, secured: Callable[..., Settings], listener: str, protocol: str, explanation: str
) -> None:
    settings = (secured(protocol, "PLAIN") if protocol != "PLAINTEXT" else secured("SSL", kafka_ca="")).model_copy(
        update={"kafka": brokers.addresses(listener), "kafka_security_protocol": protocol}
    )
    with pytest.raises(Unavailable, match=explanation):
        Admin(settings.kafka_connection).partitions(2.0)


def test_an_authority_that_is_not_trusted_is_named(
    brokers: KafkaCluster, secured: Callable[..., Settings], tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    settings = secured("SASL_SSL", "PLAIN", kafka_ca=str(stranger.file))
    for refusal in refusals(settings, address_of(brokers, "SASL_SSL")):
        assert "certificate" in refusal


def test_a_file_that_is_missing_is_named(secured: Callable[..., Settings], tmp_path: Path) -> None:
    settings = secured("SASL_SSL", "PLAIN", kafka_ca=str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match="kafka_ca"):
        Connector(settings.kafka_connection)
    with pytest.raises(UserError, match="kafka_ca"):
        Admin(settings.kafka_connection)


def test_a_token_command_that_fails_is_named(brokers: KafkaCluster, secured: Callable[..., Settings]) -> None:
    settings = secured("SASL_SSL", "OAUTHBEARER", kafka_token_command="false")
    with pytest.raises(Denied, match="kafka_token_command"):
        Connector(settings.kafka_connection).open(address_of(brokers, "SASL_SSL"), 5.0)


def test_an_unknown_property_of_the_client_is_named(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"no\.such\.property"):
        Admin(settings.model_copy(update={"kafka_properties": "no.such.property=1"}).kafka_connection)


def test_the_pipeline_is_exact_by_tls_and_password(secured: Callable[..., Settings], tmp_path: Path) -> None:
    settings = secured("SASL_SSL", "SCRAM-SHA-512")
    topic_setup.ensure(settings)
    with flow(settings, tmp_path, events=4_000) as running:
        running.start("ingest-0")
        running.start("stream-0")
        running.send()
        running.wait_until_exact(60)


def test_another_cluster_than_the_one_redis_knows_is_refused(
    secured: Callable[..., Settings], settings: Settings
) -> None:
    check_cluster(settings)
    check_cluster(settings)
    with pytest.raises(UserError, match="belongs to cluster"):
        check_cluster(secured("SASL_SSL", "PLAIN"))
