"""A stage's hold on one input partition: fenced state log, flush, sink. Blocking; called from executor threads.

recover   register the transactional id (which fences a predecessor), then read the log to its end
flush     delta → one transaction with state chunk and next stage's chunk → sink
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import tenacity

from infra import logs, topics
from infra.errors import Fenced, Unavailable
from infra.kafka import Aborted, Record, TransactionalProducer, read_to_end
from infra.settings import Settings
from stream import chunks
from stream.state import Changes, StageState
from stream.windows import GRAINS

# Applied rows that may wait for their flush before the agent stops taking more.
MAX_PENDING_ROWS = 1_000_000


class Sink(Protocol):
    """Where a stage shows its windows. Both may raise Unavailable and are then called again."""

    def attach(self, state: StageState) -> None:
        """Bring the tier up to a state that was just recovered."""

    def write(self, changes: Changes, state: StageState) -> None:
        """Show what a flush made durable."""


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
        self, settings: Settings, stage: Stage, partition: int, make_sink: Callable[[Stage, int], Sink]
    ) -> None:
        self.stage, self.partition = stage, partition
        self._settings = settings
        self._sink = make_sink(stage, partition)
        self._log = logs.get("stream").bind(stage=stage.name, partition=partition)
        self.state = StageState(stage.grain_ms, settings.event_partitions)
        self.dead = threading.Event()
        self.dead_since: float | None = None
        self._producer: TransactionalProducer | None = None

    @property
    def where(self) -> str:
        """For messages about this partition."""
        return f"{self._settings.topic(self.stage.source)}/{self.partition}"

    def die(self) -> None:
        """Ownership is gone: whatever is still running must write nothing any more."""
        if not self.dead.is_set():
            self.dead_since = time.monotonic()
            self.dead.set()

    def recover(self) -> None:
        """Take over from a predecessor. Blocks; raises Unavailable, CorruptLog."""
        settings, stage = self._settings, self.stage
        self._producer = TransactionalProducer(settings.kafka, f"{settings.key_prefix}{stage.name}-{self.partition}")
        self._producer.open()
        topic = settings.topic(stage.state_topic)
        live: dict[bytes, bytes] = {}
        for message in read_to_end(settings.kafka, topic, self.partition):
            key, value = message.key(), message.value()
            if value is None:
                live.pop(key, None)
            else:
                live[key] = value
        self.state.restore(list(live.items()), f"{topic}/{self.partition}")
        self._patiently(lambda: self._sink.attach(self.state))

    def _patiently(self, call: Callable[[], Any]) -> None:
        """Retry while a backend is away, as long as the partition is ours."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
            stop=tenacity.stop_when_event_set(self.dead),
            before_sleep=self._tell_once,
            sleep=tenacity.sleep_using_event(self.dead),
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                call()

    def _tell_once(self, attempt: tenacity.RetryCallState) -> None:
        if attempt.attempt_number == 1 and attempt.outcome is not None:
            self._log.warning("waiting for a backend", why=str(attempt.outcome.exception()))

    def write(self, records: list[Record]) -> bool:
        """One transaction; False when it was aborted. A lost partition dies."""
        assert self._producer is not None
        try:
            self._producer.write(records)
            return True
        except Aborted as error:
            self._log.warning("flush aborted", why=str(error))
            return False
        except Fenced as error:
            self._log.warning("fenced", why=str(error))
            self.die()
            return False

    def flush(self) -> None:
        """Write out the delta that `state.begin_flush` has taken, then show it. Blocks."""
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
        changes = self.state.commit()
        try:
            if not self.dead.is_set():
                self._patiently(lambda: self._sink.write(changes, self.state))
        except Unavailable:
            if not self.dead.is_set():
                raise
