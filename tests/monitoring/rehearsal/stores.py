"""Scenes of the stores, and of bills."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from pathlib import Path

from tests.chaos.outages import away
from tests.monitoring.rehearsal.scenes import Expected, Scene
from tests.monitoring.rehearsal.stack import RehearsedStack
from tests.product import wait_until

# -- ClickHouse and Redis -----------------------------------------------------------------------------------------------


class _Outage:
    """ClickHouse is away, and is not started again."""

    def __init__(self) -> None:
        self._outage = contextlib.ExitStack()

    def begin(self, stack: RehearsedStack) -> None:
        self._outage.enter_context(away(stack.folder, "clickhouse"))

    def end(self, _: RehearsedStack) -> None:
        self._outage.close()


_AWAY = "ClickHouse is killed, and stays away"
_STARTED = "ClickHouse is started again"
_OUTAGE = _Outage()
CLICKHOUSE = Scene(
    "clickhouse", (
        Expected("AdclickBackendDown", "critical", _AWAY, _STARTED, "adclick status", "(?i)clickhouse"),
        Expected("AdclickWorkerWaits", "warning", _AWAY, _STARTED, "adclick status --json", r'"waits":\s*\{\s*"stream-0"'),
        Expected("AdclickTierFails", "warning", _AWAY, _STARTED, "adclick status", "(?i)clickhouse"),
        Expected("AdclickErrorBudget", "critical", _AWAY, _STARTED, "log of query-0", '"status": ?503'),
        Expected("AdclickErrorBudget", "warning", _AWAY, _STARTED, "log of query-0", '"status": ?503'),
    ), _OUTAGE.begin, _OUTAGE.end,
)  # fmt: skip


class _SlowRedis:
    """Redis stands still most of the time, as on a machine with too little CPU."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, stack: RehearsedStack) -> None:
        stack.questions.hot_only = True
        self._thread = threading.Thread(target=self._run, args=(stack,), daemon=True)
        self._thread.start()

    def end(self, stack: RehearsedStack) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        stack.questions.hot_only = False

    def _run(self, stack: RehearsedStack) -> None:
        while not self._stop.is_set():
            stack.send_signal("redis", signal.SIGSTOP)
            time.sleep(0.7)
            stack.send_signal("redis", signal.SIGCONT)
            time.sleep(0.1)


_SLOW = ("Redis stands still for 0.7 s of each 0.8 s", "it gets its CPU back",
         "board: histogram_quantile(0.99, sum by (tier, le) (rate(adclick_tier_read_duration_seconds_bucket[15s]))) > 0.25", "'hot'")  # fmt: skip
_SLOW_REDIS = _SlowRedis()
LATENCY = Scene(
    "latency", (Expected("AdclickLatencyBudget", "critical", *_SLOW), Expected("AdclickLatencyBudget", "warning", *_SLOW)),
    _SLOW_REDIS.begin, _SLOW_REDIS.end,
)  # fmt: skip


def _limit_memory(stack: RehearsedStack, share: float) -> None:
    (memory,) = stack.redis.memories()
    stack.redis.call("CONFIG", "SET", "maxmemory", int(memory.used_bytes / share))


_FULL = (
    "maxmemory is set to 1/0.98 of what is used",
    "maxmemory is set to five times that",
    "adclick status --json",
    "limit_bytes",
)
MEMORY = Scene(
    "memory", (Expected("AdclickRedisMemory", "warning", *_FULL), Expected("AdclickRedisMemory", "critical", *_FULL)),
    lambda stack: _limit_memory(stack, 0.98), lambda stack: _limit_memory(stack, 0.2),
)  # fmt: skip


# -- bills --------------------------------------------------------------------------------------------------------------


NEVER = Scene(
    "no run yet", (
        Expected("AdclickNeverReconciled", "warning", "events come, and no run is started", "adclick reconcile --date D, of a day long ago",
                 "adclick config", r"reconcile_at\W+off"),
    ), lambda _: None, lambda stack: stack.expect_exit(stack.reconcile(stack.old_day), 0),
)  # fmt: skip


def _send_to_reconciled_day(stack: RehearsedStack) -> None:
    stack.send(stack.old_events(stack.old_day, 10))


LATE_RUN = Scene(
    "late run", (
        Expected("AdclickReconciliationLate", "critical", "the newest reconciled day is that of three days ago",
                 "adclick reconcile --date D, of yesterday", "/v1/reconciliations", r'"date":\s*"{old_day}"'),
    ), _send_to_reconciled_day, lambda stack: stack.expect_exit(stack.reconcile(stack.yesterday), 3),
)  # fmt: skip
UNBILLED = Scene(
    "unbilled events", (
        Expected("AdclickUnbilledEvents", "warning", "10 events of a reconciled day; the run of another day sees them",
                 "adclick reconcile --date D, of their day", "/v1/reconciliations", '"unbilled": ?10'),
    ), lambda _: None, lambda stack: stack.expect_exit(stack.reconcile(stack.old_day), 0),
)  # fmt: skip


class _MissingFile:
    """A file of the archive is moved away before a forced run, and restored after it."""

    file: Path
    elsewhere: Path

    def lose(self, stack: RehearsedStack) -> None:
        self.file = stack.files_of(stack.yesterday)[0]
        self.elsewhere = stack.folder.path / self.file.name
        shutil.move(self.file, self.elsewhere)
        stack.expect_exit(stack.reconcile(stack.yesterday, "--force"), 3)

    def restore(self, stack: RehearsedStack) -> None:
        shutil.move(self.elsewhere, self.file)
        wait_until(lambda: stack.reconcile(stack.yesterday) == 0, 30, "the run has no alert any more")


_MISSING = _MissingFile()
RUN_ALERT = Scene(
    "run with an alert", (
        Expected("AdclickReconciliationAlert", "critical", "a file of the archive is moved away, and the run forced",
                 "the file is restored, adclick reconcile --date D", "/v1/reconciliations", r'"missing":\s*\[\s*"'),
    ), _MISSING.lose, _MISSING.restore,
)  # fmt: skip
