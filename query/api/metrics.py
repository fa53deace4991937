"""Prometheus metrics, through prometheus_client: of this process's answers, and of the pipeline's state at each scrape."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.file_store import is_bucket
from infra.settings import Settings
from infra.tls import expiry_of
from query.alerts.scope import WHOLE_INSTALLATION
from query.alerts.summary import read_summary
from query.api.busiest_keys import BusiestKeys
from query.api.latest_reading import LatestReading
from query.api.metric_table import METRICS
from query.api.pipeline_samples import MetricSample, samples_of
from query.api.stored_bytes import StoredBytes
from query.progress import ProgressWatch
from query.status import read_status

# 0.25 s is a service level (infra/monitoring/rules/recording.yml).
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CERTIFICATES = ("kafka_certificate", "redis_certificate", "clickhouse_certificate")


class Metrics:
    """The metrics of one query process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, settings: Settings, progress: ProgressWatch | None = None) -> None:
        """`progress`: has seen earlier states of the pipeline."""
        # A second series for each counter, which no rule or board needs.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry, self._by_key = CollectorRegistry(), CollectorRegistry()
        self._keys = BusiestKeys()
        self._by_key.register(_OfKeys(self._keys))
        self._requests, self._reads = (
            Counter(row.name, row.text, row.labels, registry=self._registry)
            for row in (METRICS["adclick_http_requests_total"], METRICS["adclick_tier_reads_total"])
        )
        self._seconds, self._read_seconds = (
            Histogram(row.name, row.text, row.labels, registry=self._registry, buckets=_BUCKETS_S)
            for row in (
                METRICS["adclick_http_request_duration_seconds"],
                METRICS["adclick_tier_read_duration_seconds"],
            )
        )
        self._registry.register(_OwnProcess(settings))
        self._registry.register(_Pipeline(settings, progress))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tier_read(self, tier: str, outcome: str, seconds: float) -> None:
        """Count a piece; outcomes are answered, cached, stale and failed."""
        self._reads.labels(tier, outcome).inc()
        self._read_seconds.labels(tier).observe(seconds)

    def key_used(self, key: str, status: int) -> None:
        """Count an answer to a key."""
        self._keys.count(key, status)

    def key_charged(self, key: str, rows_read: int) -> None:
        """Count rows that were read for a key."""
        self._keys.charge(key, rows_read)

    def render(self, *, by_key: bool = False) -> bytes:
        """All metrics, in `content_type`; those that name keys where `by_key`. Blocks while the backends are read."""
        registries = [self._registry, *([self._by_key] if by_key else [])]
        return b"".join(generate_latest(registry) for registry in registries)


class _OwnProcess(Collector):
    """The metrics of what this process was started with: its release, its certificates, the archive's disk."""

    def __init__(self, settings: Settings) -> None:
        self._archive = None if is_bucket(settings.archive) else settings.archive
        # The server reads its own certificate once; those for backends are read again with each connection.
        self._own_expiry = expiry_of(settings.tls_certificate)
        files = {name: getattr(settings, name) for name in _CERTIFICATES}
        self._certificates = {name: file for name, file in files.items() if file}

    def collect(self) -> Iterator[Metric]:
        """Look at the files and the disk."""
        samples = [MetricSample("adclick_build_info", (version("adclick"), platform.python_version()), 1)]
        expiries = {"tls_certificate": self._own_expiry}
        expiries |= {name: expiry_of(file) for name, file in self._certificates.items()}
        for name, expiry in expiries.items():
            if expiry is not None:
                samples.append(
                    MetricSample("adclick_certificate_not_after_timestamp_seconds", (name,), expiry.timestamp())
                )
        if self._archive is not None:
            # The folder may be on another machine, or not be made yet.
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(self._archive)
                samples.append(MetricSample("adclick_archive_disk_size_bytes", (), usage.total))
                samples.append(MetricSample("adclick_archive_disk_free_bytes", (), usage.free))
        return _families_of(samples)


class _OfKeys(Collector):
    """The metrics by key, for scrapes that may see them."""

    def __init__(self, keys: BusiestKeys) -> None:
        self._keys = keys

    def collect(self) -> Iterator[Metric]:
        """Translate the counts."""
        return _families_of(self._keys.samples())


class _Pipeline(Collector):
    """The metrics of the pipeline's state. Those of a backend that is away are left out, and its `adclick_backend_up` is 0."""

    def __init__(self, settings: Settings, progress: ProgressWatch | None) -> None:
        self._settings, self._progress = settings, progress
        self._client = ClickHouse.of(settings, timeout_s=settings.query_timeout_s)
        self._stored = StoredBytes(settings)
        self._summary = LatestReading(lambda: read_summary(self._client, WHOLE_INSTALLATION, None, now_ms()))

    def describe(self) -> list[Metric]:
        """No metrics: registering must not read the backends."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the state, and translate it."""
        status = read_status(self._settings, self._progress)
        samples = [*samples_of(status, self._settings.event_partitions), *self._stored.samples(status["problems"])]
        if "clickhouse" not in status["problems"]:
            samples += self._alert_samples()
        return _families_of(samples)

    def _alert_samples(self) -> Iterator[MetricSample]:
        summary = self._summary.get()
        if summary is None:
            return
        for counts in summary.kinds:
            if (rate := summary.rate(counts)) is not None:
                yield MetricSample("adclick_false_alarms_per_campaign_month", (counts.kind,), rate)


def _families_of(samples: Iterable[MetricSample]) -> Iterator[Metric]:
    """The samples by metric, with the type, labels and help that the table has."""
    families = dict[str, CounterMetricFamily | GaugeMetricFamily]()
    for sample in samples:
        if sample.name not in families:
            row = METRICS[sample.name]
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            families[row.name] = family(row.name, row.text, labels=row.labels)
        families[sample.name].add_metric(sample.labels, sample.value)
    return iter(families.values())
