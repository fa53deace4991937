"""Dedup against an oracle: one event at a time over the whole log."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.columnar.columns import Values
from infra.errors import Unavailable
from ingest.dedup.bloom import Filter
from ingest.dedup.copies import NOT_A_COPY, find_copies, oldest_needed
from ingest.dedup.digest import Digests
from ingest.dedup.digest import digest_ids as of_values
from ingest.dedup.registry import Lookups, Registry, RegistryLost, redis_key
from tests.unit.fakes import FakeRedis


def digest(names: list[str]) -> Digests:
    return of_values(Values.of([name.encode() for name in names]))


def registry(store: FakeRedis, segment_ids: int = 1_000) -> Registry:
    return Registry(store, "x:", ttl_s=60, segment_ids=segment_ids)


def test_a_filter_has_no_false_negatives_and_equals_pybloom_bit_by_bit() -> None:
    known, others = digest([f"k{i}" for i in range(3_000)]), digest([f"o{i}" for i in range(3_000)])
    bloom, loaded = Filter(3_000), Filter(3_000)
    for start in range(0, 3_000, 250):
        bloom.add(known[start : start + 250])
    loaded.restore(bloom.snapshot())
    for filter_ in (bloom, loaded):
        assert filter_.contains(known).all()
        hits = filter_.contains(others)
        assert hits.mean() < 0.01
        assert [d.tobytes() in filter_ for d in others] == hits.tolist()
        assert all(d.tobytes() in filter_ for d in known)


def test_the_filter_of_a_dropped_generation_is_freed_without_a_collection() -> None:
    gc.disable()
    try:
        known = registry(FakeRedis())
        memory = known.begin(0, 0)
        known.record(memory, {1: (digest(["a"]), np.array([5]))}, up_to=6, oldest_generation=0)
        dropped = weakref.ref(memory.generations[1].opened().filter.bloom)
        assert dropped() is not None
        known.record(memory, {9: (digest(["b"]), np.array([6]))}, up_to=7, oldest_generation=8)
        assert dropped() is None, "megabytes a generation, and no collection for hours"
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
    st.tuples(st.integers(1, 9), st.sampled_from(["ok", "ok", "crash", "abort", "zombie"])), min_size=1, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(_steps, _batches, st.sampled_from([1, 3, 8, 1_000]))
def test_each_id_counts_once_with_any_batches_crashes_and_aborts(
    steps: list[tuple[str, int]], batches: list[tuple[int, str]], segment_ids: int
) -> None:
    log: Log = []
    generation = 100
    for name, turn in steps:
        generation += turn
        log.append((name, generation))
    store = FakeRedis()
    known = registry(store, segment_ids)
    memory = known.begin(0, 0)
    zombies = [memory]
    verdicts: list[int] = []
    turn = 0
    while len(verdicts) < len(log):
        size, fate = batches[turn % len(batches)] if turn < len(batches) else (5, "ok")
        turn += 1
        start = len(verdicts)
        part = log[start : start + size]
        digests = digest([name for name, _ in part])
        offsets, generations = np.arange(start, start + len(part)), np.array([g for _, g in part])
        end = start + len(part)
        before = log[start - 1][1] if start else log[0][1]
        if fate == "zombie":
            # One that had the partition before does the same work: it notices, or it is in time and this one notices.
            memory, zombies = zombies[turn % len(zombies)], [*zombies, memory]
        for _ in range(3):
            decision = find_copies(memory, known, digests, offsets, generations)
            try:
                known.record(memory, decision.news, up_to=end, oldest_generation=oldest_needed(before))
                break
            except Unavailable:
                continue
        else:
            raise AssertionError("never recorded")
        if fate == "crash":
            # Recorded and not committed: another worker takes over at the committed offset.
            zombies.append(memory)
            loaded = known.load(0)
            assert loaded is not None
            memory = loaded
        elif fate != "abort":
            verdicts += decision.copy_of.tolist()
    assert verdicts == oracle(log)


def test_certainly_new_ids_are_not_looked_up() -> None:
    store = FakeRedis()
    known = registry(store, segment_ids=10_000)
    memory = known.begin(0, 0)
    digests = digest([f"n{i}" for i in range(1_000)])
    first = find_copies(memory, known, digests, np.arange(1_000), np.full(1_000, 7))
    known.record(memory, first.news, up_to=1_000, oldest_generation=0)
    others = digest([f"m{i}" for i in range(1_000)])
    second = find_copies(memory, known, others, np.arange(1_000, 2_000), np.full(1_000, 8))
    known.record(memory, second.news, up_to=2_000, oldest_generation=0)
    assert first.lookups == second.lookups == Lookups()
    assert [kept.closed for kept in memory.head.generations.values()] == [1, 0], "a generation that is over"
    again = find_copies(memory, known, digests, np.arange(2_000, 3_000), np.full(1_000, 8))
    assert 1_000 <= again.lookups.positives == store.commands["GETRANGE"] < 1_010
    assert again.lookups.false == again.lookups.positives - 1_000
    assert again.copy_of.tolist() == list(range(1_000))


def test_a_write_of_another_worker_and_a_lost_write_are_detected() -> None:
    store = FakeRedis()
    known = registry(store)
    memory = known.begin(0, 0)
    before = dict(store.values)
    other = known.load(0)
    assert other is not None
    ids = digest(["a", "b"])
    known.record(other, {7: (ids, np.arange(2))}, up_to=2, oldest_generation=0)
    with pytest.raises(Unavailable, match="another worker recorded"):
        known.record(memory, {7: (ids[:1], np.arange(1))}, up_to=1, oldest_generation=0)
    assert memory.recorded_up_to == 2
    assert known.lookup(memory, 7, ids)[0].tolist() == [0, 1]
    for lost in (
        {},
        before,
        {k: v for k, v in store.values.items() if "open" not in k} | {redis_key("x:", 0, "head"): b"?"},
    ):
        store.values = dict(lost)
        with pytest.raises(RegistryLost):
            known.record(memory, {}, up_to=9, oldest_generation=0)
    store.values = {k: v for k, v in store.values.items() if k.endswith("head")}
    assert known.load(0) is None, "a head without its rows"


def test_a_lost_closed_segment_is_detected() -> None:
    store = FakeRedis()
    known = registry(store, segment_ids=100)
    memory = known.begin(0, 0)
    ids = digest([f"n{i}" for i in range(100)])
    known.record(memory, {7: (ids, np.arange(100))}, up_to=100, oldest_generation=0)
    segment = redis_key("x:", 0, 7, 0)
    for damage in (lambda v: v[:-1], lambda v: b""):
        store.values[segment] = damage(store.values[segment])
        with pytest.raises(RegistryLost):
            known.lookup(memory, 7, ids)
        assert known.load(0) is None


def test_only_possible_copies_of_lost_ids_are_in_doubt() -> None:
    known = registry(FakeRedis())
    former = known.begin(0, 0)
    old = digest([f"old{i}" for i in range(100)])
    first = find_copies(former, known, old, np.arange(100), np.full(100, 7))
    known.record(former, first.news, up_to=100, oldest_generation=0)
    memory = known.begin(0, 100, {7})
    both = np.concatenate((old, digest([f"new{i}" for i in range(100)])))
    offsets, generations = np.arange(100, 300), np.full(200, 8)
    # Without the filters anything may be a copy.
    assert find_copies(memory, known, both, offsets, generations).doubt.all()
    memory.inherit(former)
    for _ in range(2):
        judged = find_copies(memory, known, both, offsets, generations)
        assert judged.doubt[:100].all()
        assert judged.first[100:].mean() > 0.95
        assert not (judged.first & judged.doubt).any()
        # Read again after an abort, the verdicts are the same.
        known.record(memory, judged.news, up_to=300, oldest_generation=0)
    assert set(judged.news) == {8}
    later = find_copies(memory, known, both, offsets + 200, generations)
    assert not later.first.any()
    known.record(memory, {}, up_to=301, oldest_generation=8)
    assert not memory.doubtful
