"""What workers wait for, published in Redis: written by each worker, read by `adclick status` and the router."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from importlib import resources

from infra.errors import BadStatement, Unavailable
from infra.redis.client import Redis
from infra.retries import WAITS
from infra.settings import Settings

# A shorter wait is not reported; an older report is of a dead worker.
_WAITED_S, _REPORT_EVERY_S, _REPORT_S = 2.0, 1.0, 15
_TIMEOUT_S = 3.0
# For how long the end of a process may be delayed by withdrawing its report.
_WITHDRAW_S = 1.0


def _key(prefix: str) -> str:
    return f"{prefix}waits"


@contextlib.contextmanager
def reporting(settings: Settings, worker: str) -> Iterator[None]:
    """Publish what this process waits for while the block runs: in a thread of its own, since the others wait. At its end the report
    is withdrawn, unless Redis does not answer at once."""
    redis, over = Redis(settings.redis_access, timeout_s=_TIMEOUT_S), threading.Event()
    publish = redis.script((resources.files(__package__) / "report_wait.lua").read_text())
    key = _key(settings.key_prefix)

    def run() -> None:
        published = ""
        with contextlib.closing(redis):
            while not over.wait(_REPORT_EVERY_S):
                reasons = WAITS.reasons(_WAITED_S)
                report = json.dumps(reasons) if reasons else ""
                if report or published:
                    with contextlib.suppress(Unavailable, BadStatement):
                        publish([key], [worker, report, _REPORT_S])
                        published = report
            with contextlib.suppress(Unavailable, BadStatement):
                publish([key], [worker, "", _REPORT_S])

    thread = threading.Thread(target=run, daemon=True, name="reporting")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_WITHDRAW_S)


def read_waits(redis: Redis, prefix: str) -> dict[str, dict[str, str]]:
    """worker → backend → why it waits, without the reports of dead workers. Raises Unavailable."""
    (now_s, _), fields = redis.pipeline([("TIME",), ("HGETALL", _key(prefix))])
    waits = {}
    for worker, report in zip(fields[::2], fields[1::2], strict=True):
        reported_at_s, _, reasons = report.partition(b" ")
        if int(now_s) - int(reported_at_s) <= _REPORT_S:
            waits[worker.decode()] = dict(json.loads(reasons))
    return dict(sorted(waits.items()))
