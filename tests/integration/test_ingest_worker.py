"""The ingest worker on the real Kafka and Redis: copies, restarts, and a Redis that loses its memory."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from infra import topics
from infra.clock import now_ms
from infra.kafka import Admin, EventProducer, read_to_end
from infra.redis import Redis
from infra.settings import Settings
from ingest import archived, blocks
from ingest.archived import Decision
from ingest.worker import IngestWorker
from tests.product import PATIENCE


@contextlib.contextmanager
def running(settings: Settings, name: str = "w") -> Iterator[IngestWorker]:
    worker = IngestWorker(settings, name)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def send(settings: Settings, *names: str) -> None:
    producer = EventProducer(settings.kafka)
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
        for message in read_to_end(settings.kafka, settings.topic(topics.ARCHIVE), partition):
            rows, header = blocks.decode(message.value(), "here")
            (source,) = header.ranges
            blocks.check_tiles(expected.get(partition), source, "here")
            expected[partition] = source.to_offset
            rows = archived.off_wire(rows)
            columns = (rows.column(name).to_pylist() for name in ("event_id", "decision"))
            decisions += zip(*columns, strict=True)
    return decisions


def decisions(settings: Settings, count: int) -> list[tuple[str, int]]:
    """The same in order, once there are `count` of them."""
    deadline = time.monotonic() + 40 * PATIENCE
    while True:
        archived_so_far = archived_decisions(settings)
        if len(archived_so_far) >= count or time.monotonic() > deadline:
            return sorted(archived_so_far)
        time.sleep(0.3)


def counted(found: list[tuple[str, int]]) -> list[str]:
    return [name for name, decision in found if decision == Decision.COUNTED]


NAMES = [f"id{n}" for n in range(200)]


def test_a_copy_is_a_copy_for_another_worker_too(settings: Settings) -> None:
    with running(settings, "a"):
        send(settings, *NAMES, *NAMES[:50])
        assert counted(decisions(settings, 250)) == sorted(NAMES)
    with running(settings, "b"):
        send(settings, *NAMES, "new")
        found = decisions(settings, 451)
    assert len(found) == 451
    assert counted(found) == sorted([*NAMES, "new"])


@pytest.mark.parametrize("alive", [True, False])
def test_ids_that_redis_lost_are_rebuilt_from_the_log(settings: Settings, alive: bool) -> None:
    redis = Redis(settings.redis)

    def lose() -> None:
        for key in redis.scan_keys(f"{settings.key_prefix}dedup:*"):
            redis.call("DEL", key)

    with running(settings, "a"):
        send(settings, *NAMES)
        assert len(decisions(settings, 200)) == 200
        if alive:
            lose()
            send(settings, *NAMES, "new")
            found = decisions(settings, 401)
    if not alive:
        lose()
        with running(settings, "a"):
            send(settings, *NAMES, "new")
            found = decisions(settings, 401)
    assert len(found) == 401
    assert counted(found) == sorted([*NAMES, "new"])


def test_what_the_topic_no_longer_holds_is_in_doubt_and_dropped(settings: Settings) -> None:
    redis, kafka = Redis(settings.redis), AdminClient({"bootstrap.servers": settings.kafka})
    topic = settings.topic(topics.EVENTS)
    with running(settings, "a"):
        send(settings, *NAMES)
        assert len(decisions(settings, 200)) == 200
        ends = Admin(settings.kafka).ends(topic, settings.event_partitions)
        gone = [TopicPartition(topic, p, end) for p, end in enumerate(ends)]
        for future in kafka.delete_records(gone).values():
            future.result()
        for key in redis.scan_keys(f"{settings.key_prefix}dedup:*"):
            redis.call("DEL", key)
        # The filters are still there: what they have not seen is certainly new.
        send(settings, *NAMES, *(f"new{n}" for n in range(100)))
        found = decisions(settings, 500)
    assert len(found) == 500
    assert set(NAMES) & set(counted(found)) == set(NAMES)
    assert len(counted(found)) == len(set(counted(found)))
    doubted = [name for name, decision in found if decision == Decision.DOUBT]
    assert set(NAMES) <= set(doubted)
    assert sum(name.startswith("new") for name in counted(found)) > 90
    # Another worker has no filters: all is in doubt, and nothing is counted twice.
    with running(settings, "b"):
        send(settings, *NAMES, "newest")
        found = decisions(settings, 701)
    assert counted(found) == sorted(set(counted(found)))
    assert ("newest", Decision.DOUBT) in found


def test_a_redis_that_went_back_in_time_is_noticed(settings: Settings) -> None:
    redis = Redis(settings.redis)
    with running(settings, "a"):
        send(settings, *NAMES[:100])
        assert len(decisions(settings, 100)) == 100
        kept = {k: redis.call("DUMP", k) for k in redis.scan_keys(f"{settings.key_prefix}dedup:*")}
        send(settings, *NAMES[100:])
        assert len(decisions(settings, 200)) == 200
        for key in redis.scan_keys(f"{settings.key_prefix}dedup:*"):
            redis.call("DEL", key)
        for key, value in kept.items():
            redis.call("RESTORE", key, 0, value)
        send(settings, *NAMES, "new")
        found = decisions(settings, 401)
    assert len(found) == 401
    assert counted(found) == sorted([*NAMES, "new"])
