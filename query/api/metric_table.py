"""All metrics of `/metrics`: name, type, labels and meaning. The exporter, `docs/metrics.md`, rules and boards are checked against it.

Names follow Prometheus' conventions: `adclick_` first, base units at the end, `_total` for counters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricRow:
    """One metric. `kind`: counter, gauge or histogram. `text`: its help, which is also its meaning on the page."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


_PROCESS = (
    ("adclick_build_info", "gauge", "version python", "Always 1; the labels say what runs."),
    ("adclick_http_requests_total", "counter", "route status", "HTTP requests that were answered."),
    (
        "adclick_http_request_duration_seconds", "histogram", "route",
        "Time from a request to the end of its response. Exports and live streams count until they end.",
    ),
    ("adclick_tier_reads_total", "counter", "tier outcome", "Pieces of questions that were read from a tier or its cache."),
    ("adclick_tier_read_duration_seconds", "histogram", "tier", "Time to read a piece, 0 if it was cached."),
    (
        "adclick_key_requests_total", "counter", "key outcome",
        "Requests by key and how they ended, of the 20 keys that are used most; only where the scrape sends an admin key.",
    ),
    (
        "adclick_key_rows_read_total", "counter", "key",
        "Rows that were read to answer them, which the rate limit charges for; only where the scrape sends an admin key.",
    ),
    (
        "adclick_certificate_not_after_timestamp_seconds", "gauge", "setting",
        "When the certificate in the file of a setting expires, as Unix time. tls_certificate: the one read at the start.",
    ),
    (
        "adclick_archive_disk_size_bytes", "gauge", "",
        "Size of the file system of the archive's folder; missing where the archive is a bucket or not on this machine.",
    ),
    ("adclick_archive_disk_free_bytes", "gauge", "", "Space that is free there for unprivileged users."),
)  # fmt: skip
_PIPELINE = (
    ("adclick_backend_up", "gauge", "backend", "1 if the backend answers and accepts requests, else 0."),
    ("adclick_warnings", "gauge", "", "Warnings that adclick status shows."),
    ("adclick_lag_messages", "gauge", "topic partition", "Messages that ingest, or the archive worker, has yet to read."),
    (
        "adclick_arrived_messages_total", "counter", "",
        "Messages that were ever appended to ad-events, canaries included: the sum of its end offsets.",
    ),
    ("adclick_read_events_total", "counter", "", "Of these, how many ingest has read that are no canaries."),
    ("adclick_archived_messages_total", "counter", "", "Messages of ad-events that the archive has passed: the valid events are in files."),
    ("adclick_unread_partitions", "gauge", "", "Partitions of ad-events that no ingest worker reports to read."),
    ("adclick_open_transactions", "gauge", "", "Partitions of ad-events in which a producer's transaction is open."),
    ("adclick_open_transaction_messages", "gauge", "", "Messages that cannot be read before these transactions end."),
    (
        "adclick_ingest_messages_total", "counter", "worker outcome",
        "Messages by what became of them, in committed batches since the start of the worker.",
    ),
    (
        "adclick_dead_letters_total", "counter", "worker reason",
        "Messages that became dead letters, by reason, in committed batches since the start of the worker.",
    ),
    (
        "adclick_dedup_bloom_positives_total", "counter", "worker",
        "Ids that a Bloom filter took for known, and that were looked for in Redis, since the start of the worker.",
    ),
    (
        "adclick_dedup_bloom_false_positives_total", "counter", "worker",
        "Of these, how many were not there, since the start of the worker.",
    ),
    (
        "adclick_canary_age_seconds", "gauge", "tier path",
        "Time since the newest canary was sent that has got to a tier, by any path and by the slowest one; missing while canaries are off.",
    ),
    (
        "adclick_overload_level", "gauge", "",
        "Highest level of all ingest workers: 0 normal, 1 elevated, 2 sampling, 3 critical.",
    ),
    ("adclick_worker_waiting", "gauge", "worker backend", "1 while a worker waits for a backend; missing while it does not."),
    ("adclick_worker_stopped", "gauge", "worker", "1 for a minute after a worker stopped with an error; missing otherwise."),
    ("adclick_poisoned_partitions", "gauge", "", "Partitions of ad-events that stop before a message that no worker can process."),
    ("adclick_detector_stopped", "gauge", "", "1 while the detector has stopped with an error, else 0."),
    ("adclick_silent_shards", "gauge", "", "Shards of the stream that have not reported."),
    (
        "adclick_stalled_positions", "gauge", "",
        "Partitions of ad-events and ad-archive, and shards of the stream, that have stood still for a minute with something to do.",
    ),
    ("adclick_shown_events_total", "counter", "shard", "Events that a shard of the hot tier has shown since it was made."),
    ("adclick_stream_lag_seconds", "gauge", "", "How much older answers are than the output of ingest."),
    ("adclick_watermark_timestamp_seconds", "gauge", "", "Closing watermark of the slowest shard, as Unix time."),
    ("adclick_redis_memory_used_bytes", "gauge", "server", "Memory that a primary of Redis has in use."),
    ("adclick_redis_memory_limit_bytes", "gauge", "server", "Memory that a primary of Redis may use; 0: any."),
    (
        "adclick_stored_bytes", "gauge", "store name",
        "Bytes on disk, read about once a minute: of a topic with its replicas, of a table on the server that answers, of the archive's files.",
    ),
    ("adclick_reconciliation_alert_days", "gauge", "", "Days whose latest reconciliation raised an alert."),
    ("adclick_unbilled_events", "gauge", "", "Events that were archived after their day was reconciled."),
    (
        "adclick_last_reconciliation_timestamp_seconds", "gauge", "",
        "When a reconciliation was last published, as Unix time; missing before the first.",
    ),
    (
        "adclick_newest_reconciled_day_timestamp_seconds", "gauge", "",
        "Start of the newest day that was reconciled as a whole, as Unix time; missing before the first.",
    ),
    (
        "adclick_false_alarms_per_campaign_month", "gauge", "kind",
        "Alerts of the last 28 days that were withdrawn or muted, by month of a campaign with events.",
    ),
)  # fmt: skip


