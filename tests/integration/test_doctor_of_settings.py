"""What of topics, tables, clocks, memory and buckets is not as it should be: one line each from `adclick doctor`."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.clickhouse.client import ClickHouse
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from infra.redis.client import Redis
from infra.settings import Settings
from tests.clusters.redis_cluster import RedisNode
from tests.clusters.s3_server import S3Server
from tests.conftest import adclick
from tests.doctor_problems import problems
from tests.flow import environment
from tests.ports import unused_port

# -- topics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cleanup.policy", "compact", "cleanup.policy is compact, it should be delete: messages are then deleted"),
        ("message.timestamp.type", "CreateTime", "message.timestamp.type is CreateTime, it should be LogAppendTime: log time is"),
        ("retention.ms", "60000", "retention.ms is 60000, it should be 604800000"),
        ("min.insync.replicas", "2", "min.insync.replicas is 2, it should be 1"),
        ("max.message.bytes", "1000", "max.message.bytes is 1000, it should be 9437184: larger messages are refused"),
    ],
)  # fmt: skip
def test_a_setting_of_a_topic_that_is_wrong(settings: Settings, key: str, value: str, expected: str) -> None:
    topic = settings.topic("ad-events")
    Admin(settings.kafka_connection).configure({topic: {key: value}})
    ((backend, (line,)),) = problems(settings).items()
    assert (backend, line.startswith(f"topic {topic} {expected}")) == ("kafka", True), line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"event_partitions": 3}, "has 2 partitions, the setting says 3: adclick migrate adds them"),
        ({"block_partitions": 3}, "has 2 partitions, the setting says 3: these cannot grow"),
        ({"event_partitions": 1}, "has partitions that are not read: 1"),
        ({"replication_factor": 3}, "has 1 replica, it should have 3: kafka-reassign-partitions adds some"),
    ],
)
def test_another_number_of_partitions_or_replicas(settings: Settings, changes: dict[str, int], expected: str) -> None:
    named = problems(settings.model_copy(update=changes))
    assert named.keys() == {"kafka"}
    assert {line.partition(" has ")[2] for line in named["kafka"]} == {expected[4:]}


# -- Redis, ClickHouse ----------------------------------------------------------------------------------------------


def test_a_redis_that_evicts(settings: Settings, tmp_path: Path) -> None:
    node = RedisNode(tmp_path / "redis", unused_port(), ("--save", "", "--maxmemory-policy", "allkeys-lru"))
    try:
        node.start()
        wrong = settings.model_copy(update={"redis": f"redis://127.0.0.1:{node.port}/0"})
        ((backend, (line,)),) = problems(wrong).items()
        assert (backend, "allkeys-lru" in line, "noeviction" in line) == ("redis", True, True), line
        result = adclick("ingest", cwd=None, **environment(wrong))
        assert (result.returncode, "allkeys-lru" in result.stderr, "Traceback" in result.stderr) == (1, True, False)
    finally:
        node.kill()


def test_a_table_of_an_older_schema(settings: Settings) -> None:
    client = ClickHouse.of(settings)
    client.command(f"ALTER TABLE {settings.database}.stream_hours DROP COLUMN late_clicks")
    expected = "has a table of an older schema: stream_hours lacks late_clicks (restore it; or drop it, and adclick migrate makes it again)"
    assert problems(settings) == {"clickhouse": [f"database {settings.database} {expected}"]}
    result = adclick("serve", cwd=None, **environment(settings))
    assert result.returncode == 1
    assert result.stderr.strip() == f"adclick: ClickHouse's database {settings.database} {expected}"


def test_a_database_of_an_older_release(settings: Settings) -> None:
    client = ClickHouse.of(settings)
    client.command(f"DELETE FROM {settings.database}.migrations WHERE name = '023_reach.sql'")
    expected = f"database {settings.database} lacks the tables of 023_reach.sql (adclick migrate makes them)"
    assert problems(settings) == {"clickhouse": [expected]}


@pytest.mark.parametrize("process", ["ingest", "archive"])
def test_a_clickhouse_that_a_process_does_not_use_is_not_tried(settings: Settings, process: str) -> None:
    assert problems(settings.model_copy(update={"clickhouse": "http://127.0.0.1:1"}), process) == {}


def test_a_redis_that_no_worker_used_is_not_given_to_this_kafka(settings: Settings) -> None:
    assert problems(settings) == {}
    assert Redis(settings.redis).scan_keys(f"{settings.key_prefix}kafka") == []


# -- clocks ---------------------------------------------------------------------------------------------------------


def test_clocks_that_are_ten_seconds_ahead_of_this_machines_are_named(settings: Settings) -> None:
    producer = EventProducer(settings.kafka_connection)
    producer.send(settings.topic("ad-events"), [b"key"], [b"{}"])
    producer.flush(10)
    named = problems(settings, clock=lambda: time.time() - 10.2)
    assert list(named) == ["kafka", "redis", "clickhouse"]
    for (line,), clock in zip(named.values(), ("Kafka", "Redis at 127", "ClickHouse"), strict=True):
        assert line.startswith(f"the clock of {clock}")
        seconds = float(line.split(" s ahead of this machine's")[0].rpartition(" ")[2])
        # A message has lain there for a while.
        assert (5.0 if clock == "Kafka" else 9.5) < seconds < 10.3, line


def test_clocks_that_are_behind_are_named_where_they_can_be_asked(settings: Settings) -> None:
    named = problems(settings, clock=lambda: time.time() + 10.2)
    assert list(named) == ["redis", "clickhouse"]
    assert all(" s behind this machine's: set both by NTP" in line for (line,) in named.values())


# -- the archive ----------------------------------------------------------------------------------------------------

_ACTIONS = ("s3:ListBucket", "s3:PutObject", "s3:GetObject", "s3:DeleteObject")


@pytest.fixture
def guarded_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[str, ...]], str]]:
    """A function that makes a bucket and a user who may do only these things with it, and has this process be that user."""
    import boto3

    s3_server.make_bucket("guarded")

    def as_user(actions: tuple[str, ...]) -> str:
        iam = boto3.client("iam", endpoint_url=s3_server.url, region_name="us-east-1")
        name = f"user{len(actions)}-{time.monotonic_ns()}"
        iam.create_user(UserName=name)
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]}
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        _check_rights_after(s3_server, 0)
        return "s3://guarded/archive"

    yield as_user
    _check_rights_after(s3_server, 1 << 30)


def _check_rights_after(server: S3Server, requests: int) -> None:
    """The store checks rights of all requests but of so many first ones."""
    request = urllib.request.Request(
        f"{server.url}/moto-api/reset-auth", str(requests).encode(), {"Content-Type": "text/plain"}
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


@pytest.mark.parametrize(
    ("process", "lacking"),
    [(process, action) for process in ("", "archive") for action in _ACTIONS]
    + [("others", "s3:ListBucket"), ("others", "s3:GetObject")],
)
def test_each_right_that_is_missing_in_a_bucket_is_named(
    settings: Settings, guarded_bucket: Callable[[tuple[str, ...]], str], process: str, lacking: str
) -> None:
    archive = guarded_bucket(tuple(action for action in _ACTIONS if action != lacking))
    ((backend, (line,)),) = problems(settings.model_copy(update={"archive": archive}), process).items()
    assert (backend, line.startswith("this user may not "), f"({lacking}): " in line) == ("archive", True, True), line


def test_reading_the_archive_takes_no_right_to_write_there(
    settings: Settings, guarded_bucket: Callable[[tuple[str, ...]], str]
) -> None:
    archive = guarded_bucket(("s3:ListBucket", "s3:GetObject"))
    assert problems(settings.model_copy(update={"archive": archive}), "others") == {}


@pytest.mark.parametrize("process", ["migrate", "ingest", "stream"])
def test_an_archive_that_a_process_does_not_use_is_not_tried(settings: Settings, process: str) -> None:
    assert problems(settings.model_copy(update={"archive": "/no/such/folder"}), process) == {}


@pytest.mark.parametrize("process", ["", "archive", "others"])
def test_a_folder_that_does_not_exist_is_named_and_not_made(settings: Settings, tmp_path: Path, process: str) -> None:
    mistyped = tmp_path / "achive" / "clicks"
    lines = [f"folder {mistyped} does not exist: make it, or correct ADCLICK_ARCHIVE"]
    assert problems(settings.model_copy(update={"archive": str(mistyped)}), process) == {"archive": lines}
    assert not mistyped.parent.exists()


def test_a_user_of_a_bucket_with_all_rights_is_told_nothing(
    settings: Settings, guarded_bucket: Callable[[tuple[str, ...]], str]
) -> None:
    assert problems(settings.model_copy(update={"archive": guarded_bucket(_ACTIONS)})) == {}
