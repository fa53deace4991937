"""The ingest worker: ad-events → blocks, archive blocks and dead letters, in one transaction a batch.

Reads top down: `IngestWorker.run` is a session that starts over whenever ownership or a backend was lost;
`_process` is the path of a batch.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import tenacity

from infra import console, logs, topics
from infra.clock import now_ms
from infra.console import App
from infra.errors import Fenced, Unavailable
from infra.kafka import (
    Aborted,
    Admin,
    Committed,
    GroupConsumer,
    Record,
    TransactionalProducer,
    offset_at,
    read_to_end,
)
from infra.redis import Redis
from infra.settings import Settings
from ingest import batch, blocks, partials, salting, shedding
from ingest.archived import Decision
from ingest.batch import Judged, Position
from ingest.blocks import SourceRange
from ingest.decode import Decoder
from ingest.dedup import decision as dedup
from ingest.dedup.bloom import GrowingBloom
from ingest.dedup.decision import MemoryLost, PartitionMemory
from ingest.dedup.registry import Offsets, RedisRegistry, Registry, digest
from ingest.events import Reason, Rejection

STAGE = "ingest"
_REBUILD_BATCH = 20_000
_TELL_EVERY_S = 1.0


@dataclass
class Partition:
    """A source partition that this worker owns. `position` only moves with a committed transaction."""

    position: Position
    memory: PartitionMemory
    active_at: float
    rebuilds: dict[int, Future[GrowingBloom]] = field(default_factory=dict)
    """Filters on their way, by generation."""


@dataclass(frozen=True)
class Outcome:
    """What one transaction writes."""

    records: list[Record]
    after: dict[int, Position]
    judged: dict[int, Judged]


class IngestWorker:
    """One worker. `run` blocks until `stop` is called from a signal handler or another thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._log = logs.get("ingest").bind(worker=name)
        self._redis = Redis(settings.redis)
        self._registry: Registry = RedisRegistry(self._redis, settings.key_prefix)
        self._decoder = Decoder()
        self._horizon_ms = settings.dedup_horizon_s * 1000
        self._secret = settings.user_secret.get_secret_value().encode()
        self._policy = shedding.Policy()
        self._level = shedding.Level.NORMAL
        self._owned: dict[int, Partition] = {}
        self._announced: dict[int, tuple[int | None, bool]] = {}
        self._stopping = threading.Event()
        self._rebuilder = ThreadPoolExecutor(1, thread_name_prefix="rebuild")
        self._told_at = self._sent_at = 0.0
        self._consumer: GroupConsumer
        self._producer: TransactionalProducer

    def stop(self) -> None:
        """Finish the batch in hand and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until stopped; start a new session, with a growing pause, after each loss."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._session()
            except (Fenced, Unavailable, MemoryLost) as error:
                failures = 0 if time.monotonic() - started > 30 else failures + 1
                self._log.warning("starting over", why=str(error), failures=failures)
                self._stopping.wait(min(10.0, 0.2 * 2**failures))
        self._rebuilder.shutdown(cancel_futures=True)

    def _session(self) -> None:
        settings = self._settings
        self._owned.clear()
        self._producer = TransactionalProducer(settings.kafka, f"{settings.key_prefix}{self._name}")
        self._producer.open()
        self._consumer = GroupConsumer(
            settings.kafka,
            settings.topic(topics.INGEST_GROUP),
            settings.topic(topics.EVENTS),
            self._assigned,
            self._revoked,
        )
        try:
            while not self._stopping.is_set():
                messages = self._consumer.consume(settings.ingest_batch, settings.ingest_linger_ms / 1000)
                self._adopt_rebuilt()
                try:
                    if messages:
                        self._step(self._process(messages))
                    elif self._heartbeat_due():
                        self._step(Outcome(list(self._blocks(partials.empty(), {})), {}, {}))
                except Aborted as error:
                    self._log.warning("transaction aborted, rolled back", why=str(error))
                    self._roll_back()
                self._tell()
        finally:
            self._owned.clear()
            self._consumer.close()

    # -- ownership ------------------------------------------------------------------------------------------

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        """Take partitions over at their committed positions, with their memory checked or rebuilt."""
        self._owned.clear()
        self._announced.clear()
        topic = self._settings.topic(topics.EVENTS)
        firsts: list[int] = []
        for found in self._patiently(lambda: self._consumer.committed(partitions)):
            position = Position.committed(found.offset, found.metadata)
            if position.offset < 0:
                firsts = firsts or self._patiently(
                    lambda: Admin(self._settings.kafka).starts(topic, self._settings.event_partitions)
                )
                position = Position(firsts[found.partition])
                self._patiently(lambda p=found.partition, o=position.offset: self._begin_memory(p, o))
            self._owned[found.partition] = Partition(
                position,
                self._patiently(lambda p=found.partition, q=position: self._memory_of(p, q)),
                time.monotonic(),
            )
            self._start_rebuild(self._owned[found.partition])
        self._log.info("partitions assigned", positions={p: s.position.offset for p, s in self._owned.items()})
        return {p: s.position.offset for p, s in self._owned.items()}

    def _begin_memory(self, partition: int, offset: int) -> None:
        # Another worker may have recorded before its first commit: its ids are those of a replay.
        if self._registry.recorded_up_to(partition) is None:
            self._registry.begin(partition, offset)

    def _revoked(self, partitions: list[int]) -> None:
        for partition in partitions:
            self._owned.pop(partition, None)

    def _patiently(self, call: Any) -> Any:
        """Retry while a backend is away: inside a rebalance there is nothing else to do."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_when_event_set(self._stopping),
            reraise=True,
        ):
            with attempt:
                return call()
        raise AssertionError

    def _memory_of(self, partition: int, position: Position) -> PartitionMemory:
        """The memory at a position: from Redis, or, where Redis lost it, from the log itself."""
        recorded = self._registry.recorded_up_to(partition)
        generation = position.log_time_ms // self._horizon_ms
        if recorded is None or recorded < position.offset:
            self._log.warning(
                "redis lost its memory", partition=partition, recorded=recorded, committed=position.offset
            )
            return self._memory_from_log(partition, position)
        return PartitionMemory(partition, recorded, generation)

    def _memory_from_log(self, partition: int, position: Position) -> PartitionMemory:
        """Read the ids of the last horizons from ad-events again, by the same rules, up to `position`."""
        topic, kafka = self._settings.topic(topics.EVENTS), self._settings.kafka
        generation = position.log_time_ms // self._horizon_ms
        # Ids of two generations are looked up; the one before tells which of those were copies themselves.
        start = offset_at(kafka, topic, partition, max(0, generation - 2) * self._horizon_ms)
        start = min(start, position.offset)
        self._registry.forget(partition)
        memory = PartitionMemory(partition, start, assigned_generation=-1)
        self._registry.begin(partition, start)
        if start >= position.offset:
            return memory
        log_time, pending = 0, list[Any]()

        def record() -> None:
            nonlocal log_time
            if not pending:
                return
            stamps = np.array([m.timestamp()[1] for m in pending], np.int64)
            times = batch.log_times(stamps, log_time)
            valid = self._decoder.decode([m.value() for m in pending], times).events
            rows = valid["row"].to_numpy()
            offsets = np.array([m.offset() for m in pending], np.int64)
            generations = times[rows] // self._horizon_ms
            judged = dedup.decide(memory, self._registry, digest(valid["event_id"]), offsets[rows], generations)
            self._record(memory, judged, int(offsets[-1]) + 1, generation)
            dedup.remember(memory, judged)
            log_time = int(times[-1])
            pending.clear()

        for message in read_to_end(kafka, topic, partition, start):
            if message.offset() >= position.offset:
                break
            pending.append(message)
            if len(pending) >= _REBUILD_BATCH:
                record()
        record()
        if memory.recorded_up_to < position.offset:
            self._registry.begin(partition, position.offset)
            memory.recorded_up_to = position.offset
        memory.assigned_generation = generation
        self._log.info("memory rebuilt from the log", partition=partition, from_offset=start, to_offset=position.offset)
        return memory

    def _start_rebuild(self, partition: Partition) -> None:
        """Fill the filters from Redis in the background, newest generation first."""
        memory = partition.memory
        for generation in (memory.assigned_generation, memory.assigned_generation - 1):
            partition.rebuilds[generation] = self._rebuilder.submit(self._read_filter, memory.partition, generation)

    def _read_filter(self, partition: int, generation: int) -> GrowingBloom:
        found = GrowingBloom()
        client = Redis(self._settings.redis)
        try:
            for page in RedisRegistry(client, self._settings.key_prefix).pages(partition, generation):
                if len(page):
                    found.add(page)
                if self._stopping.is_set():
                    raise Unavailable("stopping: this filter is not whole")
        finally:
            client.close()
        return found

    def _adopt_rebuilt(self) -> None:
        """Put finished filters to use. What was added meanwhile is in Redis, too, but may have been missed by the scan."""
        for partition in self._owned.values():
            memory = partition.memory
            for generation, future in [(g, f) for g, f in partition.rebuilds.items() if f.done()]:
                del partition.rebuilds[generation]
                if future.exception() is not None:
                    # Until it is there all ids count as positive, which is slow and right. Try again.
                    partition.rebuilds[generation] = self._rebuilder.submit(
                        self._read_filter, memory.partition, generation
                    )
                    continue
                found = future.result()
                if generation in memory.filters:
                    found.join(memory.filters[generation])
                memory.filters[generation] = found
                memory.complete.add(generation)

    # -- the path of a batch --------------------------------------------------------------------------------

    def _process(self, messages: list[Any]) -> Outcome:
        """Judge the messages and lay out the transaction. Records ids in Redis on the way. Raises Unavailable."""
        mine = self._sort(messages)
        if not mine:
            return Outcome(list(self._blocks(partials.empty(), {})), {}, {})
        values = [m.value() for _, group, _ in mine for m in group]
        times: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        ends: dict[int, Position] = {}
        for p, group, offsets in mine:
            before = self._owned[p].position
            stamps = np.array([m.timestamp()[1] for m in group], np.int64)
            times.append(batch.log_times(stamps, before.log_time_ms))
            ends[p] = Position(int(offsets[-1]) + 1, before.watermark_ms, int(times[-1][-1]))
        decoded = self._decoder.decode(values, np.concatenate(times))
        judged: dict[int, Judged] = {}
        start = 0
        for (p, group, offsets), log_time in zip(mine, times, strict=True):
            stop = start + len(group)
            valid = decoded.events.filter(pl.col("row").is_between(start, stop, closed="left"))
            rows = valid["row"].to_numpy() - start
            judged[p] = self._judge(p, valid, offsets[rows], log_time[rows], ends[p])
            start = stop
        flat = [m for _, group, _ in mine for m in group]
        return self._lay_out(flat, judged, decoded.rejected)

    def _sort(self, messages: list[Any]) -> list[tuple[int, list[Any], Offsets]]:
        """Messages and their offsets by partition, in offset order.

        After a rebalance in the middle of a `consume`, some may belong to partitions that are gone, or come a second
        time: those are left out.
        """
        by_partition: dict[int, list[Any]] = {}
        for message in messages:
            by_partition.setdefault(message.partition(), []).append(message)
        mine = []
        for p in sorted(by_partition.keys() & self._owned.keys()):
            group = by_partition[p]
            offsets = np.array([m.offset() for m in group], np.int64)
            first = self._owned[p].position.offset
            if offsets[0] < first or (np.diff(offsets) <= 0).any():
                highest = np.concatenate(([first - 1], np.maximum.accumulate(offsets)[:-1]))
                new = offsets > np.maximum(highest, first - 1)
                group, offsets = [m for m, kept in zip(group, new, strict=True) if kept], offsets[new]
            if group:
                mine.append((p, group, offsets))
        return mine

    def _judge(self, p: int, valid: pl.DataFrame, offsets: Any, log_time: Any, end: Position) -> Judged:
        partition = self._owned[p]
        level = self._level if self._settings.shed == "on" else shedding.Level.NORMAL
        judged = batch.judge(
            valid, offsets, log_time, partition.position, end, partition.memory, self._registry,
            horizon_ms=self._horizon_ms, level=level, policy=self._policy, secret=self._secret,
        )  # fmt: skip
        self._record(partition.memory, judged.copies, end.offset, end.log_time_ms // self._horizon_ms)
        return judged

    def _record(self, memory: PartitionMemory, judged: dedup.Decision, up_to: int, generation: int) -> None:
        if not judged.news and up_to == memory.recorded_up_to:
            return
        if not self._registry.record(
            memory.partition,
            judged.news,
            expected=memory.recorded_up_to,
            up_to=up_to,
            oldest_generation=generation - 3,
        ):
            raise MemoryLost(f"Redis lost the ids of partition {memory.partition}")
        memory.recorded_up_to = max(memory.recorded_up_to, up_to)

    def _lay_out(self, messages: list[Any], judged: dict[int, Judged], rejected: dict[int, Rejection]) -> Outcome:
        after = {p: j.after for p, j in judged.items()}
        rows = pl.concat([j.rows for j in judged.values()])
        accepted = rows.filter(pl.col("decision") == Decision.COUNTED)
        records = list(self._blocks(partials.fold_events(accepted), after))
        for p, j in judged.items():
            source = self._range(p, j.after)
            for value in blocks.encode(j.rows.drop("row"), (source,), now_ms()):
                records.append(Record(self._settings.topic(topics.ARCHIVE), value, partition=p))
        records += self._dead_letters(messages, judged, rejected)
        return Outcome(records, after, judged)

    def _range(self, p: int, after: Position | None) -> SourceRange:
        before = self._owned[p].position
        now = after or before
        return SourceRange(p, before.offset, now.offset, now.watermark, self._silent(p) if after is None else False)

    def _blocks(self, folded: pl.DataFrame, after: dict[int, Position]) -> Iterator[Record]:
        """One block to every block partition, empty where there is nothing: each accounts for all ranges."""
        shards = self._settings.block_partitions
        ranges = tuple(self._range(p, after.get(p)) for p in sorted(self._owned))
        of = salting.shard(folded, shards)
        topic, sent_at = self._settings.topic(topics.BLOCKS), now_ms()
        for shard in range(shards):
            for value in blocks.encode(folded.filter(of == shard), ranges, sent_at):
                yield Record(topic, value, partition=shard)

    def _dead_letters(
        self, messages: list[Any], judged: dict[int, Judged], rejected: dict[int, Rejection]
    ) -> Iterator[Record]:
        letters = dict(rejected)
        for j in judged.values():
            late = (j.rows["decision"] == Decision.TOO_LATE).to_numpy()
            for row, by in zip(j.rows["row"].to_numpy()[late].tolist(), j.late_by_ms[late].tolist(), strict=True):
                letters[row] = Rejection(Reason.TOO_LATE, f"{by} ms after the end of its minute")
        topic = self._settings.topic(topics.DEAD_LETTERS)
        for row in sorted(letters):
            message, verdict = messages[row], letters[row]
            source = f"{message.topic()}/{message.partition()}/{message.offset()}"
            headers = (
                ("reason", verdict.reason.value.encode()),
                ("detail", verdict.detail.encode("utf-8", "replace")),
                ("source", source.encode()),
                ("stage", STAGE.encode()),
            )
            yield Record(
                topic,
                message.value(),
                message.key(),
                message.partition() % self._settings.event_partitions,
                headers,
            )

    def _step(self, outcome: Outcome) -> None:
        """Commit the transaction; only then does anything in memory move."""
        # A heartbeat commits its positions again: only so is one of a member that lost its place refused.
        moved = outcome.after or {p: s.position for p, s in self._owned.items()}
        positions = [Committed(p, a.offset, a.metadata()) for p, a in moved.items()]
        announced = {p: (r.watermark_ms, r.silent) for p in self._owned for r in [self._range(p, outcome.after.get(p))]}
        self._producer.write(outcome.records, consumed=positions, source=self._consumer)
        self._announced, self._sent_at = announced, time.monotonic()
        for p, after in outcome.after.items():
            partition = self._owned.get(p)
            if partition is None:
                continue
            partition.position, partition.active_at = after, time.monotonic()
            dedup.remember(partition.memory, outcome.judged[p].copies)
            partition.memory.turn(after.log_time_ms // self._horizon_ms)

    def _roll_back(self) -> None:
        """Read again from the committed positions; nothing else in memory has moved."""
        for p, partition in self._owned.items():
            self._consumer.seek(p, partition.position.offset)

    # -- idleness and what others are told --------------------------------------------------------------------

    def _silent(self, p: int) -> bool:
        """At its end, and either without any valid event so far or without a message for a while."""
        partition = self._owned[p]
        _, high = self._consumer.ends(p)
        if high < 0 or partition.position.offset < high:
            return False
        idle_ms = (time.monotonic() - partition.active_at) * 1000
        return partition.position.watermark is None or idle_ms >= self._settings.silent_after_ms

    def _heartbeat_due(self) -> bool:
        """Whether readers do not know yet what they could know."""
        if not self._owned or (time.monotonic() - self._sent_at) * 1000 < self._settings.heartbeat_ms:
            return False
        return self._announced != {p: (s.position.watermark, self._silent(p)) for p, s in self._owned.items()}

    def _tell(self) -> None:
        """Publish lag and level for `status`; best effort, it expires by itself."""
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S:
            return
        self._told_at = now
        lag = 0
        for p, partition in self._owned.items():
            _, high = self._consumer.ends(p)
            lag += max(0, high - partition.position.offset)
        self._level = shedding.next_level(self._level, lag, self._policy)
        told = {
            "worker": self._name,
            "level": self._level.name.lower(),
            "lag": lag,
            "partitions": {
                str(p): {"offset": s.position.offset, "watermark_ms": s.position.watermark}
                for p, s in self._owned.items()
            },
        }
        try:
            self._redis.call("SET", f"{self._settings.key_prefix}ingest:{self._name}", json.dumps(told), "EX", 15)
        except Unavailable:
            pass


def worker_name(kind: str) -> str:
    """The supervisor's name for this process, or one that is unique on the network."""
    return os.environ.get("ADCLICK_WORKER") or f"{kind}-{socket.gethostname()}-{os.getpid()}"


def run_until_signal(worker: Any) -> None:
    """Run a worker in this thread; SIGTERM and Ctrl-C stop it in order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    gc.collect()
    gc.freeze()
    # A batch makes 50,000 messages, none of them part of a cycle: do not walk them over and over.
    gc.set_threshold(500_000, 20, 100)
    worker.run()


@console.command("ingest", "ADCLICK_KAFKA=broker:9092 ADCLICK_REDIS=redis://cache:6379/0 adclick ingest")
def ingest(app: App) -> None:
    """Run one ingest worker: decode, judge and dedup ad-events, and write blocks, archive and dead letters."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    run_until_signal(IngestWorker(app.settings, worker_name("ingest")))
