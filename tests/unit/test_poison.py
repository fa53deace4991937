"""Which messages a worker fails on is found among those that come with them, and nothing is passed over because of one of our errors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.columnar.columns import PADDING, Values
from infra.errors import Aborted, Unavailable
from infra.kafka.record_batches import CorruptBatch, Records
from infra.retries import WAITS
from infra.settings import Settings
from ingest import poison
from ingest.dead_letters.letters import Letter, SourceMessage
from ingest.poison import Messages, Poison
from ingest.position import Position
from ingest.source_partition import SourcePartition
from ingest.worker import IngestWorker


def records(first: int, values: list[bytes]) -> Records:
    edges = np.cumsum([0, *map(len, values)])
    spans = np.array(list(pairwise(edges.tolist())), np.int64).reshape(-1, 2)
    texts = Values(np.frombuffer(b"".join(values) + bytes(PADDING), np.uint8), spans[:, 0], spans[:, 1])
    offsets = np.arange(first, first + len(values))
    return Records(offsets, offsets, texts, texts, first + len(values))


def offsets_of(parts: list[Records]) -> list[int]:
    return [offset for part in parts for offset in part.offsets.tolist()]


def fail_on_bad(messages: Messages) -> None:
    for parts in messages.values():
        assert parts, "a position is always there"
        if any(part.values[row] == b"bad" for part in parts for row in range(len(part.offsets))):
            raise ValueError("a bug")


_VALUES = st.lists(st.lists(st.sampled_from([b"good", b"fine", b"bad"]), max_size=4), min_size=1, max_size=3)


@given(st.dictionaries(st.integers(0, 3), _VALUES, min_size=1))
def test_each_partition_is_processed_up_to_the_first_message_that_fails(partitions: dict[int, Any]) -> None:
    messages = dict[int, list[Records]]()
    for p, parts in partitions.items():
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        messages[p] = [records(start, values) for start, values in zip(starts, parts, strict=False)]
    flat = {p: [value for part in parts for value in part] for p, parts in partitions.items()}
    before, found = poison.split_at_poison(messages, fail_on_bad)
    assert {p: offsets_of(parts) for p, parts in before.items()} == {
        p: list(range(values.index(b"bad") if b"bad" in values else len(values))) for p, values in flat.items()
    }
    assert {(x.partition, x.first, x.last, x.value) for x in found} == {
        (p, values.index(b"bad"), values.index(b"bad"), b"bad") for p, values in flat.items() if b"bad" in values
    }
    fail_on_bad(before)


def test_what_fails_without_any_message_is_not_blamed_on_one() -> None:
    def fail(_messages: Messages) -> None:
        raise ValueError("a bug")

    messages = {0: [records(0, [b"a", b"b"])]}
    assert poison.split_at_poison(messages, fail) == (messages, [])


@pytest.mark.parametrize("error", [Unavailable("Redis is away"), MemoryError()])
def test_a_backend_that_is_away_and_a_lack_of_memory_say_nothing_about_messages(error: Exception) -> None:
    def fail(_messages: Messages) -> None:
        raise error

    with pytest.raises(type(error)):
        poison.split_at_poison({0: [records(0, [b"a"])]}, fail)


def test_the_letter_of_a_batch_stands_for_all_of_its_messages_from_the_position_on() -> None:
    batch = CorruptBatch(17, "does not have the CRC-32C that its writer computed")
    batch.next_offset, batch.raw = 21, b"raw"
    found = poison.poison_of_batch(3, 18, batch)
    assert (found.name, found.records().next_offset) == ("3/18-20", 21)
    record = found.letter("ad-events-dead", "ad-events", 100, 1, "ingest")
    letter = Letter("1/0", record.key, record.value, {name: value.decode() for name, value in record.headers}, 0)
    assert letter.source == SourceMessage("ad-events", 3, 118)
    assert (letter.value, letter.batch_messages, letter.headers["reason"]) == (b"raw", 3, "unreadable")


def test_the_letter_of_a_message_has_its_key_and_bytes() -> None:
    record = Poison(0, 5, 5, "ValueError: a bug", b"{}", b"key").letter("ad-events-dead", "ad-events", 0, 0, "ingest")
    assert (record.value, record.key) == (b"{}", b"key")
    assert poison.MESSAGES not in dict(record.headers)


class Seeks:
    """A consumer that remembers where it was told to read on: (offset, whether it is held there)."""

    def __init__(self) -> None:
        self.made = list[tuple[int, bool]]()

    def seek(self, _partition: int, offset: int, _leader_epoch: int = -1, *, hold: bool = False) -> None:
        self.made.append((offset, hold))


@pytest.mark.parametrize(("committed", "seeks", "is_held"), [(100, [(100, False)], False), (150, [(150, True)], True)])
def test_messages_before_poison_that_were_rolled_back_are_read_again(
    committed: int, seeks: list[tuple[int, bool]], is_held: bool
) -> None:
    consumer, worker = Seeks(), IngestWorker(Settings.model_validate({}), "ingest-0")
    anything: Any = consumer
    worker._consumer = anything
    worker.stop()  # no pause after the abort
    mirror: Any = None
    partition = SourcePartition(0, Position(committed), mirror, 0.0, 0, poison=Poison(0, 150, 150, "a bug", b"bad"))
    worker._owned[0] = partition
    worker._roll_back(Aborted("the queue is full"))
    worker._end_aborts()
    assert not WAITS.reasons()
    assert consumer.made == seeks
    assert (partition.poison is not None) == is_held


def test_a_letter_is_never_larger_than_its_topic_takes() -> None:
    letter = Poison(0, 7, 7, "a bug", bytes(20 << 20)).letter("dead", "events", 0, 0, "ingest")
    assert letter.value is not None and len(letter.value) == poison.MOST_LETTER_BYTES
