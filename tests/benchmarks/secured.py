"""`make bench-secured`: what TLS and SASL cost where `ad-events` is read by column, beside the same without.

A topic is read from its beginning by each protocol in turn, twice; CPU is that of this process and of the broker.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import psutil

from infra.cli.app import App
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection, Sasl
from infra.kafka.event_producer import EventProducer
from infra.kafka.fetch import Fetcher
from infra.kafka.sasl import Connector
from infra.tls import TlsFiles
from ingest.synthetic.generator import Spec, generate_events
from tests.benchmarks.stack import save
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.kafka_config import PASSWORDS, PROTOCOLS

_TOPIC, _PARTITIONS, _ROUNDS = "events", 4, 2
_BATCH = 100_000


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=int(os.environ.get("EVENTS", "2000000")))
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder) / "kafka") as cluster:
        cluster.create_topic(_TOPIC, _PARTITIONS)
        _fill(cluster, events)
        rows = [(protocol, *_read(cluster, protocol, events)) for _ in range(_ROUNDS) for protocol in PROTOCOLS]
    save("secured", {f"{p}_{n % _ROUNDS}": figures for n, (p, *figures) in enumerate(rows)})
    App(None, False, False, True).table(
        ["protocol", "reader: CPU s a million", "broker: CPU s a million", "events a second"],
        [(p, f"{own:.3f}", f"{broker:.3f}", f"{rate:,.0f}") for p, own, broker, rate in rows],
    )


def _connection(cluster: KafkaCluster, protocol: str) -> Connection:
    tls = TlsFiles("kafka", ca=str(cluster.authority.file)) if protocol.endswith("SSL") else None
    sasl = Sasl("SCRAM-SHA-512", "alice", PASSWORDS["alice"]) if protocol.startswith("SASL") else None
    return Connection(cluster.addresses(protocol), tls, sasl)


def _fill(cluster: KafkaCluster, count: int) -> None:
    lines = generate_events(Spec(events=_BATCH)).lines.to_list()
    producer = EventProducer(_connection(cluster, "PLAINTEXT"))
    for sent in range(0, count, len(lines)):
        part = lines[: count - sent]
        producer.send(_TOPIC, [line[:40] for line in part], part)
    assert producer.flush(120) == 0


def _read(cluster: KafkaCluster, protocol: str, count: int) -> tuple[float, float, float]:
    """CPU of this process and of the broker, s a million events, and events a second."""
    kafka = _connection(cluster, protocol)
    admin, broker = Admin(kafka), psutil.Process(cluster.pid(1))
    fetcher = Fetcher(_TOPIC, lambda: admin.describe([_TOPIC]).get(_TOPIC), Connector(kafka).open)
    began, own, its = time.monotonic(), time.process_time(), sum(broker.cpu_times()[:2])
    fetcher.assign(dict.fromkeys(range(_PARTITIONS), 0))
    read = 0
    while read < count:
        read += sum(len(records.offsets) for parts in fetcher.take(_BATCH, 1.0).values() for records in parts)
    seconds, own, its = (
        time.monotonic() - began,
        time.process_time() - own,
        sum(broker.cpu_times()[:2]) - its,
    )
    fetcher.close()
    return own / read * 1e6, its / read * 1e6, read / seconds


if __name__ == "__main__":
    main()
