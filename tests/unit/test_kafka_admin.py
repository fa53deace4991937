"""What brokers answer about topics, when some of them are away."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import confluent_kafka
import pytest

from infra.errors import Denied, TimedOut, Unavailable, UserError
from infra.kafka import admin as kafka_admin
from infra.kafka.admin import Admin, RenewedAdmin
from infra.kafka.client import ConnectionErrors, explained
from infra.kafka.connection import Connection
from infra.retries import WAITS, patiently
from infra.tls import TlsFiles
from tests.clusters.certificates import Authority

_NO_OFFSET = -1001


class Brokers:
    """An admin client whose brokers answer with these offsets, one list for each request; the last one over and over."""

    def __init__(self, *answers: list[int]) -> None:
        self._answers = list(answers)

    def list_offsets(self, request: dict[Any, Any], **_options: Any) -> dict[Any, Future[Any]]:
        offsets = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        futures = dict[Any, Future[Any]]()
        for place in request:
            futures[place] = Future()
            futures[place].set_result(SimpleNamespace(offset=offsets[place.partition]))
        return futures

    def poll(self, _timeout_s: float) -> None:
        """Nothing has happened."""


def admin_of(brokers: Brokers, timeout_s: float) -> Admin:
    admin = Admin(Connection("127.0.0.1:1"), timeout_s=timeout_s)
    admin._client = brokers
    return admin


def test_the_end_of_a_partition_without_a_leader_is_waited_for() -> None:
    brokers = Brokers([7, _NO_OFFSET], [7, _NO_OFFSET], [7, 5])
    assert admin_of(brokers, 10.0).high_watermarks("topic", 2) == [7, 5]


def test_the_end_of_a_partition_that_gets_no_leader_is_not_known() -> None:
    with pytest.raises(Unavailable, match="topic/1"):
        admin_of(Brokers([7, _NO_OFFSET]), 0.3).ends("topic", 2)


def _connection_errors(*errors: tuple[int, str]) -> ConnectionErrors:
    reported = ConnectionErrors()
    for code, text in errors:
        reported.on_error(confluent_kafka.KafkaError(code, text))
    return reported


_NO_ANSWER = TimedOut("Kafka: Local: Timed out", backend="kafka")
_REFUSED = "failed: Connection refused (after 0ms in state CONNECT, 3 identical error(s) suppressed)"
_DOWN = (confluent_kafka.KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")


@pytest.mark.parametrize(
    ("errors", "explanation"),
    [
        ([], "Kafka: Local: Timed out"),
        (
            [(confluent_kafka.KafkaError._TRANSPORT, f"one:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 {_REFUSED}"), _DOWN],
            "Kafka: one:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused",
        ),
        (
            [(confluent_kafka.KafkaError._RESOLVE, "kafka-0.internal:9092/1: Failed to resolve 'kafka-0.internal:9092': no (after 5ms in state CONNECT)")],
            "Kafka: kafka-0.internal:9092/1: Failed to resolve 'kafka-0.internal:9092': no (start that broker; "
            "if it runs, its advertised.listeners must name an address that is reached from here)",
        ),
        (
            [_DOWN],
            "Kafka: brokers close the connection (kafka_security_protocol must be that of the brokers' listener "
            "at this address; their log says more)",
        ),
    ],
)  # fmt: skip
def test_a_call_without_an_answer_says_which_connection_failed(errors: list[tuple[int, str]], explanation: str) -> None:
    reported = _connection_errors(*errors)
    decision = reported.explain(_NO_ANSWER)
    assert (type(decision), str(decision), decision.backend) == (TimedOut, explanation, "kafka")
    reported.forget()
    assert reported.explain(_NO_ANSWER) is _NO_ANSWER


def test_what_a_broker_refuses_needs_no_other_explanation() -> None:
    denied = Denied("Kafka: no", backend="kafka", code="TOPIC_AUTHORIZATION_FAILED")
    assert _connection_errors(_DOWN).explain(denied) is denied


def test_a_watch_makes_its_client_anew_after_a_failure_and_reports_one_that_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired, renewed = Mock(), Mock()
    expired.brokers.side_effect = [3, Denied("Kafka: its certificate has expired", backend="kafka")]
    renewed.brokers.return_value = 4
    being_replaced = UserError("setting kafka_key: it is not the key of the certificate")
    monkeypatch.setattr(kafka_admin, "Admin", Mock(side_effect=[expired, being_replaced, renewed]))
    watch = RenewedAdmin(Connection("127.0.0.1:1"), Mock())

    def count_brokers() -> int:
        return watch.call(lambda admin: admin.brokers())

    assert count_brokers() == 3
    with pytest.raises(Denied):
        count_brokers()
    assert not WAITS.reasons()
    with pytest.raises(UserError):
        count_brokers()
    assert WAITS.reasons() == {"watch": "watch: setting kafka_key: it is not the key of the certificate"}
    assert not WAITS.holds_counting_up()
    assert count_brokers() == 4 and not WAITS.reasons()


def test_files_that_are_being_replaced_do_not_make_an_outage_an_error_that_ends_a_worker(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    former, renewed = authority.issue("former", ()), authority.issue("renewed", ())
    kafka = Connection("127.0.0.1:1", TlsFiles("kafka", "", str(renewed.certificate), str(former.key)))
    calls = list[int]()

    def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise explained(kafka, _NO_ANSWER)
        return "works again"

    assert patiently(call, threading.Event(), Mock()) == "works again"
    with pytest.raises(Denied, match=r"^Kafka: setting kafka_key: .* is not the key of the certificate in "):
        raise explained(kafka, _NO_ANSWER)
