"""Tokens for Kafka from an OIDC provider's token endpoint: one for all three clients, and a line for each way in which there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.errors import Denied
from infra.kafka.admin import Admin
from infra.kafka.records import Record
from infra.kafka.sasl import Connector
from infra.kafka.tokens import TokenSource, token_of
from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings
from tests.clusters.certificates import Authority
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.token_endpoint import TokenEndpoint
from tests.integration.test_secured_kafka import consume_one, fetch_one

SECRET = "a:b c%+é"


@pytest.fixture
def open_endpoint() -> Iterator[Callable[..., TokenEndpoint]]:
    endpoints = list[TokenEndpoint]()

    def make(**options: object) -> TokenEndpoint:
        endpoints.append(TokenEndpoint("adclick", SECRET, "alice", **options))  # type: ignore[arg-type]
        return endpoints[-1]

    yield make
    for endpoint in endpoints:
        endpoint.stop()


def source_of(endpoint: TokenEndpoint) -> TokenSource:
    return TokenSource("", endpoint.url, "adclick", SECRET, "kafka")


def test_all_clients_are_let_in_with_one_token(
    secured_kafka: KafkaCluster, settings: Settings, open_endpoint: Callable[..., TokenEndpoint]
) -> None:
    endpoint, topic = open_endpoint(), f"{settings.namespace}oidc"
    secured_kafka.create_topic(topic)
    changes = {
        "kafka": secured_kafka.addresses("SASL_SSL"), "kafka_security_protocol": "SASL_SSL",
        "kafka_ca": str(secured_kafka.authority.file), "kafka_sasl_mechanism": "OAUTHBEARER",
        "kafka_oidc_endpoint": endpoint.url, "kafka_oidc_client_id": "adclick",
        "kafka_oidc_client_secret": SecretStr(SECRET), "kafka_oidc_scope": "kafka",
    }  # fmt: skip
    settings = settings.model_copy(update=changes)
    kafka = settings.kafka_connection
    producer = TransactionalProducer(kafka, topic)
    producer.open()
    producer.write([Record(topic, b"a value", b"a key", 0)])
    assert topic in Admin(kafka).partitions()
    assert fetch_one(settings, topic) == b"a value"
    assert asyncio.run(consume_one(settings, topic)) == b"a value"
    assert endpoint.forms == [{"grant_type": "client_credentials", "scope": "kafka"}]


def test_a_wrong_secret_is_named_by_librdkafka_and_by_our_own_reader(
    secured_kafka: KafkaCluster, settings: Settings, open_endpoint: Callable[..., TokenEndpoint]
) -> None:
    endpoint = open_endpoint()
    changes = {
        "kafka": secured_kafka.addresses("SASL_PLAINTEXT"), "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_mechanism": "OAUTHBEARER", "kafka_oidc_endpoint": endpoint.url,
        "kafka_oidc_client_id": "adclick", "kafka_oidc_client_secret": SecretStr("hunter2"),
    }  # fmt: skip
    kafka = settings.model_copy(update=changes).kafka_connection
    host, port = secured_kafka.address(1, "SASL_PLAINTEXT").split(":")
    for call in (
        lambda: Admin(kafka, timeout_s=3.0).partitions(3.0),
        lambda: Connector(kafka).open((host, int(port)), 3.0),
    ):
        with pytest.raises(Denied) as refusal:
            call()
        line = str(refusal.value)
        assert f"the token endpoint {endpoint.url} answers 401: invalid_client" in line
        assert "hunter2" not in line and "\n" not in line


def test_a_token_that_a_broker_refuses_is_named_at_once(
    secured_kafka: KafkaCluster, settings: Settings, open_endpoint: Callable[..., TokenEndpoint]
) -> None:
    """A broker refuses a token by a challenge, which is no error in its protocol."""
    changes = {
        "kafka": secured_kafka.addresses("SASL_PLAINTEXT"), "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_mechanism": "OAUTHBEARER", "kafka_oidc_endpoint": open_endpoint(lifetime_s=-60).url,
        "kafka_oidc_client_id": "adclick", "kafka_oidc_client_secret": SecretStr(SECRET),
    }  # fmt: skip
    host, port = secured_kafka.address(1, "SASL_PLAINTEXT").split(":")
    connector = Connector(settings.model_copy(update=changes).kafka_connection)
    for call in (connector.open, connector.check):
        with pytest.raises(Denied, match=r"^Kafka: a broker does not accept the token: invalid_token \(correct"):
            call((host, int(port)), 5.0)


def test_a_token_is_shared_for_a_while_and_fetched_again_at_half_its_life(
    open_endpoint: Callable[..., TokenEndpoint],
) -> None:
    endpoint = open_endpoint(lifetime_s=2)
    first = token_of(source_of(endpoint))
    assert token_of(source_of(endpoint)) == first
    time.sleep(1.2)
    assert token_of(source_of(endpoint))[1] > first[1]
    assert len(endpoint.forms) == 2


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>", "gives no token that expires"),
        (200, b"[]", "gives no token that expires"),
        (200, b'{"access_token": "opaque"}', "gives no token that expires"),
        (503, b"busy", "answers 503"),
        (99, b"", "gives no answer in HTTP"),
        (400, b'{"error": "invalid_scope"}', "answers 400: invalid_scope"),
    ],
)
def test_an_endpoint_without_a_token_is_refused_in_one_line(
    open_endpoint: Callable[..., TokenEndpoint], status: int, body: bytes, expected: str
) -> None:
    endpoint = open_endpoint()
    endpoint.reply = status, body
    with pytest.raises(Denied) as refusal:
        token_of(source_of(endpoint))
    line = str(refusal.value)
    assert line.partition(" (")[0] == f"Kafka: the token endpoint {endpoint.url} {expected}"
    assert SECRET not in line


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(open_endpoint: Callable[..., TokenEndpoint], status: int) -> None:
    endpoint, other = open_endpoint(), open_endpoint()
    endpoint.reply, endpoint.location = (status, b""), other.url
    with pytest.raises(Denied, match=rf"^Kafka: the token endpoint {endpoint.url} answers {status} \("):
        token_of(source_of(endpoint))
    assert other.paths == []


def test_a_secret_does_not_go_through_a_proxy_in_the_clear(
    open_endpoint: Callable[..., TokenEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = open_endpoint()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    with pytest.raises(Denied, match="does not answer"):
        token_of(TokenSource("", "http://idp.invalid/token", "adclick", SECRET))
    assert proxy.paths == []


def test_an_opaque_token_expires_when_the_endpoint_says(open_endpoint: Callable[..., TokenEndpoint]) -> None:
    endpoint = open_endpoint()
    endpoint.reply = 200, b'{"access_token": "opaque", "expires_in": 600}'
    token, expires_at = token_of(source_of(endpoint))
    assert (token, abs(expires_at - time.time() - 600) < 60) == ("opaque", True)


def test_an_endpoint_by_tls_is_trusted_by_its_authority(
    open_endpoint: Callable[..., TokenEndpoint], tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls")
    source = source_of(open_endpoint(identity=authority.issue("localhost")))
    with pytest.raises(Denied, match=r"of an unknown authority .*ADCLICK_KAFKA_OIDC_CA"):
        token_of(source)
    with pytest.raises(Denied, match=r"setting kafka_oidc_ca: .*missing.pem cannot be read"):
        token_of(replace(source, ca=str(tmp_path / "missing.pem")))
    assert token_of(replace(source, ca=str(authority.file)))[0]


def test_an_endpoint_that_is_away_is_named() -> None:
    with pytest.raises(Denied, match=r"^Kafka: the token endpoint http://127.0.0.1:1/ does not answer: .*refused$"):
        token_of(TokenSource("", "http://127.0.0.1:1/", "adclick", SECRET))
