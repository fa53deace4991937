"""Our clients, of which there are three kinds, at brokers that want TLS and credentials."""

from __future__ import annotations

import asyncio
import ssl
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
from tests.clusters.certificates import LOOPBACK, Authority
from tests.clusters.kafka_cluster import KafkaCluster, unsecured_token
from tests.clusters.kafka_config import PASSWORDS
from tests.flow import flow
from tests.product import PATIENCE
from tests.tls_proxy import TlsProxy

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

    kafka = settings.kafka_connection
    auth = credentials_to_aiokafka_auth(credentials_of(kafka, None if kafka.tls is None else kafka.tls.context()))
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.kafka, auto_offset_reset="earliest", **auth)
    try:
        await consumer.start()
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


def test_a_certificate_may_have_its_key_in_the_same_file(
    brokers: KafkaCluster, secured: Callable[..., Settings]
) -> None:
    kafka = secured("SSL", kafka_certificate=str(brokers.certificate.keystore), kafka_key="").kafka_connection
    assert Admin(kafka, timeout_s=5.0).brokers() == 1
    Connector(kafka).check(address_of(brokers, "SSL"), 5.0)


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


@pytest.mark.parametrize(
    ("hosts", "expired", "problem", "openssl"),
    [
        (LOOPBACK, True, "its certificate has expired", "certificate has expired"),
        (["other.example.test"], False, "its certificate is for another IP address", "IP address mismatch"),
    ],
    ids=["expired", "other host"],
)
def test_a_certificate_of_a_broker_that_is_wrong_is_a_line_of_each_client(
    brokers: KafkaCluster, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    hosts: list[str], expired: bool, problem: str, openssl: str,
) -> None:  # fmt: skip
    authority = Authority(tmp_path / "tls")
    server = authority.issue("server", hosts, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    proxy = TlsProxy(f"kafka://{brokers.addresses()}", context)
    changes = {"kafka": f"127.0.0.1:{proxy.port}", "kafka_security_protocol": "SSL", "kafka_ca": str(authority.file)}
    settings = settings.model_copy(update=changes)
    kafka = settings.kafka_connection
    try:
        for call in (
            lambda: Admin(kafka, timeout_s=3.0).partitions(3.0),
            lambda: TransactionalProducer(kafka, "refused").open(3.0),
            lambda: Connector(kafka).open(("127.0.0.1", proxy.port), 3.0),
        ):
            with pytest.raises(Denied) as error:
                call()
            assert str(error.value).startswith(f"Kafka: {problem} (")
        with pytest.raises(Exception, match="Unable to bootstrap") as bootstrap:
            asyncio.run(consume_one(settings, "refused"))
    finally:
        proxy.stop()
    assert len(str(bootstrap.value).splitlines()) == 1
    lines = [
        record for record in caplog.records if record.name.startswith("aiokafka") and openssl in record.getMessage()
    ]
    assert lines
    assert all(record.exc_info is None and "\n" not in record.getMessage() for record in lines)


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
