"""The stream worker: puts the agents, their sinks and the upkeep of the hot tier together."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from typing import Any

from infra import logs, migration
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import AdclickError, BadStatement, Refused, Unavailable, UserError
from infra.kafka.admin import Admin
from infra.priority import PIPELINE
from infra.redis.client import Redis
from infra.redis.eviction import NEVER_EVICT, EvictionWatch
from infra.retries import WAITS, patiently
from infra.settings import Settings
from infra.wait_reports import reporting
from infra.worker_process import Every, StopSignal, freeze_heap, start_worker
from stream.agents import THREADS, Agents
from stream.hot.writer import HotSink
from stream.insights.alerting import AlertPolicy
from stream.insights.published_status import publish_stop
from stream.insights.sink import InsightSink
from stream.reach.writer import writing_reach
from stream.stage_partition import Sink
from stream.topology import HOUR, INSIGHT, MINUTE, Stage
from stream.warm.tables import WarmTables
from stream.warm.writer import WarmSink, lowest_border

_TIERS = {"hour": "hours", "day": "days"}
_LOOK_EVERY_S, _CHECK_EVICTION_EVERY_S, _EXPIRE_EVERY_S = 0.2, 2.0, 60.0
_STOP_S = 4.0
_FIND_S = 20.0


async def run(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C. Raises what made an agent stop."""
    stop, redis = StopSignal(), Redis(settings.redis_access)
    sinks, guard = _Sinks(settings, redis), _EvictionGuard(redis, logs.get("stream"))
    if not await _wait_for_backends(settings, guard, stop):
        return
    agents = Agents(settings, sinks.make)
    await agents.start()
    freeze_heap()
    await _do_upkeep(agents, sinks, guard, stop)
    unreadable = "" if stop.came or agents.failure else await _find_unreadable(agents)
    await _leave_group(agents)
    _raise_failure(agents, stop, unreadable)


async def _wait_for_backends(settings: Settings, guard: _EvictionGuard, stop: StopSignal) -> bool:
    """Wait until Redis and Kafka answer; False when told to stop before that. Raises UserError when Redis may evict keys."""
    admin, log = Admin(settings.kafka_connection), logs.get("stream")
    try:
        for call in (guard.refuse, lambda: admin.partitions(5.0)):
            await _in_thread(patiently, call, stop.for_threads, log)
    except Unavailable:
        return False
    return True


async def _do_upkeep(agents: Agents, sinks: _Sinks, guard: _EvictionGuard, stop: StopSignal) -> None:
    """Look after the hot tier until told to stop, or until the agents stop by themselves."""
    expiry, eviction = Every(_EXPIRE_EVERY_S), Every(_CHECK_EVICTION_EVERY_S)
    while not (stop.came or agents.has_stopped):
        await stop.wait(_LOOK_EVERY_S)
        if expiry.is_due():
            await _in_thread(sinks.expire_minutes)
        if eviction.is_due():
            await _in_thread(guard.look, sinks.hot)


async def _leave_group(agents: Agents) -> None:
    """Flush what is due and leave the consumer group; end the process where that hangs."""
    try:
        await asyncio.wait_for(agents.stop(), _STOP_S)
    except TimeoutError:
        # Threads of the clients wait for a broker that is away. What they hold is in the log, or will be read again.
        reason = str(agents.failure or "a backend is away")
        logs.get("stream").warning("stopped without leaving the consumer group", why=reason)
        os._exit(0 if agents.failure is None else 1)


async def _find_unreadable(agents: Agents) -> str:
    """Why the app stopped by itself, as far as that is a message that cannot be read."""
    try:
        return str(await asyncio.wait_for(_in_thread(agents.find_unreadable), _FIND_S))
    except (AdclickError, TimeoutError):
        return ""


