"""Canaries: what is one, that it changes nothing, and how far it has come."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from infra.clock import HOUR_MS, MINUTE_MS
from infra.columnar.columns import PADDING
from infra.kafka import record_batches, topics
from infra.kafka.record_batches import CorruptBatch, Records
from infra.kafka.records import Record
from infra.settings import Settings
from ingest import blocks, processor
from ingest.archive.progress import archived_canary_ms, archived_to, metadata_of
from ingest.archive.schema import decode_archived
from ingest.blocks import BlockHeader, SourceRange
from ingest.canary.arrivals import Canaries
from ingest.canary.marker import encode_canary
from ingest.canary.marks import CanaryMark, mark_records
from ingest.canary.worker import CanaryWorker
from ingest.counts import Counts
from ingest.dead_letters.letters import is_about
from ingest.dedup.registry import Registry
from ingest.partials import KEYS, SUMS, Partials
from ingest.position import Position
from ingest.processor import BatchProcessor, ProcessedBatch
from ingest.source_batch import SourceBatch
from ingest.source_partition import SourcePartition
from ingest.transaction_layout import TransactionLayout
from ingest.worker import IngestWorker
from query.canaries import describe_ages, of_partitions, of_shards
from query.notify.pipeline_rules import PipelineWatch
from stream.closing import Closing, Source
from stream.intake import Durable, Intake
from stream.state import StageState
from tests.product import wait_until
from tests.unit.fakes import FakeRedis
from tests.unit.test_alert_rules import status
from tests.unit.test_partials_and_cells import frame, partial
from tests.unit.test_record_batches import batch, varint

NOW = 1_764_600_000_000
SETTINGS = Settings.model_validate({"event_partitions": 2, "block_partitions": 2, "dedup_horizon_s": 60})
_BASE_MS = 5
"""The first timestamp in the head of a batch of `test_record_batches`."""


@dataclass(frozen=True)
class Sent:
    """A message that a producer sends. `sent_ms`: of a canary."""

    value: bytes | None
    timestamp_ms: int
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    is_canary: bool = False


def canary(timestamp_ms: int, sent_ms: int) -> Sent:
    value, headers = encode_canary(sent_ms)
    return Sent(value, timestamp_ms, headers=headers, is_canary=True)


def event(event_id: str, time_ms: int, timestamp_ms: int, **more: Any) -> Sent:
    fields = {
        "event_id": event_id, "event_type": "click", "event_time": time_ms, "campaign_id": 1, "ad_id": 1, "advertiser_id": 1,
        "publisher_id": 1, "cost_micros": 10,
    }  # fmt: skip
    return Sent(json.dumps(fields | more).encode(), timestamp_ms, event_id.encode())


def _sized(text: bytes | None) -> bytes:
    return varint(-1) if text is None else varint(len(text)) + text


def records_of(messages: Sequence[Sent], first: int) -> Records:
    """The messages as a fetch brings them: bytes of one record batch, read by column."""
    packed = b""
    for delta, m in enumerate(messages):
        headers = b"".join(_sized(name.encode()) + _sized(value) for name, value in m.headers)
        body = b"\0" + varint(m.timestamp_ms - _BASE_MS) + varint(delta) + _sized(m.key) + _sized(m.value)
        body += varint(len(m.headers)) + headers
        packed += varint(len(body)) + body
    raw = batch(packed, codec=0, count=len(messages), offset=first)
    return record_batches.read_batches(np.frombuffer(raw + bytes(PADDING), np.uint8), 0, len(raw), first, [])


@dataclass
class Ingest:
    """Ingest of two partitions, without Kafka. What it writes is kept by what readers make of it; offsets count messages that are no
    canaries, so that a log with canaries can be compared with the same log without."""

    sums: Counter[tuple[int, ...]] = field(default_factory=Counter)
    archived: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    letters: list[tuple[int, Any, Any, Any]] = field(default_factory=list)
    marks: dict[int, list[int]] = field(default_factory=lambda: {0: [], 1: []})
    canaries: dict[int, list[int]] = field(default_factory=lambda: {0: [], 1: []})
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        registry = Registry(FakeRedis(), "x:", ttl_s=60, segment_ids=20_000)
        self._processor, self._layout = BatchProcessor(SETTINGS, registry), TransactionLayout(SETTINGS)
        self.owned = {p: SourcePartition(p, Position(0), registry.begin(p, 0), 0.0, 0) for p in range(2)}
        self._ordinals = dict[tuple[int, int], int]()

    def take(self, messages: dict[int, Sequence[Sent]]) -> ProcessedBatch:
        """Process a batch as a worker does, and commit it."""
        taken = {p: [records_of(sent, self.owned[p].position.offset)] for p, sent in messages.items() if sent}
        for p, sent in messages.items():
            first = self.owned[p].position
            for at, message in enumerate(sent):
                if message.is_canary:
                    self.canaries[p].append(first.offset + at)
                else:
                    own = sum(known == p for known, _ in self._ordinals)
                    self._ordinals[p, first.offset + at] = own
        processed = self._processor.process(SourceBatch(taken, {0: 0, 1: 0}), self.owned, {0: 10**9, 1: 10**9})
        ranges = {p: owned.idle_range(False) for p, owned in self.owned.items()}
        ranges |= {p: self.owned[p].range_to(judged.after) for p, judged in processed.judged.items()}
        for record in self._layout.of_batch(processed, ranges, False).records:
            self._keep(record)
        for p, judged in processed.judged.items():
            self.counts.add(judged, len(messages[p]))
            self.owned[p].position = judged.after
        return processed

    def _keep(self, record: Record) -> None:
        assert record.value is not None or record.topic == topics.DEAD_LETTERS
        value = record.value or b""
        if record.topic == topics.BLOCKS:
            rows = Partials.of_arrow(blocks.decode_block(value, "here")[0])
            for row in zip(*(rows[name].tolist() for name in (*KEYS, *SUMS)), strict=True):
                self.sums += Counter({(*row[: len(KEYS)], n): amount for n, amount in enumerate(row[len(KEYS) :])})
        elif record.topic == topics.ARCHIVE:
            for row in decode_archived(blocks.decode_block(value, "here")[0]).to_pylist():
                row["offset"] = self._ordinals[record.partition, row["offset"]]
                if row["copy_of"] is not None:
                    row["copy_of"] = self._ordinals[record.partition, row["copy_of"]]
                self.archived.append((record.partition, row))
        elif record.topic == topics.DEAD_LETTERS:
            headers = dict(record.headers)
            offset = int(headers.pop("source").rsplit(b"/", 1)[1])
            self.letters.append((self._ordinals[record.partition, offset], record.key, record.value, headers))
        else:
            assert record.topic == topics.CANARIES
            mark = msgspec.json.decode(value, type=CanaryMark)
            self.marks[mark.partition] += mark.offsets

    def outcome(self) -> dict[str, Any]:
        """All that depends on events."""
        positions = [
            (o.position.watermark, o.position.log_time_ms, [(g, self._ordinals[p, at]) for g, at in o.position.turns])
            for p, o in self.owned.items()
        ]
        counts = msgspec.structs.asdict(self.counts) | {
            "messages": self.counts.messages - self.counts.canary,
            "canary": 0,
        }
        return {
            "sums": self.sums, "archived": sorted(self.archived, key=lambda row: (row[0], row[1]["offset"])),
            "letters": sorted(self.letters, key=repr), "positions": positions, "counts": counts,
        }  # fmt: skip


_TIMESTAMPS = st.one_of(
    st.integers(-5 * MINUTE_MS, 5 * MINUTE_MS).map(lambda ms: NOW + ms), st.sampled_from([-1, 0, NOW + 10 * HOUR_MS])
)
_EVENTS = st.builds(
    lambda number, late_ms, timestamp_ms, campaign: event(
        f"e{number}", NOW - late_ms, timestamp_ms, campaign_id=campaign
    ),
    st.integers(0, 6), st.integers(-MINUTE_MS, 3 * HOUR_MS), _TIMESTAMPS, st.integers(0, 3),
)  # fmt: skip
_OTHERS = st.builds(
    Sent,
    st.sampled_from([None, b"", b"{}", b"adclick-canary 5", b"[" * 300]),
    _TIMESTAMPS,
    st.sampled_from([None, b"k"]),
)
_CANARIES = st.builds(canary, _TIMESTAMPS, st.integers(0, 2 * NOW))
_MESSAGES = st.tuples(st.integers(0, 1), st.one_of(_EVENTS, _EVENTS, _OTHERS))


@examples(max_examples=40)
@given(
    st.lists(_MESSAGES, max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1), _CANARIES), max_size=8),
    st.lists(st.integers(0, 30), max_size=4),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_canaries_change_no_verdict_and_no_sum(
    log: list[tuple[int, Sent]], canaries: list[tuple[int, int, Sent]], cuts: list[int], other_cuts: list[int]
) -> None:
    """Wherever they stand in the log, whatever their timestamps say, and however it is cut into batches."""
    with_canaries = list(log)
    for at, p, message in sorted(canaries, key=lambda c: c[0], reverse=True):
        with_canaries.insert(min(at, len(log)), (p, message))
    plain, mixed = _ingest(log, cuts), _ingest(with_canaries, other_cuts)
    assert mixed.outcome() == plain.outcome()
    assert mixed.counts.canary == len(canaries)
    assert mixed.marks == mixed.canaries
    positions = [owned.position for owned in mixed.owned.values()]
    assert [p.canaries for p in positions] == [len(mixed.canaries[p]) for p in range(2)]


def _ingest(log: Sequence[tuple[int, Sent]], cuts: Iterable[int]) -> Ingest:
    ingest, edges = Ingest(), sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    with pytest.MonkeyPatch.context() as patched:
        # Of a message without a timestamp the clock is the reference.
        patched.setattr(processor, "now_ms", lambda: NOW)
        for start, stop in pairwise(edges):
            ingest.take({p: [m for of, m in log[start:stop] if of == p] for p in range(2)})
    return ingest


_VALUE, _HEADERS = encode_canary(NOW)


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (Sent(_VALUE, NOW, headers=_HEADERS), "canary"),
        (Sent(_VALUE + b" more", NOW, b"key", (("traceparent", b"00"), *_HEADERS)), "canary"),
        (Sent(_VALUE, NOW), "rejected"),
        (Sent(_VALUE, NOW, headers=(("adclick-canaries", b"1"),)), "rejected"),
        (Sent(b"adclick-canary soon", NOW, headers=_HEADERS), "rejected"),
        (Sent(_VALUE + b"0" * 20, NOW, headers=_HEADERS), "rejected"),
        (Sent(None, NOW, headers=_HEADERS), "rejected"),
        (Sent(event("a", NOW, NOW).value, NOW, b"a", _HEADERS), "counted"),
        (Sent(_VALUE, NOW, headers=(("x", b"y" * 5_000), *_HEADERS)), "rejected"),
    ],
)
def test_a_canary_has_both_its_header_and_its_value(message: Sent, outcome: str) -> None:
    ingest = Ingest()
    ingest.take({0: [event("first", NOW, NOW), message]})
    expected = Counter({"counted": 1}) + Counter([outcome])
    counts = msgspec.structs.asdict(ingest.counts)
    assert {name: counts[name] for name in ("counted", "rejected", "canary") if counts[name]} == expected
    assert len(ingest.letters) == expected["rejected"]


def test_no_search_for_an_event_finds_a_canary() -> None:
    for event_id in ("adclick-canary", str(NOW), _VALUE.decode()):
        assert not is_about(event_id, None, _VALUE)


def test_the_last_canary_counts_and_none_is_from_the_future() -> None:
    ingest = Ingest()
    ingest.take({0: [canary(NOW + 5, NOW + HOUR_MS), canary(NOW + 9, NOW - 2), event("a", NOW, NOW)]})
    assert ingest.owned[0].position.canary_ms == NOW - 2, "a clock that was wrong is right again"
    ingest.take({0: [canary(NOW + 30, NOW + HOUR_MS)]})
    assert ingest.owned[0].position.canary_ms == NOW + 30, "it was appended then, so it was not sent later"
    ingest.take({0: [canary(NOW + 40, NOW - HOUR_MS)]})
    assert ingest.owned[0].position.canary_ms == NOW + 40 - MINUTE_MS, "it did not wait for longer"
    ingest.take({0: [canary(-1, NOW + 50)]})
    assert ingest.owned[0].position.canary_ms == NOW + 50


def test_very_many_canaries_of_a_batch_have_marks_that_fit_messages() -> None:
    offsets = [10**15 + n for n in range(200_000)]
    marks = list(mark_records("ad-canaries", 1, offsets))
    assert max(len(mark.value or b"") for mark in marks) < 1_000_000
    decoded = [msgspec.json.decode(mark.value or b"", type=CanaryMark) for mark in marks]
    assert [offset for mark in decoded for offset in mark.offsets] == offsets


# -- silence -----------------------------------------------------------------------------------------------------------


class OneBatch:
    """Kafka's side of a worker: a batch to take, where the logs end, and what was written."""

    leaves_messages = False
    member = None

    def __init__(self, taken: dict[int, list[Records]]) -> None:
        self._taken, self.ends = taken, {p: records[-1].next_offset for p, records in taken.items()}
        self.written, self.waits = list[BlockHeader](), list[bytes | None]()

    def take(self, _count: int, _timeout_s: float) -> dict[int, list[Records]]:
        return self._taken

    def end(self, partition: int) -> int:
        return self.ends[partition]

    def unreadable(self) -> dict[int, CorruptBatch]:
        return {}

    def waits_only_for(self, partition: int, is_such: Callable[[bytes | None], bool]) -> bool:
        return bool(self.waits) and all(map(is_such, self.waits))

    def write(self, records: Sequence[Record], **_: Any) -> None:
        block = next(record for record in records if record.topic == topics.BLOCKS)
        self.written.append(blocks.decode_block(block.value or b"", "here")[1])


