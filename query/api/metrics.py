"""Prometheus metrics, through prometheus_client: of this process's answers, and of the pipeline, asked at each scrape."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra import pipeline_state
from infra.pipeline_state import BACKENDS, LEVELS
from infra.settings import Settings


class Metrics:
    """The metrics of one query process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, settings: Settings) -> None:
        self._registry = CollectorRegistry()
        self._asked = Counter(
            "adclick_http_requests_total", "Answers by route and status.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "adclick_http_seconds", "Seconds to answer, by route.", ["route"], registry=self._registry
        )
        self._reads = Counter(
            "adclick_tier_reads_total", "Parts of answers by tier and outcome.", ["tier", "outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._read_seconds = Histogram(
            "adclick_tier_seconds", "Seconds to read a part of an answer, by tier.", ["tier"], registry=self._registry
        )
        self._registry.register(_Pipeline(settings))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._asked.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tier_read(self, tier: str, outcome: str, seconds: float) -> None:
        """Count a part of an answer: answered, cached, stale or failed."""
        self._reads.labels(tier, outcome).inc()
        self._read_seconds.labels(tier).observe(seconds)

    def render(self) -> bytes:
        """All of them, in `content_type`. Blocks while the backends are asked."""
        return bytes(generate_latest(self._registry))


class _Pipeline(Collector):
    """What `status` shows. Metrics of a backend that is away are left out; `adclick_backend_up` says so."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the backends."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Ask, and translate."""
        found = pipeline_state.collect(self._settings)
        up = GaugeMetricFamily("adclick_backend_up", "Whether a backend answers.", labels=["backend"])
        for name in BACKENDS:
            up.add_metric([name], float(name not in found["problems"]))
        yield up
        lag = GaugeMetricFamily("adclick_lag_messages", "Messages that are still to be read.", labels=["topic"])
        for topic, count in found["topics"].items():
            lag.add_metric([topic], count)
        yield lag
        if found["stream_lag_s"] is not None:
            yield GaugeMetricFamily(
                "adclick_stream_lag_seconds", "By how much answers are older than what ingest has handed over.",
                value=found["stream_lag_s"],
            )  # fmt: skip
        if found["watermark"] is not None:
            mark = dt.datetime.fromisoformat(found["watermark"]).timestamp()
            yield GaugeMetricFamily("adclick_watermark_timestamp_seconds", "The closing watermark.", value=mark)
        if found["level"] in LEVELS:
            level = LEVELS.index(found["level"])
            yield GaugeMetricFamily("adclick_overload_level", "0 normal to 3 critical.", value=level)
        if "clickhouse" not in found["problems"]:
            yield from _of_runs(found)
        doubt = CounterMetricFamily(
            "adclick_doubted_events", "Events dropped because their ids may be among lost ones.", labels=["worker"]
        )
        for worker in found["ingest_workers"]:
            doubt.add_metric([worker["worker"]], worker["doubt"])
        yield doubt


def _of_runs(found: Mapping[str, Any]) -> Iterator[Metric]:
    alerts, unbilled = len(found["reconciliation_alerts"]), found["unbilled_events"]
    yield GaugeMetricFamily("adclick_reconciliation_alert_days", "Days whose bill needs a person.", value=alerts)
    yield GaugeMetricFamily("adclick_unbilled_events", "Events that came after their day was billed.", value=unbilled)
    if (last := found["last_reconciliation"]) is not None:
        at = dt.datetime.fromisoformat(last["published_at"]).timestamp()
        yield GaugeMetricFamily(
            "adclick_last_reconciliation_timestamp_seconds", "When a bill was last published.", value=at
        )
