"""The Kafka clusters that other tests start: each protocol and mechanism lets the right clients in, and three brokers survive one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.clusters.certificates import Authority
from tests.clusters.kafka_cluster import KafkaCluster, unsecured_token
from tests.clusters.kafka_config import MECHANISMS, BrokerOptions
from tests.product import PATIENCE, wait_until

_SASL = [(protocol, mechanism) for protocol in ("SASL_PLAINTEXT", "SASL_SSL") for mechanism in MECHANISMS]


def send(config: dict[str, Any], topic: str, *values: bytes) -> list[KafkaError | None]:
    """Produce, and return how each message fared."""
    errors = list[KafkaError | None]()
    producer = Producer(config | {"enable.idempotence": True})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20 * PATIENCE) == 0
    return errors


def receive(config: dict[str, Any], topic: str, count: int) -> list[bytes]:
    """Read so many messages from the beginning of a topic, as a member of a group. Raises KafkaException."""
    consumer = Consumer(config | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    values = list[bytes]()
    deadline = time.monotonic() + 20 * PATIENCE
    try:
        consumer.subscribe([topic])
        while len(values) < count and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            values.append(message.value())
    finally:
        consumer.close()
    return values


def assert_refused(config: dict[str, Any], because: str) -> None:
    """No broker takes the client, for a reason that has this text in it."""
    reasons = list[str]()
    client = AdminClient(config | {"error_cb": lambda error: reasons.append(str(error))})

    def is_refused() -> bool:
        client.poll(0.1)
        return any(because in reason for reason in reasons)

    wait_until(is_refused, 10, lambda: f"it is refused ({because}): {reasons[:2]}")


@pytest.fixture
def topic(secured_kafka: KafkaCluster) -> str:
    name = f"t{uuid.uuid4().hex[:8]}"
    secured_kafka.create_topic(name, 2)
    return name


@pytest.mark.parametrize(("protocol", "mechanism"), [("PLAINTEXT", ""), ("SSL", ""), *_SASL])
def test_messages_pass_by_each_protocol_and_mechanism(
    secured_kafka: KafkaCluster, topic: str, protocol: str, mechanism: str
) -> None:
    config = secured_kafka.client_config(protocol, mechanism)
    assert send(config, topic, b"a", b"b") == [None, None]
    assert sorted(receive(config, topic, 2)) == [b"a", b"b"]


def test_a_client_may_show_a_certificate(secured_kafka: KafkaCluster, topic: str) -> None:
    config = secured_kafka.client_config("SSL", certificate=secured_kafka.certificate)
    assert send(config, topic, b"a") == [None]
    encrypted = secured_kafka.authority.issue("bob", (), password="key-secret")
    config = secured_kafka.client_config("SSL", certificate=encrypted)
    assert send(config | {"ssl.key.password": "key-secret"}, topic, b"b") == [None]
    with pytest.raises(KafkaException, match=r"ssl\.key"):
        Producer(config | {"ssl.key.password": "wrong"})
    stranger = Authority(secured_kafka.certificate.key.parent / "strange").issue("alice", ())
    assert_refused(secured_kafka.client_config("SSL", certificate=stranger), "certificate unknown")


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused(secured_kafka: KafkaCluster, protocol: str, mechanism: str) -> None:
    assert_refused(secured_kafka.client_config(protocol, mechanism, password="wrong"), "uthentication failed")


def test_a_token_that_has_expired_is_refused(secured_kafka: KafkaCluster) -> None:
    config = secured_kafka.client_config("SASL_PLAINTEXT", "OAUTHBEARER")
    config["oauth_cb"] = lambda _: (unsecured_token("alice", -60), time.time() + 3_600)
    assert_refused(config, "invalid_token")


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_an_authority_that_a_client_does_not_know_is_refused(
    secured_kafka: KafkaCluster, protocol: str, tmp_path: Path
) -> None:
    other = {"ssl.ca.location": str(Authority(tmp_path).file)}
    assert_refused(secured_kafka.client_config(protocol) | other, "certificate verify failed")


@pytest.mark.parametrize("wrong", ["other-host", "expired"])
def test_a_wrong_certificate_of_a_broker_is_refused(wrong: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "other")
    hosts = ["elsewhere.example.test"] if wrong == "other-host" else ["127.0.0.1"]
    server = authority.issue("broker", hosts, expired=wrong == "expired")
    with KafkaCluster(tmp_path / "kafka", server=server) as cluster:
        config = cluster.client_config("SSL") | {"ssl.ca.location": str(authority.file)}
        assert_refused(config, "certificate verify failed")
        topic = f"t{uuid.uuid4().hex[:8]}"
        cluster.create_topic(topic)
        if wrong == "other-host":
            unchecked = config | {"ssl.endpoint.identification.algorithm": "none"}
            assert send(unchecked, topic, b"a") == [None]


def test_acls_let_a_user_do_what_they_allow_alone(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path, options=BrokerOptions(acls=True)) as cluster:
        cluster.create_topic("open")
        cluster.create_topic("closed")
        rule = AclBinding(
            ResourceType.TOPIC, "open", ResourcePatternType.LITERAL, "User:alice", "*", AclOperation.WRITE, AclPermissionType.ALLOW
        )  # fmt: skip
        admin = cluster.admin()
        for future in admin.create_acls([rule]).values():
            future.result(10 * PATIENCE)
        alice = cluster.client_config("SASL_SSL", "SCRAM-SHA-512") | {"message.timeout.ms": 3_000}
        wait_until(lambda: send(alice, "open", b"a") == [None], 10, "the ACL is known to the broker")
        by_certificate = cluster.client_config("SSL", certificate=cluster.certificate)
        assert send(by_certificate, "open", b"b") == [None]
        for config in (alice, cluster.client_config(), cluster.client_config("SSL")):
            (error,) = send(config | {"message.timeout.ms": 3_000}, "closed", b"c")
            assert error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
        super_user = cluster.client_config("SASL_SSL", user="admin")
        assert send(super_user, "closed", b"d") == [None]


def test_a_broker_that_was_killed_comes_back_with_its_messages(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path, proxied="PLAINTEXT") as cluster:
        cluster.create_topic("events")
        config = cluster.client_config()
        assert send(config, "events", b"a") == [None]
        cluster.kill(1)
        assert cluster.running == []
        cluster.restart(1)
        assert send(config, "events", b"b") == [None]
        assert receive(config, "events", 2) == [b"a", b"b"]
        # Clients reach it by the proxy alone.
        cluster.proxies[1].cut()
        (error,) = send(config | {"message.timeout.ms": 1_000}, "events", b"c")
        assert error is not None and error.code() == KafkaError._MSG_TIMED_OUT
        cluster.proxies[1].restore()
        assert send(config, "events", b"d") == [None]


@pytest.fixture(scope="module")
def three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("three"), 3) as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["kill", "stop", "halt"])
def test_three_brokers_go_on_without_the_leader_and_take_it_back(three_brokers: KafkaCluster, how: str) -> None:
    cluster, topic = three_brokers, f"{how}-events"
    cluster.create_topic(topic)
    config = cluster.client_config("SASL_SSL", "SCRAM-SHA-256")
    assert send(config, topic, b"a") == [None]
    leader = cluster.leader_of(topic)
    assert leader is not None
    getattr(cluster, how)(leader)
    assert send(config, topic, b"b") == [None]
    assert cluster.leader_of(topic) not in (leader, None)
    if how == "halt":
        cluster.resume(leader)
        cluster.wait_until_ready()
    else:
        cluster.restart(leader)
    assert receive(config, topic, 2) == [b"a", b"b"]
    assert cluster.running == [1, 2, 3]
