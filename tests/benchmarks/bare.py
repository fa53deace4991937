"""The yardstick: the least that a Python program can do with the same topic. Consume, parse, group by, and forget.

No dedup, no lateness, no state, no sink, no guarantee. Run as a process of its own; prints its figures as JSON.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time

os.environ["POLARS_MAX_THREADS"] = "1"

import confluent_kafka
import polars as pl

_KEYS = ("campaign_id", "ad_id", "advertiser_id", "publisher_id", "country", "device")
_SCHEMA = {
    "event_type": pl.String, "event_time": pl.String, **dict.fromkeys(_KEYS[:4], pl.Int64), "country": pl.String,
    "device": pl.String, "cost_micros": pl.Int64,
}  # fmt: skip


def main(servers: str, topic: str, events: int) -> None:
    """Read `events` messages from the beginning of every partition, also of those that are held back from the product."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "bare-loop", "auto.offset.reset": "earliest",
         "enable.auto.commit": False, "isolation.level": "read_uncommitted", "fetch.queue.backoff.ms": 2, "queued.max.messages.kbytes": 48 * 1024}
    )  # fmt: skip
    partitions = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in partitions])
    began, before, seen, groups = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF), 0, 0
    while seen < events:
        values = [m.value() for m in consumer.consume(50_000, 1.0)]
        seen += len(values)
        if values:
            groups += fold(values)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {"cpu_s_per_million": cpu / seen * 1e6, "events_per_s": seen / (time.monotonic() - began), "groups": groups}
        )
    )


def fold(values: list[bytes]) -> int:
    """Sums of one batch by minute and all dimensions; returns how many groups."""
    frame = pl.read_ndjson(io.BytesIO(b"\n".join(values)), schema=_SCHEMA)
    time_ms = pl.col("event_time").cast(pl.Int64, strict=False)
    sums = frame.group_by((time_ms // 60_000).alias("minute"), *_KEYS).agg(
        *((pl.col("event_type") == kind).sum().alias(kind) for kind in ("impression", "click", "conversion")),
        pl.col("cost_micros").sum(),
    )
    return sums.height


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
