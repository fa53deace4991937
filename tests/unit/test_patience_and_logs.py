"""What is away is waited for, but not for ever, and not with a thousand lines."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from infra import logs, patience
from infra.embedded import supervisor
from infra.embedded.servers import Command
from infra.embedded.state import Folder
from infra.errors import ClientBroken, Refused, Unavailable
from infra.patience import WAITS, Sessions, bounded, patiently, pause_s


def test_a_call_that_never_returns_is_given_up() -> None:
    assert bounded(lambda: 7, 5.0, "answer") == 7
    with pytest.raises(ValueError, match="its own"):
        bounded(lambda: int("its own"), 5.0, "answer")
    stuck = threading.Event()
    with pytest.raises(ClientBroken, match="did not answer within 0 s"):
        bounded(stuck.wait, 0.05, "answer")
    stuck.set()


def test_a_library_says_the_same_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(logs.Once())
    noisy = logging.Logger("noisy")
    noisy.addHandler(handler)
    for port in range(1000):
        noisy.error("no connection to %s", port)
    noisy.error("something else")
    assert capsys.readouterr().out == "no connection to 0\nsomething else\n"


class Lines:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def warning(self, line: str, **fields: object) -> None:
        self.lines.append((line, fields))

    info = warning

    @property
    def names(self) -> list[str]:
        return [line for line, _ in self.lines]


OOM = Refused("Redis: OOM command not allowed", backend="redis", code="OOM")
AWAY = Unavailable("Redis: connection refused", backend="redis")


def test_pauses_grow_to_a_cap_and_are_spread_evenly_below_it() -> None:
    random.seed(1)
    for failures, limit_s in [(1, 0.4), (3, 1.6), (6, 10.0), (5_000, 10.0)]:
        pauses = [pause_s(failures) for _ in range(2_000)]
        assert 0 <= min(pauses) < 0.01 * limit_s
        assert 0.99 * limit_s < max(pauses) <= limit_s
        assert 0.45 * limit_s < sum(pauses) / len(pauses) < 0.55 * limit_s


def test_a_series_of_lost_sessions_is_logged_at_its_start_at_a_new_reason_and_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "pause_s", lambda _failures: 0.0)
    stop, log = threading.Event(), Lines()
    sessions = Sessions(stop, log, (Unavailable,))
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


def test_a_session_that_lasts_ends_a_series_of_losses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_STEADY_S", 0.05)
    stop, log, losses = threading.Event(), Lines(), [AWAY]
    sessions = Sessions(stop, log, (Unavailable,))

    def session() -> None:
        if losses:
            raise losses.pop()
        deadline = time.monotonic() + 30
        while len(log.lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()

    sessions.run(session)
    assert log.names == ["starting over", "works again"]
    assert WAITS.reasons() == {}


def test_what_a_call_waits_for_is_reported_until_it_succeeds_and_each_reason_is_logged_once() -> None:
    log, errors, seen = Lines(), [OOM, OOM, AWAY, AWAY], list[dict[str, str]]()

    def call() -> str:
        seen.append(WAITS.reasons())
        if errors:
            raise errors.pop(0)
        return "done"

    assert patiently(call, threading.Event(), log, cap_s=0.01) == "done"
    assert log.names == ["waiting for a backend", "waiting for a backend", "the backend is back"]
    assert [reason["redis"] for reason in seen[1:]] == [str(OOM), str(OOM), str(AWAY), str(AWAY)]
    assert WAITS.reasons() == {}


def test_a_wait_is_told_to_others_only_after_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waits = patience.Waits()
    waits.begin("a", AWAY)
    now = 101.9
    waits.begin("a", OOM)
    assert waits.reasons(2.0) == {}
    now = 102.0
    assert waits.reasons(2.0) == {"redis": str(OOM)}


def test_a_process_that_has_died_a_thousand_times_is_started_once_more(tmp_path: Path) -> None:
    class Dead:
        """A process that has ended."""

        pid = 0

        def poll(self) -> int:
            return 1

    stack = supervisor.Supervisor(Folder(tmp_path), {}, {})
    stack._folder.make()
    command = Command("ingest-0", [], tmp_path)
    child = supervisor.Child(command, process=cast(Any, Dead()), started_at=time.monotonic(), failures=5_000)
    stack._children["ingest-0"] = child
    stack._revive()
    assert 0 < child.restart_at - time.monotonic() <= supervisor.BACKOFF_CAP_S
