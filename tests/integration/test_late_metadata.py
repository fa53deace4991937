"""Workers that see no topics at first, as of a broker that is just coming back, work soon after the topics appear."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.kafka import topic_setup
from infra.settings import Settings
from tests.flow import flow, worker_environment
from tests.product import assert_stays

_SETTINGS = "from infra.settings import resolve; settings = resolve().settings"
# Without the check at the start of their commands, which refuse to run without topics.
WORKERS = {
    "ingest-0": f"{_SETTINGS}; from ingest.worker import IngestWorker; IngestWorker(settings, 'ingest-0').run()",
    "archive-0": f"{_SETTINGS}; from ingest.archive.worker import ArchiveWorker; ArchiveWorker(settings, 'archive-0').run()",
    "stream-0": f"{_SETTINGS}; import asyncio; from stream.worker import run; asyncio.run(run(settings))",
}


def test_workers_that_start_before_their_topics_exist_find_them_soon(settings: Settings, tmp_path: Path) -> None:
    fresh = settings.model_copy(update={"namespace": f"late_{settings.namespace}"})
    apply_migrations(ClickHouse(fresh.clickhouse, fresh.database))
    with flow(fresh, tmp_path) as running:
        for name, program in WORKERS.items():
            variables = worker_environment(running.settings, name)
            running.workers[name] = subprocess.Popen([sys.executable, "-c", program], env=variables)
        assert_stays(lambda: all(w.poll() is None for w in running.workers.values()), 8, "workers wait for topics")
        topic_setup.ensure(fresh)
        running.send()
        # By the clients' defaults they would look again after five minutes.
        running.wait_until_exact(30)
        running.wait_until_archived(20)
