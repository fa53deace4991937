"""Prometheus metrics, through prometheus_client: of this process's answers, and of the pipeline's state at each scrape."""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import AdclickError
from infra.settings import Settings
from ingest.published_status import LEVELS
from query.alerts.scope import WHOLE_INSTALLATION
from query.alerts.summary import AlertSummary, read_summary
from query.status import BACKENDS, read_status

# What changes once a day is not read for each scrape; nor is a ClickHouse that could not answer asked at each.
_SUMMARY_FRESH_S, _SUMMARY_RETRY_S = 600.0, 60.0
# Prometheus gives a scrape ten seconds.
_SUMMARY_WAIT_S = 2.0


class Metrics:
    """The metrics of one query process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, settings: Settings) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "adclick_http_requests_total",
            "HTTP requests that were answered.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "adclick_http_seconds", "Time from a request to the end of its response. Exports and live streams count until they end.",
            ["route"], registry=self._registry,
        )  # fmt: skip
        self._reads = Counter(
            "adclick_tier_reads_total", "Pieces of questions that were read from a tier or its cache.",
            ["tier", "outcome"], registry=self._registry,
        )  # fmt: skip
        self._read_seconds = Histogram(
            "adclick_tier_seconds", "Time to read a piece, 0 if it was cached.", ["tier"], registry=self._registry
        )
        self._registry.register(_Pipeline(settings))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tier_read(self, tier: str, outcome: str, seconds: float) -> None:
        """Count a piece; outcomes are answered, cached, stale and failed."""
        self._reads.labels(tier, outcome).inc()
        self._read_seconds.labels(tier).observe(seconds)

    def render(self) -> bytes:
        """All metrics, in `content_type`. Blocks while the backends are read."""
        return bytes(generate_latest(self._registry))


class LatestSummary:
    """The summary of alerts for scrapes, read in a thread of its own, so that a slow ClickHouse holds no scrape up. Thread-safe."""

    def __init__(
        self, read: Callable[[], AlertSummary], clock: Callable[[], float] = time.monotonic, wait_s: float = _SUMMARY_WAIT_S
    ) -> None:  # fmt: skip
        """`wait_s`: for how long a scrape waits for a summary that is being read."""
        self._read, self._clock, self._wait_s = read, clock, wait_s
        self._pool, self._lock = ThreadPoolExecutor(1, "alert-summary"), threading.Lock()
        self._reading: Future[None] | None = None
        self._latest: AlertSummary | None = None
        self._expires_s = -math.inf

    def get(self) -> AlertSummary | None:
        """At most ten minutes older than the read that made it; None where the last read failed, or the first one still lasts. The
        other metrics are worth more than an error."""
        with self._lock:
            if self._reading is None or (self._reading.done() and self._clock() >= self._expires_s):
                self._reading = self._pool.submit(self._refresh)
            reading = self._reading
        try:
            reading.result(self._wait_s)
        except TimeoutError:
            pass  # a later scrape has it
        return self._latest

    def _refresh(self) -> None:
        try:
            self._latest, fresh_s = self._read(), _SUMMARY_FRESH_S
        except AdclickError:
            self._latest, fresh_s = None, _SUMMARY_RETRY_S
        self._expires_s = self._clock() + fresh_s


class _Pipeline(Collector):
    """The metrics of the pipeline's state. Those of a backend that is away are left out, and its `adclick_backend_up` is 0."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = ClickHouse.of(settings, timeout_s=settings.query_timeout_s)
        self._summary = LatestSummary(lambda: read_summary(self._client, WHOLE_INSTALLATION, None, now_ms()))

    def describe(self) -> list[Metric]:
        """No metrics: registering must not read the backends."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the state, and translate it."""
        state = read_status(self._settings)
        up = GaugeMetricFamily(
            "adclick_backend_up", "1 if the backend answers and accepts requests, else 0.", labels=["backend"]
        )
        for name in BACKENDS:
            up.add_metric([name], float(name not in state["problems"]))
        yield up
        lag = GaugeMetricFamily(
            "adclick_lag_messages", "Messages that ingest, or the archive worker, has yet to read.", labels=["topic"]
        )
        for topic, count in state["topics"].items():
            lag.add_metric([topic], count)
        yield lag
        yield from _memory_metrics(state["redis_memory"])
        if state["stream_lag_s"] is not None:
            yield GaugeMetricFamily(
                "adclick_stream_lag_seconds", "How much older answers are than the output of ingest.",
                value=state["stream_lag_s"],
            )  # fmt: skip
        if state["watermark"] is not None:
            mark = dt.datetime.fromisoformat(state["watermark"]).timestamp()
            yield GaugeMetricFamily(
                "adclick_watermark_timestamp_seconds",
                "Closing watermark of the slowest shard, as Unix time.",
                value=mark,
            )
        if state["level"] in LEVELS:
            level = LEVELS.index(state["level"])
            yield GaugeMetricFamily(
                "adclick_overload_level", "Highest level of all ingest workers: 0 normal, 1 elevated, 2 sampling, 3 critical.",
                value=level,
            )  # fmt: skip
        if "clickhouse" not in state["problems"]:
            yield from _run_metrics(state)
            yield from self._alert_metrics()
        doubt = CounterMetricFamily(
            "adclick_doubted_events",
            "Events not counted because they may be copies of ids that Redis lost, since the start of the worker.",
            labels=["worker"],
        )
        for worker in state["ingest_workers"]:
            doubt.add_metric([worker["worker"]], worker["doubt"])
        yield doubt

    def _alert_metrics(self) -> Iterator[Metric]:
        summary = self._summary.get()
        if summary is None:
            return
        rates = GaugeMetricFamily(
            "adclick_false_alarms_per_campaign_month",
            "Alerts of the last 28 days that were withdrawn or muted, by month of a campaign with events.",
            labels=["kind"],
        )
        for counts in summary.kinds:
            if (rate := summary.rate(counts)) is not None:
                rates.add_metric([counts.kind], rate)
        yield rates


def _memory_metrics(memories: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "adclick_redis_memory_bytes", "Memory that a primary of Redis has in use.", labels=["server"]
    )
    limit = GaugeMetricFamily(
        "adclick_redis_memory_limit_bytes", "Memory that a primary of Redis may use; 0: any.", labels=["server"]
    )
    for memory in memories:
        used.add_metric([memory["server"]], memory["used_bytes"])
        limit.add_metric([memory["server"]], memory["limit_bytes"])
    yield from (used, limit)


def _run_metrics(state: Mapping[str, Any]) -> Iterator[Metric]:
    alerts, unbilled = len(state["reconciliation_alerts"]), state["unbilled_events"]
    yield GaugeMetricFamily(
        "adclick_reconciliation_alert_days", "Days whose latest reconciliation raised an alert.", value=alerts
    )
    yield GaugeMetricFamily(
        "adclick_unbilled_events", "Events that were archived after their day was reconciled.", value=unbilled
    )
    if (last := state["last_reconciliation"]) is not None:
        at = dt.datetime.fromisoformat(last["published_at"]).timestamp()
        yield GaugeMetricFamily(
            "adclick_last_reconciliation_timestamp_seconds",
            "When a reconciliation was last published, as Unix time.",
            value=at,
        )
