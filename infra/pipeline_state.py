"""What `status` and `/v1/pipeline` show: lag of each topic, watermark, overload level, last reconciliation."""

from __future__ import annotations

import json
from typing import Any

from infra import topics
from infra.clickhouse.client import ClickHouse
from infra.clock import iso
from infra.errors import Unavailable
from infra.kafka import Admin
from infra.redis import Redis
from infra.settings import Settings

LEVELS = ("normal", "elevated", "sampling", "critical")


def collect(settings: Settings) -> dict[str, Any]:
    """Ask the backends. Raises Unavailable when one is away."""
    admin, redis = Admin(settings.kafka), Redis(settings.redis, timeout_s=3.0)
    try:
        lags = {}
        for name, group, count in (
            (topics.EVENTS, topics.INGEST_GROUP, settings.event_partitions),
            (topics.ARCHIVE, topics.ARCHIVE_GROUP, settings.event_partitions),
        ):
            topic = settings.topic(name)
            ends = admin.ends(topic, count)
            done = admin.committed(settings.topic(group), topic, count)
            lags[topic] = sum(max(0, end - max(0, c.offset)) for end, c in zip(ends, done, strict=True))
        workers = [
            json.loads(v) for k in redis.scan_keys(f"{settings.key_prefix}ingest:*") if (v := redis.call("GET", k))
        ]
        marks = redis.pipeline(
            [("HGET", f"{settings.key_prefix}hot:{{s{s}}}:span", "closed_ms") for s in range(settings.block_partitions)]
        )
    finally:
        redis.close()
    known = [int(m) for m in marks if m]
    client = ClickHouse(settings.clickhouse, settings.database)
    runs = client.rows(
        f"SELECT toString(date), run_id, alert, published_at FROM {settings.database}.runs ORDER BY published_at DESC LIMIT 1"
    )
    client.close()
    return {
        "topics": lags,
        "watermark": iso(min(known)) if len(known) == settings.block_partitions else None,
        "level": max((w["level"] for w in workers), key=LEVELS.index, default="normal"),
        "ingest_workers": sorted(workers, key=lambda w: str(w["worker"])),
        "last_reconciliation": (
            {
                "date": runs[0][0],
                "run_id": runs[0][1],
                "alert": bool(runs[0][2]),
                "published_at": runs[0][3].isoformat(),
            }
            if runs
            else None
        ),
    }


def runs(settings: Settings) -> list[dict[str, Any]]:
    """The published reconciliations, newest first."""
    client = ClickHouse(settings.clickhouse, settings.database)
    try:
        found = client.rows(
            "SELECT toString(date), run_id, published_at, rows, copies, dimensions, drifted, alert, summary"
            f" FROM {settings.database}.runs ORDER BY published_at DESC LIMIT 1000"
        )
    finally:
        client.close()
    names = ("date", "run_id", "published_at", "rows", "copies", "dimensions", "drifted", "alert")
    return [dict(zip(names, row[:-1], strict=True)) | {"alert": bool(row[7])} | json.loads(row[-1]) for row in found]


def not_ready(settings: Settings) -> list[str]:
    """What of the pipeline does not say that it is up; empty when all is."""
    redis = Redis(settings.redis, timeout_s=2.0)
    missing = []
    try:
        marks = redis.pipeline(
            [("HGET", f"{settings.key_prefix}hot:{{s{s}}}:span", "sequence") for s in range(settings.block_partitions)]
        )
        missing += [f"stream shard {s}" for s, mark in enumerate(marks) if mark is None]
        workers = redis.scan_keys(f"{settings.key_prefix}ingest:*")
        owned = {p for k in workers for p in json.loads(redis.call("GET", k) or "{}").get("partitions", {})}
        missing += [f"ingest partition {p}" for p in range(settings.event_partitions) if str(p) not in owned]
    except Unavailable as error:
        return [str(error)]
    finally:
        redis.close()
    client = ClickHouse(settings.clickhouse, settings.database)
    try:
        client.rows("SELECT 1")
    except Unavailable as error:
        missing.append(str(error))
    finally:
        client.close()
    return missing
