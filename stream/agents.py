"""The only module that imports Faust: three agents, assignment, timers. What they do is in `intake`, `state` and `stage_partition`.

Faust's own offsets and tables are not used: a new owner recovers a partition from its state log while the rebalance
completes, and the input starts at the fence found there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import faust
from faust.auth import AbstractTokenProvider, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from infra import faults, logs
from infra.clock import now_ms
from infra.errors import AdclickError, CorruptLog, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin, RenewedAdmin
from infra.kafka.client import METADATA_REFRESH_MS
from infra.kafka.connection import OAUTHBEARER, Connection
from infra.kafka.range_reader import read_range
from infra.kafka.record_batches import CorruptBatch
from infra.kafka.stalls import PATIENCE_S, StallWatch, has_message
from infra.kafka.tokens import TokenSource, token_of
from infra.kafka.topic_state import TopicState
from infra.priority import BACKGROUND, give_way_here
from infra.retries import WAITS
from infra.settings import Settings
from ingest import blocks
from ingest.partials import Partials
from stream import chunks
from stream.flush_policy import MAX_WAITING_ROWS
from stream.stage_partition import Sink, StagePartition
from stream.topology import MINUTE, STAGES, Stage

_DEAD_LIMIT_S = 5.0
_SETTLE_S = 4.0
THREADS = 16
"""The size of each of two pools. One recovers partitions, and flushes and refreshes minutes; the other flushes and refreshes all other
stages, at a lower priority. The threads of both share as many connections to ClickHouse."""
_WATCH_S, _LOOK_FOR_STALL_EVERY_S, _RENEW_EVERY_S = 5.0, 15.0, 60.0


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust offers neither outside its exactly_once mode. 1.5 s of fetch wait would be our freshness.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = 100
        # A request names all partitions that are read, and so does its answer. Without a least size one is answered for each of them
        # that gets a message.
        consumer._fetch_min_bytes = 128 << 10
        return consumer


class _Consumer(driver.Consumer):  # type: ignore[misc]
    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing. Faust notes each transaction marker in a tree that only its own commits prune, and sorts all of it anew
        each time: after eight minutes that was two thirds of a worker's CPU, and growing.
        """

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to our fences instead of the group's offsets. From memory only: a slow answer would hang the worker."""
        fences: dict[TP, int] = self.app.fences()
        await self._thread.seek_wait(fences)
        return fences


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of the installation's source, for aiokafka."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    async def token(self) -> str:
        return (await asyncio.get_running_loop().run_in_executor(None, token_of, self._source))[0]


def credentials_of(kafka: Connection, context: ssl.SSLContext | None) -> Any:
    """In the form that Faust takes; None where brokers are spoken to in the clear, by nobody in particular. `context`: of TLS."""
    if kafka.sasl is None:
        return None if context is None else SSLCredentials(context)
    if kafka.sasl.mechanism == OAUTHBEARER:
        return OAuthCredentials(oauth_cb=_TokenProvider(kafka.sasl.tokens), ssl_context=context)
    return SASLCredentials(
        mechanism=kafka.sasl.mechanism, username=kafka.sasl.user, password=kafka.sasl.password, ssl_context=context
    )


class StreamApp(faust.App):  # type: ignore[misc]
    """A Faust app that reads committed messages only and positions itself by `fences`."""

    def __init__(self, *args: Any, fences: Callable[[], dict[TP, int]], **kwargs: Any) -> None:
        self.fences = fences
        super().__init__(*args, **kwargs)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """None: there is no table that would lie in them."""


