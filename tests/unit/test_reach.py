"""Registers of users' hashes, against Python's own arithmetic and against sets."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.clock import DAY_MS, HOUR_MS
from infra.retries import WAITS
from infra.settings import Settings
from stream.reach import registers
from stream.reach.additions import Additions, ReachRows
from stream.reach.registers import MAX_RANK, PRECISION, REGISTERS, STANDARD_ERROR
from stream.reach.writer import ReachWriter, writing_reach
from tests.product import wait_until

START = 1_795_132_800_000
USERS = st.lists(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 2**16 - 1)), max_size=60)


def coupon(user: int) -> int:
    rest = format(user >> PRECISION, "050b")
    rank = len(rest) - len(rest.lstrip("0")) + 1
    return user % REGISTERS | rank << PRECISION


def greatest(users: list[int]) -> list[int]:
    """The greatest coupon of each register, in order."""
    by_register: dict[int, int] = {}
    for user in users:
        by_register[user % REGISTERS] = max(by_register.get(user % REGISTERS, 0), coupon(user))
    return [by_register[register] for register in sorted(by_register)]


@given(USERS)
def test_a_coupon_is_the_lowest_bits_and_the_leading_zeros_of_the_others(users: list[int]) -> None:
    assert registers.coupons_of(np.array(users, np.int64)).tolist() == [coupon(user) for user in users]


@given(USERS, USERS)
def test_the_union_of_users_is_that_of_coupons_in_any_order_and_repeated(ours: list[int], theirs: list[int]) -> None:
    a, b = (registers.coupons_of(np.array(users, np.int64)) for users in (ours, theirs))
    joined = registers.unique_coupons(np.concatenate((b, registers.unique_coupons(a), b)))
    assert joined.tolist() == greatest(ours + theirs)


def test_ranks_are_counted_over_all_registers() -> None:
    counts = registers.count_ranks(registers.coupons_of(np.array([0, 0, 1, 1 | 1 << 62], np.int64)))
    assert {rank: n for rank, n in enumerate(counts.tolist()) if n} == {0: REGISTERS - 2, MAX_RANK: 2}


@pytest.mark.parametrize("users", [1, 100, 5_000, 40_000, 2_000_000])
def test_the_estimate_is_near_the_number_of_users(users: int) -> None:
    hashes = np.random.default_rng(users).integers(0, 2**63, users)
    estimated = registers.estimate(registers.count_ranks(registers.coupons_of(hashes)))
    assert estimated == pytest.approx(users, rel=4 * STANDARD_ERROR)


@pytest.mark.parametrize(("rank", "users"), [(0, 0.0), (MAX_RANK, float("inf"))])
def test_the_estimate_of_registers_that_are_all_empty_or_all_full(rank: int, users: float) -> None:
    counts = np.zeros(MAX_RANK + 1, np.int64)
    counts[rank] = REGISTERS
    assert registers.estimate(counts) == users


# -- what is added -----------------------------------------------------------------------------------------------------

EVENT = st.tuples(
    st.integers(0, 60), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2**63 - 1) | st.integers(0, 3 << PRECISION)
)
"""Hour, campaign, advertiser and user."""


def add_all(additions: Additions, events: list[tuple[int, int, int, int]]) -> None:
    hours, campaigns, advertisers, users = np.array(events, np.int64).reshape(-1, 4).T
    times = START + hours * HOUR_MS + 7
    assert additions.add(times, campaigns, advertisers, registers.coupons_of(users)) == len(events)


def by_key(rows: ReachRows) -> dict[tuple[int, int, int], list[int]]:
    keys = zip(rows.start_ms.tolist(), rows.campaign_ids.tolist(), rows.advertiser_ids.tolist(), strict=True)
    return {key: rows.coupons[rows.edges[i] : rows.edges[i + 1]].tolist() for i, key in enumerate(keys)}


def registers_of(events: list[tuple[int, int, int, int]]) -> dict[tuple[int, int, int], list[int]]:
    users: dict[tuple[int, int, int], list[int]] = {}
    for hour, campaign, advertiser, user in events:
        users.setdefault((START + hour * HOUR_MS, campaign, advertiser), []).append(user)
    return {key: greatest(values) for key, values in users.items()}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.lists(EVENT, max_size=40), st.booleans()), max_size=4))
def test_all_rows_together_are_the_registers_of_all_events(
    batches: list[tuple[list[tuple[int, int, int, int]], bool]],
) -> None:
    additions, taken = Additions(HOUR_MS), dict[tuple[int, int, int], list[int]]()
    for events, is_taken in [*batches, ([], True)]:
        add_all(additions, events)
        if is_taken:
            rows = additions.take()
            keys = list(
                zip(rows.start_ms // DAY_MS, rows.campaign_ids, rows.start_ms, rows.advertiser_ids, strict=True)
            )
            assert keys == sorted(keys)
            for key, coupons in by_key(rows).items():
                assert not set(coupons) & set(taken.get(key, []))
                taken.setdefault(key, []).extend(coupons)
    assert {k: registers.unique_coupons(np.array(c, np.uint32)).tolist() for k, c in taken.items()} == registers_of(
        [event for events, _ in batches for event in events]
    )


def test_what_was_taken_is_added_again_only_after_it_was_forgotten() -> None:
    additions, events = Additions(HOUR_MS), [(0, 1, 1, 5), (1, 1, 1, 5)]
    add_all(additions, events)
    assert by_key(additions.take()) == registers_of(events)
    add_all(additions, events)
    assert len(additions.take()) == 0
    additions.forget()
    add_all(additions, events)
    assert by_key(additions.take()) == registers_of(events)


def test_rows_must_be_taken_where_there_is_no_room_for_more_keys_and_nothing_is_lost() -> None:
    additions, count = Additions(HOUR_MS), 300_000
    times, campaigns, advertisers = np.full(count, START), np.arange(count), np.ones(count, np.int64)
    coupons = registers.coupons_of(np.random.default_rng(1).integers(0, 2**63, count))
    done, taken = 0, list[ReachRows]()
    while done < count:
        done += additions.add(times[done:], campaigns[done:], advertisers[done:], coupons[done:])
        taken.append(additions.take())
    assert len(taken) > 1
    assert np.concatenate([rows.campaign_ids for rows in taken]).tolist() == campaigns.tolist()
    assert np.concatenate([rows.coupons for rows in taken]).tolist() == coupons.tolist()


# -- the thread --------------------------------------------------------------------------------------------------------


def test_an_error_of_its_own_ends_no_thread_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ReachWriter(Settings.model_validate({}))

    def fail() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(writer, "_session", fail)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        wait_until(lambda: WAITS.reasons() == {"reach": "reach: a bug"}, 5, "it is reported")
        assert not WAITS.holds_counting_up()
        assert thread.is_alive()
    finally:
        writer.stop()
        thread.join()
    assert not WAITS.reasons()


def test_no_thread_is_started_where_reach_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReachWriter, "run", pytest.fail)
    with writing_reach(Settings.model_validate({"reach": "off"})):
        assert "reach" not in {thread.name for thread in threading.enumerate()}
