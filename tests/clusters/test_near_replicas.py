"""Events are read from the replica in our own rack, and from the leader wherever that has no answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.fetch import Fetcher
from infra.kafka.sasl import Connector
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.kafka_config import rack_of
from tests.product import PATIENCE, wait_until


class Topic:
    """A topic of one partition, with what a fetcher in a rack has read of it."""

    def __init__(self, cluster: KafkaCluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        cluster.create_topic(name)
        self._numbers, self._sent = itertools.count(), 0
        self._fetcher: Fetcher | None = None
        self._values = list[bytes | None]()

    @property
    def leader(self) -> int:
        """The broker that leads the partition."""
        leader = self._cluster.leader_of(self._name)
        assert leader is not None
        return leader

    def read_from(self, rack: str) -> None:
        """Begin to read from a rack."""
        kafka, topic = Connection(self._cluster.addresses(), properties=(("client.rack", rack),)), self._name
        admin = Admin(kafka, timeout_s=3.0)
        self._fetcher = Fetcher(topic, lambda: admin.describe([topic]).get(topic), Connector(kafka).open, kafka.rack)
        self._fetcher.assign({0: 0})

    def check_some_more(self) -> None:
        """Send some more messages, and wait until all are read: in their order, and each once."""
        # Not by the proxies: producers are not what is tried.
        producer = Producer(self._cluster.client_config("SASL_PLAINTEXT") | {"enable.idempotence": True})
        for number in itertools.islice(self._numbers, 20):
            producer.produce(self._name, b"%d" % number)
        assert producer.flush(20 * PATIENCE) == 0
        self._sent += 20
        wait_until(self._has_all, 30, lambda: f"{self._sent} messages are read: {len(self._values)}")
        assert self._values == [b"%d" % n for n in range(self._sent)]

    def _has_all(self) -> bool:
        assert self._fetcher is not None
        for records in self._fetcher.take(1_000, 0.1).get(0, []):
            self._values += [records.values[i] for i in range(len(records.offsets))]
        return len(self._values) >= self._sent

    def close(self) -> None:
        """Stop reading."""
        if self._fetcher is not None:
            self._fetcher.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("racks"), 3, proxied="PLAINTEXT") as cluster:
        yield cluster


@pytest.fixture
def topic(cluster: KafkaCluster, request: pytest.FixtureRequest) -> Iterator[Topic]:
    topic = Topic(cluster, request.node.name)
    yield topic
    topic.close()


def test_in_a_rack_without_brokers_the_leader_is_read_from(topic: Topic) -> None:
    topic.read_from("elsewhere")
    topic.check_some_more()


def test_the_replica_of_our_rack_is_read_from_while_it_answers(cluster: KafkaCluster, topic: Topic) -> None:
    near = next(node for node in (1, 2, 3) if node != topic.leader)
    topic.read_from(rack_of(near))
    topic.check_some_more()
    # Between this reader and the leader there is no network any more.
    cluster.proxies[topic.leader].cut()
    topic.check_some_more()
    cluster.proxies[topic.leader].restore()
    cluster.proxies[near].cut()
    topic.check_some_more()
    # Leaders go on to name a replica that is gone for good, until they know.
    cluster.kill(near)
    topic.check_some_more()
