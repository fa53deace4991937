"""The ingest worker: ad-events → blocks, archive blocks and dead letters, in one transaction a batch.

`IngestWorker.run` repeats a session, the life of one set of clients, whenever ownership or a backend was lost. A session repeats a
turn: take messages, judge them (`ingest.processor`), lay out a transaction (`ingest.transaction_layout`), commit it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from infra import faults, logs
from infra.cli import declare
from infra.cli.app import App
from infra.clock import now_ms
from infra.errors import (
    Aborted,
    AdclickError,
    ClientBroken,
    LogTruncated,
    OffsetOutOfRange,
    SessionLost,
    Unavailable,
    UserError,
)
from infra.kafka import topics
from infra.kafka.admin import Admin, RenewedAdmin
from infra.kafka.column_consumer import ColumnConsumer, Starts
from infra.kafka.records import Committed
from infra.kafka.stalls import StallWatch, has_message
from infra.kafka.transactions import TransactionalProducer
from infra.priority import PIPELINE
from infra.redis.client import Redis
from infra.redis.eviction import NEVER_EVICT, eviction_risk
from infra.retries import WAITS, Sessions, patiently, pause_s
from infra.settings import Settings
from infra.worker_process import Every, run_until_signal, start_worker
from ingest import poison, published_status, shedding
from ingest.blocks import SourceRange
from ingest.canary.marker import may_be_canary
from ingest.continuation import Continuation, refuse_losses
from ingest.counts import Counts
from ingest.dedup.registry import RegistryLost
from ingest.dedup_rebuild import DedupRebuilder
from ingest.eviction_check import EvictionCheck
from ingest.poison import Poison
from ingest.position import Position
from ingest.processor import BatchProcessor, ProcessedBatch
from ingest.source_batch import SourceBatch
from ingest.source_partition import SourcePartition
from ingest.takeover import find_continuations, wait_for_topic
from ingest.transaction_layout import STAGE, Transaction, TransactionLayout

# Between attempts at a transaction that was rolled back.
_FIRST_ABORT_S, _LONGEST_ABORT_S = 0.05, 2.0
_REPORT_EVERY_S = 1.0
_LOOK_FOR_STALL_EVERY_S = 15.0
_LOSSES = (SessionLost, Unavailable, OffsetOutOfRange)


class IngestWorker:
    """One worker. `run` blocks until `stop` is called from a signal handler or another thread."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._log = logs.get("ingest").bind(worker=name)
        self._redis = Redis(settings.redis_access)
        self._rebuilder = DedupRebuilder(settings, self._redis, name)
        self._processor = BatchProcessor(settings, self._rebuilder.registry)
        self._layout = TransactionLayout(settings)
        self._eviction = EvictionCheck(self._redis)
        self._stopping = threading.Event()
        self._sessions = Sessions(self._stopping, self._log, _LOSSES)
        self._owned: dict[int, SourcePartition] = {}
        self._announced: dict[int, tuple[int | None, bool]] = {}
        """Partition → watermark and silence, as the last transaction had them."""
        self._diverged: dict[int, int] = {}
        """Partition → where its log parts from what was read, as the broker said."""
        self._topic_id = ""
        self._is_first_transaction = False
        """Whether no transaction has committed since the partitions were assigned."""
        self._aborts = self._sent_ms = 0
        self._counts, self._started_ms = Counts(), now_ms()
        self._sent_at_s = self._reported_at_s = 0.0
        self._stall_watch = RenewedAdmin(settings.kafka_connection, self._log)
        self._stall_look = Every(_LOOK_FOR_STALL_EVERY_S)
        self._poison_look = Every(_REPORT_EVERY_S)
        self._stalls: StallWatch
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
                if reason := self._patiently(lambda: eviction_risk(self._redis)):
                    raise UserError(reason, hint=NEVER_EVICT)
                self._sessions.run(self._run_session)
        except AdclickError as error:
            published_status.publish_stop(self._redis, self._settings.key_prefix, self._name, error)
            raise
        finally:
            self._stall_watch.end_wait()

    def _run_session(self) -> None:
        """Open clients, join the group, and repeat turns until stopped. Raises what ends a session (`_LOSSES`)."""
        self._owned.clear()
        self._patiently(self._eviction.check)
        self._topic_id = wait_for_topic(self._settings, self._stopping).topic_id
        self._open_clients()
        try:
            while not self._stopping.is_set():
                self._run_turn()
                self._maybe_report()
                self._eviction.maybe_check()
        except (RegistryLost, Unavailable):
            # Redis may turn out to have lost ids while this worker was out of the group: the filters still know them.
            self._rebuilder.keep_former({p: (owned.position.offset, owned.mirror) for p, owned in self._owned.items()})
            raise
        except LogTruncated as error:
            self._diverged[error.partition] = error.end
            raise
        finally:
            self._owned.clear()
            self._end_aborts()
            self._consumer.close()

    def _open_clients(self) -> None:
        settings, events = self._settings, self._settings.topic(topics.EVENTS)
        self._stalls = StallWatch(partial(has_message, settings.kafka_connection, events))
        self._producer = TransactionalProducer(settings.kafka_connection, f"{settings.key_prefix}{self._name}", STAGE)
        self._producer.open()
        self._consumer = ColumnConsumer(
            settings.kafka_connection,
            settings.topic(topics.INGEST_GROUP),
            events,
            self._assigned,
            self._revoked,
            settings.session_timeout_ms,
        )

    def _run_turn(self) -> None:
        """Commit what one batch brings about; without messages a heartbeat when it is due, or a probe after a loss."""
        messages = self._consumer.take(self._settings.ingest_batch, self._settings.ingest_linger_ms / 1000)
        try:
            if messages:
                # As they are now: fetching goes on meanwhile, and would move them beyond the batch.
                log_ends, is_behind = {p: self._consumer.end(p) for p in messages}, self._consumer.leaves_messages
                self._commit(self._transaction(messages, log_ends, is_behind))
            elif self._is_heartbeat_due():
                self._commit(self._layout.of_heartbeat(self._ranges({})))
            elif self._consumer.member.is_assigned:
                self._sessions.maybe_probe(self._probe)
            if not messages and self._stall_look.is_due():
                self._refuse_stall()
            self._watch_unreadable()
            if self._poison_look.is_due():
                self._maybe_set_aside()
        except Aborted as error:
            self._roll_back(error)

    def _probe(self) -> None:
        """Ask Redis, and commit what is committed already, or ask the group. Raises Unavailable, SessionLost and Aborted."""
        self._eviction.check()
        if self._owned:
            self._commit(self._layout.of_heartbeat(self._ranges({})))
        else:
            self._consumer.member.committed([0])

    def _refuse_stall(self) -> None:
        """Raise ClientBroken where messages have waited for long, and none comes: only a new client goes on."""
        topic = self._settings.topic(topics.EVENTS)

        def find_stalled(admin: Admin) -> list[int]:
            ends = admin.ends(topic, self._settings.event_partitions)
            positions = {p: owned.log_offset for p, owned in self._owned.items() if owned.poison is None}
            return self._stalls.stalled(positions, dict(enumerate(ends)))

        try:
            stalled = self._stall_watch.call(find_stalled)
        except AdclickError:
            self._stalls.begin_anew()
            return
        if stalled:
            raise ClientBroken(f"{topic}: partitions {stalled} have messages, and the client brings none")

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Retry while a backend is away: inside a rebalance, and with a batch in hand, there is nothing else to do."""
        return patiently(call, self._stopping, self._log)

    # -- ownership ------------------------------------------------------------------------------------------

    def _assigned(self, partitions: list[int]) -> Starts:
        """Take partitions over at their committed positions, with their dedup ids checked or rebuilt.

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
        for loss in refuse_losses(self._settings.topic(topics.EVENTS), continuations, self._settings.accept_loss):
            self._log.error("going on without what is lost, as accept_loss says", name=loss.name, why=loss.explanation)
        for p, continuation in continuations.items():
            position = continuation.position
            mirror = self._patiently(partial(self._rebuilder.load_or_rebuild, p, position))
            self._owned[p] = SourcePartition(p, position, mirror, time.monotonic(), continuation.log_offset)
        self._is_first_transaction = True
        self._diverged.clear()
        self._rebuilder.drop_former()
        self._log.info("partitions assigned", positions={p: owned.position.offset for p, owned in self._owned.items()})
        return Starts(
            {p: c.log_offset for p, c in continuations.items()},
            self._topic_id,
            {p: c.position.leader_epoch for p, c in continuations.items()},
        )

    def _find_continuations(self, partitions: list[int]) -> dict[int, Continuation]:
        return find_continuations(
            self._settings, self._rebuilder, self._consumer.member, partitions, self._topic_id, self._diverged
        )

    def _revoked(self, partitions: list[int]) -> None:
        faults.point("ingest.revoked")
        for partition in partitions:
            self._owned.pop(partition, None)

    # -- a batch and its transaction --------------------------------------------------------------------------

    def _transaction(self, messages: poison.Messages, log_ends: Mapping[int, int], is_behind: bool) -> Transaction:
        """What the messages bring about, up to those that it fails on: their partitions are held there."""

        def process(some: poison.Messages) -> Transaction:
            return self._lay_out(self._process(some, log_ends), is_behind)

        try:
            # Until Redis is back nothing more is consumed. Ids recorded twice are recorded once.
            transaction: Transaction = self._patiently(partial(process, messages))
        except (AdclickError, MemoryError):
            raise
        except Exception:
            owned = {p: parts for p, parts in messages.items() if p in self._owned}
            before, poisons = self._patiently(partial(poison.split_at_poison, owned, process))
            if not poisons:
                raise
            for each in poisons:
                self._hold(each)
            transaction = self._patiently(partial(process, before))
        return transaction

    def _process(self, messages: poison.Messages, log_ends: Mapping[int, int]) -> ProcessedBatch:
        """Judge the messages of owned partitions, and record their ids in Redis. Raises Unavailable."""
        owned = {p: parts for p, parts in messages.items() if p in self._owned}
        batch = SourceBatch(owned, {p: self._owned[p].position.base for p in owned})
        return self._processor.process(batch, self._owned, log_ends)

    def _lay_out(self, batch: ProcessedBatch, is_behind: bool) -> Transaction:
        if not batch.judged:
            return self._layout.of_heartbeat(self._ranges({}))
        ranges = self._ranges({p: judged.after for p, judged in batch.judged.items()})
        for p in filter(batch.has_only_canaries, batch.judged):
            after = batch.judged[p].after
            ranges[p] = self._owned[p].range_to(after, self._is_silent(self._owned[p], after))
        return self._layout.of_batch(batch, ranges, is_behind)

    def _ranges(self, after: dict[int, Position]) -> dict[int, SourceRange]:
        """What a transaction accounts for, of every owned partition: to its new position in `after`, else to where it stands."""
        return {
            p: owned.range_to(after[p]) if p in after else owned.idle_range(self._is_silent(owned))
            for p, owned in self._owned.items()
        }

    def _commit(self, transaction: Transaction) -> None:
        """Commit the transaction; only then does anything in memory move."""
        # A heartbeat commits its positions again: only so is one of a member that lost its place refused. The first transaction
        # after an assignment commits all of them, too: what was learned about them then is kept.
        moved = dict(transaction.positions)
        if not moved or self._is_first_transaction:
            moved = {p: owned.position for p, owned in self._owned.items()} | moved
        copies = self._settings.topic(topics.ARCHIVE)
        consumed = [
            Committed(p, after.log_offset, after.metadata(), topic)
            for p, after in moved.items()
            for topic in ("", copies)
        ]
        self._producer.write(transaction.records, consumed=consumed, source=self._consumer.member)
        self._announced = {p: (r.watermark_ms, r.silent) for p, r in transaction.ranges.items()}
        self._sent_at_s, self._sent_ms = time.monotonic(), transaction.sent_ms
        self._is_first_transaction = False
        self._end_aborts()
        self._sessions.works()
        if transaction.batch is not None:
            self._move_positions(transaction.batch)

    def _move_positions(self, batch: ProcessedBatch) -> None:
        rejected = sorted(batch.rejected)
        for p, judged in batch.judged.items():
            owned = self._owned.get(p)
            if owned is None:
                continue
            owned.position = judged.after
            if not batch.has_only_canaries(p):
                owned.active_at_s = time.monotonic()
            rows = batch.source.rows[p]
            low, high = bisect_left(rejected, rows.start), bisect_left(rejected, rows.stop)
            reasons = [batch.rejected[row].reason for row in rejected[low:high]]
            self._counts.add(judged, rows.stop - rows.start, reasons)
            if batch.misdated[p] and not owned.misdated:
                self._log.warning("timestamps of messages cannot be true: log time passes over them", partition=p)
            owned.misdated += batch.misdated[p]

    def _roll_back(self, error: Aborted) -> None:
        """Read again from the committed positions, after a pause: what aborts a transaction may last."""
        self._aborts += 1
        WAITS.begin(self, error)
        if self._aborts == 1:
            self._log.warning("transaction aborted, rolled back", why=str(error))
        for owned in self._owned.values():
            self._seek(owned)
        self._stopping.wait(pause_s(self._aborts, _FIRST_ABORT_S, _LONGEST_ABORT_S))

    def _end_aborts(self) -> None:
        """A transaction has committed, or the session is over: no abort is waited out any more."""
        if self._aborts:
            self._aborts = 0
            WAITS.end(self)

    # -- poison ---------------------------------------------------------------------------------------------------

    def _hold(self, cause: Poison) -> None:
        """Stop a partition before poison."""
        owned = self._owned[cause.partition]
        owned.poison = cause
        self._log.error(
            "a partition stops before what cannot be processed; the others go on",
            partition=cause.partition, offset=cause.first, why=cause.why, name=cause.name,
        )  # fmt: skip
        if not cause.is_batch:
            self._consumer.seek(cause.partition, cause.first, hold=True)

    def _seek(self, owned: SourcePartition) -> None:
        """Have the partition read on from its position, or held there if that is right before a message that this worker fails on."""
        hold = False
        if owned.poison is not None and not owned.poison.is_batch:
            hold = owned.log_offset >= owned.poison.first
            if not hold:
                # The messages before it were rolled back. It is found again behind them.
                owned.poison = None
        self._consumer.seek(owned.number, owned.log_offset, owned.position.leader_epoch, hold=hold)

    def _watch_unreadable(self) -> None:
        """Hold the partitions whose next record batch cannot be read, as long as that is so."""
        unreadable = self._consumer.unreadable()
        for p, owned in self._owned.items():
            if p in unreadable and owned.poison is None:
                self._hold(poison.poison_of_batch(p, owned.log_offset, unreadable[p]))
            elif p not in unreadable and owned.poison is not None and owned.poison.is_batch:
                owned.poison = None
                self._log.info("a partition can be read again", partition=p, offset=owned.log_offset)

    def _maybe_set_aside(self) -> None:
        """Set aside the poison that an operator has named: its bytes become a dead letter, and its partition goes on behind it."""
        for p, owned in list(self._owned.items()):
            cause = owned.poison
            if cause is None or owned.log_offset < cause.first:
                continue
            key = poison.approval_key(self._settings.key_prefix, cause.name)
            if self._patiently(partial(self._redis.call, "GET", key)) is None:
                continue
            batch = self._patiently(partial(self._process, {p: [cause.records()]}, {p: self._consumer.end(p)}))
            ranges = self._ranges({p: batch.judged[p].after})
            self._commit(self._layout.of_poison(batch, ranges, cause, owned.position.base))
            owned.poison = None
            self._seek(owned)
            self._log.warning("set aside as a dead letter", partition=p, name=cause.name, why=cause.why)

    # -- silence, heartbeats and status -------------------------------------------------------------------------

    def _is_silent(self, owned: SourcePartition, after: Position | None = None) -> bool:
        end = self._consumer.end(owned.number)
        # A canary that waits to be read would end the silence for a moment.
        is_at_end = 0 <= end <= owned.log_offset
        if not is_at_end and self._consumer.waits_only_for(owned.number, may_be_canary):
            end = owned.log_offset
        return owned.is_silent(end, time.monotonic(), self._settings.silent_after_ms, after)

    def _is_heartbeat_due(self) -> bool:
        """Whether readers of blocks lack a watermark or a silence that this worker knows."""
        if not self._owned or (time.monotonic() - self._sent_at_s) * 1000 < self._settings.heartbeat_ms:
            return False
        return self._announced != {
            p: (owned.position.watermark, self._is_silent(owned)) for p, owned in self._owned.items()
        }

    def _maybe_report(self) -> None:
        """Measure lag and overload level, and publish them for `status`, once a second."""
        now_s = time.monotonic()
        if now_s - self._reported_at_s < _REPORT_EVERY_S:
            return
        self._reported_at_s = now_s
        lag, readable = 0, 0
        for p, owned in self._owned.items():
            end, stable_end = self._consumer.end(p), self._consumer.stable_end(p)
            lag += max(0, end - owned.log_offset)
            if owned.poison is None:
                readable += max(0, stable_end - owned.log_offset)
            owned.watch_transaction(stable_end, end, now_s)
        # What an open transaction or poison holds back is not made less by dropping events.
        processor = self._processor
        processor.level = shedding.next_level(processor.level, readable, processor.policy)
        published_status.publish_report(
            self._redis, self._settings.key_prefix, self._name, level=processor.level, lag=lag, counts=self._counts,
            started_ms=self._started_ms, sent_ms=self._sent_ms, at_ms=now_ms(),
            partitions={p: owned.report(self._consumer.end(p), now_s) for p, owned in self._owned.items()},
        )  # fmt: skip


@declare.command("ingest", "ADCLICK_KAFKA=broker:9092 ADCLICK_REDIS=redis://cache:6379/0 adclick ingest")
def ingest(app: App) -> None:
    """Run one ingest worker: decode, judge and dedup ad-events, and write blocks, archive and dead letters."""
    name = start_worker(app, "ingest", PIPELINE)
    run_until_signal(IngestWorker(app.settings, name), app.settings, name)