def _turn(last_active_s: float, *messages: Sent, then: bytes | None = b"") -> tuple[SourceRange, SourcePartition]:
    """What a worker writes of a partition to which these messages came, and the partition then. `then`: a value that came meanwhile."""
    kafka = OneBatch({0: [records_of(messages, 7)]})
    if then:
        kafka.waits.append(then)
        kafka.ends[0] += 1
    registry = Registry(FakeRedis(), "x:", ttl_s=60, segment_ids=20_000)
    worker: Any = IngestWorker(SETTINGS, "ingest-0")
    worker._consumer = worker._producer = kafka
    worker._processor = BatchProcessor(SETTINGS, registry)
    position = Position(7, watermark_ms=NOW, log_time_ms=NOW)
    worker._owned[0] = SourcePartition(0, position, registry.begin(0, 7), time.monotonic() - last_active_s, 0)
    worker._run_turn()
    return kafka.written[0].ranges[0], worker._owned[0]


def test_a_canary_neither_ends_a_silence_nor_keeps_it_from_beginning() -> None:
    written, partition = _turn(60.0, canary(NOW + 1, NOW))
    assert written == SourceRange(0, 7, 8, NOW, True, NOW)
    assert time.monotonic() - partition.active_at_s > 59
    written, _ = _turn(1.0, canary(NOW + 1, NOW))
    assert not written.silent, "it has been quiet for a second alone"
    written, partition = _turn(60.0, canary(NOW + 1, NOW), event("a", NOW, NOW))
    assert not written.silent
    assert time.monotonic() - partition.active_at_s < 30
    written, _ = _turn(60.0, canary(NOW + 1, NOW), then=_VALUE)
    assert written.silent, "another canary waits to be read"
    written, _ = _turn(60.0, canary(NOW + 1, NOW), then=event("a", NOW, NOW).value)
    assert not written.silent, "an event waits to be read"


