"""Each adapter on the real Kafka, Redis and ClickHouse."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from infra import topics
from infra.clickhouse.client import ClickHouse, migrate
from infra.columns import Values
from infra.embedded import servers
from infra.errors import AdclickError, Fenced, OffsetOutOfRange, Unavailable, UserError
from infra.file_store import FileStore
from infra.kafka import Admin, GroupConsumer, TransactionalProducer, read_to_end
from infra.records import Committed, Record
from infra.redis import Redis
from infra.settings import Settings
from ingest.dedup.digest import digest
from ingest.dedup.memory import Kept
from ingest.dedup.registry import MemoryLost, Registry, Store
from tests.product import wait_until
from tests.unit.fakes import MemoryStore


def values(settings: Settings, topic: str, partition: int = 0) -> list[bytes]:
    return [m.value() for m in read_to_end(settings.kafka, settings.topic(topic), partition)]


def test_topics_are_made_once_and_a_different_partition_count_is_refused(settings: Settings) -> None:
    assert topics.ensure(settings) == []
    with pytest.raises(UserError, match="ad-blocks has 4 partitions, the setting says 7"):
        topics.ensure(settings.model_copy(update={"block_partitions": 7}))


def test_a_topic_keeps_for_as_long_as_the_settings_say_now(settings: Settings) -> None:
    topics.ensure(settings.model_copy(update={"blocks_retention_s": 800}))
    blocks, events = (ConfigResource("topic", settings.topic(name)) for name in (topics.BLOCKS, topics.EVENTS))
    client = AdminClient({"bootstrap.servers": settings.kafka})

    def told(of: ConfigResource, name: str) -> str:
        return str(client.describe_configs([of])[of].result()[name].value)

    try:
        # The broker answers once the change is in its log, and applies it a moment later.
        wait_until(lambda: told(blocks, "retention.ms") == "800000", 10, "the change is applied")
        assert told(blocks, "segment.ms") == "100000"
        assert told(events, "message.timestamp.type") == "LogAppendTime"
    finally:
        topics.ensure(settings)


def test_a_transaction_is_seen_whole_or_not_at_all(settings: Settings) -> None:
    topic = settings.topic(topics.BLOCKS)
    producer = TransactionalProducer(settings.kafka, f"{settings.namespace}a")
    producer.open()
    producer.write([Record(topic, b"1", partition=0), Record(topic, b"2", partition=0)])
    # A record that no broker takes aborts all of its transaction.
    with pytest.raises((AdclickError, Exception)):
        producer.write([Record(topic, b"3", partition=0), Record(topic, b"x" * (5 << 20), partition=0)])
    assert values(settings, topics.BLOCKS) == [b"1", b"2"]


def test_a_successor_fences_its_predecessor(settings: Settings) -> None:
    topic = settings.topic(topics.BLOCKS)
    old, new = (TransactionalProducer(settings.kafka, f"{settings.namespace}same") for _ in range(2))
    old.open()
    old.write([Record(topic, b"old", partition=0)])
    new.open()
    with pytest.raises(Fenced):
        old.write([Record(topic, b"zombie", partition=0)])
    new.write([Record(topic, b"new", partition=0)])
    assert values(settings, topics.BLOCKS) == [b"old", b"new"]


def test_offsets_and_their_metadata_are_committed_with_the_transaction(settings: Settings) -> None:
    topic, group = settings.topic(topics.EVENTS), f"{settings.namespace}g"
    producer = TransactionalProducer(settings.kafka, f"{settings.namespace}p")
    producer.open()
    producer.write([Record(topic, b"e", partition=0)])
    consumer = GroupConsumer(settings.kafka, group, topic, lambda ps: dict.fromkeys(ps, 0), lambda _: None)
    try:
        while not (got := consumer.consume(10, 0.2)):
            pass
        assert [m.value() for m in got] == [b"e"]
        producer.write([], consumed=[Committed(0, 1, '{"wm":5}')], source=consumer)
        assert consumer.committed([0])[0] == Committed(0, 1, '{"wm":5}')
        assert Admin(settings.kafka).committed(group, topic, 2) == [Committed(0, 1, '{"wm":5}'), Committed(1, -1, "")]
    finally:
        consumer.close()


def test_an_offset_that_is_gone_stops_the_reader_and_is_named(settings: Settings) -> None:
    topic = settings.topic(topics.EVENTS)
    consumer = GroupConsumer(
        settings.kafka, f"{settings.namespace}g", topic, lambda ps: dict.fromkeys(ps, 99), lambda _: None
    )
    try:
        with pytest.raises(OffsetOutOfRange, match=f"{topic}/"):
            for _ in range(100):
                consumer.consume(10, 0.1)
    finally:
        consumer.close()


def test_a_broker_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        Admin("127.0.0.1:1").partitions(0.5)
    with pytest.raises(Unavailable):
        Redis("redis://127.0.0.1:1").call("PING")
    with pytest.raises(Unavailable):
        ClickHouse("http://127.0.0.1:1", "x").rows("SELECT 1")


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, settings: Settings) -> Store:
    return MemoryStore() if request.param == "memory" else Redis(settings.redis)


def test_registry_contract(store: Store, settings: Settings) -> None:
    registry = Registry(store, settings.key_prefix, ttl_s=60, segment_ids=20_000)
    assert registry.load(0) is None
    memory, first = registry.begin(0, 0), digest(Values.of([b"id%d" % n for n in range(45_000)]))
    other = digest(Values.of([b"other"]))
    for start in range(0, 45_000, 15_000):
        news = {7: (first[start : start + 15_000], np.arange(start, start + 15_000))}
        registry.record(memory, news, up_to=start + 15_000, oldest_generation=0)
    assert memory.head.generations == {7: Kept(closed=1, open=15_000)}
    registry.record(memory, {8: (other, np.array([2**40]))}, up_to=45_001, oldest_generation=0)
    assert memory.head.generations == {7: Kept(closed=2), 8: Kept(open=1)}
    loaded = registry.load(0)
    assert loaded is not None
    for held in (memory, loaded):
        assert held.recorded_up_to == 45_001
        assert registry.lookup(held, 7, first[::100])[0].tolist() == list(range(0, 45_000, 100))
        both = np.concatenate((first[:1], other))
        assert registry.lookup(held, 8, both)[0].tolist() == [-1, 2**40]
        assert registry.lookup(held, 7, both)[0].tolist() == [0, -1]
        assert registry.lookup(held, 7, first[:0])[0].tolist() == []
    assert registry.load(1) is None
    registry.record(memory, {}, up_to=45_002, oldest_generation=8)
    assert registry.lookup(memory, 7, first[:2])[0].tolist() == [-1, -1]
    assert len(list(store.scan_keys(f"{settings.key_prefix}dedup:*"))) == 2, "the head, and what is open"
    with pytest.raises(Unavailable, match="another worker recorded"):
        registry.record(loaded, {}, up_to=50_000, oldest_generation=0)
    assert loaded.head == memory.head
    registry.begin(0, 5)
    with pytest.raises(MemoryLost):
        registry.record(memory, {}, up_to=50_000, oldest_generation=0)


def test_migrations_are_applied_once_and_rows_replace_themselves(settings: Settings) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    assert migrate(client) == []
    for border in (5, 7, 6, 7):
        row = {"tier": ["hours"], "shard": pa.array([1], pa.uint16()), "border_ms": pa.array([border], pa.uint64())}
        client.insert("tier_borders", pa.table(row | {"watermark_ms": pa.array([border], pa.uint64())}))
    sql = f"SELECT border_ms FROM {settings.database}.tier_borders FINAL WHERE tier = {{tier:String}}"
    assert client.rows(sql, {"tier": "hours"}) == [(7,)]
    assert client.rows(sql, {"tier": "' OR 1=1 --"}) == []


def test_the_application_cannot_read_files_of_the_host(settings: Settings) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    with pytest.raises(AdclickError, match="privileges"):
        client.rows("SELECT * FROM file('/etc/passwd', 'LineAsString')")


def test_a_lease_is_held_by_one(settings: Settings) -> None:
    client, name = Redis(settings.redis), uuid.uuid4().hex
    with client.lease(name, 5, "busy"), pytest.raises(UserError, match="busy"), client.lease(name, 5, "busy"):
        pass
    with client.lease(name, 5, "busy"):
        pass


def test_archived_files_are_named_by_range_and_read_back(tmp_path: Path) -> None:
    from ingest import archived
    from ingest.archive import write_files

    hour = 1_795_132_800_000
    row = dict.fromkeys(archived.SCHEMA.names, 1) | {
        "event_id": "e",
        "time_ms": hour,
        "log_time_ms": hour + 7_200_000,
        "decision": 0,
    }
    late = row | {"decision": archived.Decision.TOO_LATE, "offset": 2}
    files = write_files(FileStore(str(tmp_path)), 3, 10, 20, pa.Table.from_pylist([row, late], schema=archived.SCHEMA))
    assert files == [
        "event_date=2026-11-20/hour=00/p0003-000000000000010-000000000000020.parquet",
        "event_date=2026-11-20/hour=02/p0003-000000000000010-000000000000020.parquet",
    ]
    back = pl.concat([pl.read_parquet(tmp_path / f, hive_partitioning=False) for f in files])
    assert back["decision"].cast(pl.String).to_list() == ["counted", "too-late"]
    assert back["partition"].to_list() == [3, 3]
    assert not list(tmp_path.rglob(".p*"))


def test_a_port_of_a_running_stack_is_left_alone_while_nothing_listens_there() -> None:
    claim = "import sys, time; from infra.embedded.servers import free_port; print(free_port(29_717, set()), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", claim], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "29717\n"
            assert servers.free_port(29_717, set()) != 29_717
        finally:
            other.kill()
    assert servers.free_port(29_717, set()) == 29_717


def test_a_stack_that_comes_back_waits_for_its_ports_and_others_look_elsewhere(tmp_path: Path) -> None:
    dying = (
        "import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        " s.bind(('127.0.0.1', 29_718)); s.listen(); print('up', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", dying], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        new = [servers.ports(tmp_path / name, {}, {"kafka": 29_718})["kafka"] for name in ("one", "another")]
        assert servers.ports(tmp_path, {"kafka": 29_718}, {"kafka": 9092}) == {"kafka": 29_718}
    assert 29_718 not in new
    assert abs(new[0] - new[1]) >= 20
