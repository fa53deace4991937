"""The state of the pipeline, as `adclick status`, `/v1/pipeline`, `/readyz` and `/metrics` show it.

Each package publishes its part, and has the module that reads it; this one reads all of them at once, and says what is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.clickhouse import borders
from infra.clickhouse.client import ClickHouse
from infra.clock import describe_skews, iso, now_ms
from infra.errors import AdclickError, Refused
from infra.kafka import topic_setup, topics
from infra.kafka.admin import Admin
from infra.redis.client import Memory, Redis
from infra.redis.eviction import NEVER_EVICT, EvictionWatch
from infra.retries import SIDE_WORK
from infra.settings import Settings
from infra.wait_reports import read_waits
from ingest.canary.arrivals import Canaries
from ingest.published_status import read_lags, read_reports
from query.canaries import describe_ages, of_partitions, of_shards
from query.progress import ProgressWatch
from query.runs import read_current_runs, read_last_run
from stream.hot.published_status import ShardStatus, read_shards
from stream.insights.published_status import read_stop

BACKENDS = ("kafka", "redis", "clickhouse", "archive")
_TIMEOUT_S = 3.0
Part = dict[str, Any]
_NO_WORKERS: Part = {
    "watermark": None, "stream_lag_s": None, "silent_shards": [], "level": "unknown", "ingest_workers": [], "waits": {},
    "stopped_workers": {}, "stopped_detector": "", "poisoned": {}, "misdated": {}, "shards": [], "counts": {}, "skewed_clocks": [],
    "shown_ms": [], "sent_ms": 0, "hot_canaries": {},
}  # fmt: skip
_NO_TOPICS: Part = {
    "topics": {}, "partitions": {}, "open_transactions": {}, "arrived": None, "archived": None, "read_events": None, "arrived_events": None,
    "warnings": [],
    "offsets": {}, "log_canaries": {},
}  # fmt: skip
_NO_GAPS: Part = {"gaps": [], "stored_canaries": {}}
_NO_MEMORY: Part = {"redis_memory": []}
_NO_RUNS: Part = {
    "last_reconciliation": None, "newest_reconciled_day": None, "reconciliation_alerts": [], "unbilled_events": 0,
}  # fmt: skip
# What is read only to tell whether the pipeline moves.
_POSITIONS = ("offsets", "shown_ms", "sent_ms")
# Canaries by the backend that has told of them.
_CANARIES = ("log_canaries", "hot_canaries", "stored_canaries")
_ALL: Part = {**_NO_TOPICS, **_NO_WORKERS, **_NO_MEMORY, **_NO_RUNS, "canaries": [], "problems": {}}
UNKNOWN_STATUS: Part = {name: value for name, value in _ALL.items() if name not in (*_POSITIONS, *_CANARIES)}
"""The status of a stack that is not running."""


def read_status(settings: Settings, progress: ProgressWatch | None = None) -> dict[str, Any]:
    """Read the backends, all at once. `progress`: has seen earlier statuses, and tells what has stood still since.

    `problems`: by backend, why it is not available or refuses (its part of the status is then empty); by worker, the error that it
    stopped with; by partition, what it stops before. `warnings`: what is not as it should be while the pipeline goes on, such as side work that waits. Redis is also
    written to: one that is full or read-only still answers reads. What workers wait for, they report themselves.
    """
    problems: dict[str, str] = {}

    def read(backend: str, part: Callable[[Settings], Part], empty: Part) -> Part:
        try:
            return part(settings)
        except AdclickError as error:
            problems[backend] = str(error)
            return empty

    with ThreadPoolExecutor(5) as pool:
        parts = [
            pool.submit(read, "kafka", _read_topics, _NO_TOPICS),
            pool.submit(read, "redis", _read_workers, _NO_WORKERS),
            pool.submit(read, "clickhouse", _read_runs, _NO_RUNS),
            pool.submit(read, "clickhouse", _read_gaps, _NO_GAPS),
            pool.submit(read, "redis", _check_redis, _NO_MEMORY),
        ]
        status = {key: value for part in parts for key, value in part.result().items()}
    side_work = list[str]()
    for worker, reasons in status["waits"].items():
        for name, reason in reasons.items():
            if name in SIDE_WORK:
                side_work.append(f"{reason}; {worker} counts without it")
            else:
                problems.setdefault(name, f"{reason}; {worker} waits")
    problems |= status["stopped_workers"] | status["poisoned"]
    misdated = [
        f"{where}: {count:,} messages have timestamps that cannot be true"
        for where, count in status["misdated"].items()
    ]
    detector = [f"the detector has stopped, and raises no alerts: {why}"] if (why := status["stopped_detector"]) else []
    positions = [status.pop(name) for name in _POSITIONS]
    arrivals: Part = {tier: canaries for name in _CANARIES for tier, canaries in status.pop(name).items()}
    # What came before they were turned off says nothing.
    status["canaries"] = describe_ages(arrivals, now_ms()) if settings.canary_s else []
    stalled = progress.look(*positions) if progress is not None else []
    warnings = [*status["warnings"], *misdated, *status["skewed_clocks"], *detector, *side_work, *status.pop("gaps")]
    return (
        status | {"problems": problems, "warnings": [*warnings, *stalled]} | ({"stalled": stalled} if progress else {})
    )


def find_unready(settings: Settings, progress: ProgressWatch | None = None) -> list[str]:
    """The parts of the pipeline that have not reported that they are up, or stand still, and its problems; empty when all is ready."""
    status = read_status(settings, progress)
    unready = [*status["problems"].values(), *status.get("stalled", ())]
    if "redis" not in status["problems"]:
        unready += [f"stream shard {s}" for s in status["silent_shards"]]
        unready += [f"ingest partition {p}" for p in unread_partitions(status, settings.event_partitions)]
    return unready


def describe_unread(settings: Settings, status: dict[str, Any]) -> list[str]:
    """What no worker of ingest or of the stream reads, in words. Empty where Redis, which they report to, is away."""
    if "redis" in status["problems"]:
        return []
    topic, lines = settings.topic(topics.EVENTS), list[str]()
    if partitions := unread_partitions(status, settings.event_partitions):
        lines.append(
            f"no ingest worker reads {', '.join(f'{topic}/{p}' for p in partitions)}: one may be missing, or still joining, or "
            f"another program consumes with the group {settings.topic(topics.INGEST_GROUP)}"
        )
    if shards := status["silent_shards"]:
        lines.append(f"no stream worker has shown shards {', '.join(map(str, shards))} yet")
    return lines


def unread_partitions(status: Mapping[str, Any], count: int) -> list[int]:
    """The partitions of `ad-events`, of so many, that no ingest worker reports to read."""
    read = {p for worker in status["ingest_workers"] for p in worker["partitions"]}
    return [p for p in range(count) if str(p) not in read]


def _read_topics(settings: Settings) -> Part:
    admin = Admin(settings.kafka_connection, timeout_s=_TIMEOUT_S)
    topic_lags = read_lags(admin, settings)
    warnings = [f"{d.topic} {d.explanation}" for d in topic_setup.deviations(admin, settings)]
    warnings += [
        f"{where}: a producer's transaction that is open since offset {transaction['offset']} holds back "
        f"{transaction['messages']:,} messages"
        for where, transaction in topic_lags.open_transactions.items()
    ]
    return {
        "topics": topic_lags.lags, "partitions": topic_lags.by_partition, "open_transactions": topic_lags.open_transactions,
        "arrived": topic_lags.arrived, "archived": topic_lags.archived, "read_events": topic_lags.read_events,
        "arrived_events": topic_lags.arrived_events,
        "warnings": warnings, "offsets": topic_lags.offsets,
        "log_canaries": {
            tier: of_partitions(topic, topic_lags.canaries[topic])
            for tier, name in (("ingest", topics.EVENTS), ("archive", topics.ARCHIVE))
            if (topic := settings.topic(name)) in topic_lags.canaries
        },
    }  # fmt: skip


def _read_workers(settings: Settings) -> Part:
    shards = settings.block_partitions
    with contextlib.closing(Redis(settings.redis_access, timeout_s=_TIMEOUT_S)) as redis:
        reports = read_reports(redis, settings.key_prefix)
        statuses = read_shards(redis, settings.key_prefix, shards)
        waits = read_waits(redis, settings.key_prefix)
        stopped_detector = read_stop(redis, settings.key_prefix)
    closed = [s.closed_ms for s in statuses if s.closed_ms is not None]
    shown = [s.sent_ms for s in statuses if s.sent_ms is not None]
    # Each transaction of ingest reaches each shard, so the oldest shard says how far behind ingest the answers are.
    lag_s = max(0, reports.sent_ms - min(shown)) / 1000 if reports.sent_ms and len(shown) == shards else None
    return {
        "watermark": iso(min(closed)) if len(closed) == shards else None,
        "stream_lag_s": lag_s,
        "silent_shards": [number for number, status in enumerate(statuses) if status.sequence is None],
        "level": reports.level,
        "ingest_workers": reports.workers,
        "waits": waits,
        "stopped_workers": reports.stopped,
        "stopped_detector": stopped_detector,
        "poisoned": reports.poisoned(settings.topic(topics.EVENTS)),
        "misdated": reports.misdated(settings.topic(topics.EVENTS)),
        "shards": [_describe_shard(status, reports.sent_ms) for status in statuses],
        "counts": reports.counts if reports.workers else {},
        "skewed_clocks": describe_skews(reports.clocks),
        "shown_ms": [s.sent_ms for s in statuses],
        "sent_ms": reports.sent_ms,
        "hot_canaries": {"hot": of_shards([s.canaries for s in statuses])},
    }


def _describe_shard(status: ShardStatus, sent_ms: int) -> Part:
    known = status.sent_ms is not None and sent_ms > 0
    return {
        "lag_s": max(0, sent_ms - (status.sent_ms or 0)) / 1000 if known else None,
        "watermark": None if status.closed_ms is None else iso(status.closed_ms),
        "events": status.events,
    }


def _read_runs(settings: Settings) -> Part:
    with contextlib.closing(_clickhouse(settings)) as client:
        last = read_last_run(client)
        if last is None:
            return _NO_RUNS
        runs = read_current_runs(client)
    return {
        "last_reconciliation": last, "newest_reconciled_day": runs.newest_day, "reconciliation_alerts": runs.alert_days,
        "unbilled_events": runs.unbilled,
    }  # fmt: skip


def _read_gaps(settings: Settings) -> Part:
    with contextlib.closing(_clickhouse(settings)) as client:
        published = borders.read_published(client, settings.block_partitions)
    stored = {
        tier: (Canaries(border.canary_ms, border.newest_canary_ms), "")
        for tier, name in (("warm", "hours"), ("cold", "days"))
        if (border := published.tiers.get(name)) is not None
    }
    return {"gaps": borders.gaps(published), "stored_canaries": stored}


def _clickhouse(settings: Settings) -> ClickHouse:
    """One that is away within a few seconds, so that a scrape still says so."""
    return ClickHouse.of(settings, timeout_s=settings.query_timeout_s)


def _check_redis(settings: Settings) -> Part:
    """How much memory each server has in use. Raises Unavailable when Redis takes no writes, or may lose what was written."""
    with contextlib.closing(Redis(settings.redis_access, timeout_s=_TIMEOUT_S)) as redis:
        redis.call("SET", f"{settings.key_prefix}probe", "1", "PX", 1000)
        eviction = EvictionWatch(redis).look()
        if eviction.reason:
            raise Refused(eviction.reason, hint=NEVER_EVICT, backend="redis", code="EVICTS")
    return {"redis_memory": [_describe_memory(memory) for memory in eviction.memories]}


def _describe_memory(memory: Memory) -> Part:
    return {"server": memory.server, "used_bytes": memory.used_bytes, "limit_bytes": memory.limit_bytes}
