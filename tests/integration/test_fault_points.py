"""A process ends exactly in each gap between two writes; answers stay exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from tests.flow import STEP, Flow, flow

HALF = STEP // 2


def check_after_deaths(running: Flow, name: str, *faults: str) -> None:
    """Run all workers, one with a fault; it dies, comes back with the next one, and last without any; and answers are exact."""
    for worker in ("ingest-0", "stream-0"):
        running.start(worker, f"kill@{faults[0]}" if worker == name else "")
    for following in (*faults[1:], None):
        running.send(HALF // len(faults))
        running.wait_until_killed(name)
        running.start(name, f"kill@{following}" if following else "")
    running.send()
    running.wait_until_exact(120)


def test_answers_are_exact_after_ingest_dies_between_two_writes(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path, events=2 * STEP) as running:
        small = {"ingest_batch": 500, "dedup_segment_ids": 100}
        running.settings = running.settings.model_copy(update=small)
        check_after_deaths(
            running,
            "ingest-0",
            "ingest.recorded",  # ids in Redis, nothing in Kafka
            "ingest.closing:2",  # a segment is full, and not in order yet
            "ingest.produced:2",  # the transaction is in the log, not committed
            "ingest.committed:2",  # committed, and nothing in memory has moved
        )


@pytest.mark.parametrize(
    "faults",
    [
        (
            "minute.flushing:2",  # the delta is taken, nothing written
            "minute.produced:2",  # chunk and state are in the log, not committed
            "minute.committed:2",  # durable, not shown
            "hot.written:2",  # shown, and nothing in memory has moved
        ),
        ("hour.produced:2", "hour.committed:2", "day.committed:2"),
        (
            "insight.produced",
            "insight.committed",
            "warm.half",  # rows in ClickHouse, the border not moved
        ),
    ],
    ids=["minutes", "hours and days", "insights and ClickHouse"],
)
def test_answers_are_exact_after_a_stream_worker_dies_between_two_writes(
    settings: Settings, tmp_path: Path, faults: tuple[str, ...]
) -> None:
    with flow(settings, tmp_path, events=2 * STEP) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 500})
        check_after_deaths(running, "stream-0", *faults)


def test_answers_are_exact_after_a_stream_worker_dies_halfway_through_a_large_flush_to_redis(
    settings: Settings, tmp_path: Path
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"redis_page": 20})
        check_after_deaths(running, "stream-0", "hot.half:5")


@pytest.mark.parametrize(
    "faults",
    [
        {"ingest-0": "ingest.committed:2", "stream-0": "minute.produced:3"},  # not committed: to be written again
        {"ingest-0": "", "stream-0": "minute.committed:3"},  # committed: never to be written again
    ],
    ids=["both", "stream"],
)
def test_answers_are_exact_after_the_reply_to_a_commit_is_lost(
    settings: Settings, tmp_path: Path, faults: dict[str, str]
) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000})
        for worker, fault in faults.items():
            running.start(worker, fault and f"lose@{fault}")
        running.send(HALF)
        running.wait_until_something_is_shown()
        running.send()
        running.wait_until_exact(120)
        log = (tmp_path / "log").read_text()
        assert all(f"the answer was lost at {fault.split(':')[0]}" in log for fault in faults.values() if fault)
        assert all(running.workers[name].poll() is None for name in faults)
        assert not running.restarts


def test_the_archive_is_complete_after_its_worker_dies_around_a_rename(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 500, "archive_flush_ms": 500})
        running.start("ingest-0")
        for fault in ("store.written:2", "archive.renamed:2"):
            running.start("archive-0", f"kill@{fault}")
            running.send(HALF // 2)
            running.wait_until_killed("archive-0")
        running.start("archive-0")
        running.send()
        running.wait_until_archived(40)


def test_answers_are_exact_after_workers_die_during_a_takeover(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        running.start("ingest-0")
        running.start("stream-0")
        running.send(HALF)
        for name, fault in (("ingest-1", "ingest.assigned"), ("stream-1", "hour.recovering")):
            running.start(name, f"kill@{fault}")
            running.wait_until_killed(name)
        running.send()
        running.wait_until_exact(120)


def test_answers_are_exact_after_workers_die_during_a_handover(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        for kind in ("ingest", "stream"):
            running.start(f"{kind}-0", f"kill@{kind}.revoked")
        running.send(HALF)
        # On a busy machine they may lose their places in the group, and die of that, before anything is shown.
        running.wait_until_something_is_shown(or_one_ends=True)
        for kind in ("ingest", "stream"):
            running.start(f"{kind}-1")
            running.wait_until_killed(f"{kind}-0")
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
