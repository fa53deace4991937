"""Prometheus metrics, through prometheus_client: of this process's answers, and of the pipeline's state at each scrape."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
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
from query.reply_cache import ReplyCache
from query.status import BACKENDS, read_status

# What changes once a day is not read for each scrape.
_SUMMARY_FRESH_S, _SUMMARY_BYTES = 600.0, 1_000


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


class _Pipeline(Collector):
    """The metrics of the pipeline's state. Those of a backend that is away are left out, and its `adclick_backend_up` is 0."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = ClickHouse(settings.clickhouse, settings.database, timeout_s=settings.query_timeout_s)
        self._summaries: ReplyCache[AlertSummary] = ReplyCache(lambda _: _SUMMARY_BYTES, _SUMMARY_FRESH_S)

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
        try:
            summary = self._summaries.get(
                "summary", lambda: read_summary(self._client, WHOLE_INSTALLATION, None, now_ms())
            )
        except AdclickError:
            return  # the other metrics are worth more than an error
        rates = GaugeMetricFamily(
            "adclick_false_alarms_per_campaign_month",
            "Alerts of the last 28 days that were withdrawn or muted, by month of a campaign with events.",
            labels=["kind"],
        )
        for counts in summary.kinds:
            if (rate := summary.rate(counts)) is not None:
                rates.add_metric([counts.kind], rate)
        yield rates


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
