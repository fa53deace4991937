"""What remembering an id costs Redis, on the real one: CPU, and memory once segments are in order."""

from __future__ import annotations

import time

import numpy as np

from infra.redis.client import Redis
from ingest.dedup.digest import DIGEST, DIGEST_BYTES
from ingest.dedup.registry import Registry
from tests.benchmarks.stack import Bench, cpu_s

_IDS, _PARTITIONS = 1_000_000, 2


def dedup_cost(stack: Bench) -> dict[str, float]:
    """Record ids in batches of what a partition has of one of ingest's, beside no other load."""
    settings = stack.settings
    redis = Redis(settings.redis)
    registry = Registry(redis, "bench:", ttl_s=3600, segment_ids=settings.dedup_segment_ids)
    process = stack.processes()["redis"]
    batch = settings.ingest_batch // settings.event_partitions
    random = np.random.default_rng(1)
    time.sleep(1)
    used, before = _used(redis), cpu_s(process)
    for partition in range(_PARTITIONS):
        memory = registry.begin(partition, 0)
        for start in range(0, _IDS, batch):
            digests = np.frombuffer(random.bytes(DIGEST_BYTES * batch), DIGEST)
            news = {0: (digests, np.arange(start, start + batch))}
            registry.record(memory, news, up_to=start + batch, oldest_generation=0)
    total = _IDS * _PARTITIONS
    time.sleep(0.5)  # replaced segments are freed in the background
    return {
        "dedup_redis_us_per_id": round((cpu_s(process) - before) / total * 1e6, 3),
        "dedup_redis_bytes_per_id": round((_used(redis) - used) / total, 1),
    }


def _used(redis: Redis) -> int:
    return int(redis.call("INFO", "memory")["used_memory"])
