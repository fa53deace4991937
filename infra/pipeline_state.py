"""What `status` and `/v1/pipeline` show: lag of each topic, watermark, overload level, last reconciliation."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra import topics
from infra.clickhouse.client import ClickHouse
from infra.clock import iso
from infra.errors import AdclickError, BadStatement, Refused, Unavailable
from infra.kafka import Admin
from infra.patience import WAITS
from infra.redis import NEVER_EVICT, Redis
from infra.settings import Settings

_PATIENCE_S = 3.0
_NO_WORKERS: dict[str, Any] = {
    "watermark": None, "stream_lag_s": None, "silent_shards": [], "level": "unknown", "ingest_workers": [], "waits": {},
    "stopped_workers": {}, "misdated": {},
}  # fmt: skip
_NO_TOPICS: dict[str, Any] = {"topics": {}, "open_transactions": {}, "warnings": []}
_NO_RUNS: dict[str, Any] = {"last_reconciliation": None, "reconciliation_alerts": [], "unbilled_events": 0}
NOTHING_KNOWN: dict[str, Any] = {**_NO_TOPICS, **_NO_WORKERS, **_NO_RUNS, "problems": {}}
"""What `collect` would return of a stack that is not running."""
BACKENDS = ("kafka", "redis", "clickhouse", "archive")
# A wait that is over sooner is no problem yet; a report that is older comes from a process that is gone.
_WAITED_S, _REPORT_EVERY_S, _REPORT_S = 2.0, 1.0, 15
LEVELS = ("normal", "elevated", "sampling", "critical")


def collect(settings: Settings) -> dict[str, Any]:
    """Ask the backends, all at once.

    What is away or refuses is under `problems`, by backend (where it is away, its part is empty), and so are workers that
    stopped with an error. `warnings` are about what is not as it should be while all goes on. Redis is asked to write, too: one
    that is full or read-only still answers reads. What workers wait for is theirs to report.
    """
    problems: dict[str, str] = {}

    def ask(name: str, question: Callable[[Settings], dict[str, Any]], without: dict[str, Any]) -> dict[str, Any]:
        try:
            return question(settings)
        except AdclickError as error:
            problems[name] = str(error)
            return without

    with ThreadPoolExecutor(4) as pool:
        parts = [
            pool.submit(ask, "kafka", _lags, _NO_TOPICS),
            pool.submit(ask, "redis", _workers, _NO_WORKERS),
            pool.submit(ask, "clickhouse", _last_runs, _NO_RUNS),
            pool.submit(ask, "redis", _check_redis, {}),
        ]
        found = {key: value for part in parts for key, value in part.result().items()}
    for worker, reasons in found["waits"].items():
        for backend, reason in reasons.items():
            problems.setdefault(backend, f"{reason}; {worker} waits")
    problems |= found["stopped_workers"]
    misdated = [
        f"{where}: {count:,} messages have timestamps that cannot be true" for where, count in found["misdated"].items()
    ]
    return found | {"problems": problems, "warnings": [*found["warnings"], *misdated]}


def _check_redis(settings: Settings) -> dict[str, Any]:
    """Raises Unavailable when Redis takes no writes, or may lose what was written."""
    redis = Redis(settings.redis, timeout_s=_PATIENCE_S)
    try:
        redis.call("SET", f"{settings.key_prefix}probe", "1", "PX", 1000)
        if eviction := redis.eviction():
            raise Refused(eviction, hint=NEVER_EVICT, backend="redis", code="EVICTS")
    finally:
        redis.close()
    return {}


def _lags(settings: Settings) -> dict[str, Any]:
    """Messages to read, to the very end of the log, whatever transactions are open and whoever is to read them."""
    admin = Admin(settings.kafka, timeout_s=_PATIENCE_S)
    counts, lags, warnings = admin.partitions(), dict[str, int](), list[str]()
    open_transactions = dict[str, dict[str, int]]()
    for name, group in ((topics.EVENTS, topics.INGEST_GROUP), (topics.ARCHIVE, topics.ARCHIVE_GROUP)):
        topic = settings.topic(name)
        count = counts.get(topic, 0)
        if not count:
            continue
        ends = admin.high_watermarks(topic, count)
        positions = [c.offset for c in admin.committed(settings.topic(group), topic, count)]
        if min(positions) < 0:  # nothing read yet: what is there may begin later
            positions = [max(at, start) for at, start in zip(positions, admin.starts(topic, count), strict=True)]
        # In a topic of ours the last offset is the marker of a transaction, which no reader's position passes.
        marker = int(name == topics.ARCHIVE)
        lags[topic] = sum(max(0, end - at - marker) for end, at in zip(ends, positions, strict=True))
        if name == topics.EVENTS:
            for p, (stable, end) in enumerate(zip(admin.ends(topic, count), ends, strict=True)):
                if stable < end:
                    open_transactions[f"{topic}/{p}"] = {"offset": stable, "messages": end - stable}
    warnings += [f"{d.topic} {d.explanation}" for d in topics.deviations(admin, settings)]
    warnings += [
        f"{where}: a producer's transaction that is open since offset {held['offset']} holds back {held['messages']:,} messages"
        for where, held in open_transactions.items()
    ]
    return {"topics": lags, "open_transactions": open_transactions, "warnings": warnings}


def _workers(settings: Settings) -> dict[str, Any]:
    redis = Redis(settings.redis, timeout_s=_PATIENCE_S)
    try:
        entries = [redis.call("GET", k) for k in redis.scan_keys(f"{settings.key_prefix}ingest:*")]
        marks = redis.pipeline(
            [
                ("HMGET", f"{settings.key_prefix}hot:{{s{s}}}:span", "sequence", "closed_ms", "sent_ms")
                for s in range(settings.block_partitions)
            ]
        )
        (now_s, _), reports = redis.pipeline([("TIME",), ("HGETALL", f"{settings.key_prefix}waits")])
    finally:
        redis.close()
    states = [json.loads(entry) for entry in entries if entry]
    workers = [state for state in states if "stopped" not in state]
    known = [int(closed) for _, closed, _ in marks if closed]
    shown = [int(sent) for _, _, sent in marks if sent]
    sent = max((w["sent_ms"] for w in workers), default=0)
    return {
        "watermark": iso(min(known)) if len(known) == settings.block_partitions else None,
        # How much older what is shown is than what ingest has handed over: each of its transactions reaches each shard.
        "stream_lag_s": max(0, sent - min(shown)) / 1000 if sent and len(shown) == settings.block_partitions else None,
        "silent_shards": [s for s, (sequence, *_) in enumerate(marks) if sequence is None],
        "level": max((w["level"] for w in workers), key=LEVELS.index, default="unknown"),
        "ingest_workers": sorted(workers, key=lambda w: str(w["worker"])),
        "waits": _fresh_reports(reports, int(now_s)),
        "stopped_workers": {str(state["worker"]): str(state["stopped"]) for state in states if "stopped" in state},
        "misdated": {
            f"{settings.topic(topics.EVENTS)}/{p}": int(part["misdated"])
            for worker in workers
            for p, part in worker["partitions"].items()
            if part.get("misdated")
        },
    }


def _fresh_reports(fields: list[bytes], now_s: int) -> dict[str, dict[str, str]]:
    """worker → backend → why it waits, as `reporting` wrote them."""
    waits = {}
    for name, report in zip(fields[::2], fields[1::2], strict=True):
        at_s, _, reasons = report.partition(b" ")
        if now_s - int(at_s) <= _REPORT_S:
            waits[name.decode()] = dict(json.loads(reasons))
    return dict(sorted(waits.items()))


# KEYS[1] the hash of reports; ARGV: a worker, and what it waits for as JSON, or nothing.
_REPORT = """
if ARGV[2] == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
return redis.call('EXPIRE', KEYS[1], 60)
"""


@contextlib.contextmanager
def reporting(settings: Settings, worker: str) -> Iterator[None]:
    """Publish what this process waits for, for as long as the block lasts: in a thread, since the others wait."""
    redis, over = Redis(settings.redis, timeout_s=_PATIENCE_S), threading.Event()
    publish, key = redis.script(_REPORT), f"{settings.key_prefix}waits"

    def run() -> None:
        published = ""
        while not over.wait(_REPORT_EVERY_S):
            reasons = WAITS.reasons(_WAITED_S)
            report = json.dumps(reasons) if reasons else ""
            if report or published:
                with contextlib.suppress(Unavailable, BadStatement):
                    publish([key], [worker, report])
                    published = report

    thread = threading.Thread(target=run, daemon=True, name="reporting")
    thread.start()
    try:
        yield
    finally:
        over.set()


def _last_runs(settings: Settings) -> dict[str, Any]:
    found = runs(settings, limit=1)
    if not found:
        return _NO_RUNS
    last = {name: found[0][name] for name in ("date", "run_id", "alert")}
    client = ClickHouse(settings.clickhouse, settings.database)
    try:
        # Of each day's current run, and without its long summary: this is asked often.
        ((alerts, unbilled),) = client.rows(
            "SELECT arraySort(groupArrayIf(toString(r.date), r.alert != 0)), sum(u.events)"
            f" FROM {settings.database}.current_runs AS c INNER JOIN {settings.database}.runs AS r ON r.run_id = c.run_id"
            f" LEFT JOIN (SELECT run_id, events FROM {settings.database}.unbilled FINAL) AS u ON u.run_id = c.run_id"
        )
    finally:
        client.close()
    return {
        "last_reconciliation": last | {"published_at": iso(int(found[0]["published_at"].timestamp() * 1000))},
        "reconciliation_alerts": list(alerts),
        "unbilled_events": int(unbilled),
    }


def runs(settings: Settings, limit: int = 1000) -> list[dict[str, Any]]:
    """The published reconciliations, newest first. Raises Unavailable."""
    client = ClickHouse(settings.clickhouse, settings.database)
    try:
        found = client.rows(
            "SELECT toString(r.date), r.run_id, published_at, rows, copies, dimensions, drifted, alert, u.events, summary"
            f" FROM {settings.database}.runs AS r LEFT JOIN (SELECT run_id, events FROM {settings.database}.unbilled FINAL) AS u"
            " USING (run_id) ORDER BY published_at DESC LIMIT {limit:UInt32}",
            {"limit": limit},
        )
    finally:
        client.close()
    names = ("date", "run_id", "published_at", "rows", "copies", "dimensions", "drifted", "alert", "unbilled")
    return [dict(zip(names, row[:-1], strict=True)) | {"alert": bool(row[7])} | json.loads(row[-1]) for row in found]


def not_ready(settings: Settings) -> list[str]:
    """What of the pipeline does not say that it is up; empty when all is."""
    found = collect(settings)
    missing = list(found["problems"].values())
    if "redis" not in found["problems"]:
        missing += [f"stream shard {s}" for s in found["silent_shards"]]
        owned = {p for w in found["ingest_workers"] for p in w["partitions"]}
        missing += [f"ingest partition {p}" for p in range(settings.event_partitions) if str(p) not in owned]
    return missing
