"""A partition that has messages and is not read is noticed; one that has none, or is read, is not."""

from __future__ import annotations

from infra.kafka.stalls import StallWatch

OFFSETS = {5, 6, 20}
"""Of messages; all others are of markers."""


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_partition_that_stands_still_with_messages_is_stalled() -> None:
    clock, looks = Clock(), list[int]()

    def has_message(_partition: int, offset: int) -> bool:
        looks.append(offset)
        return any(offset <= of for of in OFFSETS)

    watch = StallWatch(has_message, patience_s=10.0, clock=clock)
    assert watch.stalled({0: 5}, {0: 21}) == []
    clock.now = 9.0
    assert watch.stalled({0: 5}, {0: 21}) == []
    clock.now = 11.0
    assert watch.stalled({0: 5}, {0: 21}) == []
    clock.now = 21.0
    assert watch.stalled({0: 5}, {0: 21}) == [0]
    # It moves on: its time begins anew.
    assert watch.stalled({0: 7}, {0: 21}) == []
    clock.now = 32.0
    assert watch.stalled({0: 7}, {0: 21}) == []
    clock.now = 42.0
    assert watch.stalled({0: 7}, {0: 21}) == [0]
    assert looks == [5, 5, 7, 7]


def test_a_message_that_comes_behind_markers_just_before_the_look_is_no_stall() -> None:
    clock, offsets = Clock(), set[int]()
    watch = StallWatch(lambda _, offset: any(offset <= of for of in offsets), patience_s=10.0, clock=clock)
    assert watch.stalled({0: 5}, {0: 6}) == []
    clock.now = 11.0
    offsets.add(6)
    assert watch.stalled({0: 5}, {0: 8}) == []
    clock.now = 26.0
    assert watch.stalled({0: 7}, {0: 8}) == []
    clock.now = 37.0
    offsets.add(8)
    assert watch.stalled({0: 7}, {0: 10}) == []


def test_a_message_that_has_just_come_to_an_idle_partition_is_no_stall() -> None:
    clock = Clock()
    watch = StallWatch(lambda _partition, _offset: True, patience_s=10.0, clock=clock)
    for minute in range(10):
        clock.now = 60.0 * minute
        assert watch.stalled({0: 100}, {0: 100}) == []
    clock.now += 5.0
    assert watch.stalled({0: 100}, {0: 102}) == []
    clock.now += 9.0
    assert watch.stalled({0: 100}, {0: 102}) == []
    clock.now += 10.0
    assert watch.stalled({0: 100}, {0: 102}) == [0]


def test_markers_alone_are_no_messages_and_are_looked_at_once() -> None:
    clock, looks = Clock(), list[int]()

    def has_message(_partition: int, offset: int) -> bool:
        looks.append(offset)
        return any(offset <= of for of in OFFSETS)

    watch = StallWatch(has_message, patience_s=10.0, clock=clock)
    for now in (0.0, 11.0, 22.0, 33.0):
        clock.now = now
        assert watch.stalled({0: 21, 1: 30}, {0: 23, 1: 30}) == []
    assert looks == [21]


def test_a_partition_that_was_away_begins_anew() -> None:
    clock = Clock()
    watch = StallWatch(lambda _partition, _offset: True, patience_s=10.0, clock=clock)
    watch.stalled({0: 5}, {0: 9})
    clock.now = 11.0
    assert watch.stalled({}, {}) == []
    assert watch.stalled({0: 5}, {0: 9}) == []
    clock.now = 22.0
    assert watch.stalled({0: 5}, {0: 9}) == []
    clock.now = 33.0
    assert watch.stalled({0: 5}, {0: 9}) == [0]
