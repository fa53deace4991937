"""When windows close, on real workers: idle partitions, clocks that run ahead, restarts, pauses."""

from __future__ import annotations

import itertools
import json
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.clock import HOUR_MS, MINUTE_MS, iso, now_ms
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from infra.settings import Settings
from ingest.dead_letters import letters as dead_letters
from tests.flow import Flow, RouterClient, flow
from tests.product import assert_stays, wait_until

START = now_ms() // MINUTE_MS * MINUTE_MS - 3 * HOUR_MS


class Source:
    """Sends single clicks of campaign 1 at chosen event times to chosen partitions."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._numbers = settings, itertools.count()

    def send(self, partition: int, *times_ms: int) -> None:
        """Send one event for each time, in that order."""
        values = [self._event(partition, t) for t in times_ms]
        producer = EventProducer(self._settings.kafka_connection)
        producer.send(self._settings.topic(topics.EVENTS), [k for k, _ in values], [v for _, v in values])
        assert producer.flush(20) == 0

    def _event(self, partition: int, time_ms: int) -> tuple[bytes, bytes]:
        # The default partitioner of librdkafka.
        ids = (f"w{n}" for n in self._numbers)
        name = next(i for i in ids if zlib.crc32(i.encode()) % self._settings.event_partitions == partition)
        event = {"event_id": name, "event_type": "click", "event_time": time_ms, "campaign_id": 1, "ad_id": 1}
        return name.encode(), json.dumps(event | {"advertiser_id": 1, "publisher_id": 1}).encode()


@pytest.fixture
def running(settings: Settings, tmp_path: Path) -> Iterator[Flow]:
    with flow(settings, tmp_path, events=10) as started:
        for name in ("ingest-0", "stream-0"):
            started.start(name)
        yield started


def minutes(running: Flow) -> dict[int, tuple[int, str]]:
    """Minute from START → clicks, finality."""
    end = iso(now_ms() + HOUR_MS)
    parameters = [("campaign_id", "1"), ("start", iso(START - HOUR_MS)), ("end", end), ("granularity", "minute")]
    rows: list[dict[str, Any]] = RouterClient(running.settings).get("", parameters)["data"]
    return {(_ms(r["time"]) - START) // MINUTE_MS: (r["clicks"], r["finality"]) for r in rows}


def _ms(text: str) -> int:
    import datetime as dt

    return int(dt.datetime.fromisoformat(text).timestamp() * 1000)


def at(minute: float) -> int:
    return START + int(minute * MINUTE_MS)


def wait_until_minutes_are(running: Flow, expected: dict[int, tuple[int, str]], seconds: float = 25) -> None:
    wait_until(lambda: minutes(running) == expected, seconds, lambda: f"{expected}, but it is {minutes(running)}")


def test_idle_partitions_do_not_hold_windows_open_and_a_lagging_one_corrects_them(
    settings: Settings, running: Flow
) -> None:
    source = Source(settings)
    # The other partitions have never had an event: they count as silent.
    source.send(0, at(0), at(5))
    wait_until_minutes_are(running, {0: (1, "closed"), 5: (1, "provisional")})
    # One that wakes up far behind is no reason for anything to be late, and its minutes are corrected.
    source.send(1, at(0.5), at(1))
    wait_until_minutes_are(running, {0: (2, "corrected"), 1: (1, "corrected"), 5: (1, "provisional")})
    assert list(dead_letters.read_letters(settings)) == []


def test_a_clock_nine_minutes_ahead_makes_only_its_own_partition_late(settings: Settings, running: Flow) -> None:
    now = now_ms()
    source = Source(settings)
    for p in range(settings.event_partitions):
        source.send(p, now - MINUTE_MS)
    source.send(0, now + 9 * MINUTE_MS)
    for p in range(1, settings.event_partitions):
        source.send(p, now)
    source.send(0, now - 2 * MINUTE_MS)
    parameters = [("campaign_id", "1"), ("start", "-1h"), ("end", iso(now + HOUR_MS)), ("granularity", "total")]

    def total() -> dict[str, Any]:
        rows = RouterClient(settings).get("", parameters)["data"]
        return rows[0] if rows else {"clicks": 0}

    count = 2 * settings.event_partitions + 1
    wait_until(lambda: total()["clicks"] == count, 25, f"{count} clicks")
    # The one that its own partition made late, by ten minutes and more.
    assert total()["late_events"] == 1
    assert list(dead_letters.read_letters(settings)) == []


def test_a_restart_with_nothing_new_and_a_pause_in_a_replay_change_nothing(settings: Settings, running: Flow) -> None:
    source = Source(settings)
    everyone, each = range(settings.event_partitions), settings.event_partitions
    for p in everyone:
        source.send(p, at(0))
    # Until all have been heard of, a silent one does not count.
    wait_until(lambda: minutes(running).get(0, (0, ""))[0] == each, 25, "all are known")
    for minute in (10, 10.2):
        for p in everyone:
            source.send(p, at(minute))
    expected = {0: (each, "closed"), 10: (2 * each, "provisional")}
    wait_until_minutes_are(running, expected)
    for name in ("ingest-0", "stream-0"):
        running.workers[name].send_signal(signal.SIGKILL)
        running.workers[name].wait()
        running.start(name)
    # A pause of several times `silent_after`: the watermark moves by seconds, not to now.
    assert_stays(lambda: minutes(running) == expected, 8, "no window closes while nothing comes")
    for minute in (10.4, 11.5):
        for p in everyone:
            source.send(p, at(minute))
    wait_until_minutes_are(running, {0: (each, "closed"), 10: (3 * each, "closed"), 11: (each, "provisional")})
    parameters = [("campaign_id", "1"), ("start", iso(START)), ("end", "now"), ("granularity", "total")]
    assert RouterClient(settings).get("", parameters)["data"][0]["late_events"] == 0
