"""A damaged log stops its reader, which reports what is wrong and where; nothing is skipped."""

from __future__ import annotations

from pathlib import Path

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings
from ingest import blocks, partials
from ingest.blocks import SourceRange
from tests.damage import damage_batch
from tests.flow import STEP, flow
from tests.product import PATIENCE, wait_until


def _hole() -> bytes:
    ranges = (SourceRange(0, 10**9, 10**9 + 1, None, False),)
    return next(iter(blocks.encode_block([partials.empty_partials().arrow()], ranges, now_ms())))


def test_a_hole_stops_the_stream_and_is_not_skipped(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        running.start("ingest-0")
        running.start("stream-0")
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        writer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}damage")
        writer.open()
        writer.write([Record(settings.topic(topics.BLOCKS), _hole(), partition=0)])
        assert running.workers["stream-0"].wait(40 * PATIENCE) == 1
        log = (tmp_path / "log").read_text()
        assert "hole in source partition 0" in log
        assert f"{settings.topic(topics.BLOCKS)}/0/" in log
        # What comes after the hole is not counted: the next worker stops at the same place.
        running.send()
        running.start("stream-0")
        assert running.workers["stream-0"].wait(40 * PATIENCE) == 1


def test_a_block_that_cannot_be_read_stops_the_stream_and_is_named(
    settings: Settings, backends: Path, tmp_path: Path
) -> None:
    with flow(settings, tmp_path) as running:
        running.start("ingest-0")
        running.send(STEP // 2)
        topic, admin = settings.topic(topics.BLOCKS), Admin(settings.kafka_connection)
        wait_until(lambda: admin.ends(topic, 2)[0] > 2, 40, "there are blocks")
        damage_batch(backends / "kafka" / "data" / f"{topic}-0", 0, "codec")
        running.start("stream-0")
        assert running.workers["stream-0"].wait(60 * PATIENCE) == 1
        log = (tmp_path / "log").read_text()
        assert f"adclick: stream: {topic}/0: the record batch at offset 0 cannot be decompressed: codec 7" in log
