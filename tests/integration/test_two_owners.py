"""Two owners of one partition that both believe in it, as after a broker whose coordinator confirmed every member while it was loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.clock import MINUTE_MS
from infra.kafka.consumers import read_to_end
from infra.settings import Settings
from ingest import partials
from ingest.blocks import BlockHeader, SourceRange
from ingest.canary.arrivals import NO_CANARIES, Canaries
from stream.published import Publication
from stream.stage_partition import StagePartition
from stream.state import StageState
from stream.topology import MINUTE, Stage
from tests.unit.test_partials_and_cells import frame, partial


class NoSink:
    """Shows nothing."""

    packs = False

    def attach(self, snapshot: Publication) -> None:
        pass

    def prepare(self, published: Publication) -> None:
        pass

    def write(self, published: Publication) -> bool:
        return True

    def refresh(self, sent_ms: int, canaries: Canaries = NO_CANARIES) -> bool:
        return True

    def pack(self, given_up: Callable[[], bool]) -> None:
        pass


def make_sink(_stage: Stage, _partition: int) -> Any:
    return NoSink()


class Owner:
    """A stage partition whose group confirms it at any time."""

    def __init__(self, settings: Settings) -> None:
        self.partition = StagePartition(settings, MINUTE, 0, make_sink, lambda _moment: True)
        self.partition.recover()

    def apply(self, blocks: int) -> None:
        """Take the next blocks of the input, of an impression each."""
        for _ in range(blocks):
            offset = self.partition.intake.next_message
            header = BlockHeader(1, (SourceRange(0, offset, offset + 1, offset * MINUTE_MS, False),), 0)
            self.partition.intake.apply_block(offset, frame([partial(window_ms=offset * MINUTE_MS)]), header, "here")

    def flush(self) -> None:
        """Flush what was taken."""
        assert self.partition.begin_flush(0)
        self.partition.settle(self.partition.flush())


@pytest.fixture
def one_source(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of an installation with one source partition. The input itself is not in Kafka."""
    monkeypatch.setattr(StagePartition, "_check_input", lambda *_: None)
    return settings.model_copy(update={"event_partitions": 1})


def restored(settings: Settings) -> StageState:
    """What a successor finds in the log. Raises CorruptLog where ranges overlap."""
    state = StageState(MINUTE.grain_ms, 1)
    messages = read_to_end(settings.kafka_connection, settings.topic(MINUTE.state_topic), 0)
    state.restore([(m.key(), m.value()) for m in messages if m.value() is not None], "the log")
    return state


def impressions(state: StageState) -> int:
    return int(partials.merge_partials([w.whole() for w in state.windows.values()])["impressions"].sum())


def test_an_owner_does_not_take_the_flush_of_another_for_its_own(one_source: Settings) -> None:
    zombie = Owner(one_source)
    zombie.apply(2)
    zombie.flush()
    successor = Owner(one_source)
    # Both are at sequence 1, and flush for the second time, of which one has more.
    successor.apply(3)
    successor.flush()
    zombie.apply(1)
    zombie.flush()
    assert zombie.partition.dead.is_set()
    # Fenced by the zombie that looked, it finds its own flush in the log, and goes on.
    successor.apply(1)
    successor.flush()
    assert not successor.partition.dead.is_set()
    state = restored(one_source)
    assert state.durable.next_message in (5, 6)
    assert impressions(state) == state.durable.next_message


def test_of_two_owners_one_goes_on_whoever_looks_first(one_source: Settings) -> None:
    first = Owner(one_source)
    first.apply(2)
    first.flush()
    second = Owner(one_source)
    # The first one is fenced, and finds the log as it left it.
    first.apply(1)
    first.flush()
    assert not first.partition.dead.is_set()
    if first.partition.begin_flush(0):
        first.partition.settle(first.partition.flush())
    second.apply(2)
    second.flush()
    assert second.partition.dead.is_set()
    state = restored(one_source)
    assert (state.durable.next_message, impressions(state)) == (3, 3)
