"""Reads partitions of a topic by column: Kafka's Fetch over sockets of its own, read-committed.

Librdkafka makes an object of each message, twice; that was a third of an event's CPU. Here a response stays one stretch of
bytes. Membership, offsets and metadata stay with librdkafka: `describe` asks it for the topic's id and leaders.

A thread for each broker that leads or is near fetches ahead until enough is waiting; `take` hands it over. Requests name
the topic by its id, so a topic that was made again is never read on as if it were the one before; and they carry the leader epoch of the last
batch, by which the broker detects a log that was cut off. An error of a broker is waited out, with the leaders looked up
again, but for a topic or an offset that is gone. A record batch that cannot be read is fetched again a few times; then the partition
stops before it (`unreadable`), while others go on, and it is tried again every half minute.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra import logs
from infra.errors import AdclickError, Denied, LogTruncated, OffsetOutOfRange, TopicChanged
from infra.kafka import errors, fetch_protocol, record_batches
from infra.kafka.client import KafkaError
from infra.kafka.fetch_protocol import PartitionAnswer
from infra.kafka.near_replicas import Address, NearReplicas
from infra.kafka.record_batches import CorruptBatch, Records
from infra.kafka.shares import MOST_PARTITIONS, shares
from infra.kafka.topic_state import TopicState

_TIMEOUT_S, _RETRY_S = 10.0, 0.2
# Credentials that are refused again and again may lock an account.
_DENIED_RETRY_S = 5.0
# A broker that is just coming back may not know its topics yet.
_MISSING_S = 30.0
# What waits to be taken: so many batches of messages, unless they are large. From a backlog each batch takes few partitions, which
# should have enough for it; the others are fetched meanwhile.
_AHEAD_BATCHES, _AHEAD_BYTES = 4, 256 << 20
# That are looked at one by one.
_FEW = 16
# Bytes that are damaged on the way are right the next time; those on the broker's disk stay as they are.
_FETCHES_OF_A_CORRUPT_BATCH = 3
# An operator may restore the segment meanwhile.
_RETRY_CORRUPT_S = 30.0


@dataclass
class _Partition:
    """What is read of a partition. `next_offset` is what to ask for next."""

    next_offset: int
    leader_epoch: int = -1
    waiting: deque[Records] = field(default_factory=deque)
    messages: int = 0
    message_bytes: float = 0.0
    """Of one, on average."""
    taken_turn: int = 0
    """The turn of `take` that was the last to take from it."""
    end: int = -1
    stable_end: int = -1
    corrupt_fetches: int = 0
    """How often in a row the batch at `next_offset` could not be read."""
    unreadable: CorruptBatch | None = None
    """That batch, once it was fetched often enough; it is fetched again at `retry_at`, by `time.monotonic`."""
    retry_at: float = 0.0
    is_held: bool = False
    """Whether nothing is to be fetched until the next `seek`."""


class Fetcher:
    """Reads assigned partitions of a topic. `describe()` gives its id and leaders, None when it does not exist; it may raise."""

    def __init__(
        self,
        topic: str,
        describe: Callable[[], TopicState | None],
        connect: Callable[[Address, float], tuple[socket.socket, float]],
        rack: str = "",
    ) -> None:
        """`connect(address, timeout_s)` opens a connection, and says until when it is good: see `infra.kafka.sasl`. `rack`: where this
        process runs, by the brokers' names; see `infra.kafka.near_replicas`."""
        self._topic, self._describe, self._connect = topic, describe, connect
        self._log = logs.get("fetch").bind(topic=topic)
        self._topic_id = ""
        self._missing_since: float | None = None
        self._changed = threading.Condition()
        self._partitions: dict[int, _Partition] = {}
        self._turn = self._batch = 0
        self.leaves_messages = False
        """Whether more messages were waiting than the last `take` has taken."""
        self._led: dict[int, Address] = {}
        self._brokers: dict[int, Address] = {}
        self._near = NearReplicas(rack)
        self._readers: dict[Address, threading.Thread] = {}
        self._lost = threading.Event()
        self._lost.set()
        self._failure: Exception | None = None
        self._closed = False
        self._finder = threading.Thread(target=self._find_leaders, daemon=True, name="leaders")
        self._finder.start()

    # -- for the one thread that takes messages -------------------------------------------------------------

    def assign(
        self, positions: dict[int, int], *, topic_id: str = "", leader_epochs: Mapping[int, int] | None = None
    ) -> None:
        """Read these partitions, each from an offset, and no others. What was fetched before is dropped.

        `topic_id`: of the topic that these offsets belong to, by default the one that there is. `leader_epochs`: of the
        batches before these offsets, where they are known.
        """
        epochs = leader_epochs or {}
        with self._changed:
            self._topic_id = topic_id or self._topic_id
            self._partitions = {p: _Partition(offset, epochs.get(p, -1)) for p, offset in positions.items()}
            self._failure = None
            self._changed.notify_all()

    def seek(self, partition: int, offset: int, leader_epoch: int = -1, *, hold: bool = False) -> None:
        """Read a partition from another offset; what was fetched of it is dropped. `hold`: fetch nothing of it until the next call."""
        with self._changed:
            state = self._partitions.get(partition)
            if state is not None:
                self._partitions[partition] = _Partition(
                    offset, leader_epoch, end=state.end, stable_end=state.stable_end, is_held=hold
                )
                self._changed.notify_all()

    def take(self, count: int, timeout_s: float) -> dict[int, list[Records]]:
        """Up to `count` messages, by partition in offset order; waits until there are as many, or for the time given.

        A partition has none behind a batch that cannot be read: see `unreadable`. Raises TopicChanged, LogTruncated, OffsetOutOfRange,
        CorruptLog, and what else has ended reading.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._batch = count
            while True:
                if self._failure is not None:
                    raise self._failure
                left = deadline - time.monotonic()
                if left <= 0 or sum(p.messages for p in self._partitions.values()) >= count:
                    return self._take_waiting(count)
                self._changed.wait(left)

    def end(self, partition: int) -> int:
        """The end of the log (high watermark) as last seen; negative before that."""
        state = self._partitions.get(partition)
        return -1 if state is None else state.end

    def waits_only_for(self, partition: int, is_such: Callable[[bytes | None], bool]) -> bool:
        """Whether all that a partition has up to its end waits to be taken, and all of it has such values. False for more than a few."""
        with self._changed:
            state = self._partitions.get(partition)
            if state is None or not 0 < state.messages <= _FEW or state.next_offset < state.end:
                return False
            return all(is_such(records.values[row]) for records in state.waiting for row in range(len(records.values)))

    def stable_end(self, partition: int) -> int:
        """Where reading has to stop for an open transaction, or the end of the log; negative before it is known."""
        state = self._partitions.get(partition)
        return -1 if state is None else state.stable_end

    def unreadable(self) -> dict[int, CorruptBatch]:
        """Partition → the batch that it stops before, where all messages before that were taken."""
        with self._changed:
            return {
                p: state.unreadable
                for p, state in self._partitions.items()
                if state.unreadable is not None and not state.waiting
            }

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._lost.set()

    def _take_waiting(self, count: int) -> dict[int, list[Records]]:
        waiting = [(p, state) for p, state in self._partitions.items() if state.waiting]
        waiting.sort(key=lambda partition: partition[1].taken_turn)
        share = shares({p: [r.timestamps_ms for r in state.waiting] for p, state in waiting}, count)
        self._turn += 1
        self.leaves_messages = sum(share.values()) < sum(state.messages for _, state in waiting)
        taken = {p: _take_from(state, share.get(p, 0), self._turn) for p, state in waiting}
        self._changed.notify_all()
        return {p: records for p, records in taken.items() if records}

    # -- who leads ----------------------------------------------------------------------------------------------

    def _find_leaders(self) -> None:
        """Keep a reader for each leader, and ask again whenever one was lost."""
        while True:
            self._lost.wait()
            self._lost.clear()
            if self._closed:
                return
            led: dict[int, Address] = {}
            try:
                led = self._read_leaders()
            except TopicChanged as error:
                self._fail(error)
            except AdclickError:
                pass
            except Exception as error:
                self._fail(error)
            with self._changed:
                self._led = led or self._led
                for address in self._needed_brokers() - self._readers.keys():
                    reader = threading.Thread(target=self._read, args=(address,), daemon=True, name="fetch")
                    self._readers[address] = reader
                    reader.start()
                self._changed.notify_all()
            if not led:
                self._lost.set()
            time.sleep(_RETRY_S)

    def _read_leaders(self) -> dict[int, Address]:
        """Partition → its leader, none where the topic is not known yet. Raises TopicChanged when it is not the one that is read."""
        state = self._describe()
        if state is None:
            now = time.monotonic()
            self._missing_since = self._missing_since or now
            if now - self._missing_since > _MISSING_S:
                raise TopicChanged(f"topic {self._topic} is gone")
            return {}
        self._missing_since = None
        with self._changed:
            self._topic_id = self._topic_id or state.topic_id
            if self._topic_id != state.topic_id:
                raise TopicChanged(
                    f"topic {self._topic} was made again: its id was {self._topic_id}, it is {state.topic_id}"
                )
            self._brokers = state.brokers
        return state.leaders

    def _sources(self) -> dict[int, Address]:
        """Partition → the broker that it is read from."""
        return self._near.sources(self._led)

    def _needed_brokers(self) -> set[Address]:
        """Those that partitions are read from, and leaders of which nothing is read at the moment."""
        return {*self._led.values(), *self._sources().values()}

    def _fail(self, error: Exception) -> None:
        """End reading: the next `take` raises this."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    # -- one broker ---------------------------------------------------------------------------------------------

    def _read(self, address: Address) -> None:
        """Fetch from one broker for as long as it leads anything, or is read from."""
        away = False
        while self._is_needed(address):
            pause_s = _RETRY_S
            try:
                connection, good_until = self._connect(address, _TIMEOUT_S)
            except (OSError, EOFError, Denied) as error:
                away = self._note_away(address, error, away)
                pause_s = _DENIED_RETRY_S if isinstance(error, Denied) else _RETRY_S
            except Exception as error:
                self._fail(error)
            else:
                away = self._read_from(connection, address, good_until, away)
            self._lost.set()
            time.sleep(pause_s)
        with self._changed:
            del self._readers[address]
        # The broker may lead again since this reader decided to end: another look starts the next one.
        self._lost.set()

    def _read_from(self, connection: socket.socket, address: Address, good_until: float, away: bool) -> bool:
        """Fetch over a connection for as long as it is good; returns whether the broker is `away`, as it was before."""
        try:
            with connection:
                while self._fetch_once(address, connection) and time.monotonic() < good_until:
                    if away:
                        away = False
                        self._log.info("the broker is back", broker=address)
        except (OSError, EOFError) as error:
            return self._note_away(address, error, away)
        except Exception as error:
            # Also one that nothing here expects: a reader that ended without it would leave `take` waiting for ever.
            self._fail(error)
        return away

    def _is_needed(self, address: Address) -> bool:
        with self._changed:
            return not self._closed and address in self._needed_brokers()

    def _note_away(self, address: Address, error: Exception, was_away: bool) -> bool:
        with self._changed:
            self._near.avoid_address(address)
        if not was_away and not self._closed:
            self._log.warning("the broker is away", broker=address, why=str(error))
        return True

    def _fetch_once(self, address: Address, connection: socket.socket) -> bool:
        """Send one request and store what it brings; False when the leaders must be looked up before the next one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted(address), timeout=1.0)
            if not self._is_needed(address):
                return False
            wanted = {p: (state, state.next_offset, state.leader_epoch) for p, state in self._wanted(address).items()}
            topic_id, rack = self._topic_id, self._near.rack(wanted)
        if not wanted:
            return True
        positions = {p: (offset, epoch) for p, (_, offset, epoch) in wanted.items()}
        connection.sendall(fetch_protocol.encode_request(topic_id, positions, rack))
        answers = fetch_protocol.decode_response(fetch_protocol.receive_response(connection))
        answers = [answer for answer in answers if not self._is_of_another(answer, address)]
        stored = [self._store_answer(answer, *wanted[answer.partition][:2]) for answer in answers]
        return all(stored)

    def _is_of_another(self, answer: PartitionAnswer, address: Address) -> bool:
        """Whether a partition is read elsewhere from now on: where its leader says, or at its leader, since a replica has no answer."""
        with self._changed:
            if answer.near_replica >= 0:
                state = self._partitions.get(answer.partition)
                last_end = -1 if state is None else state.end
                self._near.follow(answer.partition, self._brokers.get(answer.near_replica), answer.end, last_end)
            elif (answer.error or answer.diverges_at is not None) and self._led.get(answer.partition) != address:
                self._near.avoid(answer.partition)
            else:
                return False
            self._changed.notify_all()
        self._lost.set()
        return True

    def _store_answer(self, answer: PartitionAnswer, state: _Partition, offset: int) -> bool:
        """Append what was fetched of a partition; False where nothing came for a reason that passes.

        Raises LogTruncated, OffsetOutOfRange, Refused.
        """
        if not self._is_readable(answer, offset):
            return False
        records, corrupt = record_batches.read_intact(answer.data, answer.start, answer.stop, offset, answer.aborted)
        with self._changed:
            # A broker that is no longer asked may answer late, and bring what another one has brought meanwhile.
            if self._partitions.get(answer.partition) is state and state.next_offset == offset:
                state.end, state.stable_end = answer.end, answer.stable_end
                if records.next_offset > offset:
                    state.leader_epoch = records.leader_epoch
                    state.waiting.append(records)
                    state.messages += len(records.offsets)
                    state.message_bytes = records.values.mean_bytes() or state.message_bytes
                    state.next_offset = records.next_offset
                if corrupt is None or records.next_offset > offset:
                    state.corrupt_fetches, state.unreadable = 0, None
                else:
                    self._note_corrupt(answer.partition, state, corrupt)
                self._changed.notify_all()
        return corrupt is None or records.next_offset > offset

    def _is_readable(self, answer: PartitionAnswer, offset: int) -> bool:
        """Whether the answer holds the partition's messages from `offset` on. Raises what makes it impossible."""
        where = f"{self._topic}/{answer.partition}"
        if answer.diverges_at is not None:
            raise LogTruncated(
                f"{where} was cut off at offset {answer.diverges_at}: {offset} was to be read next",
                partition=answer.partition,
                end=answer.diverges_at,
            )
        if answer.error == KafkaError.OFFSET_OUT_OF_RANGE:
            raise OffsetOutOfRange(
                f"{where}: offset {offset} is no longer there",
                hint="events were deleted before they were read; restore them, or move the group's offset on purpose",
            )
        if answer.error and not errors.is_passing_fetch_error(KafkaError(answer.error)):
            raise errors.unreadable_partition(KafkaError(answer.error), where)
        return not answer.error

    def _note_corrupt(self, partition: int, state: _Partition, corrupt: CorruptBatch) -> None:
        """Let the batch be fetched again, at once or, once that was done often enough, later. With `_changed` held."""
        state.corrupt_fetches += 1
        # Its header may be wrong about how many messages it has.
        corrupt.next_offset = max(corrupt.offset + 1, min(corrupt.next_offset, state.end))
        # A follower's copy may be damaged where the leader's is not.
        self._near.avoid(partition)
        where = f"{self._topic}/{partition}: the record batch at offset {corrupt.offset} {corrupt.message}"
        if state.corrupt_fetches >= _FETCHES_OF_A_CORRUPT_BATCH:
            state.unreadable, state.retry_at = corrupt, time.monotonic() + _RETRY_CORRUPT_S
        else:
            self._log.warning("a corrupt record batch is fetched again", where=where)

    def _wanted(self, address: Address) -> dict[int, _Partition]:
        """The partitions that are read from this broker and of which more may be fetched ahead, those first that have the least waiting:
        a response may be full before it comes to the last."""
        waiting = sum(state.messages for state in self._partitions.values())
        size = sum(state.messages * state.message_bytes for state in self._partitions.values())
        has_room = waiting < _AHEAD_BATCHES * self._batch and size < _AHEAD_BYTES
        # Of few partitions more than a batch, for the next one is fetched while this one is counted.
        is_short = waiting < self._batch + self._batch // 4
        share, now = self._batch // MOST_PARTITIONS, time.monotonic()
        sources = self._sources()
        wanted = (
            (p, state)
            for p, state in self._partitions.items()
            if sources.get(p) == address
            and not state.is_held
            and (state.unreadable is None or now >= state.retry_at)
            and (not state.messages or (has_room and (is_short or state.messages < share)))
            and self._failure is None
        )
        return dict(sorted(wanted, key=lambda partition: partition[1].messages))


def _take_from(partition: _Partition, count: int, turn: int) -> list[Records]:
    """The next `count` messages. What holds no message comes along: it still moves the position."""
    taken: list[Records] = []
    partition.messages -= count
    partition.taken_turn = turn if count else partition.taken_turn
    while partition.waiting and (count > 0 or not len(partition.waiting[0].offsets)):
        records = partition.waiting.popleft()
        if len(records.offsets) > count:
            records, rest = records.split(count)
            partition.waiting.appendleft(rest)
        count -= len(records.offsets)
        taken.append(records)
    return taken
