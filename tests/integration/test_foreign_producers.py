"""Events of producers that are not ours: Java's client, by every codec, in transactions, with headers, without keys."""

from __future__ import annotations

from pathlib import Path

from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.settings import Settings
from tests.clusters.java_producer import JavaProducer
from tests.flow import Flow, flow

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def messages_of(running: Flow) -> list[tuple[bytes | None, bytes]]:
    events = running.events
    keys = [None if key is None else key.encode() for key in events.keys.to_list()]
    return list(zip(keys, events.lines.to_list(), strict=True))


def test_events_of_javas_producer_and_copies_of_them_by_ours_count_once(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"partitioner": "murmur2"})
    topic = settings.topic(EVENTS)
    with flow(settings, tmp_path, events=2_000, malformed=0.0, late=0.0, future=0.0) as running:
        messages = messages_of(running)
        share = len(messages) // len(CODECS) + 1
        for number, codec in enumerate(CODECS):
            part = messages[number * share : (number + 1) * share]
            with JavaProducer(settings.kafka, compression_type=codec) as java:
                java.send(topic, part)
        # All of them again, by our own sender, which maps keys to partitions as Java does.
        ours = EventProducer(settings.kafka_connection)
        ours.send(topic, [key for key, _ in messages], [value for _, value in messages])
        assert ours.flush(30) == 0
        running.start("ingest-0")
        running.start("stream-0")
        running.wait_until_exact(60)


def test_only_what_a_transaction_of_javas_has_committed_counts(settings: Settings, tmp_path: Path) -> None:
    topic = settings.topic(EVENTS)
    with flow(settings, tmp_path, events=1_000, malformed=0.0, duplicates=0.0, future=0.0) as running:
        # Without keys: each event is sent once.
        messages: list[tuple[bytes | None, bytes]] = [(None, value) for _, value in messages_of(running)]
        half = len(messages) // 2
        with JavaProducer(settings.kafka, transactional_id=f"{settings.namespace}java") as java:
            java.send(topic, messages[:half], commit=False)
            java.send(topic, messages[:half])
            java.send(topic, messages[half:], commit=False)
            java.send(topic, messages[half:])
        running.start("ingest-0")
        running.start("stream-0")
        running.wait_until_exact(60)
