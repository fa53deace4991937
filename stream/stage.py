"""A stage's hold on one input partition: fenced state log, flush, sink. Blocking; called from executor threads.

recover   register the transactional id (which fences a predecessor), then read the log to its end
flush     delta → one transaction with state chunk and next stage's chunk → sink
settle    after a fence by a broker that was away: register again, and look in the log whether the flush is there
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from infra import faults, logs, topics
from infra.errors import Aborted, CorruptLog, SessionLost, Unavailable
from infra.kafka import Admin, TransactionalProducer, read_to_end
from infra.patience import WAITS, patiently
from infra.records import Record
from infra.settings import Settings
from stream import chunks
from stream.state import Changes, StageState
from stream.windows import GRAINS

# Applied rows that may wait for their flush before the agent stops taking more.
MAX_PENDING_ROWS = 1_000_000
# Hours and days are shown at their close: the longer their flushes wait, the more rows meet in one. Corrections of
# closed ones are waited for.
_REFRESH_S = 2.0
_COARSE_FLUSH_S, _CORRECTING_FLUSH_S = 10.0, 1.5
# Nobody sees minutes fresh that come late: while catching up, fewer and larger flushes cost less.
_BEHIND_MS, _BEHIND_FLUSH_S, _BEHIND_ROWS = 1_000, 1.0, 250_000


_ONE_AT_A_TIME = threading.Lock()


class Sink(Protocol):
    """Where a stage shows its windows. Every method may raise Unavailable and is then called again."""

    def attach(self, state: StageState) -> None:
        """Bring the tier up to a state that was just recovered."""

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable."""

    def refresh(self, state: StageState) -> None:
        """When nothing was written for a while: bring back what the tier has lost meanwhile."""

    @property
    def packs(self) -> bool:
        """Whether there is something to put in better shape, of what is shown."""

    def pack(self, given_up: Callable[[], bool]) -> None:
        """Do some of that, beside all else."""


@dataclass(frozen=True)
class Stage:
    """One step of the cascade: what it reads, where its state and its output go."""

    name: str
    source: str
    state_topic: str
    output: str | None

    @property
    def grain_ms(self) -> int:
        """Its window."""
        return GRAINS[self.name]


STAGES = {
    "minute": Stage("minute", topics.BLOCKS, topics.MINUTE_STATE, topics.MINUTES),
    "hour": Stage("hour", topics.MINUTES, topics.HOUR_STATE, topics.HOURS),
    "day": Stage("day", topics.HOURS, topics.DAY_STATE, None),
}


