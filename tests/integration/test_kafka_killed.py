"""The embedded Kafka is killed in the middle of transactions: after its restart none of them may hang."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from infra.embedded import ports, readiness, start_commands
from infra.embedded.kafka_server import controller_only, ended_uncleanly, fence_the_dead, fenced
from infra.errors import AdclickError
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.consumers import read_to_end
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from tests.product import PATIENCE, wait_until

PARTITIONS, ROUNDS = 6, 2
# So many of each writer before the kill: it then hits some writers between two calls of a transaction.
TRANSACTIONS = 30


class Writer(threading.Thread):
    """Writes one transaction after the other to a partition, each a message with one number in two topics."""

    def __init__(self, address: str, partition: int) -> None:
        super().__init__()
        self._address, self._partition = address, partition
        self._stop_writing = threading.Event()
        self.written = 0

    def run(self) -> None:
        try:
            producer = TransactionalProducer(Connection(self._address), f"id-{self._partition}")
            producer.open(20)
            while not self._stop_writing.is_set():
                value = b"%d" % time.monotonic_ns()
                producer.write([Record(topic, value, partition=self._partition) for topic in ("one", "two")])
                self.written += 1
        except AdclickError:
            pass

    def stop(self) -> None:
        self._stop_writing.set()


def log_end(address: str, topic: str, partition: int, isolation: str) -> int:
    """The offset at which a reader's log ends: with `read_committed`, that of the first transaction that is still open."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "end", "isolation.level": isolation})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10 * PATIENCE)[1])
    finally:
        consumer.close()


def test_no_transaction_hangs_after_kafka_was_killed(tmp_path: Path) -> None:
    taken: set[int] = set()
    port, controller = ports.free_port(39_092, taken), ports.free_port(39_093, taken)
    address = f"127.0.0.1:{port}"
    command = start_commands.kafka(tmp_path, port, controller)
    data = tmp_path / "data"

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: readiness.kafka_ready(address), 60, "Kafka answers")
        return process

    kafka = start()
    try:
        Admin(Connection(address)).create({"one": (PARTITIONS, {}), "two": (PARTITIONS, {})})
        for _ in range(ROUNDS):
            writers = [Writer(address, p) for p in range(PARTITIONS)]
            for writer in writers:
                writer.start()
            wait_until(lambda w=writers: min(x.written for x in w) >= TRANSACTIONS, 10, "all writers are at work")
            kafka.kill()
            kafka.wait()
            for writer in writers:
                writer.stop()
            assert ended_uncleanly(data) and not fenced(data)
            kafka = start()
            for writer in writers:
                writer.join(40 * PATIENCE)
                assert not writer.is_alive()
            for partition in range(PARTITIONS):
                # Settles what was open: all that was written is either committed or aborted now.
                TransactionalProducer(Connection(address), f"id-{partition}").open()
                for topic in ("one", "two"):
                    assert log_end(address, topic, partition, "read_committed") == log_end(
                        address, topic, partition, "read_uncommitted"
                    )
                one, two = (
                    [m.value() for m in read_to_end(Connection(address), topic, partition)] for topic in ("one", "two")
                )
                assert one == two
    finally:
        kafka.terminate()
        kafka.wait(20 * PATIENCE)
    assert not ended_uncleanly(data)


def test_the_controller_alone_ends_once_the_dead_broker_is_fenced(tmp_path: Path) -> None:
    taken: set[int] = set()
    port, controller = ports.free_port(39_092, taken), ports.free_port(39_093, taken)
    command = start_commands.kafka(tmp_path, port, controller)
    data, java = tmp_path / "data", command.argv[6:]
    with subprocess.Popen(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as kafka:
        wait_until(lambda: readiness.kafka_ready(f"127.0.0.1:{port}"), 60, "Kafka answers")
        assert not fenced(data)
        kafka.kill()
    fence_the_dead(java, tmp_path / "server.properties", data)
    assert fenced(data)


@pytest.mark.parametrize("port", [9093, 20_093])
def test_the_controller_alone_listens_at_its_own_port_only(port: int) -> None:
    text = controller_only(start_commands.SERVER_PROPERTIES.format(port=9092, controller=port, data="/data"))
    assert "process.roles=controller\n" in text
    assert f"listeners=CONTROLLER://127.0.0.1:{port}\n" in text
    assert "PLAINTEXT://" not in text
