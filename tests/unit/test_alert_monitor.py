"""When an alert began to fire and when it ended, as a rehearsal sees it."""

from __future__ import annotations

from typing import cast

from tests.monitoring.rehearsal.prometheus import AlertKey, AlertMonitor, RehearsedPrometheus

A, B = ("A", "critical"), ("B", "warning")


class _Silent:
    """A Prometheus at which nothing fires."""

    def firing(self) -> set[AlertKey]:
        return set()


def test_beginnings_and_ends_are_those_after_a_moment() -> None:
    monitor = AlertMonitor(cast(RehearsedPrometheus, _Silent()))
    monitor.close()
    for now_s, firing in ((10.0, {A}), (11.0, {A, B}), (12.0, {B}), (20.0, {A, B})):
        monitor.note(firing, now_s)
    assert [monitor.fired_after(A, at) for at in (0.0, 10.5, 12.0, 30.0)] == [10.0, 10.5, 20.0, 30.0]
    assert [monitor.ended_after(A, at) for at in (11.0, 15.0, 25.0)] == [12.0, 15.0, None]
    assert (monitor.fired_after(B, 0.0), monitor.ended_after(B, 13.0)) == (11.0, None)
    assert monitor.fired_after(("C", "info"), 0.0) is None
    assert monitor.fired_between(10.5, 21.0) == {A, B}
    assert monitor.fired_between(12.5, 19.0) == set()
