"""`adclick doctor`: what is missing is named, a line each, and the rest is still tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from pydantic import SecretStr

from infra.doctor import Examination
from infra.kafka import topic_setup
from infra.kafka.admin import Admin
from infra.kafka.probe_producer import ProbeProducer
from infra.kafka.records import Record
from infra.kafka.topics import ARCHIVE, BLOCKS, CANARIES, DEAD_LETTERS, EVENTS, wanted
from infra.redis.client import Redis
from infra.redis.rights import RIGHTS
from infra.settings import Settings
from ingest.canary.marker import encode_canary
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
    assert {outcome["backend"] for outcome in outcomes} == {"settings", "kafka", "redis", "clickhouse", "archive"}
    assert [outcome for outcome in outcomes if outcome["problem"] or outcome["skipped"]] == []


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
    assert named["redis"][0].endswith("(ADCLICK_REDIS is redis://127.0.0.1:1/0)")
    result = adclick("doctor", cwd=None, **environment(wrong))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    checks = [(outcome.backend, outcome.check) for outcome in Examination(settings).outcomes()]
    outcomes = list(Examination(wrong).outcomes())
    assert [(outcome.backend, outcome.check) for outcome in outcomes] == checks
    skipped = [outcome for outcome in outcomes if outcome.skipped]
    assert {(outcome.backend, outcome.skipped) for outcome in skipped} == {
        ("redis", "`answers` failed"), ("clickhouse", "`answers` failed"),
    }  # fmt: skip
    assert f"3 of {len(checks)} checks failed, and {len(skipped)} were skipped" in result.stderr


def test_secrets_that_everybody_knows_and_a_missing_key_are_warned_of(settings: Settings) -> None:
    public = settings.model_copy(update={"user_secret": SecretStr("adclick"), "api_key": SecretStr("")})
    warnings = {o.check: o.warning for o in Examination(public).outcomes(["settings"])}
    assert "ADCLICK_USER_SECRET" in warnings["user_secret"]
    assert "none is set" in warnings["api_key"]
    own = public.model_copy(update={"user_secret": SecretStr("own"), "api_key": SecretStr("own")})
    assert not any(o.warning for o in Examination(own).outcomes(["settings"]))


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


@pytest.mark.parametrize("denied", [("unlink", "del"), ("unlink", "del", "set")])
def test_no_probe_stays_where_it_may_not_be_removed(settings: Settings, denied: tuple[str, ...]) -> None:
    admin, user = Redis(settings.redis), f"u{settings.namespace}"
    rules = f"on >right ~{settings.key_prefix}* +@all {' '.join(f'-{name}' for name in denied)}"
    admin.call("ACL", "SETUSER", user, *rules.split())
    url = urlsplit(settings.redis)
    address = settings.redis.replace(url.netloc, f"{user}:right@{url.hostname}:{url.port}")
    try:
        lines = problems(settings.model_copy(update={"redis": address}))["redis"]
    finally:
        admin.call("ACL", "DELUSER", user)
    assert {line.split()[3] for line in lines} == {f"+{name}:" for name in denied}
    left_ms = [admin.call("PTTL", key) for key in admin.scan_keys(f"{settings.key_prefix}*doctor*")]
    assert all(0 < ms <= 10_000 for ms in left_ms), left_ms


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker at which users may do what ACLs allow them."""
    with KafkaCluster(tmp_path_factory.mktemp("guarded") / "kafka", options=BrokerOptions(acls=True)) as cluster:
        yield cluster


def rule(kind: ResourceType, name: str, operation: AclOperation) -> AclBinding:
    allow, prefix = AclPermissionType.ALLOW, ResourcePatternType.PREFIXED
    return AclBinding(kind, name, prefix, "User:alice", "*", operation, allow)


@pytest.fixture
def alice(guarded: KafkaCluster, settings: Settings) -> Settings:
    """Settings of a user without rights, on topics that are there."""
    topic_setup.ensure(_as_user(guarded, settings, SUPER_USER))
    return _as_user(guarded, settings, "alice")


def _as_user(guarded: KafkaCluster, settings: Settings, user: str) -> Settings:
    return settings.model_copy(
        update={
            "kafka": guarded.addresses("SASL_PLAINTEXT"),
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_mechanism": "PLAIN",
            "kafka_user": user,
            "kafka_password": SecretStr(PASSWORDS[user]),
        }
    )


def _allow(guarded: KafkaCluster, *bindings: AclBinding) -> None:
    admin = guarded.admin()
    for future in admin.create_acls(list(bindings)).values():
        future.result()


def _wait_for(expected: list[str], alice: Settings, process: str) -> None:
    """Brokers hear of rules a moment later."""

    def lines() -> list[str]:
        return problems(alice, process).get("kafka", [])

    wait_until(lambda: lines() == expected, 15, lambda: f"{lines()} in place of {expected}")