class StagePartition:
    """State, producer and sink of one (stage, partition). Dead once ownership is lost: it then writes nothing."""

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        partition: int,
        make_sink: Callable[[Stage, int], Sink],
        member_since: Callable[[float], bool],
    ) -> None:
        """`member_since` tells whether the group has confirmed this worker after a moment of `time.monotonic`."""
        self._member_since = member_since
        self.stage, self.partition = stage, partition
        self._settings = settings
        self._sink = make_sink(stage, partition)
        self._log = logs.get("stream").bind(stage=stage.name, partition=partition)
        self.state = StageState(stage.grain_ms, settings.event_partitions)
        self.dead = threading.Event()
        self.dead_since: float | None = None
        self._flushed_at = self._looked_at = 0.0
        self._producer: TransactionalProducer | None = None
        self._aborted = False
        self._too_old = 0
        self._pack_again_at = 0.0
        # Hours and days are folded one after the other: that takes room, and time that nobody waits for.
        self._folding = contextlib.nullcontext() if self.is_fresh else _ONE_AT_A_TIME

    @property
    def is_fresh(self) -> bool:
        """Whether somebody waits for what this stage shows: minutes; hours and days are answered from them until they close."""
        return self.stage.name == "minute"

    @property
    def where(self) -> str:
        """For messages about this partition."""
        return f"{self._settings.topic(self.stage.source)}/{self.partition}"

    def die(self) -> None:
        """Ownership is gone: whatever is still running must write nothing any more."""
        if not self.dead.is_set():
            self.dead_since = time.monotonic()
            self.dead.set()
            WAITS.end(self)

    def recover(self) -> None:
        """Take over from a predecessor, unless dead by then. Blocks, also while Kafka is away; raises CorruptLog."""
        with contextlib.suppress(Unavailable):
            self._patiently(self._restore)
            self._patiently(lambda: self._sink.attach(self.state))

    def _restore(self) -> None:
        self._open()
        faults.point(f"{self.stage.name}.recovering")
        state = StageState(self.stage.grain_ms, self._settings.event_partitions)
        live: dict[bytes, bytes] = {}
        for message in self._read_log():
            key, value = message.key(), message.value()
            if value is None:
                live.pop(key, None)
            else:
                live[key] = value
        state.restore(list(live.items()), f"{self._settings.topic(self.stage.state_topic)}/{self.partition}")
        self._check_input(state.next_message)
        self.state = state

    def _check_input(self, next_message: int) -> None:
        """Raise CorruptLog when the input ends before what was read of it. (One that has grown past it leaves a hole in ranges.)"""
        topic = self._settings.topic(self.stage.source)
        end = Admin(self._settings.kafka).high_watermarks(topic, self.partition + 1)[self.partition]
        if next_message > end:
            raise CorruptLog(
                f"{self.where} ends at offset {end}, but was read up to {next_message}: it was made again, or cut off",
                hint="restore the topic; or start in a new folder, and replay the archive",
            )

    def _open(self) -> None:
        """Register the transactional id: whoever had it is fenced, and its open transaction settled."""
        self._check_alive()
        name = f"{self._settings.key_prefix}{self.stage.name}-{self.partition}"
        producer = TransactionalProducer(self._settings.kafka, name, self.stage.name)
        try:
            producer.open()
        except SessionLost as error:
            raise Unavailable(str(error), backend="kafka") from error
        self._producer = producer

    def _read_log(self) -> Iterator[Any]:
        for message in read_to_end(self._settings.kafka, self._settings.topic(self.stage.state_topic), self.partition):
            self._check_alive()
            yield message

    def _check_alive(self) -> None:
        if self.dead.is_set():
            raise Unavailable(f"{self.where}: given away meanwhile")

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Retry while a backend is away, as long as the partition is ours."""
        return patiently(call, self.dead, self._log, cap_s=2.0)

    def write(self, records: list[Record]) -> bool:
        """One transaction; False when nothing of it happened. A lost partition dies."""
        assert self._producer is not None
        try:
            self._producer.write(records)
        except Aborted as error:
            if not self._aborted:
                self._log.warning("flush aborted, to be tried again", why=str(error))
            self._aborted = True
            WAITS.begin(self, error)
            if self.dead.is_set():  # since the write began: nobody else would end this wait
                WAITS.end(self)
            return False
        except SessionLost as error:
            self._log.warning("the outcome of a flush is not known", why=str(error))
            return self._settle()
        if self._aborted:
            self._aborted = False
            WAITS.end(self)
        return True

    def _settle(self) -> bool:
        """After a fence: whether the flush in hand is in the log. A broker that was away or gave a transaction up fences
        the rightful owner, too; so open the id again, but only while the group says that the partition is ours.
        """
        fenced_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            newest = self._patiently(lambda: self._newest_in_log(fenced_at))
            if newest in (self.state.sequence, self.state.flushing.header.sequence):
                self._log.info("settled", sequence=newest)
                return bool(newest > self.state.sequence)
            self._log.warning("another owner has written", sequence=newest, ours=self.state.sequence)
        self.die()
        return False

    def _newest_in_log(self, fenced_at: float) -> int:
        if not self._member_since(fenced_at):
            raise Unavailable(f"{self.where} is not known to be still ours")
        self._open()
        return max((chunks.sequence_of(m.key()) for m in self._read_log() if m.value() is not None), default=0)

    def flush_due(self, now_ms: int) -> bool:
        """Whether it is time for a flush, and there is something to write."""
        fine = self.is_fresh
        since_s = time.monotonic() - self._flushed_at
        if fine:
            behind = now_ms - self.state.newest_sent_ms > _BEHIND_MS
            patient = behind and since_s < _BEHIND_FLUSH_S and self.state.pending_rows < _BEHIND_ROWS
        else:
            limit_s = _CORRECTING_FLUSH_S if self.state.corrects else _COARSE_FLUSH_S
            patient = since_s < limit_s and self.state.pending_rows < MAX_PENDING_ROWS // 2
        return self.state.flush_due(now_ms, clock=fine, patient=patient)

    def refresh_due(self) -> bool:
        """Whether nothing was written for so long that the tier should be looked at."""
        return time.monotonic() - max(self._flushed_at, self._looked_at) > _REFRESH_S

    def refresh(self) -> None:
        """Look whether the tier still has what it was given. Blocks, briefly."""
        self._looked_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            self._sink.refresh(self.state)

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

    def flush(self) -> None:
        """Write out what `state.begin_flush` has taken, then show it. Blocks."""
        self._flushed_at = time.monotonic()
        faults.point(f"{self.stage.name}.flushing")
        with self._folding:
            flush = self.state.flushing
        topic = self._settings.topic(self.stage.state_topic)
        records = [Record(topic, None, key, self.partition) for key in flush.tombstones]
        state = list(chunks.encode(flush.state, flush.state_header))
        records += [Record(topic, v, k, self.partition) for k, v in state]
        if self.stage.output is not None:
            output = self._settings.topic(self.stage.output)
            delta = state if flush.state is flush.delta else chunks.encode(flush.delta, flush.header)
            records += [Record(output, v, k, self.partition) for k, v in delta]
        if self.dead.is_set() or not self.write(records):
            self.state.abort()
            return
        with self._folding:
            changes = self.state.commit()
        if self.state.too_old > self._too_old:
            came, self._too_old = self.state.too_old - self._too_old, self.state.too_old
            self._log.warning("partials came for windows that are gone: only the nightly run counts them", rows=came)
        try:
            if not self.dead.is_set():
                self._patiently(lambda: self._sink.write(changes, self.state))
        except Unavailable:
            if not self.dead.is_set():
                raise
