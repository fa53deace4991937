"""Dedup against an oracle: one event at a time over the whole log."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.columns import Values
from ingest.dedup.bloom import GrowingBloom
from ingest.dedup.decision import NOT_A_COPY, PartitionMemory, decide, oldest_needed, remember
from ingest.dedup.digest import Digests
from ingest.dedup.digest import digest as of_values
from tests.unit.fakes import MemoryRegistry


def digest(names: list[str]) -> Digests:
    return of_values(Values.of([name.encode() for name in names]))


def test_a_filter_never_forgets_and_pybloom_agrees_bit_by_bit() -> None:
    known, others = digest([f"k{i}" for i in range(3_000)]), digest([f"o{i}" for i in range(3_000)])
    bloom = GrowingBloom(first_capacity=500)
    for start in range(0, 3_000, 250):
        bloom.add(known[start : start + 250])
    assert bloom.contains(known).all()
    found = bloom.contains(others)
    assert found.mean() < 0.05
    assert [d.tobytes() in bloom for d in others] == found.tolist()
    assert all(d.tobytes() in bloom for d in known)


def test_a_filter_that_is_dropped_is_freed_at_once() -> None:
    gc.disable()
    try:
        memory = PartitionMemory(0, 0, 0)
        dropped = weakref.ref(memory.filter_of(1)._filters[0].bloom)
        assert dropped() is not None
        memory.turn(9)
        assert dropped() is None, "one filter a batch, and no collection for hours"
    finally:
        gc.enable()


Log = list[tuple[str, int]]
"""(id, generation) by offset; generations never fall."""


def oracle(log: Log) -> list[int]:
    """The offset of the first occurrence, or NOT_A_COPY, for each event."""
    recorded: dict[str, tuple[int, int]] = {}
    verdicts = []
    for offset, (name, generation) in enumerate(log):
        before = recorded.get(name)
        if before is not None and generation - before[0] <= 1:
            verdicts.append(before[1])
        else:
            recorded[name] = (generation, offset)
            verdicts.append(NOT_A_COPY)
    return verdicts


_names = st.integers(0, 12).map(lambda n: f"id{n}")
_steps = st.lists(st.tuples(_names, st.sampled_from([0, 0, 0, 0, 1, 2])), max_size=60)
_batches = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["ok", "ok", "crash", "abort"])), min_size=1, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(_steps, _batches)
def test_each_id_counts_once_whatever_the_batches_crashes_and_aborts(
    steps: list[tuple[str, int]], batches: list[tuple[int, str]]
) -> None:
    log: Log = []
    generation = 100
    for name, turn in steps:
        generation += turn
        log.append((name, generation))
    registry = MemoryRegistry()
    registry.begin(0, 0)
    memory = PartitionMemory(0, 0, assigned_generation=log[0][1] if log else 0)
    verdicts: list[int] = []
    turn = 0
    while len(verdicts) < len(log):
        size, fate = batches[turn % len(batches)] if turn < len(batches) else (5, "ok")
        turn += 1
        start = len(verdicts)
        part = log[start : start + size]
        digests = digest([name for name, _ in part])
        offsets, generations = np.arange(start, start + len(part)), np.array([g for _, g in part])
        decision = decide(memory, registry, digests, offsets, generations)
        end = start + len(part)
        before = log[start - 1][1] if start else log[0][1]
        told = {"expected": memory.recorded_up_to, "up_to": end, "oldest_generation": oldest_needed(before)}
        assert registry.record(0, decision.news, **told)
        memory.recorded_up_to = max(memory.recorded_up_to, end)
        if fate == "crash":
            # Recorded and not committed: another worker takes over at the committed offset, without filters.
            memory = PartitionMemory(0, registry.up_to[0], assigned_generation=before)
        elif fate == "ok":
            remember(memory, decision)
            memory.turn(part[-1][1])
            verdicts += decision.copy_of.tolist()
    assert verdicts == oracle(log)


def test_certainly_new_ids_are_not_looked_up() -> None:
    registry = MemoryRegistry()
    registry.begin(0, 0)
    memory = PartitionMemory(0, 0, assigned_generation=-5)
    digests = digest([f"n{i}" for i in range(1_000)])
    first = decide(memory, registry, digests, np.arange(1_000), np.full(1_000, 7))
    registry.record(0, first.news, expected=0, up_to=1_000, oldest_generation=0)
    remember(memory, first)
    assert first.lookups == 0
    again = decide(memory, registry, digests, np.arange(1_000, 2_000), np.full(1_000, 8))
    assert again.lookups == 1_000
    assert again.copy_of.tolist() == list(range(1_000))


def test_what_may_be_a_copy_of_a_lost_id_is_in_doubt_and_nothing_else_is() -> None:
    registry = MemoryRegistry()
    registry.begin(0, 0)
    former = PartitionMemory(0, 0, assigned_generation=6)
    old = digest([f"old{i}" for i in range(100)])
    first = decide(former, registry, old, np.arange(100), np.full(100, 7))
    remember(former, first)
    registry.forget(0)
    registry.begin(0, 100, {7})
    memory = PartitionMemory(0, 100, assigned_generation=8, doubtful={7})
    both = np.concatenate((old, digest([f"new{i}" for i in range(100)])))
    offsets, generations = np.arange(100, 300), np.full(200, 8)
    # Without the filters anything may be a copy.
    assert decide(memory, registry, both, offsets, generations).doubt.all()
    memory.inherit(former)
    for _ in range(2):
        judged = decide(memory, registry, both, offsets, generations)
        assert judged.doubt[:100].all()
        assert judged.first[100:].mean() > 0.95
        assert not (judged.first & judged.doubt).any()
        # Read again after an abort, the verdicts are the same.
        assert registry.record(0, judged.news, expected=100, up_to=300, oldest_generation=0)
    assert set(judged.news) == {8}
    later = decide(memory, registry, both, offsets + 200, generations)
    assert not later.first.any()
    memory.turn(9)
    assert not memory.doubtful
