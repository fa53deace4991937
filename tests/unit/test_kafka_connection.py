"""How Kafka is reached, as settings say it, in the form of librdkafka; and what settings are refused."""

from __future__ import annotations

import json
import shlex
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from infra.errors import Denied, UserError
from infra.kafka import sasl, tokens
from infra.kafka.connection import Connection, Sasl
from infra.kafka.tokens import TokenSource, token_of
from infra.settings import resolve
from tests.clusters.kafka_cluster import unsecured_token

USER = {"KAFKA_USER": "alice", "KAFKA_PASSWORD": "hunter2"}

OIDC = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "OAUTHBEARER", "KAFKA_OIDC_ENDPOINT": "https://idp/token",
    "KAFKA_OIDC_CLIENT_ID": "adclick", "KAFKA_OIDC_CLIENT_SECRET": "hunter2",
}  # fmt: skip


def given(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ADCLICK_{name}", value)


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "needs kafka_user and kafka_password"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_USER": "alice"}, "needs kafka_user and kafka_password"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "OAUTHBEARER"}, "needs kafka_token_command"),
        (
            OIDC | {"KAFKA_OIDC_CLIENT_ID": ""},
            "needs kafka_token_command, or kafka_oidc_endpoint, kafka_oidc_client_id, kafka_",
        ),
        (
            OIDC | {"KAFKA_TOKEN_COMMAND": "cat token"},
            "takes kafka_token_command or kafka_oidc_endpoint, and both are set",
        ),
        (OIDC | {"KAFKA_SECURITY_PROTOCOL": "SSL"}, "must begin with SASL"),
        (OIDC | {"KAFKA_OIDC_ENDPOINT": "idp.example.test"}, "kafka_oidc_endpoint is wrong: must begin with http"),
        (
            OIDC | {"KAFKA_OIDC_ENDPOINT": "http://idp.example.test/token"},
            "must begin with https://, since the client's",
        ),
        (OIDC | {"KAFKA_OIDC_ENDPOINT": "http://localhost.example.test/token"}, "must begin with https://"),
        (USER, "must begin with SASL"),
        (USER | {"KAFKA_SECURITY_PROTOCOL": "SSL"}, "must begin with SASL"),
        ({"KAFKA_CA": "ca.pem"}, "must end with SSL"),
        (USER | {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_CA": "ca.pem"}, "must end with SSL"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "kafka_security_protocol"),
        ({"KAFKA_PROPERTIES": "client.rack"}, "must be NAME=VALUE"),
        ({"KAFKA_PROPERTIES": "sasl.password=hunter2"}, "must not contain sasl.password"),
        ({"KAFKA_PROPERTIES": "enable.ssl.certificate.verification=false"}, "must not contain enable.ssl.cert"),
        ({"KAFKA_PROPERTIES": "ssl.endpoint.identification.algorithm=none"}, "of all clients of Kafka only librdkafka"),
        ({"KAFKA_PROPERTIES": "security.protocol=PLAINTEXT"}, "must not contain security.protocol"),
        ({"SPARK_PROPERTIES": "executor.memory=1g"}, "must not contain executor.memory"),
        ({"REPLICATION_FACTOR": "2", "MIN_INSYNC_REPLICAS": "3"}, "must not be more than replication_factor"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], why: str
) -> None:
    given(monkeypatch, **variables)
    with pytest.raises(UserError, match=why) as refusal:
        resolve()
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("endpoint", ["http://localhost:8080/token", "http://127.0.0.1/token", "http://[::1]:1/token"])
def test_a_token_endpoint_on_this_machine_may_be_without_tls(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    given(monkeypatch, **OIDC | {"KAFKA_OIDC_ENDPOINT": endpoint})
    assert resolve().settings.kafka_oidc_endpoint == endpoint


def test_a_property_of_librdkafka_takes_precedence_over_ours_and_secrets_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given(
        monkeypatch, **USER, KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_PROPERTIES="client.rack=a, socket.timeout.ms=9"
    )
    settings = resolve().settings
    kafka = settings.kafka_connection
    assert kafka.librdkafka() == {
        "bootstrap.servers": "127.0.0.1:9092",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "alice",
        "sasl.password": "hunter2",
    }
    assert dict(kafka.properties) == {
        "partitioner": "consistent_random",
        "client.rack": "a",
        "socket.timeout.ms": "9",
    }
    assert "hunter2" not in repr(kafka) + repr(settings)
    assert resolve().masked()["kafka_password"][0] == "********"


def test_the_settings_of_an_embedded_stack_are_not_those_of_another_kafka(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, **USER, KAFKA_SECURITY_PROTOCOL="SASL_SSL")
    (tmp_path / "endpoints.json").write_text(json.dumps({"kafka": "127.0.0.1:1"}))
    assert resolve(str(tmp_path)).settings.kafka_connection.protocol == "PLAINTEXT"


def printing(text: str) -> str:
    return shlex.join([sys.executable, "-c", f"print({text!r})"])


def test_a_token_is_what_the_command_prints_and_expires_when_it_says() -> None:
    token = unsecured_token("alice", 600)
    value, expires_at = token_of(TokenSource(printing(token)))
    assert value == token
    assert abs(expires_at - time.time() - 600) < 60


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (printing("no token"), "no JSON web token"),
        (printing(""), "no JSON web token"),
        (shlex.join([sys.executable, "-c", "import sys; sys.exit('not logged in')"]), "ended with 1: not logged in"),
        ("no-such-command-anywhere", "cannot be run"),
        ("'", "cannot be run"),
    ],
)
def test_a_command_that_gives_no_token_is_refused_in_one_line(command: str, why: str) -> None:
    with pytest.raises(Denied, match=why) as refusal:
        token_of(TokenSource(command))
    assert "\n" not in str(refusal.value)


class Provider:
    """In place of the command: prints tokens until `failure` is set. `now`: the time, in epoch seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lifetime_s: float = 600.0) -> None:
        self.now, self.calls, self.failure = 1_000.0, 0, ""
        self._lifetime_s = lifetime_s
        self.shared = tokens._SharedTokens()
        monkeypatch.setattr(tokens, "_printed", self._print)
        monkeypatch.setattr(tokens, "time", SimpleNamespace(time=lambda: self.now))

    def _print(self, _command: str) -> tuple[str, float]:
        self.calls += 1
        if self.failure:
            raise Denied(self.failure, backend="kafka", code="TOKEN")
        return f"token {self.calls}", self.now + self._lifetime_s

    def token(self, command: str = "print") -> str:
        return self.shared.token(TokenSource(command))[0]


def test_a_token_is_used_until_it_expires_while_its_source_gives_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(monkeypatch)
    assert provider.token() == "token 1"
    provider.failure = "away"
    provider.now += 61
    assert [provider.token(), provider.token(), provider.calls] == ["token 1", "token 1", 2]
    provider.now += 538
    assert provider.token() == "token 1"
    provider.now += 2
    with pytest.raises(Denied, match="away"):
        provider.token()
    provider.failure = ""
    provider.now += 5
    assert provider.token() == f"token {provider.calls}"


def test_a_source_that_has_just_failed_is_left_alone_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(monkeypatch)
    provider.failure = "away"
    for _ in range(3):
        with pytest.raises(Denied, match="away"):
            provider.token()
    assert provider.calls == 1
    provider.failure = ""
    provider.now += 5
    assert provider.token() == "token 2"


def test_no_source_waits_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, go_on = tokens._SharedTokens(), threading.Event()

    def print_token(command: str) -> tuple[str, float]:
        assert command != "slow" or go_on.wait(60)
        return command, time.time() + 600

    monkeypatch.setattr(tokens, "_printed", print_token)
    values = list[str]()

    def reading(command: str) -> Callable[[], None]:
        return lambda: values.append(shared.token(TokenSource(command))[0])

    slow, fast = (threading.Thread(target=reading(command), daemon=True) for command in ("slow", "fast"))
    slow.start()
    fast.start()
    fast.join(30)
    assert values == ["fast"]
    go_on.set()
    slow.join(30)
    assert values == ["fast", "slow"]


@pytest.mark.parametrize(
    ("code", "kind", "why"),
    [
        (34, Denied, r"has not accepted the credentials of this connection \(correct the user's credentials\)"),
        (35, OSError, "a broker answers with error 35"),
    ],
)
def test_a_first_request_that_a_broker_refuses_is_no_success(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], why: str
) -> None:
    connector = sasl.Connector(Connection("127.0.0.1:1"))
    monkeypatch.setattr(connector, "open", lambda *_: (MagicMock(), 0.0))
    monkeypatch.setattr(sasl, "_ask", lambda *_: struct.pack(">hi", code, 0))
    with pytest.raises(kind, match=why):
        connector.check(("127.0.0.1", 1), 1.0)


@pytest.mark.parametrize(
    ("challenge", "status"),
    [(b'{"status": "insufficient_scope"}', "insufficient_scope"), (b"\xff", "no status"), (b"[]", "no status")],
)
def test_a_token_that_a_broker_refuses_is_answered_by_one_byte(
    monkeypatch: pytest.MonkeyPatch, challenge: bytes, status: str
) -> None:
    sent = list[bytes]()

    def ask(_connection: object, kind: int, body: bytes) -> bytes:
        if kind == 17:
            return struct.pack(">hi", 0, 0)
        sent.append(body[4:])
        if len(sent) > 1:
            return struct.pack(">hh", 58, 2) + b"no" + struct.pack(">iq", 0, 0)
        return struct.pack(">hhi", 0, -1, len(challenge)) + challenge + struct.pack(">q", 0)

    monkeypatch.setattr(sasl, "_ask", ask)
    monkeypatch.setattr(sasl, "token_of", lambda _: ("a token", 0.0))
    with pytest.raises(Denied, match=f"a broker does not accept the token: {status} "):
        sasl._authenticate(MagicMock(), Sasl("OAUTHBEARER"))
    assert sent == [b"n,,\x01auth=Bearer a token\x01\x01", b"\x01"]
