"""The ingest worker on the real Kafka and Redis: copies, restarts, and a Redis that loses its keys."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.kafka.event_producer import EventProducer
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.archive.schema import Decision
from ingest.dedup import registry
from ingest.worker import IngestWorker
from tests.product import PATIENCE, wait_until
from tests.redis_loss import dump_keys, go_back, lose_keys


@contextlib.contextmanager
def running(settings: Settings, name: str = "w") -> Iterator[IngestWorker]:
    worker = IngestWorker(settings, name)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(30 * PATIENCE)
        assert not thread.is_alive()


def send(settings: Settings, *names: str) -> None:
    producer = EventProducer(settings.kafka_connection)
    event = {
        "event_type": "click",
        "event_time": now_ms(),
        "campaign_id": 1,
        "ad_id": 1,
        "advertiser_id": 1,
        "publisher_id": 1,
    }
    values: list[bytes | None] = [json.dumps({"event_id": n} | event).encode() for n in names]
    producer.send(settings.topic(topics.EVENTS), [n.encode() for n in names], values)
    assert producer.flush(20) == 0


def archived_decisions(settings: Settings) -> list[tuple[str, int]]:
    """(id, decision) of all archived events; checks that the ranges of each partition tile."""
    decisions, expected = list[tuple[str, int]](), dict[int, int]()
    for partition in range(settings.event_partitions):
        for message in read_to_end(settings.kafka_connection, settings.topic(topics.ARCHIVE), partition):
            rows, header = blocks.decode_block(message.value(), "here")
            (source,) = header.ranges
            blocks.check_tiles(expected.get(partition), source, "here")
            expected[partition] = source.to_offset
            rows = archive_schema.decode_archived(rows)
            columns = (rows.column(name).to_pylist() for name in ("event_id", "decision"))
            decisions += zip(*columns, strict=True)
    return decisions


def decisions(settings: Settings, count: int) -> list[tuple[str, int]]:
    """Wait until there are `count` archived events; returns them in order."""
    wait_until(lambda: len(archived_decisions(settings)) >= count, 40, f"{count} events are archived")
    return sorted(archived_decisions(settings))


def counted(decided: list[tuple[str, int]]) -> list[str]:
    return [name for name, decision in decided if decision == Decision.COUNTED]


NAMES = [f"id{n}" for n in range(200)]


def test_another_worker_recognizes_copies(settings: Settings) -> None:
    with running(settings, "a"):
        send(settings, *NAMES, *NAMES[:50])
        assert counted(decisions(settings, 250)) == sorted(NAMES)
    with running(settings, "b"):
        send(settings, *NAMES, "new")
        decided = decisions(settings, 451)
    assert len(decided) == 451
    assert counted(decided) == sorted([*NAMES, "new"])


@pytest.mark.parametrize("alive", [True, False])
def test_ids_that_redis_lost_are_rebuilt_from_the_log(settings: Settings, alive: bool) -> None:

    def lose() -> None:
        lose_keys(Redis(settings.redis), registry.all_keys(settings.key_prefix))

    with running(settings, "a"):
        send(settings, *NAMES)
        assert len(decisions(settings, 200)) == 200
        if alive:
            lose()
            send(settings, *NAMES, "new")
            decided = decisions(settings, 401)
    if not alive:
        lose()
        with running(settings, "a"):
            send(settings, *NAMES, "new")
            decided = decisions(settings, 401)
    assert len(decided) == 401
    assert counted(decided) == sorted([*NAMES, "new"])


def test_possible_copies_of_deleted_messages_are_dropped_in_doubt(settings: Settings) -> None:
    redis, kafka = Redis(settings.redis), AdminClient({"bootstrap.servers": settings.kafka})
    topic = settings.topic(topics.EVENTS)
    with running(settings, "a"):
        send(settings, *NAMES)
        assert len(decisions(settings, 200)) == 200
        ends = Admin(settings.kafka_connection).ends(topic, settings.event_partitions)
        all_messages = [TopicPartition(topic, p, end) for p, end in enumerate(ends)]
        for future in kafka.delete_records(all_messages).values():
            future.result()
        lose_keys(redis, registry.all_keys(settings.key_prefix))
        # The filters are still there: what they have not seen is certainly new.
        send(settings, *NAMES, *(f"new{n}" for n in range(100)))
        decided = decisions(settings, 500)
    assert len(decided) == 500
    assert set(NAMES) & set(counted(decided)) == set(NAMES)
    assert len(counted(decided)) == len(set(counted(decided)))
    doubted = [name for name, decision in decided if decision == Decision.DOUBT]
    assert set(NAMES) <= set(doubted)
    assert sum(name.startswith("new") for name in counted(decided)) > 90
    # Another worker has no filters: all is in doubt, and nothing is counted twice.
    with running(settings, "b"):
        send(settings, *NAMES, "newest")
        decided = decisions(settings, 701)
    assert counted(decided) == sorted(set(counted(decided)))
    assert ("newest", Decision.DOUBT) in decided


def test_a_redis_restored_from_an_older_file_is_detected(settings: Settings) -> None:
    redis, keys = Redis(settings.redis), registry.all_keys(settings.key_prefix)
    with running(settings, "a"):
        send(settings, *NAMES[:100])
        assert len(decisions(settings, 100)) == 100
        old = dump_keys(redis, keys)
        send(settings, *NAMES[100:])
        assert len(decisions(settings, 200)) == 200
        go_back(redis, keys, old)
        send(settings, *NAMES, "new")
        decided = decisions(settings, 401)
    assert len(decided) == 401
    assert counted(decided) == sorted([*NAMES, "new"])
