"""Workers whose group sees no topics at first, as those of a broker that is just coming back, are at work soon after."""

from __future__ import annotations

import time
from pathlib import Path

from infra import topics
from infra.clickhouse.client import ClickHouse, migrate
from infra.settings import Settings
from tests.flow import flow


def test_a_group_that_saw_no_topics_looks_again_soon(settings: Settings, tmp_path: Path) -> None:
    fresh = settings.model_copy(update={"namespace": f"late_{settings.namespace}"})
    migrate(ClickHouse(fresh.clickhouse, fresh.database))
    with flow(fresh, tmp_path) as running:
        for worker in ("ingest-0", "archive-0", "stream-0"):
            running.start(worker)
        time.sleep(8)
        topics.ensure(fresh)
        running.send()
        running.true_within(40)
        running.archived_within(20)