def test_rights_that_a_user_lacks_are_named_until_there_are_enough(guarded: KafkaCluster, alice: Settings) -> None:
    n = alice.namespace

    def named() -> list[str]:
        return problems(alice).get("kafka", [])

    # Topics that may not be described do not exist, for this user.
    assert any(f"topic {n}ad-events does not exist" in text for text in named())
    topic, group = ResourceType.TOPIC, ResourceType.GROUP
    _allow(guarded, *_describe(n))
    lacking = f"this user lacks READ, WRITE on topic {n}ad-events"
    wait_until(lambda: lacking in named(), 15, lambda: f"{named()}")
    assert f"this user lacks DESCRIBE, READ on group {n}adclick-ingest" in named()
    # As docs/operating.md says.
    _allow(
        guarded,
        rule(topic, f"{n}ad-", AclOperation.READ),
        rule(topic, f"{n}ad-", AclOperation.WRITE),
        rule(group, f"{n}adclick-", AclOperation.READ),
        rule(group, f"{n}adclick-", AclOperation.DESCRIBE),
    )
    wait_until(lambda: not any("lacks" in text for text in named()), 15, lambda: f"{named()}")
    (left,) = named()
    assert "transactional" in left.lower()
    transactional = ResourceType.TRANSACTIONAL_ID
    rules = [rule(transactional, "adclick", operation) for operation in (AclOperation.WRITE, AclOperation.DESCRIBE)]
    _allow(guarded, *rules)
    try:
        _wait_for([], alice, "")
    finally:
        _forbid_transactions(guarded)


def _forbid_transactions(guarded: KafkaCluster) -> None:
    """Delete the rules on transactional ids, whose names do not begin with the namespace."""
    kind, name, pattern = ResourceType.TRANSACTIONAL_ID, "adclick", ResourcePatternType.PREFIXED
    rules = AclBindingFilter(kind, name, pattern, None, None, AclOperation.ANY, AclPermissionType.ANY)
    admin = guarded.admin()
    for future in admin.delete_acls([rules]).values():
        future.result()


def _describe(namespace: str) -> list[AclBinding]:
    operations = (AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)
    return [rule(ResourceType.TOPIC, f"{namespace}ad-", operation) for operation in operations]


def test_the_sender_of_canaries_needs_to_write_events_and_nothing_else(guarded: KafkaCluster, alice: Settings) -> None:
    events = alice.topic(EVENTS)
    _wait_for([f"topic {events} does not exist, or this user lacks DESCRIBE on it"], alice, "canary")
    allow, literal = AclPermissionType.ALLOW, ResourcePatternType.LITERAL
    _allow(guarded, AclBinding(ResourceType.TOPIC, events, literal, "User:alice", "*", AclOperation.WRITE, allow))
    _wait_for([], alice, "canary")
    assert set(problems(alice.model_copy(update={"redis": "redis://127.0.0.1:1/0"}), "canary")) == set()
    value, headers = encode_canary(1)
    records = [Record(events, value, partition=p, headers=headers) for p in range(2)]
    producer = ProbeProducer(alice.kafka_connection, 10)
    acknowledged = 0

    def are_acknowledged() -> bool:
        nonlocal acknowledged
        acknowledged += producer.send(records, 2.0)[0]
        return acknowledged >= 2

    wait_until(are_acknowledged, 20, "a broker takes canaries")


def test_the_archive_worker_needs_its_topic_and_group_and_no_transactions(
    guarded: KafkaCluster, alice: Settings
) -> None:
    n = alice.namespace
    _allow(guarded, *_describe(n))
    lacking = [
        f"this user lacks READ on topic {n}ad-archive",
        f"this user lacks DESCRIBE, READ on group {n}adclick-archive",
    ]
    _wait_for(lacking, alice, "archive")
    groups = [rule(ResourceType.GROUP, f"{n}adclick-archive", o) for o in (AclOperation.READ, AclOperation.DESCRIBE)]
    _allow(guarded, rule(ResourceType.TOPIC, f"{n}ad-archive", AclOperation.READ), *groups)
    _wait_for([], alice, "archive")


def test_migrate_needs_the_rights_to_change_what_differs_and_no_more(guarded: KafkaCluster, alice: Settings) -> None:
    n = alice.namespace
    _allow(guarded, *_describe(n))
    _wait_for([], alice, "migrate")
    more = alice.model_copy(update={"event_partitions": 3})

    def lacking() -> set[str]:
        return {line for line in problems(more, "migrate")["kafka"] if "lacks" in line}

    assert lacking() == {
        f"this user lacks ALTER on topic {n}{name}" for name in (EVENTS, DEAD_LETTERS, CANARIES, ARCHIVE)
    }
    Admin(_as_user(guarded, alice, SUPER_USER).kafka_connection).configure({f"{n}{BLOCKS}": {"retention.ms": "60000"}})
    expected = [f"this user lacks ALTER_CONFIGS on topic {n}{BLOCKS}"]
    wait_until(
        lambda: [line for line in problems(alice, "migrate")["kafka"] if "lacks" in line] == expected,
        15,
        lambda: f"{problems(alice, 'migrate')}",
    )
    new = alice.model_copy(update={"namespace": f"{n}new_"})
    creating = [line for line in problems(new, "migrate")["kafka"] if "CREATE" in line]
    assert creating == [f"this user lacks CREATE on topic {topic.name}" for topic in wanted(new)]
    assert not any(name.startswith(new.namespace) for name in guarded.admin().list_topics(timeout=10).topics)