def _raise_failure(agents: Agents, stop: StopSignal, unreadable: str) -> None:
    if agents.failure is not None:
        raise AdclickError(f"stream: {agents.failure}", hint="the supervisor starts it again") from agents.failure
    if agents.has_stopped and not stop.came:
        raise AdclickError(f"stream: {unreadable or 'the app stopped by itself'}", hint="see the lines above")


async def _in_thread(call: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


class _Sinks:
    """Makes the sinks of this worker's partitions, and drops old hours of the hot tier."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings, self._redis = settings, redis
        self._by_partition: dict[int, HotSink] = {}
        self._tiers = ClickHouse.of(settings, connections=THREADS)
        self._tables = WarmTables(self._tiers)

    @property
    def hot(self) -> list[HotSink]:
        """The newest sink of each partition of minutes."""
        return list(self._by_partition.values())

    def make(self, stage: Stage, partition: int) -> Sink:
        """A sink. Their connections are shared: to begin each with one of its own would take a second for every fifty."""
        settings = self._settings
        if stage is MINUTE:
            sink = HotSink(self._redis, settings.key_prefix, partition, settings.hot_hours, settings.redis_page)
            self._by_partition[partition] = sink
            return sink
        if stage is INSIGHT:
            report = partial(publish_stop, self._redis, settings.key_prefix)
            return InsightSink(ClickHouse.of(settings), AlertPolicy.of(settings), report)
        return WarmSink(self._tables, _TIERS[stage.name], stage.grain_ms, partition)

    def expire_minutes(self) -> None:
        """Drop hours from Redis that are old and in ClickHouse. Blocks."""
        try:
            border_ms = lowest_border(self._tiers, _TIERS[HOUR.name], self._settings.block_partitions)
            for sink in self.hot:
                sink.expire(now_ms(), border_ms)
        except Unavailable as error:
            logs.get("stream").warning("old minutes were not dropped from Redis", why=str(error))


class _EvictionGuard:
    """What a stream worker does about a Redis that may evict minutes, or has: what is left of a shard is then not all of it."""

    def __init__(self, redis: Redis, log: Any) -> None:
        self._watch, self._log, self._reason = EvictionWatch(redis), log, ""
        self._evicted = False
        """Whether keys were evicted since all shards forgot what they retain."""

    def refuse(self) -> None:
        """Raises UserError when Redis may evict keys."""
        if reason := self._watch.look().reason:
            raise UserError(reason, hint=NEVER_EVICT)

    def look(self, sinks: list[HotSink]) -> None:
        """Report that Redis may evict; where it has, have these shards forget which minutes they retain, so that they are written
        anew and readers see the others as missing; where it has not, note that. Blocks, briefly."""
        with contextlib.suppress(Unavailable, BadStatement):
            eviction = self._watch.look()
            self._report(eviction.reason)
            self._evicted |= eviction.evicted > 0
            if self._evicted:
                self._log.warning("redis evicted keys: minutes are written anew", keys=eviction.evicted)
                for sink in sinks:
                    sink.forget()
                self._evicted = False
            elif eviction.memories:
                for sink in sinks:
                    sink.mark_whole(eviction.memories)

    def _report(self, reason: str) -> None:
        if reason and reason != self._reason:
            self._log.warning("redis may evict", why=reason, hint=NEVER_EVICT)
        self._reason = reason
        if reason:
            WAITS.begin(self, Refused(reason, hint=NEVER_EVICT, backend="redis", code="EVICTS"))
        else:
            WAITS.end(self)


@declare.command("stream", "ADCLICK_KAFKA=broker:9092 ADCLICK_CLICKHOUSE=http://… adclick stream")
def stream(app: App) -> None:
    """Run one stream worker: fold blocks into minutes, hours and days, show them in Redis and ClickHouse, raise alerts, and count users."""
    name = start_worker(app, "stream", PIPELINE)
    migration.check_tables(app.settings)
    with reporting(app.settings, name), writing_reach(app.settings):
        asyncio.run(run(app.settings))