# -- the stream --------------------------------------------------------------------------------------------------------


def _range(offset: int, canary_ms: int, partition: int = 0) -> SourceRange:
    return SourceRange(partition, offset, offset + 1, NOW, False, canary_ms)


def test_a_canary_goes_on_with_the_flush_behind_it_and_is_a_reason_for_one() -> None:
    intake, state = Intake(MINUTE_MS, 2, Durable()), StageState(MINUTE_MS, 2)
    intake.apply_block(0, frame([]), BlockHeader(5, (_range(0, 0), _range(0, 0, 1)), 1), "here")
    assert not intake.waiting().has_canary
    intake.apply_block(1, frame([]), BlockHeader(5, (_range(1, NOW), _range(1, NOW + 5, 1)), 1), "here")
    assert intake.waiting().has_canary
    assert intake.shown_canaries == Canaries(NOW, NOW + 5), "nothing is before it that is not shown"
    flush = state.fold(intake.take())
    published = state.commit(flush)
    intake.settle(state.durable)
    assert published.canaries == Canaries(NOW, NOW + 5)
    assert not intake.waiting().has_canary
    # The hour stage gets it by the chunk.
    hour = Intake(HOUR_MS, 2, Durable())
    hour.apply_chunk(0, flush.delta, flush.header, "here")
    assert hour.waiting().has_canary
    assert hour.closing.canaries() == published.canaries


