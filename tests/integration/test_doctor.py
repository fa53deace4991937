"""`adclick doctor`: what is missing is named, a line each, and the rest is still tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from pydantic import SecretStr

from infra.doctor import Examination
from infra.kafka import topic_setup
from infra.redis.client import Redis
from infra.redis.rights import RIGHTS
from infra.settings import Settings
from query.status import read_status
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.kafka_config import PASSWORDS, SUPER_USER, BrokerOptions
from tests.conftest import adclick
from tests.doctor_problems import problems
from tests.flow import environment
from tests.product import wait_until


def test_all_is_well_with_a_stack_that_was_migrated(settings: Settings) -> None:
    result = adclick("doctor", "--json", cwd=None, **environment(settings))
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert {outcome["backend"] for outcome in outcomes} == {"kafka", "redis", "clickhouse", "archive"}
    assert [outcome for outcome in outcomes if outcome["problem"]] == []


def test_each_backend_that_is_away_or_refuses_is_named_and_the_others_are_tried(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    wrong = settings.model_copy(
        update={
            "redis": "redis://127.0.0.1:1/0",
            "clickhouse": settings.clickhouse.replace("http://", "http://nobody:wrong@"),
            "archive": str(tmp_path / "file" / "archive"),
        }
    )
    named = problems(wrong)
    assert set(named) == {"redis", "clickhouse", "archive"}
    assert all(len(texts) == 1 for texts in named.values())
    result = adclick("doctor", cwd=None, **environment(wrong))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "3 of" in result.stderr


def test_what_was_not_migrated_is_named(settings: Settings) -> None:
    named = problems(settings.model_copy(update={"namespace": f"{settings.namespace}new_"}))
    assert any("ad-events does not exist" in text for text in named["kafka"])
    assert any("lacks" in text for text in named["clickhouse"])


def test_a_redis_of_another_kafka_is_named(settings: Settings) -> None:
    redis = Redis(settings.redis)
    redis.call("SET", f"{settings.key_prefix}kafka", "another-cluster")
    assert any("another-cluster" in text for text in problems(settings)["redis"])


@pytest.mark.parametrize("process", RIGHTS)
def test_the_status_is_read_while_doctors_probes_are_there(settings: Settings, process: str) -> None:
    redis = Redis(settings.redis)
    for outcome in Examination(settings, process).outcomes(["redis"]):
        assert redis.scan_keys(f"{settings.key_prefix}ingest:*") == [], outcome.check
        assert outcome.problem == ""
    assert "redis" not in read_status(settings)["problems"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker at which users may do what ACLs allow them."""
    with KafkaCluster(tmp_path_factory.mktemp("guarded") / "kafka", options=BrokerOptions(acls=True)) as cluster:
        yield cluster


def rule(kind: ResourceType, name: str, operation: AclOperation) -> AclBinding:
    allow, prefix = AclPermissionType.ALLOW, ResourcePatternType.PREFIXED
    return AclBinding(kind, name, prefix, "User:alice", "*", operation, allow)


def test_rights_that_a_user_lacks_are_named_until_there_are_enough(guarded: KafkaCluster, settings: Settings) -> None:
    def as_user(user: str) -> Settings:
        return settings.model_copy(
            update={
                "kafka": guarded.addresses("SASL_PLAINTEXT"),
                "kafka_security_protocol": "SASL_PLAINTEXT",
                "kafka_sasl_mechanism": "PLAIN",
                "kafka_user": user,
                "kafka_password": SecretStr(PASSWORDS[user]),
            }
        )

    topic_setup.ensure(as_user(SUPER_USER))
    alice, n = as_user("alice"), settings.namespace
    admin = guarded.admin()

    def allow(*bindings: AclBinding) -> None:
        for future in admin.create_acls(list(bindings)).values():
            future.result()

    def named() -> list[str]:
        return problems(alice).get("kafka", [])

    # Topics that may not be described do not exist, for this user.
    assert any(f"topic {n}ad-events does not exist" in text for text in named())
    topic, group = ResourceType.TOPIC, ResourceType.GROUP
    allow(rule(topic, f"{n}ad-", AclOperation.DESCRIBE), rule(topic, f"{n}ad-", AclOperation.DESCRIBE_CONFIGS))
    lacking = f"this user lacks READ, WRITE on topic {n}ad-events"
    wait_until(lambda: lacking in named(), 15, lambda: f"{named()}")
    assert f"this user lacks DESCRIBE, READ on group {n}adclick-ingest" in named()
    # As docs/operating.md says.
    allow(
        rule(topic, f"{n}ad-", AclOperation.READ),
        rule(topic, f"{n}ad-", AclOperation.WRITE),
        rule(group, f"{n}adclick-", AclOperation.READ),
        rule(group, f"{n}adclick-", AclOperation.DESCRIBE),
    )
    wait_until(lambda: not any("lacks" in text for text in named()), 15, lambda: f"{named()}")
    (left,) = named()
    assert "transactional" in left.lower()
    transactional = ResourceType.TRANSACTIONAL_ID
    allow(*(rule(transactional, "adclick", operation) for operation in (AclOperation.WRITE, AclOperation.DESCRIBE)))
    wait_until(lambda: not named(), 15, lambda: f"{named()}")
