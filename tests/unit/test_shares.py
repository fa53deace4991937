"""Taking messages of partitions so that they advance together in time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka.shares import MOST_PARTITIONS, shares

times = st.lists(st.integers(0, 50), max_size=40).map(lambda t: np.array(t, np.int64))
waiting = st.dictionaries(st.integers(0, 99), st.lists(times, max_size=3), max_size=40)


@given(waiting, st.integers(1, 200))
def test_a_batch_is_full_or_has_all_there_is_or_all_of_a_few_partitions(
    partitions: dict[int, list[np.ndarray]], count: int
) -> None:
    taken = shares(partitions, count)
    sizes = {p: sum(map(len, parts)) for p, parts in partitions.items()}
    full = [p for p, size in sizes.items() if size]
    if len(full) <= MOST_PARTITIONS:
        assert sum(taken.values()) == min(count, sum(sizes.values()))
    else:
        assert min(count // 2, sum(sizes.values())) <= sum(taken.values()) <= count
    assert all(0 <= taken[p] <= sizes[p] for p in taken)


def test_half_a_batch_is_taken_where_many_partitions_have_few_messages() -> None:
    taken = shares({p: [np.arange(2_000)] for p in range(64)}, 100_000)
    assert sum(taken.values()) == 50_000


@pytest.mark.parametrize("count", [1, 2, 3])
def test_however_small_a_batch_is_the_partition_that_waits_for_longest_gets_a_message(count: int) -> None:
    old, fresh = np.zeros(100, np.int64), np.full(100, 1_000)
    assert shares({1: [fresh], 0: [old]}, count)[1] > 0


def test_partitions_of_a_backlog_advance_together_in_time() -> None:
    rates = {0: 1, 1: 2, 2: 5}
    partitions = {p: [np.repeat(np.arange(3_000), rate)] for p, rate in rates.items()}
    taken = shares(partitions, 8_000)
    reached = [partitions[p][0][taken[p] - 1] for p in partitions]
    # Half is shared alike: the one with the fewest messages a second is ahead.
    assert reached[1] - reached[2] < 10 and reached[0] < 1.5 * reached[2]


def test_an_old_backlog_leaves_room_for_fresh_messages_of_others() -> None:
    old, fresh = np.zeros(100_000, np.int64), np.full(500, 1_000_000)
    taken = shares({0: [old], 1: [fresh], 2: [fresh]}, 10_000)
    assert taken == {0: 9_000, 1: 500, 2: 500}


def test_a_batch_of_a_backlog_takes_from_a_few_partitions_and_each_gets_its_turn() -> None:
    partitions = {p: [np.arange(1_000_000, 1_050_000) + 1_000 * p] for p in range(64)}
    counts, order = dict.fromkeys(partitions, 0), list(partitions)
    for _ in range(12):
        taken = shares({p: [partitions[p][0][counts[p] :]] for p in order}, 16_000)
        assert sum(taken.values()) == 16_000 and len(taken) <= MOST_PARTITIONS
        counts = {p: n + taken.get(p, 0) for p, n in counts.items()}
        order = [*(p for p in order if p not in taken), *taken]
    assert min(counts.values()) > 0
