"""A backend that is away is waited for, but not for ever, and not with a thousand lines."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from infra import logs
from infra.embedded import supervisor
from infra.embedded.stack_folder import Folder
from infra.embedded.start_commands import ProcessCommand
from infra.errors import ClientBroken, Refused, Unavailable
from infra.retries import WAITS, Sessions, Waits, bounded, patiently, pause_s


def test_a_call_that_hangs_is_abandoned() -> None:
    assert bounded(lambda: 7, 5.0, "answer") == 7
    with pytest.raises(ValueError, match="its own"):
        bounded(lambda: int("its own"), 5.0, "answer")
    stuck = threading.Event()
    with pytest.raises(ClientBroken, match="did not answer within 0 s"):
        bounded(stuck.wait, 0.05, "answer")
    stuck.set()


def test_a_repeated_line_of_a_library_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(logs.Once())
    noisy = logging.Logger("noisy")
    noisy.addHandler(handler)
    for port in range(1000):
        noisy.error("no connection to %s", port)
    noisy.error("something else")
    assert capsys.readouterr().out == "no connection to 0\nsomething else\n"


def test_lines_of_libraries_have_the_form_of_our_own() -> None:
    code = "from infra import logs; import logging; logs.configure(); logging.getLogger('urllib3.pool').warning('lost %s', 7)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(result.stderr)
    assert {name: line[name] for name in ("event", "logger", "level")} == {
        "event": "lost 7", "logger": "urllib3.pool", "level": "warning",
    }  # fmt: skip
    assert "timestamp" in line


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def warning(self, line: str, **fields: object) -> None:
        self.lines.append((line, fields))

    info = warning

    @property
    def names(self) -> list[str]:
        return [line for line, _ in self.lines]


def no_pause(_failures: int) -> float:
    return 0.0


OOM = Refused("Redis: OOM command not allowed", backend="redis", code="OOM")
AWAY = Unavailable("Redis: connection refused", backend="redis")


def test_pauses_grow_to_a_cap_and_are_spread_evenly_below_it() -> None:
    random.seed(1)
    for failures, limit_s in [(1, 0.4), (3, 1.6), (6, 10.0), (5_000, 10.0)]:
        pauses = [pause_s(failures) for _ in range(2_000)]
        assert 0 <= min(pauses) < 0.01 * limit_s
        assert 0.99 * limit_s < max(pauses) <= limit_s
        assert 0.45 * limit_s < sum(pauses) / len(pauses) < 0.55 * limit_s


def test_a_series_of_lost_sessions_is_logged_at_its_start_at_a_new_reason_and_at_its_end() -> None:
    stop, log = threading.Event(), Lines()
    sessions = Sessions(stop, log, (Unavailable,), pause=no_pause)
    # The same reason in other words, each with a name of its own, is the same reason.
    losses = [*(Refused(f"OOM {n}", backend="redis", code="OOM") for n in range(1_500)), AWAY, AWAY]
    waits: list[dict[str, str]] = []

    def session() -> None:
        waits.append(WAITS.reasons())
        if losses:
            raise losses.pop(0)
        sessions.works()
        sessions.works()
        waits.append(WAITS.reasons())
        stop.set()

    sessions.run(session)
    assert log.names == ["starting over", "starting over", "works again"]
    assert log.lines[0][1]["why"] == "OOM 0"
    assert log.lines[-1][1]["failures"] == 1_502
    assert waits[:2] == [{}, {"redis": "OOM 0"}]
    assert waits[-2:] == [{"redis": str(AWAY)}, {}]


def test_an_idle_session_works_again_only_once_its_backend_answers() -> None:
    now, stop, log, losses, probes = 100.0, threading.Event(), Lines(), [AWAY], [AWAY, None]
    sessions = Sessions(stop, log, (Unavailable,), clock=lambda: now, pause=no_pause)

    def probe() -> None:
        if (error := probes.pop(0)) is not None:
            raise error

    def session() -> None:
        nonlocal now
        if losses:
            raise losses.pop()
        now += 1_000  # in which nothing came
        assert log.names == ["starting over"]
        assert WAITS.reasons() == {"redis": str(AWAY)}
        sessions.maybe_probe(probe)
        assert (log.names, WAITS.reasons()) == (["starting over", "works again"], {})
        assert log.lines[-1][1] == {"failures": 2, "seconds": 2_000.0}
        sessions.maybe_probe(probe)  # does not probe: all is well
        stop.set()

    sessions.run(session)
    assert probes == []


def test_a_probe_is_not_repeated_at_once() -> None:
    now, stop, probed, losses = 100.0, threading.Event(), list[float](), [AWAY]
    sessions = Sessions(stop, Lines(), (Unavailable,), clock=lambda: now, pause=no_pause)

    def session() -> None:
        nonlocal now
        if losses:
            raise losses.pop()
        for _ in range(100):
            now += 0.1
            sessions.maybe_probe(partial(probed.append, now))
        stop.set()

    sessions.run(session)
    assert [round(at) for at in probed] == [105]


def test_a_wait_is_reported_until_the_call_succeeds_and_each_reason_is_logged_once() -> None:
    log, errors, reasons_by_call = Lines(), [OOM, OOM, AWAY, AWAY], list[dict[str, str]]()

    def call() -> str:
        reasons_by_call.append(WAITS.reasons())
        if errors:
            raise errors.pop(0)
        return "done"

    assert patiently(call, threading.Event(), log, cap_s=0.01) == "done"
    assert log.names == ["waiting for a backend", "waiting for a backend", "the backend is back"]
    assert [reason["redis"] for reason in reasons_by_call[1:]] == [str(OOM), str(OOM), str(AWAY), str(AWAY)]
    assert WAITS.reasons() == {}


def test_a_wait_is_published_only_after_it_has_lasted() -> None:
    now = 100.0
    waits = Waits(lambda: now)
    waits.begin("a", AWAY)
    now = 101.9
    waits.begin("a", OOM)
    assert waits.reasons(2.0) == {}
    now = 102.0
    assert waits.reasons(2.0) == {"redis": str(OOM)}


def test_the_restart_pause_of_a_process_that_died_thousands_of_times_is_capped(tmp_path: Path) -> None:
    class Dead:
        """A process that has ended."""

        pid = 0

        def poll(self) -> int:
            return 1

    stack = supervisor.Supervisor(Folder(tmp_path), {}, {})
    stack._folder.make()
    command = ProcessCommand("ingest-0", [], tmp_path)
    child = supervisor.Child(command, process=cast(Any, Dead()), started_at=time.monotonic(), failures=5_000)
    stack._children["ingest-0"] = child
    stack._revive()
    assert 0 < child.restart_at - time.monotonic() <= supervisor.BACKOFF_CAP_S
