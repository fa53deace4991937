"""Nightly runs that are asked for over HTTP: started by the supervisor of the router's own stack, seen by the lease that they hold."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, day_start_ms, iso
from infra.errors import Unavailable
from infra.redis.client import Redis
from infra.run_progress import read_progress
from infra.settings import Settings
from infra.structs import decodable
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.pipeline import OwnStack


@decodable
class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which day is to be reconciled."""

    date: str


class NightlyRuns:
    """Thread-safe. Blocks while the backends are read."""

    def __init__(self, client: ClickHouse, settings: Settings, stack: OwnStack) -> None:
        self._client, self._settings, self._stack = client, settings, stack
        self._redis = Redis(settings.redis_access, timeout_s=1.0)

    def running(self) -> list[dict[str, Any]]:
        """The run that is at work, wherever it was started, as a list of one; empty where there is none, or Redis is away."""
        try:
            progress = read_progress(self._redis, self._settings.key_prefix)
        except Unavailable:
            return []
        if progress is None:
            starting = self._starting()
            progress = {"date": starting, "step": "starting"} if starting is not None else None
        if progress is None:
            return []
        at_ms = progress.pop("at_ms", None)
        known = {"date": None, "step": None, "tasks_done": None, "tasks": None} | progress
        return [known | {"state": "running", "at": iso(at_ms) if at_ms else None}]

    def outcome(self) -> dict[str, Any] | None:
        """How the run has ended that the supervisor started last; None where it has started none, or that one is at work."""
        outcome = self._started()
        if outcome is None or outcome["code"] is None:
            return None
        return {name: outcome[name] for name in ("date", "code", "why")} | {"ended_at": iso(outcome["at_ms"])}

    def _started(self) -> dict[str, Any] | None:
        folder = self._stack.folder
        return folder.run_outcome() if folder is not None and self._stack.is_supervised else None

    def _starting(self) -> str | None:
        """The day of a run that the supervisor has been asked for, or has started: it holds its lease some seconds later."""
        folder = self._stack.folder
        if folder is not None and self._stack.is_supervised and (date := folder.requested_run()) is not None:
            return date
        started = self._started()
        return str(started["date"]) if started is not None and started["code"] is None else None

    def start(self, date: dt.date, now_ms: int) -> None:
        """Have the supervisor start a run. Raises Problem, BadQuestion, Unavailable."""
        if day_start_ms(date) > now_ms:
            raise BadQuestion("date", f"{date} has not begun yet")
        folder = self._stack.folder
        if folder is None or not self._stack.is_supervised:
            raise Problem(
                501, "no-supervisor",
                f"no supervisor started this router; run adclick reconcile --date {date} where the cluster runs nightly jobs",
            )  # fmt: skip
        hours = borders.read_published(self._client, self._settings.block_partitions).tiers.get("hours")
        if hours is None or hours.watermark_ms < day_start_ms(date) + DAY_MS:
            shown = f"the watermark is {iso(hours.watermark_ms)}" if hours else "there is no watermark yet"
            raise Problem(
                409, "still-open", f"{date} is still open: {shown}; wait until it is past the day's end", "date"
            )
        if read_progress(self._redis, self._settings.key_prefix) is not None or not folder.request_run(
            date.isoformat()
        ):
            raise Problem(
                409,
                "running",
                "a nightly run is at work already; GET /v1/reconciliations shows it",
                headers={"Retry-After": "10"},
            )
