"""Nightly runs that are asked for: one request at a time waits for the supervisor, and only a supervised router takes any."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any, cast

import pytest

from infra.clickhouse.client import ClickHouse
from infra.embedded.stack_folder import Folder
from infra.run_progress import end_progress, lease_key, publish_progress, read_progress
from infra.settings import Settings
from query.api.nightly_runs import NightlyRuns
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.pipeline import OwnStack
from tests.unit.fakes import FakeRedis

NOW_MS = 1_795_000_000_000


def test_a_request_is_taken_once_and_a_second_one_is_refused_until_then(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.make()
    assert folder.requested_run() is None
    assert folder.request_run("2026-11-20")
    assert not folder.request_run("2026-11-21")
    assert folder.requested_run() == "2026-11-20"
    folder.drop_request()
    assert folder.requested_run() is None
    assert folder.request_run("2026-11-21")
    assert [path.name for path in folder.run.iterdir()] == ["reconcile.request"]
    assert folder.run_outcome() is None
    folder.write_run_outcome({"date": "2026-11-20", "code": 1})
    assert folder.run_outcome() == {"date": "2026-11-20", "code": 1}


def test_progress_is_shown_while_the_lease_is_held() -> None:
    redis: Any = FakeRedis()
    publish_progress(redis, "adclick:", date="2026-11-20", step="counting", at_ms=5)
    assert json.loads(redis.call("GET", "adclick:reconcile:progress"))["step"] == "counting"
    end_progress(redis, "adclick:")
    assert redis.call("GET", "adclick:reconcile:progress") is None
    assert lease_key("adclick:") == "adclick:reconcile"

    class Held:
        """A Redis in which a run of an earlier version holds the lease, and says nothing."""

        def pipeline(self, commands: Any) -> list[Any]:
            assert len(commands) == 2
            return [1, None]

    assert read_progress(cast(Any, Held()), "adclick:") == {}


def test_a_router_without_a_supervisor_says_what_to_do(tmp_path: Path) -> None:
    settings = Settings.model_validate({})
    client = ClickHouse(settings.clickhouse, settings.database)
    # A folder that some supervisor may have used, but not for this process.
    for stack in (OwnStack(None), OwnStack(tmp_path)):
        runs = NightlyRuns(client, settings, stack)
        with pytest.raises(Problem) as refusal:
            runs.start(dt.date(2026, 11, 1), NOW_MS)
        assert (refusal.value.status, "adclick reconcile --date 2026-11-01" in refusal.value.detail) == (501, True)
        with pytest.raises(BadQuestion):
            runs.start(dt.date(2027, 1, 1), NOW_MS)
        assert runs.outcome() is None
