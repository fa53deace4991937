"""Each adapter on the real Kafka, Redis and ClickHouse."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient, ConfigResource

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.embedded import ports
from infra.errors import Aborted, AdclickError, Fenced, OffsetOutOfRange, Unavailable, UserError
from infra.file_store import FileStore
from infra.kafka import stalls, topic_setup, topics
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.consumers import GroupConsumer, read_to_end
from infra.kafka.records import Committed, Record
from infra.kafka.transactions import TransactionalProducer
from infra.redis.client import Redis
from infra.settings import Settings
from tests.ports import unused_port
from tests.product import wait_until


def values(settings: Settings, topic: str, partition: int = 0) -> list[bytes]:
    return [m.value() for m in read_to_end(settings.kafka_connection, settings.topic(topic), partition)]


def test_topics_are_made_once_and_a_different_partition_count_is_refused(settings: Settings) -> None:
    assert topic_setup.ensure(settings) == []
    with pytest.raises(UserError, match="ad-blocks has 2 partitions, the setting says 7"):
        topic_setup.ensure(settings.model_copy(update={"block_partitions": 7}))


def test_the_retention_of_a_topic_follows_the_settings(settings: Settings) -> None:
    topic_setup.ensure(settings.model_copy(update={"blocks_retention_s": 800}))
    blocks, events = (ConfigResource("topic", settings.topic(name)) for name in (topics.BLOCKS, topics.EVENTS))
    client = AdminClient({"bootstrap.servers": settings.kafka})

    def value_of(of: ConfigResource, name: str) -> str:
        return str(client.describe_configs([of])[of].result()[name].value)

    try:
        # The broker answers once the change is in its log, and applies it a moment later.
        wait_until(lambda: value_of(blocks, "retention.ms") == "800000", 10, "the change is applied")
        assert value_of(blocks, "segment.ms") == "100000"
        assert value_of(events, "message.timestamp.type") == "LogAppendTime"
    finally:
        topic_setup.ensure(settings)


def test_topics_that_exist_are_named_when_others_are_made_and_left_as_they_are(settings: Settings) -> None:
    admin, blocks, new = Admin(settings.kafka_connection), settings.topic(topics.BLOCKS), f"{settings.namespace}new"
    assert admin.create({new: (1, {}), blocks: (9, {})}) == {blocks}
    assert (admin.partitions()[new], admin.partitions()[blocks]) == (1, settings.block_partitions)


def test_markers_after_the_last_message_are_no_messages(settings: Settings) -> None:
    topic, admin = settings.topic(topics.BLOCKS), Admin(settings.kafka_connection)
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}markers")
    producer.open()
    producer.write([Record(topic, b"one", b"", 1)])
    # The message, and the marker of its transaction, which follows a moment later.
    wait_until(lambda: admin.ends(topic, 2)[1] == 2, 10, "the marker is there")
    assert stalls.has_message(settings.kafka_connection, topic, 1, 0)
    assert not stalls.has_message(settings.kafka_connection, topic, 1, 1)


def test_a_transaction_is_seen_whole_or_not_at_all(settings: Settings) -> None:
    topic = settings.topic(topics.BLOCKS)
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}a")
    producer.open()
    producer.write([Record(topic, b"1", partition=0), Record(topic, b"2", partition=0)])
    # A record that no broker takes aborts all of its transaction.
    with pytest.raises(Aborted):
        producer.write([Record(topic, b"3", partition=0), Record(topic, b"x" * (5 << 20), partition=0)])
    assert values(settings, topics.BLOCKS) == [b"1", b"2"]


def test_a_successor_fences_its_predecessor(settings: Settings) -> None:
    topic = settings.topic(topics.BLOCKS)
    old, new = (TransactionalProducer(settings.kafka_connection, f"{settings.namespace}same") for _ in range(2))
    old.open()
    old.write([Record(topic, b"old", partition=0)])
    new.open()
    with pytest.raises(Fenced):
        old.write([Record(topic, b"zombie", partition=0)])
    new.write([Record(topic, b"new", partition=0)])
    assert values(settings, topics.BLOCKS) == [b"old", b"new"]


def test_offsets_and_their_metadata_are_committed_with_the_transaction(settings: Settings) -> None:
    topic, group = settings.topic(topics.EVENTS), f"{settings.namespace}g"
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}p")
    producer.open()
    producer.write([Record(topic, b"e", partition=0)])
    consumer = GroupConsumer(settings.kafka_connection, group, topic, lambda ps: dict.fromkeys(ps, 0), lambda _: None)
    try:
        messages: list[Any] = []
        wait_until(lambda: messages.extend(consumer.consume(10, 0.2)) or messages, 20, "the message is read")  # type: ignore[func-returns-value]
        assert [m.value() for m in messages] == [b"e"]
        producer.write([], consumed=[Committed(0, 1, '{"wm":5}')], source=consumer)
        assert consumer.committed([0])[0] == Committed(0, 1, '{"wm":5}')
        assert Admin(settings.kafka_connection).committed(group, topic, 2) == [
            Committed(0, 1, '{"wm":5}'),
            Committed(1, -1, ""),
        ]
    finally:
        consumer.close()


def test_an_offset_that_is_gone_stops_the_reader_and_is_named(settings: Settings) -> None:
    topic = settings.topic(topics.EVENTS)
    consumer = GroupConsumer(
        settings.kafka_connection, f"{settings.namespace}g", topic, lambda ps: dict.fromkeys(ps, 99), lambda _: None
    )
    try:
        with pytest.raises(OffsetOutOfRange, match=f"{topic}/"):
            wait_until(lambda: consumer.consume(10, 0.1), 20, "the reader stops")
    finally:
        consumer.close()


def test_a_member_that_closes_takes_nothing_over_any_more(settings: Settings) -> None:
    topic, group, calls = settings.topic(topics.EVENTS), f"{settings.namespace}g", list[list[int]]()

    def assigned(partitions: list[int]) -> dict[int, int]:
        calls.append(partitions)
        return dict.fromkeys(partitions, 0)

    consumer = GroupConsumer(settings.kafka_connection, group, topic, assigned, calls.append)
    try:
        client = AdminClient({"bootstrap.servers": settings.kafka})

        def has_assigned() -> bool:
            state = client.describe_consumer_groups([group])[group].result().state
            return bool(state == ConsumerGroupState.STABLE)

        # The member has not been told: it consumes nothing.
        wait_until(has_assigned, 20, "the group has assigned its partitions")
    finally:
        consumer.close()
    assert calls == []


def test_a_missing_broker_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        Admin(Connection("127.0.0.1:1")).partitions(0.5)
    with pytest.raises(Unavailable):
        Redis("redis://127.0.0.1:1").call("PING")
    with pytest.raises(Unavailable):
        ClickHouse("http://127.0.0.1:1", "x").rows("SELECT 1")


def test_migrations_are_applied_once_and_rows_replace_themselves(settings: Settings) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    assert apply_migrations(client) == []
    for border in (5, 7, 6, 7):
        row = {"tier": ["hours"], "shard": pa.array([1], pa.uint16()), "border_ms": pa.array([border], pa.uint64())}
        client.insert("tier_borders", pa.table(row | {"watermark_ms": pa.array([border], pa.uint64())}))
    sql = f"SELECT border_ms FROM {settings.database}.tier_borders FINAL WHERE tier = {{tier:String}}"
    assert client.rows(sql, {"tier": "hours"}) == [(7,)]
    assert client.rows(sql, {"tier": "' OR 1=1 --"}) == []


def test_migrate_brings_back_each_table_as_it_was(settings: Settings) -> None:
    client, db = ClickHouse(settings.clickhouse, settings.database), settings.database
    sql = "SELECT name, create_table_query FROM system.tables WHERE database = {db:String} AND name != 'migrations'"
    before = dict(client.rows(sql, {"db": db}))
    for name in before:
        client.command(f"DROP {'VIEW' if name == 'current_runs' else 'TABLE'} {db}.{name} SYNC")
        assert apply_migrations(client) == [name]
        assert apply_migrations(client) == []
    after = dict(client.rows(sql, {"db": db}))
    assert after == before
    for name in before:
        client.command(f"DROP {'VIEW' if name == 'current_runs' else 'TABLE'} {db}.{name} SYNC")
    assert sorted(apply_migrations(client)) == sorted(before)
    assert dict(client.rows(sql, {"db": db})) == before


def test_the_application_cannot_read_files_of_the_host(settings: Settings) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    with pytest.raises(AdclickError, match="privileges"):
        client.rows("SELECT * FROM file('/etc/passwd', 'LineAsString')")


def test_a_lease_has_one_holder(settings: Settings) -> None:
    client, name = Redis(settings.redis), uuid.uuid4().hex
    with client.lease(name, 5, "busy"), pytest.raises(UserError, match="busy"), client.lease(name, 5, "busy"):
        pass
    with client.lease(name, 5, "busy"):
        pass


def test_archive_schema_files_are_named_by_range_and_read_back(tmp_path: Path) -> None:
    from ingest.archive import schema as archive_schema
    from ingest.archive.worker import write_files

    hour = 1_795_132_800_000
    row = dict.fromkeys(archive_schema.SCHEMA.names, 1) | {
        "event_id": "e",
        "time_ms": hour,
        "log_time_ms": hour + 7_200_000,
        "decision": 0,
    }
    late = row | {"decision": archive_schema.Decision.TOO_LATE, "offset": 2}
    files = write_files(
        FileStore(str(tmp_path)), 3, 10, 20, pa.Table.from_pylist([row, late], schema=archive_schema.SCHEMA)
    )
    assert files == [
        "event_date=2026-11-20/hour=00/p0003-000000000000010-000000000000020.parquet",
        "event_date=2026-11-20/hour=02/p0003-000000000000010-000000000000020.parquet",
    ]
    back = pl.concat([pl.read_parquet(tmp_path / f, hive_partitioning=False) for f in files])
    assert back["decision"].cast(pl.String).to_list() == ["counted", "too-late"]
    assert back["partition"].to_list() == [3, 3]
    assert not list(tmp_path.rglob(".p*"))


def test_a_port_of_a_running_stack_is_left_alone_while_nothing_listens_there() -> None:
    port = unused_port()
    claim = f"import time; from infra.embedded.ports import free_port; print(free_port({port}, set()), flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", claim], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == f"{port}\n"
            assert ports.free_port(port, set()) != port
        finally:
            other.kill()
    assert ports.free_port(port, set()) == port


def test_a_stack_that_comes_back_waits_for_its_ports_and_others_look_elsewhere(tmp_path: Path) -> None:
    port = unused_port()
    dying = (
        "import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        f" s.bind(('127.0.0.1', {port})); s.listen(); print('up', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", dying], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == "up\n"
        new = [
            ports.choose_ports(tmp_path / name, {}, {"kafka": port})["kafka"] for name in ("one", "another", "third")
        ]
        threading.Timer(0.5, server.kill).start()
        assert ports.choose_ports(tmp_path, {"kafka": port}, {"kafka": 9092}) == {"kafka": port}
    assert port not in new
    # Places are by a hash of the folder, so two of them may share one.
    assert max(new) - min(new) >= 20
