"""Reports of ingest workers: the reader gets what the writer published, also from a worker of the version before."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from infra.errors import AdclickError
from ingest import published_status
from ingest.counts import Counts
from ingest.published_status import publish_report, publish_stop, read_reports
from ingest.shedding import Level
from tests.unit.fakes import Clock, FakeRedis

PREFIX = "adclick:"


def test_published_reports_are_read_until_they_expire() -> None:
    clock = Clock()
    redis = FakeRedis(clock)
    for worker, level, sent_ms in (("b", Level.NORMAL, 0), ("a", Level.SAMPLING, 7)):
        partitions: dict[int, Any] = {0: {"offset": 1, "watermark_ms": None, "misdated": 2 if worker == "a" else 0}}
        if worker == "b":
            partitions[1] = {"offset": 17, "watermark_ms": None, "poison": {"name": "1/17-20", "why": "no CRC"}}
        publish_report(
            redis, PREFIX, worker, level=level, lag=3, counts=Counts(messages=4, copies=1, doubt=1), started_ms=1,
            sent_ms=sent_ms, at_ms=5, partitions=partitions,
        )  # fmt: skip
    publish_stop(redis, PREFIX, "c", AdclickError("Kafka: it is away"))
    reports = read_reports(redis, PREFIX)
    assert [report["worker"] for report in reports.workers] == ["a", "b"]
    # Of both, added up.
    assert {name: n for name, n in reports.counts.items() if n} == {"messages": 8, "copies": 2, "doubt": 2}
    assert reports.workers[0]["doubt"] == 1
    assert reports.stopped == {"c": "Kafka: it is away"}
    assert (reports.level, reports.sent_ms, reports.misdated("ad-events")) == ("sampling", 7, {"ad-events/0": 2})
    assert reports.poison_names() == {"1/17-20"}
    assert list(reports.poisoned("ad-events")) == ["ad-events/1"]
    (problem,) = reports.poisoned("ad-events").values()
    assert re.search(r"before 1/17-20: no CRC.*adclick dead-letters set-aside 1/17-20", problem)
    clock.now += 15
    reports = read_reports(redis, PREFIX)
    assert (reports.workers, reports.stopped) == ([], {"c": "Kafka: it is away"})
    assert (reports.level, reports.sent_ms) == ("unknown", 0)


class SlowRedis(FakeRedis):
    """A Redis that takes the first report `delay_s` after it was sent."""

    def __init__(self, clock: Clock, delay_s: float) -> None:
        super().__init__(clock)
        self._redis_clock, self._delay_s = clock, delay_s

    def call(self, *command: Any) -> Any:
        if command[0] == "SET":
            self._redis_clock.now += self._delay_s
            self._delay_s = 0.0
        return super().call(*command)


@pytest.mark.parametrize(("delay_s", "clocks"), [(0.1, {"a": 0.0}), (3.0, {})])
def test_a_report_that_redis_took_late_says_nothing_of_its_workers_clock(
    monkeypatch: pytest.MonkeyPatch, delay_s: float, clocks: dict[str, float]
) -> None:
    clock = Clock()
    redis = SlowRedis(clock, delay_s)
    monkeypatch.setattr(published_status, "monotonic", clock)
    monkeypatch.setattr(published_status, "now_ms", lambda: int(clock.now * 1000))
    publish_report(
        redis, PREFIX, "a", level=Level.NORMAL, lag=0, counts=Counts(), started_ms=1, sent_ms=1, at_ms=int(clock.now * 1000),
        partitions={},
    )  # fmt: skip
    clock.now += 1
    reports = read_reports(redis, PREFIX)
    assert [worker["worker"] for worker in reports.workers] == ["a"]
    assert reports.clocks == pytest.approx(clocks, abs=0.2)


def test_a_report_of_the_version_before_is_read_without_the_fields_that_it_lacks() -> None:
    redis = FakeRedis()
    report = {"worker": "a", "level": "normal", "lag": 0, "doubt": 0, "sent_ms": 7, "partitions": {"0": {"offset": 1}}}
    redis.call("SET", f"{PREFIX}ingest:a", json.dumps(report))
    reports = read_reports(redis, PREFIX)
    assert (reports.level, reports.sent_ms, reports.misdated("ad-events")) == ("normal", 7, {})
    assert set(reports.counts.values()) == {0}


@pytest.mark.parametrize("entry", ["1", "[]", "no JSON", "{}", "null"])
def test_a_key_that_is_no_report_is_skipped(entry: str) -> None:
    redis = FakeRedis()
    redis.call("SET", f"{PREFIX}ingest:probe", entry)
    publish_stop(redis, PREFIX, "c", AdclickError("Kafka: it is away"))
    reports = read_reports(redis, PREFIX)
    assert (reports.workers, reports.stopped) == ([], {"c": "Kafka: it is away"})
