"""Requests by key: few series, whatever the number of keys, and counters that only grow."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from query.api.busiest_keys import OTHER_KEYS, BusiestKeys
from tests.unit.fakes import Clock

MOST = 3


def counts_of(keys: BusiestKeys) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels): sample.value for sample in keys.samples()}


def requests_of(keys: BusiestKeys) -> dict[str, float]:
    totals = Counter[str]()
    for (name, key, *_), value in counts_of(keys).items():
        totals[key] += int(value) if name == "adclick_key_requests_total" else 0
    return dict(totals)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from((200, 304, 404, 429, 503)), st.floats(0, 900)),
        max_size=200,
    )
)
def test_series_are_bounded_and_no_counter_that_stays_goes_down(uses: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    keys, before = BusiestKeys(MOST, lambda: clock.now), dict[tuple[str, ...], float]()
    for key, status, pause_s in uses:
        clock.now += pause_s
        keys.count(key, status)
        keys.charge(key, 10)
        now = counts_of(keys)
        assert len({key for _, key, *_ in now} - {OTHER_KEYS}) <= MOST
        assert all(now[series] >= value for series, value in before.items() if series in now)
        before = now


def test_a_key_that_becomes_busy_takes_the_place_of_the_quietest() -> None:
    clock = Clock()
    keys = BusiestKeys(MOST, lambda: clock.now)
    for key, n in (("a", 50), ("b", 40), ("c", 4), ("d", 9)):
        for _ in range(n):
            keys.count(key, 200)
    # Busier than c, by too little.
    assert requests_of(keys) == {"a": 50, "b": 40, "c": 4, OTHER_KEYS: 9}
    for _ in range(3):
        keys.count("d", 429)
    # What it was counted for before stays with the others.
    assert requests_of(keys) == {"a": 50, "b": 40, "d": 3, OTHER_KEYS: 9}
    # What was busy long ago makes room.
    clock.now += 6 * 600
    for _ in range(10):
        keys.count("c", 200)
    assert "c" in requests_of(keys)


def test_many_keys_of_the_same_use_do_not_take_turns() -> None:
    clock = Clock()
    keys, shown = BusiestKeys(MOST, lambda: clock.now), set[str]()
    for round_ in range(48):
        # Each key once in half an hour, which fades between.
        clock.now += 1800
        for key in range(200):
            keys.count(f"k{key}", 200)
        shown |= requests_of(keys).keys()
        assert round_ == 0 or len(shown - {OTHER_KEYS}) == MOST