def test_rows_before_a_canary_are_shown_before_it() -> None:
    intake, state = Intake(MINUTE_MS, 1, Durable()), StageState(MINUTE_MS, 1)
    intake.apply_block(0, frame([partial(window_ms=NOW)]), BlockHeader(5, (_range(0, NOW),), 1), "here")
    assert intake.shown_canaries == Canaries()
    state.commit(state.fold(intake.take()))
    intake.settle(state.durable)
    assert intake.shown_canaries == Canaries(NOW, NOW)


def test_flushes_without_rows_send_nothing_to_insights() -> None:
    intake, state = Intake(MINUTE_MS, 1, Durable()), StageState(MINUTE_MS, 1, sends_closed=True)
    flushes = []
    for n in range(4):
        intake.apply_block(n, frame([]), BlockHeader(5, (_range(n, NOW + n),), 1), "here")
        flushes.append(state.fold(intake.take()))
        state.commit(flushes[-1])
        intake.settle(state.durable)
    assert [len(flush.tombstones) for flush in flushes] == [0, 1, 1, 1]
    assert [flush.closed_rows for flush in flushes[1:]] == [None] * 3


# -- other releases ----------------------------------------------------------------------------------------------------


class FormerRange(msgspec.Struct, frozen=True, array_like=True):
    """A source range as releases without canaries read it."""

    partition: int
    from_offset: int
    to_offset: int
    watermark_ms: int | None
    silent: bool