class Agents:
    """The three agents of one worker, and the partitions that they own now."""

    def __init__(self, settings: Settings, make_sink: Callable[[Stage, int], Sink]) -> None:
        self._settings, self._make_sink = settings, make_sink
        self._log = logs.get("stream")
        self._topic_watch, self._stall_watch = (
            RenewedAdmin(settings.kafka_connection, self._log, timeout_s=_WATCH_S) for _ in range(2)
        )
        self._owned: dict[TP, StagePartition] = {}
        self._by_topic = {settings.topic(stage.source): stage for stage in STAGES.values()}
        self._recovering: list[StagePartition] = []
        self._recoveries: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="partition")
        self._patient_pool = ThreadPoolExecutor(THREADS, "patient", give_way_here, (BACKGROUND,))
        self._packing_pool = ThreadPoolExecutor(1, "packing", give_way_here, (BACKGROUND,))
        self._packing: set[TP] = set()
        self._locks: dict[TP, asyncio.Lock] = {}
        self.failure: BaseException | None = None
        self._topic_ids = dict[str, str]()
        self._watched: Any = None
        self._confirmed_at = 0.0
        self._stalls = dict[str, StallWatch]()
        self._unowned_since: float | None = None
        kafka = settings.kafka_connection
        self._tls, self._tls_context = kafka.tls, None if kafka.tls is None else kafka.tls.context()
        self.app = StreamApp(
            settings.topic(topics.STREAM_GROUP),
            fences=self._fences,
            broker=[f"kafka://{server}" for server in settings.kafka.split(",")],
            broker_credentials=credentials_of(kafka, self._tls_context),
            store="memory://",
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            table_standby_replicas=0,
            stream_recovery_delay=0.0,
            broker_commit_interval=1.0,
            # Faust's commits mean nothing here; without this it warns that there are none.
            broker_commit_livelock_soft_timeout=10.0**9,
            broker_session_timeout=settings.session_timeout_ms / 1000,
            broker_heartbeat_interval=settings.session_timeout_ms / 5000,
            broker_request_timeout=20,
            consumer_max_fetch_size=8 << 20,
            consumer_auto_offset_reset="earliest",
            consumer_metadata_max_age_ms=METADATA_REFRESH_MS,
            producer_max_request_size=8 << 20,
            stream_buffer_maxsize=16,
            stream_wait_empty=False,
        )
        self.app.on_partitions_revoked.connect(self._revoked)
        self.app.on_rebalance_complete.connect(self._recover)
        for topic, stage in self._by_topic.items():
            self._add_agent(topic, stage)
        self.app.timer(interval=settings.flush_ms / 1000)(self._tick)
        self.app.timer(interval=_WATCH_S)(self._watch_topics)
        self.app.timer(interval=_LOOK_FOR_STALL_EVERY_S)(self._watch_progress)
        self.app.timer(interval=_RENEW_EVERY_S)(self._renew_certificates)

    # -- agents ---------------------------------------------------------------------------------------------

    def _add_agent(self, topic: str, stage: Stage) -> None:
        channel = self.app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def agent(stream: Any) -> None:
            async for event in stream.noack().events():
                try:
                    await self._apply(event.message, stage)
                except Exception as error:
                    # Faust would restart the agent at the next message: this one would be lost.
                    self._fail(error)
                    await asyncio.sleep(3600)

        agent.__name__ = stage.name
        self.app.agent(channel, name=f"adclick.{stage.name}")(agent)

    async def _apply(self, message: Any, stage: Stage) -> None:
        tp = TP(message.topic, message.partition)
        owned = self._owned.get(tp)
        while owned is not None and not owned.dead.is_set() and owned.intake.waiting_rows > MAX_WAITING_ROWS:
            await asyncio.sleep(0.05)
        owned = self._owned.get(tp)
        # No await from here on: check and apply are one step.
        if owned is None or owned.dead.is_set() or message.offset < owned.intake.next_message:
            return
        where = f"{message.topic}/{message.partition}/{message.offset}"
        if stage is MINUTE:
            block, block_header = blocks.decode_block(message.value, where)
            owned.intake.apply_block(message.offset, Partials.of_arrow(block), block_header, where, now_ms())
        else:
            chunk, chunk_header = chunks.decode(message.value, where)
            owned.intake.apply_chunk(message.offset, chunk, chunk_header, where)

    # -- ownership ------------------------------------------------------------------------------------------

    async def _revoked(self, _app: Any, revoked: set[TP], **_: Any) -> None:
        if revoked:
            faults.point("stream.revoked")
        for owned in [*self._owned.values(), *self._recovering]:
            owned.die()
        for tp in revoked:
            self._owned.pop(tp, None)
        await self._wait_for_recoveries()

    async def _wait_for_recoveries(self) -> None:
        """Wait for recoveries of an earlier assignment: one that registers its id late would fence the partition's next owner."""
        running = [asyncio.wrap_future(f) for f in self._recoveries if not f.done()]
        if running:
            await asyncio.wait(running, timeout=_SETTLE_S)

    async def _recover(self, _app: Any, **_: Any) -> None:
        """Recover the assigned partitions. Runs inside the rebalance: the input flows when this returns."""
        for owned in [*self._owned.values(), *self._recovering]:
            owned.die()
        self._owned.clear()
        self._stalls.clear()
        await self._wait_for_recoveries()
        generation = self.app.consumer_generation_id
        assigned = self._assigned()
        siblings = Counter(tp.topic for tp in assigned)
        partitions = {
            tp: StagePartition(
                self._settings,
                self._by_topic[tp.topic],
                tp.partition,
                self._make_sink,
                self._member_since,
                siblings[tp.topic],
            )
            for tp in assigned
        }
        self._recovering = list(partitions.values())
        self._recoveries = [self._pool.submit(p.recover) for p in partitions.values()]
        started = time.monotonic()
        try:
            # Faust may cancel this: the threads go on, and `_wait_for_recoveries` waits for them.
            await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(f)) for f in self._recoveries))
        except Exception as error:
            if not all(p.dead.is_set() for p in partitions.values()):
                self._fail(error)
            return
        if self.app.consumer_generation_id != generation or any(p.dead.is_set() for p in partitions.values()):
            self._log.info("assignment changed while recovering")
            return
        self._owned = partitions
        self._log.info("partitions recovered", count=len(partitions), seconds=round(time.monotonic() - started, 2))

    def _assigned(self) -> list[TP]:
        """What the group has assigned to this worker. Nothing of ours is in partitions beyond the setting: others have added them."""
        counts = {topic: stage.partitions(self._settings) for topic, stage in self._by_topic.items()}
        return [tp for tp in self.app.consumer.assignment() if tp.partition < counts.get(tp.topic, 0)]

    def _member_since(self, moment: float) -> bool:
        """Whether the group's coordinator has accepted a heartbeat of this member after a moment of `time.monotonic`."""
        coordinator = self.app.consumer._thread._ensure_consumer()._coordinator
        if coordinator is not self._watched:
            send_heartbeat = coordinator._do_heartbeat

            async def send_and_note() -> bool:
                accepted = bool(await send_heartbeat())
                # A heartbeat is accepted during a rebalance, too: then another worker may own our partitions soon.
                if accepted and not coordinator._rejoin_needed_fut.done():
                    self._confirmed_at = time.monotonic()
                return accepted

            coordinator._do_heartbeat, self._watched = send_and_note, coordinator
        return self._confirmed_at > moment

    def _fences(self) -> dict[TP, int]:
        return {tp: owned.intake.next_message for tp, owned in self._owned.items()}

    async def _renew_certificates(self, *_: Any) -> None:
        """Faust keeps the context that it was made with, and certificates are renewed while workers run."""
        if self._tls is not None and self._tls_context is not None:
            # Files that are being replaced are read the next time.
            with contextlib.suppress(UserError):
                self._tls.renew(self._tls_context)

    async def _watch_topics(self, *_: Any) -> None:
        """Stop when an input was deleted and made again: by offsets alone, what is new in it would look old."""

        def describe() -> dict[str, TopicState]:
            return self._topic_watch.call(lambda admin: admin.describe(self._by_topic))

        try:
            states = await asyncio.get_running_loop().run_in_executor(self._patient_pool, describe)
        except AdclickError:
            return
        for name, state in states.items():
            before = self._topic_ids.setdefault(name, state.topic_id)
            if before != state.topic_id:
                error = f"topic {name} was deleted and made again: its id was {before}, it is {state.topic_id}"
                self._fail(CorruptLog(error, hint="start in a new folder, and replay the archive"))

    async def _watch_progress(self, *_: Any) -> None:
        """Stop when messages have waited for long and none comes, or when what the group has assigned is not taken over: Faust may hang
        after a rebalance. Nothing stands still while a backend is away."""
        if WAITS.holds_counting_up():
            self._stalls.clear()
            return
        try:
            stalled = await asyncio.get_running_loop().run_in_executor(
                self._patient_pool, self._stall_watch.call, self._find_stalled
            )
        except AdclickError:
            self._stalls.clear()
            return
        if stalled:
            self._fail(RuntimeError(f"{', '.join(stalled)}: there are messages, and the client brings none"))
        idle = self._assigned() and not self._owned and all(f.done() for f in self._recoveries)
        self._unowned_since = (self._unowned_since or time.monotonic()) if idle else None
        if self._unowned_since is not None and time.monotonic() - self._unowned_since > PATIENCE_S:
            self._fail(RuntimeError("partitions are assigned, and were not taken over"))

    def _find_stalled(self, admin: Admin) -> list[str]:
        """The inputs that stand still though there are messages. Blocks; raises Unavailable."""
        stalled = list[str]()
        for topic, stage in self._by_topic.items():
            watch = self._stalls.setdefault(
                topic, StallWatch(partial(has_message, self._settings.kafka_connection, topic))
            )
            owned = {
                tp.partition: o for tp, o in self._owned.copy().items() if tp.topic == topic and not o.dead.is_set()
            }
            # One that waits for its flush takes no more on purpose, and keeps the others of its topic waiting.
            if any(o.intake.waiting_rows > MAX_WAITING_ROWS for o in owned.values()):
                owned = {}
            positions = {p: o.intake.next_message for p, o in owned.items()}
            ends = admin.ends(topic, stage.partitions(self._settings)) if positions else []
            still = watch.stalled(positions, dict(enumerate(ends)))
            stalled += [f"{topic}/{p}" for p in still if owned[p].intake.next_message == positions[p]]
        return stalled

    # -- flush ----------------------------------------------------------------------------------------------

    async def _tick(self, *_: Any) -> None:
        for tp, owned in list(self._owned.items()):
            if owned.dead.is_set():
                if owned.dead_since is not None and time.monotonic() - owned.dead_since > _DEAD_LIMIT_S:
                    self._fail(RuntimeError(f"{owned.where}: fenced, and no new assignment came"))
                continue
            lock = self._locks.setdefault(tp, asyncio.Lock())
            if not lock.locked():
                asyncio.ensure_future(self._flush(owned, lock)).add_done_callback(self._flushed)
            if owned.pack_due and tp not in self._packing:
                asyncio.ensure_future(self._pack(tp, owned)).add_done_callback(self._flushed)

    async def _pack(self, tp: TP, owned: StagePartition) -> None:
        self._packing.add(tp)
        try:
            await asyncio.get_running_loop().run_in_executor(self._packing_pool, owned.pack)
        finally:
            self._packing.remove(tp)

    async def _flush(self, owned: StagePartition, lock: asyncio.Lock) -> None:
        async with lock:
            if owned.dead.is_set():
                return
            loop = asyncio.get_running_loop()
            pool = self._pool if owned.stage.is_fresh else self._patient_pool
            if owned.begin_flush(now_ms()):
                owned.settle(await loop.run_in_executor(pool, owned.flush))
            elif owned.refresh_due():
                intake = owned.intake
                await loop.run_in_executor(pool, owned.refresh, intake.shown_sent_ms, intake.shown_canaries)

    def _flushed(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())

    def _fail(self, error: BaseException | None) -> None:
        if self.failure is None:
            self._log.error("stopping", why=str(error), exc_info=error)
            self.failure = error

    # -- life -----------------------------------------------------------------------------------------------

    def find_unreadable(self) -> str:
        """The record batch that ended the client, where there is one: it does not say of which partition it is. Blocks for some seconds."""
        kafka, admin = self._settings.kafka_connection, Admin(self._settings.kafka_connection)
        for tp, first in self._fences().items():
            end = admin.ends(tp.topic, tp.partition + 1)[tp.partition]
            try:
                for _ in read_range(kafka, tp.topic, tp.partition, first, end):
                    pass
            except CorruptBatch as error:
                return f"{tp.topic}/{tp.partition}: the record batch at offset {error.offset} {error}"
        return ""

    @property
    def has_stopped(self) -> bool:
        """Whether an agent has failed, or Faust stops by itself."""
        return self.failure is not None or bool(self.app.should_stop)

    async def start(self) -> None:
        """Join the group and begin."""
        self.app.in_worker = True
        self.app.finalize()
        await self.app.start()

    async def stop(self) -> None:
        """Flush what is due, then leave the group."""
        for tp, owned in list(self._owned.items()):
            if not owned.dead.is_set():
                await self._flush(owned, self._locks.setdefault(tp, asyncio.Lock()))
                owned.die()
        for watch in (self._topic_watch, self._stall_watch):
            watch.end_wait()
        await self.app.stop()
