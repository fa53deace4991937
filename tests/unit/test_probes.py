"""Idle workers after a loss: they report that it is over once what they need works again, and no earlier."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from infra.errors import Unavailable
from infra.kafka.records import Committed
from infra.retries import WAITS, Sessions
from infra.settings import Settings
from ingest.archive import worker as archive_worker
from ingest.worker import IngestWorker
from tests.unit.fakes import Clock

_SETTLE_S = 60


class Member:
    """A group's member to which no message comes. Each call that consumes takes a second."""

    def __init__(self, clock: Clock, *, is_assigned: bool) -> None:
        self._clock, self.is_assigned = clock, is_assigned
        self.turns = 0

    def consume(self, _count: int, _timeout_s: float) -> list[Any]:
        self.turns += 1
        self._clock.now += 1
        return []

    def committed(self, partitions: list[int]) -> list[Committed]:
        return [Committed(p, -1, "") for p in partitions]

    def close(self) -> None:
        pass


def waits_of_archive_worker(member: Member, archive: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[bool]:
    """Whether an idle archive worker reports a wait: a second after it lost a session, and a minute after."""
    waits = list[bool]()

    class LosesOne(Member):
        """The first session's member."""

        def consume(self, _count: int, _timeout_s: float) -> list[Any]:
            raise Unavailable("Kafka: it is away", backend="kafka")

    members: list[Member] = [LosesOne(clock, is_assigned=True)]

    def join(*_words: Any) -> Member:
        return members.pop() if members else member

    def pause(_failures: int) -> float:
        return 0.0

    monkeypatch.setattr(archive_worker, "GroupConsumer", join)
    settings = Settings.model_validate({"archive": str(archive)})
    worker = archive_worker.ArchiveWorker(settings, "archive-0", clock=clock, pause=pause)
    consume = member.consume

    def watched(count: int, timeout_s: float) -> list[Any]:
        if member.turns in (1, _SETTLE_S):
            waits.append(bool(WAITS.reasons()))
        if member.turns == _SETTLE_S:
            worker.stop()
        return consume(count, timeout_s)

    monkeypatch.setattr(member, "consume", watched)
    worker.run()
    return waits


@pytest.mark.parametrize(
    ("is_assigned", "writable", "still_waits"),
    [(True, True, False), (True, False, True), (False, True, True)],
    ids=["all is well", "the archive takes no files", "no partitions are assigned yet"],
)
def test_an_idle_archive_worker_waits_until_its_group_and_its_archive_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_assigned: bool, writable: bool, still_waits: bool
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir() if writable else volume.write_text("a file where a volume is to be mounted")
    clock = Clock()
    waits = waits_of_archive_worker(Member(clock, is_assigned=is_assigned), volume / "archive", monkeypatch, clock)
    assert waits == [True, still_waits]
    assert not list(tmp_path.rglob(".probe*"))


class Consumer:
    """A consumer of events, to which none come."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def take(self, _count: int, _timeout_s: float) -> dict[int, list[Any]]:
        return {}

    def unreadable(self) -> dict[int, Any]:
        return {}


class Log:
    """A logger that keeps no lines."""

    def warning(self, line: str, **fields: object) -> None:
        pass

    info = warning


@pytest.mark.parametrize("is_assigned", [False, True])
def test_an_ingest_worker_probes_only_once_the_group_has_assigned_partitions(is_assigned: bool) -> None:
    clock, probed, losses = Clock(), list[float](), [Unavailable("Kafka: it is away", backend="kafka")]
    stop = threading.Event()
    worker = IngestWorker(Settings.model_validate({}), "ingest-0")
    worker._consumer = Consumer(Member(clock, is_assigned=is_assigned))  # type: ignore[assignment]
    worker._sessions = Sessions(stop, Log(), (Unavailable,), clock, lambda _failures: 0.0)
    worker._probe = lambda: probed.append(clock())  # type: ignore[method-assign]

    def session() -> None:
        if losses:
            raise losses.pop()
        clock.now += _SETTLE_S
        worker._run_turn()
        stop.set()

    worker._sessions.run(session)
    assert len(probed) == is_assigned
