"""Workers of one release are replaced by those of the next, whose blocks have a schema version that the old ones do not know."""

from __future__ import annotations

from pathlib import Path

from infra.kafka import topics
from infra.settings import Settings
from ingest.blocks import READABLE_VERSIONS, SCHEMA_VERSION
from tests import next_version
from tests.flow import STEP, Flow, flow
from tests.product import PATIENCE

NEXT = next_version.variables(SCHEMA_VERSION + 1)
REFUSAL = f"schema version {SCHEMA_VERSION + 1}, this program reads {READABLE_VERSIONS} (upgrade this worker)"
WORKERS = ("archive-0", "archive-1", "stream-0", "stream-1", "ingest-0", "ingest-1")


TOPICS = {"archive-0": topics.ARCHIVE, "stream-0": topics.BLOCKS}


def assert_refuses(running: Flow, name: str, log: Path, times: int) -> None:
    """The worker ends by itself, and says why in a line, as often as it was started."""
    code = running.workers[name].wait(40 * PATIENCE)
    begin = "adclick: stream: " if name == "stream-0" else "adclick: "
    begin += f"{running.settings.topic(TOPICS[name])}/"
    lines = [line for line in log.read_text().splitlines() if line.startswith(begin) and REFUSAL in line]
    assert (code, len(lines)) == (1, times), log.read_text()


def test_readers_first_no_worker_stops_for_long_and_nothing_is_lost(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        for name in WORKERS:
            running.start(name)
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        for name in WORKERS:
            running.stop(name)
            running.start(name, **NEXT)
            running.send(STEP // 20)
        running.send()
        running.wait_until_exact(60)
        running.wait_until_archived(60)
        assert running.restarts == []


def test_an_old_reader_refuses_newer_blocks_until_it_is_upgraded(settings: Settings, tmp_path: Path) -> None:
    with flow(settings, tmp_path) as running:
        for name in ("archive-0", "stream-0", "ingest-0"):
            running.start(name)
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        running.stop("ingest-0")
        running.start("ingest-0", **NEXT)
        running.send(STEP // 4)
        for name in ("archive-0", "stream-0"):
            assert_refuses(running, name, tmp_path / "log", 1)
            # Its supervisor starts it again.
            running.start(name)
            assert_refuses(running, name, tmp_path / "log", 2)
        running.variables = NEXT
        for name in ("archive-0", "stream-0"):
            running.start(name)
        running.send()
        running.wait_until_exact(60)
        running.wait_until_archived(60)
        assert running.restarts == []
