"""One input partition of a stage: its fenced state log, its flushes, its sink.

recover      register the transactional id (which fences a predecessor), then read the log to its end
begin_flush  event loop: take what there is to flush, when it is time
flush        thread: delta → one transaction with state chunk and next stage's chunk → sink
settle       event loop: how the flush has ended

After a fence by a broker that was away, a flush registers again, and looks in the log whether it is there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from infra import faults, logs
from infra.errors import Aborted, CorruptLog, SessionLost, Unavailable
from infra.kafka.admin import Admin
from infra.kafka.consumers import read_to_end
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.retries import WAITS, patiently
from infra.settings import Settings
from ingest.canary.arrivals import NO_CANARIES, Canaries
from ingest.partials import by_campaign
from stream import chunks
from stream.chunks import ChunkHeader
from stream.intake import Applied, Durable, Intake
from stream.published import Publication
from stream.state import Flush, StageState
from stream.topology import Stage

_REFRESH_S = 2.0
# Threads that compute at the same time take turns at the interpreter, and the event loop has to wait for all of them.
_FRESH_TURN, _PATIENT_TURN = threading.Lock(), threading.Lock()
# One that writes all rows anew takes seconds: others do not wait for it.
_COMPACTION_TURN = threading.Lock()


class Sink(Protocol):
    """Where a stage shows its windows. Every method but `prepare` may raise Unavailable and is then called again."""

    def attach(self, snapshot: Publication) -> None:
        """Bring the tier up to a snapshot: after a recovery, or when it has lost what it was given."""

    def prepare(self, published: Publication) -> None:
        """Work out what `write` will send for a flush, for which it need not wait then. Reaches no backend, and so raises no Unavailable.
        May raise OverflowError, where sums are beyond 64 bits: what it has done by then stays, so the worker must end."""

    def write(self, published: Publication) -> bool:
        """Show a flush; False where the tier has lost some of what it was given before: it needs a snapshot."""

    def refresh(self, sent_ms: int, canaries: Canaries = NO_CANARIES) -> bool:
        """When nothing was written for a while: whether the tier still has what it was given. `sent_ms`: when the newest block
        was sent of which all is shown, or 0; `canaries`: the last ones of which the same is true."""

    @property
    def packs(self) -> bool:
        """Whether there is something to put in better shape, of what is shown."""

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Do some of that, beside all else, in a thread of its own."""