def test_what_releases_without_canaries_wrote_is_read_and_they_read_what_this_one_writes() -> None:
    former, now = FormerRange(1, 2, 3, 4, True), SourceRange(1, 2, 3, 4, True, NOW)
    assert msgspec.json.decode(msgspec.json.encode(former), type=SourceRange) == SourceRange(1, 2, 3, 4, True, 0)
    assert msgspec.json.decode(msgspec.json.encode(now), type=FormerRange) == former
    assert msgspec.json.decode(b"[7,8,false]", type=Source) == Source(7, 8, False, 0)
    assert Closing(sources={0: Source(7, 8, False)}).canaries() == Canaries()
    position = Position.committed(5, '{"v":2,"wm":1,"lt":2,"turns":[],"topic":"id","base":0,"epoch":3}')
    assert position == Position(5, 1, 2, (), "id", 0, 3, 0, 0)
    assert Position.committed(5, Position(5, canary_ms=NOW, canaries=3).metadata()) == Position(
        5, canary_ms=NOW, canaries=3
    )
    assert (archived_to('{"to": 9}'), archived_canary_ms('{"to": 9}'), archived_canary_ms("")) == (9, 0, 0)
    assert (archived_to(metadata_of(9, NOW)), archived_canary_ms(metadata_of(9, NOW))) == (9, NOW)


# -- what operators see ------------------------------------------------------------------------------------------------


def test_ages_are_those_of_the_newest_canary_and_of_the_slowest_path() -> None:
    arrivals = {
        "hot": of_shards([Canaries(NOW - 9_000, NOW - 1_000), Canaries(), Canaries(NOW - 90_000, NOW - 2_000)]),
        "ingest": of_partitions("ad-events", [NOW - 2_000, 0, NOW - 70_500]),
        "archive": of_partitions("ad-archive", [0, 0, 0]),
        "cold": (Canaries(NOW + 50, NOW + 60), ""),
    }
    assert describe_ages(arrivals, NOW) == [
        {"tier": "ingest", "age_s": 2.0, "slowest_s": 70.5, "slowest": "ad-events/2"},
        {"tier": "hot", "age_s": 1.0, "slowest_s": 90.0, "slowest": "shard 2"},
        {"tier": "cold", "age_s": 0.0, "slowest_s": 0.0, "slowest": None},
    ]


def test_canaries_make_no_share_of_dead_letters_smaller() -> None:
    watch = PipelineWatch()

    def seen(messages: int, canaries: int, at_ms: int) -> tuple[int | None, int | None]:
        counts = {"messages": messages, "rejected": messages // 10, "canary": canaries}
        facts = watch.observe(status(ingest_workers=[{"worker": "a", "started_ms": 1, "counts": counts}]), at_ms)
        return facts.messages, facts.rejected

    seen(100, 10, NOW)
    assert seen(300, 110, NOW + MINUTE_MS) == (100, 20)


class Broker:
    """Takes canaries, or refuses them."""

    def __init__(self) -> None:
        self.rounds = list[list[Record]]()
        self.refusal = ""

    def send(self, records: Iterable[Record], wait_s: float) -> tuple[int, str]:
        self.rounds.append(list(records))
        return (0, self.refusal) if self.refusal else (len(self.rounds[-1]), "")


def test_the_sender_goes_on_while_brokers_refuse_canaries() -> None:
    broker, clock = Broker(), iter(range(NOW, NOW + 1_000_000))
    configured = Settings.model_validate({"event_partitions": 3, "canary_s": 1})
    worker = CanaryWorker(configured.model_copy(update={"canary_s": 0.01}), broker, lambda: next(clock))
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: len(broker.rounds) >= 2, 5, "canaries are sent")
    broker.refusal = "broker: topic authorization failed"
    refused = len(broker.rounds)
    wait_until(lambda: len(broker.rounds) >= refused + 2, 5, "it goes on")
    worker.stop()
    thread.join(5)
    assert not thread.is_alive()
    first, second = broker.rounds[:2]
    assert [(record.topic, record.partition) for record in first] == [("ad-events", p) for p in range(3)]
    assert {record.value for record in first} == {encode_canary(NOW)[0]}
    assert {record.value for record in second} == {encode_canary(NOW + 1)[0]}
