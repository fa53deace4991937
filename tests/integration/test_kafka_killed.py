"""The embedded Kafka is killed in the middle of transactions: after its restart none of them may hang."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from infra.embedded import servers
from infra.embedded.kafka_server import controller_only, ended_uncleanly, fence_the_dead, fenced
from infra.errors import AdclickError
from infra.kafka import Admin, TransactionalProducer, read_to_end
from infra.records import Record
from tests.product import PATIENCE, wait_until

PARTITIONS, ROUNDS = 6, 2


def write_until(stop: threading.Event, address: str, partition: int) -> None:
    """One transaction after the other, each a message with one number in two topics."""
    try:
        producer = TransactionalProducer(address, f"id-{partition}")
        producer.open(20)
        while not stop.is_set():
            value = b"%d" % time.monotonic_ns()
            producer.write([Record(topic, value, partition=partition) for topic in ("one", "two")])
    except AdclickError:
        pass


def end(address: str, topic: str, partition: int, isolation: str) -> int:
    """Where a reader's log ends: for a committed one, before the first transaction that is still open."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "end", "isolation.level": isolation})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
    finally:
        consumer.close()


def test_no_transaction_hangs_after_kafka_was_killed(tmp_path: Path) -> None:
    taken: set[int] = set()
    port, controller = servers.free_port(39_092, taken), servers.free_port(39_093, taken)
    address = f"127.0.0.1:{port}"
    command = servers.kafka(tmp_path, port, controller)
    data = tmp_path / "data"

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: servers.kafka_ready(address), 60, "Kafka answers")
        return process

    kafka = started()
    try:
        Admin(address).create({"one": (PARTITIONS, {}), "two": (PARTITIONS, {})})
        for _ in range(ROUNDS):
            stop = threading.Event()
            writers = [threading.Thread(target=write_until, args=(stop, address, p)) for p in range(PARTITIONS)]
            for writer in writers:
                writer.start()
            time.sleep(3)
            kafka.kill()
            kafka.wait()
            stop.set()
            assert ended_uncleanly(data) and not fenced(data)
            kafka = started()
            for writer in writers:
                writer.join(40 * PATIENCE)
                assert not writer.is_alive()
            for partition in range(PARTITIONS):
                # Settles what was open: all that was written is either committed or aborted now.
                TransactionalProducer(address, f"id-{partition}").open()
                for topic in ("one", "two"):
                    assert end(address, topic, partition, "read_committed") == end(
                        address, topic, partition, "read_uncommitted"
                    )
                seen = [[m.value() for m in read_to_end(address, topic, partition)] for topic in ("one", "two")]
                assert seen[0] == seen[1]
    finally:
        kafka.terminate()
        kafka.wait(20 * PATIENCE)
    assert not ended_uncleanly(data)


def test_the_controller_alone_ends_once_the_dead_broker_is_fenced(tmp_path: Path) -> None:
    taken: set[int] = set()
    port, controller = servers.free_port(39_092, taken), servers.free_port(39_093, taken)
    command = servers.kafka(tmp_path, port, controller)
    data, java = tmp_path / "data", command.argv[6:]
    with subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as kafka:
        wait_until(lambda: servers.kafka_ready(f"127.0.0.1:{port}"), 60, "Kafka answers")
        assert not fenced(data)
        kafka.kill()
    fence_the_dead(java, tmp_path / "server.properties", data)
    assert fenced(data)


@pytest.mark.parametrize("port", [9093, 20_093])
def test_the_controller_alone_listens_at_its_own_port_only(port: int) -> None:
    text = controller_only(servers.SERVER_PROPERTIES.format(port=9092, controller=port, data="/data"))
    assert "process.roles=controller\n" in text
    assert f"listeners=CONTROLLER://127.0.0.1:{port}\n" in text
    assert "PLAINTEXT://" not in text
