"""Bytes on disk, as `/metrics` has them, are those of the files and parts of each store."""

from __future__ import annotations

from pathlib import Path

from infra.clickhouse.client import ClickHouse
from infra.kafka.event_producer import EventProducer
from infra.kafka.log_sizes import read_log_sizes
from infra.kafka.topics import BLOCKS, EVENTS
from infra.settings import Settings
from query.api.stored_bytes import StoredBytes
from tests.product import wait_until


def log_bytes(backends: Path, topic: str) -> int:
    """Of the segments of all partitions, on the embedded broker's disk."""
    return sum(file.stat().st_size for file in (backends / "kafka" / "data").glob(f"{topic}-*/*.log"))


def test_sizes_are_those_of_the_files(settings: Settings, backends: Path) -> None:
    events, blocks = settings.topic(EVENTS), settings.topic(BLOCKS)
    producer = EventProducer(settings.kafka_connection)
    producer.send(events, [None] * 500, [bytes(n % 251 for n in range(i)) for i in range(500)])
    assert producer.flush(30) == 0
    sizes = read_log_sizes(settings.kafka_connection, [events, blocks, "a-topic-that-does-not-exist"], timeout_s=30)
    assert sizes == {events: log_bytes(backends, events), blocks: 0}
    assert sizes[events] > 1000
    archived = Path(settings.archive) / "event_date=2026-11-20" / "a.parquet"
    archived.parent.mkdir()
    archived.write_bytes(b"123")
    client = ClickHouse(settings.clickhouse, settings.database)
    stored = StoredBytes(settings)
    samples = dict[tuple[str, ...], float]()

    def read() -> bool:
        samples.update({sample.labels: sample.value for sample in stored.samples(())})
        return {"kafka", "clickhouse", "archive"} == {store for store, _ in samples}

    wait_until(read, 10, "all stores are read")
    assert samples["kafka", events] == sizes[events]
    assert samples["archive", "files"] == 3
    parts = client.rows(
        "SELECT table, sum(bytes_on_disk) FROM system.parts WHERE active AND database = {database:String} GROUP BY table",
        {"database": settings.database},
    )
    assert {name: n for (store, name), n in samples.items() if store == "clickhouse"} == dict(parts)
    # A store that is known to be away is not asked.
    assert {sample.labels[0] for sample in stored.samples({"kafka": "away"})} == {"clickhouse", "archive"}
