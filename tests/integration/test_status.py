"""`status` and `/metrics` on workers that run, are halted and continue."""

from __future__ import annotations

import itertools
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl

from infra.clock import now_ms
from infra.errors import Unavailable
from infra.kafka import topics
from infra.redis.client import Redis
from infra.retries import WAITS
from infra.settings import Settings
from infra.wait_reports import reporting
from ingest import published_status
from ingest.counts import Counts
from ingest.shedding import Level
from query.api.metrics import Metrics
from query.pipeline import OwnStack, PipelineReader
from query.progress import ProgressWatch
from query.status import find_unready, read_status
from tests.clusters.tcp_proxy import Proxy
from tests.flow import STEP, Flow, flow
from tests.product import wait_until


def test_workers_that_are_halted_are_named_once_there_is_something_to_do(settings: Settings, tmp_path: Path) -> None:
    progress = ProgressWatch(settings, patience_s=1.0, confirm_s=1.0)

    def standing() -> list[str]:
        stalled = [line.partition(":")[0] for line in read_status(settings, progress)["stalled"]]
        # No archive worker runs here.
        return [line for line in stalled if not line.startswith(settings.topic(topics.ARCHIVE))]

    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        wait_until(lambda: read_status(settings)["stream_lag_s"] == 0, 20, "all is shown")
        running.workers["stream-0"].send_signal(signal.SIGSTOP)
        running.send(STEP // 4)
        shards = [
            f"stream shard {s} shows nothing new, and ingest has sent more" for s in range(settings.block_partitions)
        ]
        wait_until(lambda: standing() == shards, 20, lambda: f"{standing()}")
        assert set(shards) <= set(find_unready(settings, progress))
        running.workers["ingest-0"].send_signal(signal.SIGSTOP)
        running.send()
        events = settings.topic(topics.EVENTS)
        of_ingest = [f"{events}/{p}" for p in range(settings.event_partitions)]
        # Its report, by which the stream would have something to do, expires.
        wait_until(lambda: set(of_ingest) <= set(standing()), 20, lambda: f"{standing()}")
        for worker in ("ingest-0", "stream-0"):
            running.workers[worker].send_signal(signal.SIGCONT)
        wait_until(lambda: not standing(), 30, lambda: f"{standing()}")
        running.wait_until_exact(60)


def test_the_lag_of_the_stream_grows_while_its_worker_is_halted(settings: Settings, tmp_path: Path) -> None:
    def lag_s() -> float:
        lag = read_status(settings)["stream_lag_s"]
        return math.inf if lag is None else float(lag)

    assert lag_s() == math.inf
    with flow(settings, tmp_path) as running:
        for worker in ("ingest-0", "stream-0"):
            running.start(worker)
        running.send(STEP // 2)
        running.wait_until_something_is_shown()
        wait_until(lambda: lag_s() == 0, 20, "all is shown")
        reader = PipelineReader(settings, OwnStack(None), monotonic=itertools.count(0, 5).__next__)
        before = reader.read()
        assert set(before["rates"].values()) == {None}
        running.workers["stream-0"].send_signal(signal.SIGSTOP)
        running.send()
        wait_until(lambda: 0.9 < lag_s() < math.inf, 20, "the lag is reported")
        running.workers["stream-0"].send_signal(signal.SIGCONT)
        wait_until(lambda: lag_s() == 0, 20, "all is shown again")
        _check_dedup(reader, running)
        metrics = Metrics(settings)
        wait_until(lambda: b"adclick_stream_lag_seconds 0." in metrics.render(), 20, "the metric is exported")
        text = metrics.render().decode()
        outcomes = re.findall(r"^adclick_ingest_messages_total{.*} (\S+)$", text, re.M)
        assert sum(map(float, outcomes)) == len(running.events.lines)
        assert {"adclick_unread_partitions 0.0", "adclick_silent_shards 0.0"} <= set(text.splitlines())


def _check_dedup(reader: PipelineReader, running: Flow) -> None:
    """All messages that were sent are accounted for, as the generator made them."""
    truth, sent = running.events.truth, len(running.events.lines)
    rejected = truth.dead.filter(pl.col("reason") != "too-late").height
    counted = sum(truth.counts[f"stream_{name}"].sum() for name in ("impressions", "clicks", "conversions"))
    first = counted + truth.dead.height - rejected

    def read() -> dict[str, Any]:
        status = reader.read()
        return status | {"all": status["counts"].get("messages") == sent and status["rates"]["stream"] is not None}

    wait_until(lambda: read()["all"], 20, "all messages are reported")
    status = reader.read()
    assert status["counts"]["rejected"] == rejected
    by_reason = dict(truth.dead.filter(pl.col("reason") != "too-late")["reason"].value_counts().rows())
    assert {name: n for name in by_reason if (n := status["counts"][name.replace("-", "_")])} == by_reason
    assert (status["dedup"]["first"], status["dedup"]["copies"]) == (first, sent - rejected - first)
    assert status["dedup"]["doubt"] == 0
    assert [lag["messages"] for lag in status["lag"]["ingest"]] == [0] * running.settings.event_partitions
    assert {p["name"]: p["state"] for p in status["processes"]} == {"ingest-0": "running"}
    assert sum(shard["events"] for shard in status["shards"]) == counted
    assert all(status["rates"][name] is not None for name in ("events", "ingest", "first", "copies", "stream"))


def test_a_worker_whose_clock_is_off_is_named_until_its_report_expires(settings: Settings) -> None:
    redis = Redis(settings.redis)

    def report(worker: str, ahead_s: float) -> None:
        published_status.publish_report(
            redis, settings.key_prefix, worker, level=Level.NORMAL, lag=0, counts=Counts(), started_ms=0, sent_ms=0,
            at_ms=now_ms() + int(ahead_s * 1000), partitions={},
        )  # fmt: skip

    for worker, ahead_s in (("ahead", 10.2), ("behind", -10.2), ("right", 0.0)):
        report(worker, ahead_s)
    time.sleep(3)  # a report that lies there for a while is not of a clock that is behind
    warnings = [warning for warning in read_status(settings)["warnings"] if "clock" in warning]
    assert [warning.partition(" 10.")[0] for warning in sorted(warnings)] == [
        "the clock of ahead is",
        "the clock of behind is",
    ]
    assert [" s ahead of this machine's" in warning for warning in sorted(warnings)] == [True, False]


def test_a_wait_is_withdrawn_when_its_worker_stops_and_expires_when_it_died(settings: Settings) -> None:
    redis, key = Redis(settings.redis), f"{settings.key_prefix}waits"
    redis.call("HSET", key, "died", "1000 {}")
    waiter, side_waiter = object(), object()
    WAITS.begin(waiter, Unavailable("Kafka: it is away", backend="kafka"))
    WAITS.begin(side_waiter, ValueError("a bug"), "reach")
    try:
        with reporting(settings, "worker-0"):
            wait_until(lambda: "worker-0" in read_status(settings)["waits"], 20, "the wait is reported")
            assert redis.call("HKEYS", key) == [b"worker-0"]
            status = read_status(settings)
            assert status["problems"] == {"kafka": "Kafka: it is away; worker-0 waits"}
            assert "reach: a bug; worker-0 counts without it" in status["warnings"]
        assert redis.call("HKEYS", key) == []
    finally:
        WAITS.end(waiter)
        WAITS.end(side_waiter)


def test_a_worker_stops_without_waiting_for_a_redis_that_hangs(settings: Settings) -> None:
    with Proxy(settings.redis) as network:
        network.drop()
        with reporting(settings.model_copy(update={"redis": network.url}), "worker-0"):
            began = time.monotonic()
        assert time.monotonic() - began < 2.5


def test_a_clickhouse_that_hangs_is_named_while_a_scrape_still_waits(settings: Settings) -> None:
    with Proxy(settings.clickhouse) as network:
        network.drop()
        hanging = settings.model_copy(update={"clickhouse": network.url, "query_timeout_s": 1})
        began = time.monotonic()
        assert b'adclick_backend_up{backend="clickhouse"} 0.0\n' in Metrics(hanging).render()
        assert time.monotonic() - began < 10
