"""Registers of users' hashes, against Python's own arithmetic and against sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.reach import registers
from stream.reach.registers import MAX_RANK, PRECISION, REGISTERS, STANDARD_ERROR

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
