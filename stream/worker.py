"""The stream worker: puts the agents, their sinks and the upkeep of the hot tier together."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import Any

from infra import console, logs, migration
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.console import App
from infra.errors import AdclickError, BadStatement, Refused, Unavailable, UserError
from infra.kafka import Admin
from infra.patience import WAITS, patiently
from infra.pipeline_state import reporting
from infra.priority import PIPELINE, give_way
from infra.redis import NEVER_EVICT, Memory, Redis
from infra.settings import Settings
from ingest.worker import worker_name
from stream.agents import Agents
from stream.sinks.hot import HotSink
from stream.sinks.warm import WarmSink, lowest_border
from stream.stage import Sink, Stage

_TIERS = {"hour": "hours", "day": "days"}
_EXPIRE_EVERY_S, _CHECK_EVERY_S = 60, 2
_STOP_S = 4.0


async def run(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C. Raises what made an agent stop."""
    log = logs.get("stream")
    redis = Redis(settings.redis)
    hot: dict[int, HotSink] = {}
    tiers = ClickHouse(settings.clickhouse, settings.database)

    def make_sink(stage: Stage, partition: int) -> Sink:
        if stage.name == "minute":
            hot[partition] = HotSink(redis, settings.key_prefix, partition, settings.hot_hours, settings.redis_page)
            return hot[partition]
        client = ClickHouse(settings.clickhouse, settings.database)
        return WarmSink(client, _TIERS[stage.name], stage.grain_ms, partition)

    def tidy() -> None:
        try:
            border_ms = lowest_border(tiers, _TIERS["hour"], settings.block_partitions)
            for sink in list(hot.values()):
                sink.expire(now_ms(), border_ms)
        except Unavailable as error:
            log.warning("the hot tier was not tidied", why=str(error))

    stopping, waiting = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        waiting.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    admin, watch = Admin(settings.kafka), _EvictionWatch(redis, log)
    try:
        await loop.run_in_executor(None, patiently, watch.refuse, waiting, log)
        await loop.run_in_executor(None, patiently, lambda: admin.partitions(5.0), waiting, log)
    except Unavailable:
        return
    agents = Agents(settings, make_sink)
    await agents.start()
    gc.collect()
    gc.freeze()
    # A flush makes thousands of objects, none of them part of a cycle: do not walk them over and over.
    gc.set_threshold(500_000, 20, 100)
    expired_at = checked_at = loop.time()
    while not stopping.is_set() and agents.failure is None and not agents.app.should_stop:
        try:
            await asyncio.wait_for(stopping.wait(), 0.2)
        except TimeoutError:
            pass
        if loop.time() - expired_at > _EXPIRE_EVERY_S:
            expired_at = loop.time()
            await loop.run_in_executor(None, tidy)
        if loop.time() - checked_at > _CHECK_EVERY_S:
            checked_at = loop.time()
            await loop.run_in_executor(None, watch.look, list(hot.values()))
    try:
        await asyncio.wait_for(agents.stop(), _STOP_S)
    except TimeoutError:
        # Threads of the clients wait for a broker that is away. What they hold is in the log, or will be read again.
        log.warning("left without saying good-bye", why=str(agents.failure or "a backend is away"))
        os._exit(0 if agents.failure is None else 1)
    if agents.failure is not None:
        raise AdclickError(f"stream: {agents.failure}", hint="the supervisor starts it again") from agents.failure
    if agents.app.should_stop and not stopping.is_set():
        raise AdclickError("stream: the app stopped by itself", hint="see the lines above")


class _EvictionWatch:
    """Notices a Redis that may evict minutes, or has: what is left of a shard is then no longer all of it."""

    def __init__(self, redis: Redis, log: Any) -> None:
        self._redis, self._log = redis, log
        self._before: Memory | None = None
        self._reason = ""

    def refuse(self) -> None:
        """Raises UserError when Redis may evict keys."""
        if eviction := self._redis.eviction():
            raise UserError(eviction, hint=NEVER_EVICT)

    def look(self, sinks: list[HotSink]) -> None:
        """Report that Redis may evict; where it has, have these shards forget which minutes they retain, so that they are written
        anew and readers see the others as missing; where it has not, note that. Blocks, briefly."""
        try:
            reason = self._redis.eviction()
            memory, before = self._redis.memory(), self._before
            if before and memory.run_id == before.run_id and memory.evicted_keys > before.evicted_keys:
                self._log.warning("redis evicted keys: minutes are written anew", keys=memory.evicted_keys)
                for sink in sinks:
                    sink.forget()
            else:
                for sink in sinks:
                    sink.mark_whole(memory)
        except (Unavailable, BadStatement):
            return
        self._before = memory
        if reason and reason != self._reason:
            self._log.warning("redis may evict", why=reason, hint=NEVER_EVICT)
        self._reason = reason
        if reason:
            WAITS.begin(self, Refused(reason, hint=NEVER_EVICT, backend="redis", code="EVICTS"))
        else:
            WAITS.end(self)


@console.command("stream", "ADCLICK_KAFKA=broker:9092 ADCLICK_CLICKHOUSE=http://… adclick stream")
def stream(app: App) -> None:
    """Run one stream worker: fold blocks into minutes, hours and days, and show them in Redis and ClickHouse."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(PIPELINE)
    migration.wait_for_topics(app.settings, logs.get("stream"))
    migration.check_tables(app.settings)
    with reporting(app.settings, worker_name("stream")):
        asyncio.run(run(app.settings))