def _rows(table: tuple[tuple[str, str, str, str], ...]) -> tuple[MetricRow, ...]:
    return tuple(MetricRow(name, kind, tuple(labels.split()), text) for name, kind, labels, text in table)


PROCESS = _rows(_PROCESS)
"""Of one router."""
PIPELINE = _rows(_PIPELINE)
"""Of the pipeline, the same from every router."""
METRICS = {row.name: row for row in (*PROCESS, *PIPELINE)}
LABELS = {
    "route": ("a path of `/docs`, or `none` for one that does not exist", "the routes, some 60"),
    "status": ("the HTTP status", "some 20"),
    "tier": (
        "of a read: `hot`, `warm`, `cold`, `exact-hours`, `exact-days`; of a canary: `ingest`, `archive`, `hot`, `warm`, `cold`",
        "5",
    ),
    "path": (
        "`fastest`: the partition or shard whose last canary is the newest. `slowest`: the one whose last canary is the oldest",
        "2",
    ),
    "outcome": (
        "of a read: `answered`; `cached`; `stale` (from the cache, because the tier is away); `failed`. Of a message: `counted`; `copies`; "
        "`rejected` and `too_late`, which are dead letters; `shed`; `doubt`; `canary`, which counts nowhere. Of a key's request: "
        "`answered`; `limited` by its rate; `refused` for another reason (4xx); `failed` (5xx)",
        "4; 7; 4",
    ),
    "reason": ("`too-large`, `malformed`, `missing-field`, `bad-value`, `from-the-future`, `too-late`", "6"),
    "backend": (
        "`kafka`, `redis`, `clickhouse`, `archive`; of a worker that waits also `reach`, `watch` (side work: counting goes on) and "
        "`pipeline` (any other)",
        "7",
    ),
    "topic": ("`ad-events`, `ad-archive`, with the prefix of `ADCLICK_NAMESPACE`", "2"),
    "partition": ("number of a partition", "`ADCLICK_EVENT_PARTITIONS`, at most 512"),
    "shard": ("number of a shard", "`ADCLICK_BLOCK_PARTITIONS`, at most 512"),
    "worker": ("`ADCLICK_WORKER` of a process that reports", "the workers that run"),
    "server": ("address of a primary of Redis; of one that Sentinels watch, their name for it", "the primaries"),
    "setting": ("`tls_certificate`, `kafka_certificate`, `redis_certificate`, `clickhouse_certificate`", "4"),
    "key": ("id of a key, as `adclick keys list` shows it; `other` for all but 20", "21"),
    "store": ("`kafka`, `clickhouse`, `archive`", "3"),
    "name": ("a topic, a table, or `files` of the archive", "some 45"),
    "kind": ("kind of an alert of campaigns", "the kinds of `/v1/alerts`"),
    "version": ("release of adclick", "1"),
    "python": ("release of Python", "1"),
}
"""label → its values, and how many there are."""
