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
    ("kind", "faults"),
    [
        ("ingest", ("ingest.recorded:2", "ingest.produced:2")),
        ("stream", ("minute.flushing:3", "minute.produced:3", "minute.committed:3", "hour.committed:2")),
    ],
    ids=["ingest", "stream"],
)
def test_zombies_that_wake_after_their_successors_took_over_change_nothing(
    settings: Settings, tmp_path: Path, kind: str, faults: tuple[str, ...]
) -> None:
    zombies = [f"{kind}-{number}" for number in range(len(faults))]
    with flow(settings, tmp_path, events=2 * STEP) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 500})
        running.start("stream-live" if kind == "ingest" else "ingest-live")
        for name, fault in zip(zombies, faults, strict=True):
            running.start(name, f"stop@{fault}")
            running.send(STEP // len(faults))
            running.wait_until_halted(name)
        running.start(f"{kind}-live")
        running.send()
        running.wait_until_exact(60)
        for name in zombies:
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
                TransactionalProducer(settings.kafka_connection, f"{settings.key_prefix}{stage}-{partition}").open()
        running.send()
        running.wait_until_exact(60)
        assert running.workers["stream-0"].poll() is None
        assert not running.restarts
        assert "settled" in (tmp_path / "log").read_text()
