"""The samples of the pipeline's metrics, from its status: what `query.status.read_status` knows, no more. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ingest.counts import REJECTIONS
from ingest.events import Reason
from ingest.published_status import LEVELS
from query.status import BACKENDS, unread_partitions

# Counts of ingest workers, by outcome of a message.
_OUTCOMES = ("counted", "copies", "rejected", "too_late", "shed", "doubt", "canary")
_REASONS: dict[Reason, str] = {**REJECTIONS, Reason.TOO_LATE: "too_late"}


class MetricSample(NamedTuple):
    """One series: the metric's name, the values of its labels in the table's order, and its value now."""

    name: str
    labels: tuple[str, ...]
    value: float


def samples_of(status: Mapping[str, Any], event_partitions: int) -> Iterator[MetricSample]:
    """All that is known. What is not known, since a backend is away or has nothing yet, has no sample."""
    for backend in BACKENDS:
        yield MetricSample("adclick_backend_up", (backend,), float(backend not in status["problems"]))
    yield MetricSample("adclick_warnings", (), len(status["warnings"]))
    if "stalled" in status:
        yield MetricSample("adclick_stalled_positions", (), len(status["stalled"]))
    yield from _topic_samples(status)
    if status["shards"]:  # Redis was read
        yield from _worker_samples(status, event_partitions)
        yield from _shard_samples(status)
    for canary in status["canaries"]:
        yield MetricSample("adclick_canary_age_seconds", (canary["tier"], "fastest"), canary["age_s"])
        yield MetricSample("adclick_canary_age_seconds", (canary["tier"], "slowest"), canary["slowest_s"])
    for memory in status["redis_memory"]:
        yield MetricSample("adclick_redis_memory_used_bytes", (memory["server"],), memory["used_bytes"])
        yield MetricSample("adclick_redis_memory_limit_bytes", (memory["server"],), memory["limit_bytes"])
    if "clickhouse" not in status["problems"]:
        yield from _run_samples(status)


def _topic_samples(status: Mapping[str, Any]) -> Iterator[MetricSample]:
    for topic, lags in status["partitions"].items():
        for partition, lag in enumerate(lags):
            yield MetricSample("adclick_lag_messages", (topic, str(partition)), lag)
    if status["arrived"] is not None:
        yield MetricSample("adclick_arrived_messages_total", (), status["arrived"])
        if status["read_events"] is not None:
            yield MetricSample("adclick_read_events_total", (), status["read_events"])
        transactions = status["open_transactions"].values()
        yield MetricSample("adclick_open_transactions", (), len(transactions))
        yield MetricSample("adclick_open_transaction_messages", (), sum(open_["messages"] for open_ in transactions))
    if status["archived"] is not None:
        yield MetricSample("adclick_archived_messages_total", (), status["archived"])


def _worker_samples(status: Mapping[str, Any], event_partitions: int) -> Iterator[MetricSample]:
    workers = status["ingest_workers"]
    for worker in workers:
        name, counts = worker["worker"], worker.get("counts", {})
        for outcome in _OUTCOMES:
            if outcome in counts:
                yield MetricSample("adclick_ingest_messages_total", (name, outcome), counts[outcome])
        for reason, field in _REASONS.items():
            # Reports of the release before have the number of all rejected alone.
            if field in counts and "malformed" in counts:
                yield MetricSample("adclick_dead_letters_total", (name, str(reason)), counts[field])
        if "bloom_positives" in counts:
            yield MetricSample("adclick_dedup_bloom_positives_total", (name,), counts["bloom_positives"])
            yield MetricSample("adclick_dedup_bloom_false_positives_total", (name,), counts["bloom_false"])
    yield MetricSample("adclick_unread_partitions", (), len(unread_partitions(status, event_partitions)))
    if status["level"] in LEVELS:
        yield MetricSample("adclick_overload_level", (), LEVELS.index(status["level"]))
    for name, reasons in status["waits"].items():
        for backend in reasons:
            yield MetricSample("adclick_worker_waiting", (name, backend), 1)
    for name in status["stopped_workers"]:
        yield MetricSample("adclick_worker_stopped", (name,), 1)
    yield MetricSample("adclick_poisoned_partitions", (), len(status["poisoned"]))
    yield MetricSample("adclick_detector_stopped", (), float(bool(status["stopped_detector"])))


def _shard_samples(status: Mapping[str, Any]) -> Iterator[MetricSample]:
    yield MetricSample("adclick_silent_shards", (), len(status["silent_shards"]))
    for number, shard in enumerate(status["shards"]):
        if shard["events"] is not None:
            yield MetricSample("adclick_shown_events_total", (str(number),), shard["events"])
    if status["stream_lag_s"] is not None:
        yield MetricSample("adclick_stream_lag_seconds", (), status["stream_lag_s"])
    if status["watermark"] is not None:
        yield MetricSample("adclick_watermark_timestamp_seconds", (), _unix_s(status["watermark"]))


def _run_samples(status: Mapping[str, Any]) -> Iterator[MetricSample]:
    yield MetricSample("adclick_reconciliation_alert_days", (), len(status["reconciliation_alerts"]))
    yield MetricSample("adclick_unbilled_events", (), status["unbilled_events"])
    if (last := status["last_reconciliation"]) is not None:
        yield MetricSample("adclick_last_reconciliation_timestamp_seconds", (), _unix_s(last["published_at"]))
    if (day := status["newest_reconciled_day"]) is not None:
        yield MetricSample("adclick_newest_reconciled_day_timestamp_seconds", (), _unix_s(f"{day}T00:00:00Z"))


def _unix_s(time: str) -> float:
    return dt.datetime.fromisoformat(time).timestamp()
