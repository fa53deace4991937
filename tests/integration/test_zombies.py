"""A process is halted in a gap between two writes, and continues when another has taken over; answers stay exact."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings
from tests.flow import STEP, flow

HALF = STEP // 2


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("ingest-0", "ingest.recorded:2"),
        ("ingest-0", "ingest.produced:2"),
        ("stream-0", "minute.flushing:3"),
        ("stream-0", "minute.produced:3"),
        ("stream-0", "minute.committed:3"),
        ("stream-0", "hour.committed:2"),
    ],
)
def test_a_zombie_that_wakes_after_its_successor_took_over_changes_nothing(
    settings: Settings, tmp_path: Path, name: str, fault: str
) -> None:
    kind = name.split("-")[0]
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000})
        for worker in ("ingest-0", "stream-0"):
            running.start(worker, f"stop@{fault}" if worker == name else "")
        running.send(HALF)
        running.wait_until_halted(name)
        running.start(f"{kind}-1")
        running.send()
        running.wait_until_exact(60)
        running.workers[name].send_signal(signal.SIGCONT)
        running.wait_until_exact(20)


def test_a_rightful_owner_that_is_fenced_looks_its_flush_up_and_continues(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(HALF)
        running.wait_until_something_is_shown()
        # A broker that gave a transaction up fences its producer like this, too.
        for stage in ("minute", "hour", "day"):
            for partition in range(settings.block_partitions):
                TransactionalProducer(settings.kafka, f"{settings.key_prefix}{stage}-{partition}").open()
        running.send()
        running.wait_until_exact(60)
        assert running.workers["stream-0"].poll() is None
        assert not running.restarts
        assert "settled" in (tmp_path / "log").read_text()
