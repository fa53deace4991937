"""The ingest worker: ad-events → blocks, archive blocks and dead letters, in one transaction a batch.

Reads top down: `IngestWorker.run` is a session that starts over whenever ownership or a backend was lost;
`_process` is the path of a batch.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from infra import console, faults, logs, migration, topics
from infra.clock import now_ms
from infra.columns import Ints
from infra.console import App
from infra.errors import (
    Aborted,
    AdclickError,
    BadStatement,
    Denied,
    LogTruncated,
    OffsetOutOfRange,
    Refused,
    SessionLost,
    Unavailable,
    UserError,
)
from infra.fetch import ColumnConsumer, Starts
from infra.kafka import TransactionalProducer
from infra.patience import WAITS, Sessions, patiently, pause_s
from infra.pipeline_state import reporting
from infra.priority import PIPELINE, give_way
from infra.record_batches import Records
from infra.records import Committed, Record
from infra.redis import NEVER_EVICT, Memory, Redis
from infra.settings import Settings
from ingest import batch, blocks, log_time, partials, salting, shedding, source
from ingest.archived import Decision
from ingest.batch import Judged
from ingest.blocks import SourceRange
from ingest.decode import Events, decode
from ingest.dedup import decision as dedup
from ingest.dedup.registry import MemoryLost
from ingest.dedup.takeover import Memories
from ingest.events import Reason, Rejection
from ingest.owned import Partition
from ingest.partials import Partials
from ingest.position import Position
from ingest.siphash import KEY_BYTES
from ingest.taken import Taken
from ingest.takeover import find_continuations, wait_for_topic

STAGE = "ingest"
_TELL_EVERY_S = 1.0
_CHECK_EVERY_S = 2.0
# Between attempts at a transaction that was rolled back.
_FIRST_ABORT_S, _LONGEST_ABORT_S = 0.05, 2.0
# How long a worker that stopped with an error is remembered; one that is started again and again says it again.
_REMEMBERED_S = 60
_LOSSES = (SessionLost, Unavailable, OffsetOutOfRange)


@dataclass(frozen=True)
class Outcome:
    """What one transaction writes. `sent_ms` is in the header of its blocks."""

    sent_ms: int
    records: list[Record]
    after: dict[int, Position]
    judged: dict[int, Judged]
    misdated: dict[int, int]


class IngestWorker:
    """One worker. `run` blocks until `stop` is called from a signal handler or another thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._log = logs.get("ingest").bind(worker=name)
        self._redis = Redis(settings.redis)
        self._memories = Memories(settings, self._redis, name)
        self._horizon_ms = settings.dedup_horizon_s * 1000
        secret = settings.user_secret.get_secret_value().encode()
        self._user_key = hashlib.blake2b(secret, digest_size=KEY_BYTES).digest()
        self._policy = shedding.Policy()
        self._level = shedding.Level.NORMAL
        self._owned: dict[int, Partition] = {}
        self._doubted = 0
        self._announced: dict[int, tuple[int | None, bool]] = {}
        self._stopping = threading.Event()
        self._sessions = Sessions(self._stopping, self._log, _LOSSES)
        self._aborts = 0
        self._evicted: Memory | None = None
        self._told_at = self._sent_at = self._checked_at = 0.0
        self._sent_ms = 0
        self._diverged: dict[int, int] = {}
        """Partition → where its log parts from what was read, as the broker said."""
        self._topic_id = ""
        self._taken_over = False
        """Whether no transaction has committed since the partitions were assigned."""
        self._consumer: ColumnConsumer
        self._producer: TransactionalProducer

    def stop(self) -> None:
        """Finish the batch in hand and return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until stopped; start a new session, with a growing pause, after each loss. Raises UserError where ids could be
        lost without a sign, InputLost where events are."""
        try:
            with contextlib.suppress(Unavailable):
                if eviction := self._patiently(self._redis.eviction):
                    raise UserError(eviction, hint=NEVER_EVICT)
                self._sessions.run(self._session)
        except AdclickError as error:
            self._publish({"worker": self._name, "stopped": str(error)}, _REMEMBERED_S)
            raise

    def _session(self) -> None:
        settings = self._settings
        self._owned.clear()
        self._patiently(self._check_eviction)
        self._evicted = None
        self._topic_id = wait_for_topic(settings, self._stopping).topic_id
        self._producer = TransactionalProducer(settings.kafka, f"{settings.key_prefix}{self._name}", STAGE)
        self._producer.open()
        self._consumer = ColumnConsumer(
            settings.kafka,
            settings.topic(topics.INGEST_GROUP),
            settings.topic(topics.EVENTS),
            self._assigned,
            self._revoked,
            settings.session_timeout_ms,
        )
        try:
            while not self._stopping.is_set():
                taken = self._consumer.take(settings.ingest_batch, settings.ingest_linger_ms / 1000)
                try:
                    if taken:
                        # Until Redis is back nothing more is consumed. Ids recorded twice are recorded once.
                        outcome = self._patiently(partial(self._process, taken))
                        self._step(outcome)
                    elif self._heartbeat_due():
                        self._step(self._heartbeat())
                except Aborted as error:
                    self._aborted(error)
                self._tell()
                if time.monotonic() - self._checked_at > _CHECK_EVERY_S:
                    self._checked_at = time.monotonic()
                    self._look_for_eviction()
        except (MemoryLost, Unavailable):
            # Redis may turn out to have lost its memory while this worker was out of the group: the filters still know.
            self._memories.keep({p: (s.position.offset, s.memory) for p, s in self._owned.items()})
            raise
        except LogTruncated as error:
            self._diverged[error.partition] = error.end
            raise
        finally:
            self._owned.clear()
            self._abort_over()
            self._consumer.close()

    def _abort_over(self) -> None:
        """What rolled transactions back no longer does."""
        if self._aborts:
            self._aborts = 0
            WAITS.end(self)

    def _aborted(self, error: Aborted) -> None:
        """Read again from the committed positions, after a pause: what aborts a transaction may last."""
        self._aborts += 1
        WAITS.begin(self, error)
        if self._aborts == 1:
            self._log.warning("transaction aborted, rolled back", why=str(error))
        self._roll_back()
        self._stopping.wait(pause_s(self._aborts, _FIRST_ABORT_S, _LONGEST_ABORT_S))

    def _check_eviction(self) -> None:
        """Raises Refused while Redis may evict ids, and MemoryLost once it has: what is left of them is then looked through."""
        if eviction := self._redis.eviction():
            raise Refused(eviction, hint=NEVER_EVICT, backend="redis", code="EVICTS")
        with contextlib.suppress(BadStatement, Denied):
            memory, before = self._redis.memory(), self._evicted
            self._evicted = memory
            if before is not None and memory.run_id == before.run_id and memory.evicted_keys > before.evicted_keys:
                raise MemoryLost(f"Redis evicted {memory.evicted_keys - before.evicted_keys} keys")

    def _look_for_eviction(self) -> None:
        """The same in passing: a Redis that is away or refuses is waited out by the next batch, without leaving the group."""
        try:
            self._check_eviction()
        except Unavailable as error:
            if isinstance(error, Refused) and error.code == "EVICTS":
                raise

    # -- ownership ------------------------------------------------------------------------------------------

    def _assigned(self, partitions: list[int]) -> Starts:
        """Take partitions over at their committed positions, with their memory checked or rebuilt.

        Partitions beyond the setting are left alone: `status` names them. Raises InputLost.
        """
        faults.point("ingest.assigned")
        self._owned.clear()
        self._announced.clear()
        known = [p for p in partitions if p < self._settings.event_partitions]
        ignored = sorted(set(partitions) - set(known))
        if ignored:
            self._log.warning("partitions beyond event_partitions are not read", partitions=ignored)
        continuations = self._patiently(partial(self._find_continuations, known)) if known else {}
        for loss in source.refuse_losses(
            self._settings.topic(topics.EVENTS), continuations, self._settings.accept_loss
        ):
            self._log.error("going on without what is lost, as accept_loss says", name=loss.name, why=loss.explanation)
        for p, continuation in continuations.items():
            position = continuation.position
            self._owned[p] = Partition(
                position,
                self._patiently(partial(self._memories.of, p, position)),
                time.monotonic(),
                continuation.log_offset,
            )
        self._taken_over = True
        self._diverged.clear()
        self._memories.taken()
        self._log.info("partitions assigned", positions={p: s.position.offset for p, s in self._owned.items()})
        return Starts(
            {p: c.log_offset for p, c in continuations.items()},
            self._topic_id,
            {p: c.position.leader_epoch for p, c in continuations.items()},
        )

    def _find_continuations(self, partitions: list[int]) -> dict[int, source.Continuation]:
        return find_continuations(
            self._settings, self._memories, self._consumer.member, partitions, self._topic_id, self._diverged
        )

    def _revoked(self, partitions: list[int]) -> None:
        faults.point("ingest.revoked")
        for partition in partitions:
            self._owned.pop(partition, None)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Retry while a backend is away: inside a rebalance, and with a batch in hand, there is nothing else to do."""
        return patiently(call, self._stopping, self._log)

    # -- the path of a batch --------------------------------------------------------------------------------

    def _process(self, taken: dict[int, list[Records]]) -> Outcome:
        """Judge the messages and lay out the transaction. Records ids in Redis on the way. Raises Unavailable."""
        owned = {p: parts for p, parts in taken.items() if p in self._owned}
        read = Taken(owned, {p: self._owned[p].position.base for p in owned})
        clock_ms = now_ms()
        times = {p: self._log_times(p, read, clock_ms) for p in read.parts}
        ends = {p: self._end(p, read, times[p]) for p in read.parts}
        references = log_time.reference_times(read.timestamps_ms, clock_ms)
        latest = log_time.latest_event_times(references, read.by_broker, clock_ms)
        decoded = decode(read.values, references, self._user_key, latest_ms=latest)
        at = decoded.events["row"]
        judged: dict[int, Judged] = {}
        for p, rows in read.rows.items():
            first, last = np.searchsorted(at, (rows.start, rows.stop))
            valid = decoded.events.take(slice(int(first), int(last)))
            here = valid["row"]
            judged[p] = self._judge(p, valid, read.offsets[here], times[p][here - rows.start], ends[p])
        misdated = ~log_time.credible(read.timestamps_ms, clock_ms)
        counts = {p: int(misdated[rows].sum()) for p, rows in read.rows.items()}
        return self._lay_out(read, judged, decoded.rejected, counts)

    def _log_times(self, p: int, read: Taken, clock_ms: int) -> Ints:
        position, reached = self._owned[p].position, read.parts[p][-1].next_offset
        live = reached - position.base >= self._consumer.end(p)
        return log_time.log_times(read.timestamps_ms[read.rows[p]], position.log_time_ms, clock_ms, live=live)

    def _end(self, p: int, read: Taken, times: Ints) -> Position:
        """The position behind what was read, but for its watermark."""
        before, last = self._owned[p].position, read.parts[p][-1]
        return msgspec.structs.replace(
            before,
            offset=last.next_offset,
            log_time_ms=int(times[-1]) if len(times) else before.log_time_ms,
            turns=log_time.turns_after(before.turns, read.offsets[read.rows[p]], times // self._horizon_ms),
            leader_epoch=last.leader_epoch,
        )

    def _judge(self, p: int, valid: Events, offsets: Ints, log_time: Ints, end: Position) -> Judged:
        partition = self._owned[p]
        level = self._level if self._settings.shed == "on" else shedding.Level.NORMAL
        judged = batch.judge(
            valid, offsets, log_time, partition.position, end, partition.memory, self._memories.registry,
            horizon_ms=self._horizon_ms, level=level, policy=self._policy,
        )  # fmt: skip
        # Whoever reads this batch again begins in the generation that is committed now.
        oldest = dedup.oldest_needed(partition.position.log_time_ms // self._horizon_ms)
        self._memories.registry.record(partition.memory, judged.copies.news, up_to=end.offset, oldest_generation=oldest)
        faults.point("ingest.recorded")
        return judged

    def _lay_out(
        self, read: Taken, judged: dict[int, Judged], rejected: dict[int, Rejection], misdated: dict[int, int]
    ) -> Outcome:
        after = {p: j.after for p, j in judged.items()}
        if not after:
            return self._heartbeat()
        sent_ms = now_ms()
        records = list(self._blocks(partials.fold_events(list(judged.values())), after, sent_ms))
        for p, j in judged.items():
            source = self._range(p, j.after)
            for value in blocks.encode(batch.wire(j), (source,), sent_ms):
                records.append(Record(self._settings.topic(topics.ARCHIVE), value, partition=p))
        records += self._dead_letters(read, judged, rejected)
        return Outcome(sent_ms, records, after, judged, misdated)

    def _range(self, p: int, after: Position | None) -> SourceRange:
        before = self._owned[p].position
        now = after or before
        return SourceRange(p, before.offset, now.offset, now.watermark, self._silent(p) if after is None else False)

    def _heartbeat(self) -> Outcome:
        sent_ms = now_ms()
        return Outcome(sent_ms, list(self._blocks(partials.empty(), {}, sent_ms)), {}, {}, {})

    def _blocks(self, folded: Partials, after: dict[int, Position], sent_ms: int) -> Iterator[Record]:
        """One block to every block partition, empty where there is nothing: each accounts for all ranges."""
        shards = self._settings.block_partitions
        ranges = tuple(self._range(p, after.get(p)) for p in sorted(self._owned))
        of = salting.shard(folded, shards)
        rows = folded.take(np.argsort(of, kind="stable")).arrow()
        edges = np.cumsum(np.bincount(of, minlength=shards)).tolist()
        topic = self._settings.topic(topics.BLOCKS)
        for shard, (start, stop) in enumerate(pairwise([0, *edges])):
            for value in blocks.encode(blocks.split(rows.slice(start, stop - start)), ranges, sent_ms):
                yield Record(topic, value, partition=shard)

    def _dead_letters(self, read: Taken, judged: dict[int, Judged], rejected: dict[int, Rejection]) -> Iterator[Record]:
        letters = dict(rejected)
        for j in judged.values():
            late = j.decisions == Decision.TOO_LATE
            for row, by in zip(j.events["row"][late].tolist(), j.late_by_ms[late].tolist(), strict=True):
                letters[row] = Rejection(Reason.TOO_LATE, f"{by} ms after the end of its minute")
        topic = self._settings.topic(topics.DEAD_LETTERS)
        for row in sorted(letters):
            verdict, (p, offset, key) = letters[row], read.source(row)
            source = f"{self._settings.topic(topics.EVENTS)}/{p}/{offset}"
            headers = (
                ("reason", verdict.reason.value.encode()),
                ("detail", verdict.detail.encode("utf-8", "replace")),
                ("source", source.encode()),
                ("stage", STAGE.encode()),
            )
            yield Record(topic, read.values[row], key, p % self._settings.event_partitions, headers)

    def _step(self, outcome: Outcome) -> None:
        """Commit the transaction; only then does anything in memory move."""
        # A heartbeat commits its positions again: only so is one of a member that lost its place refused.
        # The first transaction after an assignment commits all of them, too: what was found out about them then is kept.
        moved = dict(outcome.after)
        if not moved or self._taken_over:
            moved = {p: s.position for p, s in self._owned.items()} | moved
        copies = self._settings.topic(topics.ARCHIVE)
        positions = [
            Committed(p, after.log_offset, after.metadata(), topic)
            for p, after in moved.items()
            for topic in ("", copies)
        ]
        announced = {p: (r.watermark_ms, r.silent) for p in self._owned for r in [self._range(p, outcome.after.get(p))]}
        self._producer.write(outcome.records, consumed=positions, source=self._consumer.member)
        self._announced, self._sent_at, self._sent_ms = announced, time.monotonic(), outcome.sent_ms
        self._taken_over = False
        self._abort_over()
        self._sessions.works()
        for p, after in outcome.after.items():
            partition = self._owned.get(p)
            if partition is None:
                continue
            partition.position, partition.active_at = after, time.monotonic()
            self._doubted += int(outcome.judged[p].copies.doubt.sum())
            self._note_misdated(p, partition, outcome.misdated[p])

    def _note_misdated(self, p: int, partition: Partition, count: int) -> None:
        if count and not partition.misdated:
            self._log.warning("timestamps of messages cannot be true: log time passes over them", partition=p)
        partition.misdated += count

    def _roll_back(self) -> None:
        """Read again from the committed positions; nothing else in memory has moved."""
        for p, partition in self._owned.items():
            self._consumer.seek(p, partition.log_offset, partition.position.leader_epoch)

    # -- idleness and what others are told --------------------------------------------------------------------

    def _silent(self, p: int) -> bool:
        """At its end, and either without any valid event so far or without a message for a while.

        What lies behind an open transaction is not the end: it may be of any minute that is still open.
        """
        partition = self._owned[p]
        high = self._consumer.end(p)
        if high < 0 or partition.log_offset < high:
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
        lag, readable = 0, 0
        for p, partition in self._owned.items():
            at, stable_end = partition.log_offset, self._consumer.stable_end(p)
            lag += max(0, self._consumer.end(p) - at)
            readable += max(0, stable_end - at)
            partition.watch_transaction(stable_end, self._consumer.end(p), now)
        # What an open transaction holds back is not made less by dropping events.
        self._level = shedding.next_level(self._level, readable, self._policy)
        self._publish(
            {
                "worker": self._name,
                "level": self._level.name.lower(),
                "lag": lag,
                "doubt": self._doubted,
                "sent_ms": self._sent_ms,
                "partitions": {str(p): s.report(self._consumer.end(p), now) for p, s in self._owned.items()},
            },
            15,
        )

    def _publish(self, state: dict[str, Any], seconds: int) -> None:
        """For `status`; best effort, it expires by itself."""
        try:
            self._redis.call("SET", f"{self._settings.key_prefix}ingest:{self._name}", json.dumps(state), "EX", seconds)
        except AdclickError:
            pass


def worker_name(kind: str) -> str:
    """The supervisor's name for this process, or one that no other process has.

    A worker's transactional id carries it. In containers that share a host's name every worker may be process 1.
    """
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return os.environ.get("ADCLICK_WORKER") or f"{kind}-{unique}"


def run_until_signal(worker: Any, settings: Settings, name: str) -> None:
    """Run a worker in this thread; SIGTERM and Ctrl-C stop it in order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    gc.collect()
    gc.freeze()
    # A batch makes thousands of objects, none of them part of a cycle: do not walk them over and over.
    gc.set_threshold(500_000, 20, 100)
    with reporting(settings, name):
        worker.run()


@console.command("ingest", "ADCLICK_KAFKA=broker:9092 ADCLICK_REDIS=redis://cache:6379/0 adclick ingest")
def ingest(app: App) -> None:
    """Run one ingest worker: decode, judge and dedup ad-events, and write blocks, archive and dead letters."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    give_way(PIPELINE)
    migration.wait_for_topics(app.settings, logs.get("ingest"))
    name = worker_name("ingest")
    run_until_signal(IngestWorker(app.settings, name), app.settings, name)
