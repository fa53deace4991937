"""A process ends exactly in each gap between two writes; answers stay exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from tests.flow import STEP, Flow, flow

HALF = STEP // 2


def check_after_death(running: Flow, name: str, fault: str) -> None:
    """Run all workers, one with a fault; it dies and comes back without, and answers are exact."""
    for worker in ("ingest-0", "stream-0"):
        running.start(worker, fault if worker == name else "")
    running.send(HALF)
    running.wait_until_killed(name)
    running.start(name)
    running.send()
    running.wait_until_exact(120)


@pytest.mark.parametrize(
    "fault",
    [
        "ingest.recorded",  # ids in Redis, nothing in Kafka
        "ingest.closing:2",  # a segment is full, and not in order yet
        "ingest.produced:2",  # the transaction is in the log, not committed
        "ingest.committed:2",  # committed, and nothing in memory has moved
    ],
)
def test_answers_are_exact_after_ingest_dies_between_two_writes(settings: Settings, tmp_path: Path, fault: str) -> None:
    with flow(settings, tmp_path) as running:
        small = {"ingest_batch": 1_000, "dedup_segment_ids": 400}
        running.settings = running.settings.model_copy(update=small)
        check_after_death(running, "ingest-0", f"kill@{fault}")


@pytest.mark.parametrize(
    "fault",
    [
        "minute.flushing:3",  # the delta is taken, nothing written
        "minute.produced:3",  # chunk and state are in the log, not committed
        "minute.committed:3",  # durable, not shown
        "hour.produced:2",
        "hour.committed:2",
        "day.committed:2",
        "insight.produced:2",
        "insight.committed:2",
        "hot.written:3",  # shown, and nothing in memory has moved
        "warm.half",  # rows in ClickHouse, the border not moved
    ],
)
def test_answers_are_exact_after_a_stream_worker_dies_between_two_writes(
    settings: Settings, tmp_path: Path, fault: str
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000})
        check_after_death(running, "stream-0", f"kill@{fault}")


def test_answers_are_exact_after_a_stream_worker_dies_halfway_through_a_large_flush_to_redis(
    settings: Settings, tmp_path: Path
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"redis_page": 20})
        check_after_death(running, "stream-0", "kill@hot.half:5")


@pytest.mark.parametrize(
    "fault",
    [
        "ingest.committed:2",
        "minute.produced:3",  # not committed: to be written again
        "minute.committed:3",  # committed: never to be written again
    ],
)
def test_answers_are_exact_after_the_reply_to_a_commit_is_lost(settings: Settings, tmp_path: Path, fault: str) -> None:
    name = "ingest-0" if fault.startswith("ingest") else "stream-0"
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000})
        for worker in ("ingest-0", "stream-0"):
            running.start(worker, f"lose@{fault}" if worker == name else "")
        running.send(HALF)
        running.wait_until_something_is_shown()
        running.send()
        running.wait_until_exact(120)
        assert "the answer was lost" in (tmp_path / "log").read_text()
        assert running.workers[name].poll() is None
        assert not running.restarts


@pytest.mark.parametrize("fault", ["store.written:2", "archive.renamed:2"])
def test_the_archive_is_complete_after_its_worker_dies_around_a_rename(
    settings: Settings, tmp_path: Path, fault: str
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000, "archive_flush_ms": 500})
        running.start("ingest-0")
        running.start("archive-0", f"kill@{fault}")
        running.send(HALF)
        running.wait_until_killed("archive-0")
        running.start("archive-0")
        running.send()
        running.wait_until_archived(40)


@pytest.mark.parametrize("name", ["ingest-0", "stream-0"])
def test_answers_are_exact_after_a_worker_dies_during_a_takeover(settings: Settings, tmp_path: Path, name: str) -> None:
    with flow(settings, tmp_path) as running:
        running.start("ingest-0")
        running.start("stream-0")
        running.send(HALF)
        running.start(name.replace("0", "1"), "kill@ingest.assigned" if name == "ingest-0" else "kill@hour.recovering")
        running.wait_until_killed(name.replace("0", "1"))
        running.send()
        running.wait_until_exact(120)


@pytest.mark.parametrize("name", ["ingest-0", "stream-0"])
def test_answers_are_exact_after_a_worker_dies_during_a_handover(settings: Settings, tmp_path: Path, name: str) -> None:
    kind = name.split("-")[0]
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker, f"kill@{kind}.revoked" if worker == name else "")
        running.send(HALF)
        # On a busy machine it may lose its place in the group, and die of that, before it has shown anything.
        running.wait_until_something_is_shown(unless_ended=name)
        running.start(f"{kind}-1")
        running.wait_until_killed(name)
        running.send()
        running.wait_until_exact(120)


def test_answers_are_exact_after_a_stream_worker_dies_packing_a_closed_minute(
    settings: Settings, tmp_path: Path
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000, "redis_page": 5})
        running.start("ingest-0")
        stream = running.start("stream-0")
        running.send(HALF)
        running.wait_until_something_is_shown()
        stream.kill()
        # What was open when it took over may have been open for long: that is packed after it has closed.
        running.start("stream-0", "kill@hot.packed:2")
        running.send()
        running.wait_until_killed("stream-0")
        running.start("stream-0")
        running.wait_until_exact(120)
