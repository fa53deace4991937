"""The stream worker: puts the agents, their sinks and the upkeep of the hot tier together."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading

from infra import console, logs
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.console import App
from infra.errors import AdclickError, Unavailable
from infra.kafka import Admin
from infra.patience import patiently
from infra.priority import PIPELINE, give_way
from infra.redis import Redis
from infra.settings import Settings
from stream.agents import Agents
from stream.sinks.hot import HotSink
from stream.sinks.warm import WarmSink, lowest_border
from stream.stage import Sink, Stage

_TIERS = {"hour": "hours", "day": "days"}
_EXPIRE_EVERY_S = 60
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
    admin = Admin(settings.kafka)
    try:
        await loop.run_in_executor(None, patiently, lambda: admin.partitions(5.0), waiting, log)
    except Unavailable:
        return
    agents = Agents(settings, make_sink)
    await agents.start()
    gc.collect()
    gc.freeze()
    # A flush makes thousands of objects, none of them part of a cycle: do not walk them over and over.
    gc.set_threshold(500_000, 20, 100)
    expired_at = loop.time()
    while not stopping.is_set() and agents.failure is None and not agents.app.should_stop:
        try:
            await asyncio.wait_for(stopping.wait(), 0.2)
        except TimeoutError:
            pass
        if loop.time() - expired_at > _EXPIRE_EVERY_S:
            expired_at = loop.time()
            await loop.run_in_executor(None, tidy)
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


@console.command("stream", "ADCLICK_KAFKA=broker:9092 ADCLICK_CLICKHOUSE=http://… adclick stream")
def stream(app: App) -> None:
    """Run one stream worker: fold blocks into minutes, hours and days, and show them in Redis and ClickHouse."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(PIPELINE)
    asyncio.run(run(app.settings))