class StagePartition:
    """Intake, state, producer and sink of one (stage, partition). Dead once ownership is lost: it then writes nothing.

    The intake is the event loop's; the state is used by `recover`, `flush` and `refresh`, of which one runs at a time.
    """

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        partition: int,
        make_sink: Callable[[Stage, int], Sink],
        member_since: Callable[[float], bool],
        siblings: int = 1,
    ) -> None:
        """`member_since` tells whether the group has confirmed this worker after a moment of `time.monotonic`; `siblings`: how many
        partitions of the stage the worker owns, this one among them."""
        self._member_since, self._siblings = member_since, siblings
        self.stage, self.partition = stage, partition
        self._settings = settings
        self._sink = make_sink(stage, partition)
        self._log = logs.get("stream").bind(stage=stage.name, partition=partition)
        self._state = self._new_state()
        self.intake = self._new_intake(Durable())
        self.dead = threading.Event()
        self.dead_since: float | None = None
        self._applied: Applied | None = None
        self._flushed_at = self._looked_at = 0.0
        self._producer: TransactionalProducer | None = None
        self._aborted = False
        self._too_old = 0
        self._pack_again_at = 0.0
        # Of hours and days, that takes room, too, and time that no reader waits for: minutes do not wait for them.
        self._turn = _FRESH_TURN if stage.is_fresh else _PATIENT_TURN

    @property
    def where(self) -> str:
        """For messages about this partition."""
        return f"{self._settings.topic(self.stage.source)}/{self.partition}"

    def die(self) -> None:
        """Ownership is gone: what is still running must write nothing any more."""
        if not self.dead.is_set():
            self.dead_since = time.monotonic()
            self.dead.set()
            WAITS.end(self)

    def recover(self) -> None:
        """Take over from a predecessor, unless dead by then. Blocks, also while Kafka is away; raises CorruptLog."""
        with contextlib.suppress(Unavailable):
            self._patiently(self._restore)
            self._patiently(lambda: self._sink.attach(self._state.snapshot()))

    def _restore(self) -> None:
        self._open()
        faults.point(f"{self.stage.name}.recovering")
        state = self._new_state()
        live: dict[bytes, bytes] = {}
        for message in self._read_log():
            key, value = message.key(), message.value()
            if value is None:
                live.pop(key, None)
            else:
                live[key] = value
        state.restore(list(live.items()), f"{self._settings.topic(self.stage.state_topic)}/{self.partition}")
        self._check_input(state.durable.next_message)
        self._state = state
        self.intake = self._new_intake(state.durable)

    def _new_state(self) -> StageState:
        return StageState(
            self.stage.grain_ms,
            self._settings.event_partitions,
            shard=self.partition,
            sends_closed=self.stage.totals is not None,
        )

    def _new_intake(self, durable: Durable) -> Intake:
        s, stage = self._settings, self.stage
        return Intake(stage.grain_ms, s.event_partitions, durable, shards=s.block_partitions if stage.joins else 1)

    def _check_input(self, next_message: int) -> None:
        """Raise CorruptLog when the input ends before what was read of it. (One that has grown past it leaves a hole in ranges.)"""
        topic = self._settings.topic(self.stage.source)
        end = Admin(self._settings.kafka_connection).high_watermark(topic, self.partition)
        if next_message > end:
            raise CorruptLog(
                f"{self.where} ends at offset {end}, but was read up to {next_message}: it was made again, or cut off",
                hint="restore the topic; or start in a new folder, and replay the archive",
            )

    def _open(self) -> None:
        """Register the transactional id: a predecessor is fenced, and its open transaction settled."""
        self._check_alive()
        name = f"{self._settings.key_prefix}{self.stage.name}-{self.partition}"
        producer = TransactionalProducer(self._settings.kafka_connection, name, self.stage.name)
        try:
            producer.open()
        except SessionLost as error:
            raise Unavailable(str(error), backend="kafka") from error
        self._producer = producer

    def _read_log(self) -> Iterator[Any]:
        for message in read_to_end(
            self._settings.kafka_connection, self._settings.topic(self.stage.state_topic), self.partition
        ):
            self._check_alive()
            yield message

    def _check_alive(self) -> None:
        if self.dead.is_set():
            raise Unavailable(f"{self.where} was assigned to another worker")

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Retry while a backend is away, as long as the partition is ours."""
        return patiently(call, self.dead, self._log, cap_s=2.0)

    def _write(self, flush: Flush, records: list[Record]) -> bool:
        """Write a flush in one transaction. False when it was aborted; marks the partition dead when its ownership is lost."""
        assert self._producer is not None
        try:
            self._producer.write(records)
        except Aborted as error:
            if not self._aborted:
                self._log.warning("flush aborted, it is tried again", why=str(error))
            self._aborted = True
            WAITS.begin(self, error)
            if self.dead.is_set():  # since the write began: nothing else would end this wait
                WAITS.end(self)
            return False
        except SessionLost as error:
            self._log.warning("the outcome of a flush is not known", why=str(error))
            return self._look_up(flush)
        if self._aborted:
            self._aborted = False
            WAITS.end(self)
        return True

    def _look_up(self, flush: Flush) -> bool:
        """After a fence: whether a flush is in the log. A broker that was away or gave a transaction up fences the rightful owner,
        too; so open the id again, but only while the group says that the partition is ours.

        A coordinator that is still loading its groups confirms every member that asks. So another owner may have written meanwhile,
        also a flush of the same sequence: only the header tells whose it is.
        """
        fenced_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            newest = self._patiently(lambda: self._newest_in_log(fenced_at))
            sequence = 0 if newest is None else newest.sequence
            is_ours = bool(newest == flush.state_header)
            if is_ours or sequence == self._state.sequence:
                self._log.info("settled", sequence=sequence)
                return is_ours
            self._log.warning("another owner has written", sequence=sequence, ours=self._state.sequence)
        self.die()
        return False

    def _newest_in_log(self, fenced_at: float) -> ChunkHeader | None:
        """The header of the newest chunk, as of one in one part; None where there is none."""
        if not self._member_since(fenced_at):
            raise Unavailable(f"the group has not confirmed yet that {self.where} is still ours")
        self._open()
        newest = max((m for m in self._read_log() if m.value() is not None), key=lambda m: m.key(), default=None)
        if newest is None:
            return None
        _, header = chunks.decode(newest.value(), self.where)
        return msgspec.structs.replace(header, part=0, parts=1)

    # -- flush ----------------------------------------------------------------------------------------------

    def begin_flush(self, now_ms: int) -> bool:
        """Whether it is time for a flush: then `flush` comes next, and `settle` after that. Event loop."""
        if not self.intake.may_flush:
            return False
        policy, started = self.stage.flush_policy, time.monotonic()
        if policy.looks_at_clock:
            self.intake.tick(now_ms)
        if not policy.is_due(self.intake.waiting(), started, started - self._flushed_at, self._siblings):
            return False
        self._flushed_at, self._applied = started, self.intake.take()
        return True

    def flush(self) -> Durable:
        """Write out what `begin_flush` has taken, then show it; returns where the log stands. Blocks."""
        faults.point(f"{self.stage.name}.flushing")
        published = self._make_durable()
        if published is not None and not self.dead.is_set():
            self._show(published)
        return self._state.durable

    def _make_durable(self) -> Publication | None:
        """Write the flush to the log; None when it did not happen."""
        applied = self._pop_applied()
        with _COMPACTION_TURN if self._state.may_compact(sum(map(len, applied.rows))) else self._turn:
            flush = self._state.fold(applied)
            del applied  # so that its memory is free
            records = self._records(flush)
        self._warn_of_rows_too_old()
        if self.dead.is_set() or not self._write(flush, records):
            self._state.abort(flush)
            return None
        with self._turn:
            published = self._state.commit(flush)
            self._sink.prepare(published)
        return published

    def _pop_applied(self) -> Applied:
        """What was taken: nothing else holds it, so its room is free once it is folded."""
        applied, self._applied = self._applied, None
        assert applied is not None
        return applied

    def settle(self, durable: Durable) -> None:
        """A flush has ended, and the log stands there. Event loop."""
        self.intake.settle(durable)

    def _records(self, flush: Flush) -> list[Record]:
        """The messages of a flush: tombstones and chunk to the state log, chunk to the next stage, sums by campaign of what has closed to
        that of insights, which has one partition."""
        topic = self._settings.topic(self.stage.state_topic)
        state = list(chunks.encode(flush.state, flush.state_header))
        records = [Record(topic, None, key, self.partition) for key in flush.tombstones]
        records += [Record(topic, value, key, self.partition) for key, value in state]
        if self.stage.output is not None:
            output = self._settings.topic(self.stage.output)
            delta = state if flush.state is flush.delta else chunks.encode(flush.delta, flush.header)
            records += [Record(output, value, key, self.partition) for key, value in delta]
        if self.stage.totals is not None and flush.closed_rows is not None:
            totals, campaigns = self._settings.topic(self.stage.totals), by_campaign(flush.closed_rows)
            header = msgspec.structs.replace(flush.header, from_offset=flush.closed_from)
            records += [Record(totals, v, k, 0) for k, v in chunks.encode(campaigns, header)]
        return records

    def _warn_of_rows_too_old(self) -> None:
        rows, self._too_old = self._state.too_old - self._too_old, self._state.too_old
        if rows:
            self._log.warning("partials came for windows that are gone: only the nightly run counts them", rows=rows)

    def _show(self, published: Publication) -> None:
        """Have the sink show a flush, until it does or ownership is lost."""

        def write() -> None:
            if not self._sink.write(published):
                self._sink.attach(self._state.snapshot())

        try:
            self._patiently(write)
        except Unavailable:
            if not self.dead.is_set():
                raise

    # -- between flushes ------------------------------------------------------------------------------------

    def refresh_due(self) -> bool:
        """Whether nothing was written for so long that the tier should be looked at."""
        return time.monotonic() - max(self._flushed_at, self._looked_at) > _REFRESH_S

    def refresh(self, sent_ms: int, canaries: Canaries) -> None:
        """Look whether the tier still has what it was given, and give it again. Both are the intake's. Blocks, briefly."""
        self._looked_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            if not self._sink.refresh(sent_ms, canaries):
                self._sink.attach(self._state.snapshot())

    @property
    def pack_due(self) -> bool:
        """Whether there is something to pack."""
        return self._sink.packs and time.monotonic() > self._pack_again_at

    def pack(self) -> None:
        """Put in better shape what is shown. Blocks; flushes go on meanwhile."""
        try:
            self._sink.pack(self.dead.is_set)
        except Unavailable:
            self._pack_again_at = time.monotonic() + _REFRESH_S
