"""What no worker can process stops its partition alone, is named to the operator, and is set aside with its bytes."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from batch import coverage
from infra.clock import now_ms
from infra.errors import UserError
from infra.file_store import FileStore
from infra.kafka import topics
from infra.redis.client import Redis
from infra.settings import Settings
from ingest.archive import files as archive_files
from ingest.archive.worker import ArchiveWorker
from ingest.dead_letters.letters import Letter, SourceMessage, find_letters, read_letters
from ingest.dead_letters.set_aside import set_aside
from ingest.decoding.decode import decode_events
from ingest.dedup import registry
from query.status import find_unready, read_status
from tests.conftest import adclick
from tests.damage import damage_batch
from tests.integration.test_source_log import event, ingesting, running, send, wait_until_counted_once
from tests.product import wait_until
from tests.redis_loss import lose_keys


def send_batch(settings: Settings, partition: int, *names: str) -> None:
    """Send events as one record batch."""
    producer = Producer({"bootstrap.servers": settings.kafka, "linger.ms": 500})
    for name in names:
        producer.produce(settings.topic(topics.EVENTS), event(name), name.encode(), partition)
    assert producer.flush(30) == 0


def wait_until_stopped(settings: Settings, where: str, text: str) -> None:
    name = settings.topic(topics.EVENTS) + where
    wait_until(lambda: text in read_status(settings)["problems"].get(name, ""), 30, f"{name} stops: {text}")


def unreadable(settings: Settings) -> list[Letter]:
    return [letter for letter in read_letters(settings) if letter.headers["reason"] == "unreadable"]


def test_a_batch_that_cannot_be_read_stops_its_partition_until_it_is_set_aside(
    settings: Settings, backends: Path
) -> None:
    send(settings, 0, "before")
    send_batch(settings, 0, "lost-1", "lost-2", "lost-3")
    send(settings, 0, "behind")
    topic = settings.topic(topics.EVENTS)
    raw = damage_batch(backends / "kafka" / "data" / f"{topic}-0", 2, "codec")
    with ingesting(settings) as raised, running(ArchiveWorker(settings, "archive-0")):
        send(settings, 1, "other-1")
        wait_until_stopped(settings, "/0", "stops before 0/1-3: the record batch")
        send(settings, 1, "other-2")
        wait_until_counted_once(settings, ["before", "other-1", "other-2"])
        assert any("stops before 0/1-3" in line for line in find_unready(settings))
        with pytest.raises(UserError, match=r"no partition of .* stops before 0/1 .*there is 0/1-3"):
            set_aside(settings, "0/1")
        assert unreadable(settings) == []

        words = ("dead-letters", "set-aside", "0/1-3", "--json", "--dir", str(backends))
        result = adclick(*words, cwd=None, **_variables(settings))
        (letter,) = unreadable(settings)
        assert json.loads(result.stdout) == {"set_aside": {"0/1-3": letter.name}}, result.stderr
        assert (letter.value, letter.batch_messages, letter.source) == (raw, 3, SourceMessage(topic, 0, 1))
        assert find_letters(settings, "nowhere", 0, lambda: None).set_aside == 3
        wait_until_counted_once(settings, ["before", "behind", "other-1", "other-2"])
        wait_until(lambda: topic + "/0" not in read_status(settings)["problems"], 10, "the problem is gone")

        # The night misses nothing, and says what is in no bill.
        ends = coverage.wait_for_archive(settings, 60, lambda _: None)
        today = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date()
        files = archive_files.files_around(FileStore(settings.archive), today)
        proof = coverage.prove(settings, files, today, ends)
        assert (proof.missing, [str(stretch) for stretch in proof.set_aside]) == ([], ["0/1 to 4"])
        assert "3 messages of ad-events were set aside unread" in coverage.describe_set_aside(proof.set_aside)
    assert not raised

    # Ids that Redis lost are rebuilt from the log, over the batch. What was in it may be sent again, and counts.
    lose_keys(Redis(settings.redis), registry.all_keys(settings.key_prefix))
    with ingesting(settings) as raised:
        send(settings, 0, "before", "lost-1", "lost-2", "lost-3", "behind")
        wait_until_counted_once(settings, ["before", "lost-1", "lost-2", "lost-3", "behind", "other-1", "other-2"])
    assert not raised


def _variables(settings: Settings) -> dict[str, str]:
    return {"ADCLICK_NAMESPACE": settings.namespace, "ADCLICK_EVENT_PARTITIONS": "2", "ADCLICK_BLOCK_PARTITIONS": "2"}


def test_a_message_that_a_worker_fails_on_stops_its_partition_until_a_release_is_right(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = decode_events

    def decode_with_a_bug(values: Any, *words: Any, **more: Any) -> Any:
        if any(b"bug" in (values[row] or b"") for row in range(len(values))):
            raise ZeroDivisionError("a bug in the decoder")
        return decode(values, *words, **more)

    send_batch(settings, 0, "before", "bug-1", "between", "bug-2", "behind")
    with monkeypatch.context() as patch, ingesting(settings) as raised:
        patch.setattr("ingest.processor.decode_events", decode_with_a_bug)
        wait_until_stopped(settings, "/0", "stops before 0/1: ZeroDivisionError: a bug in the decoder")
        send(settings, 1, "other")
        wait_until_counted_once(settings, ["before", "other"])
        set_aside(settings, "0/1")
        wait_until_stopped(settings, "/0", "stops before 0/3")
        wait_until_counted_once(settings, ["before", "other", "between"])
    assert not raised
    (letter,) = unreadable(settings)
    assert (json.loads(letter.value or b"")["event_id"], letter.key, letter.batch_messages) == ("bug-1", b"bug-1", None)
    # Without the bug the next worker goes on where it stopped, and what was set aside is sent again.
    with ingesting(settings):
        wait_until_counted_once(settings, ["before", "other", "between", "bug-2", "behind"])
        send(settings, 0, "bug-1")
        wait_until_counted_once(settings, ["before", "other", "between", "bug-1", "bug-2", "behind"])
