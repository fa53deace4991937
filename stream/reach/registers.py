"""HyperLogLog of users whose hashes are random already: registers by column, and the estimate from how many have which rank.

A user is 63 random bits (`ingest.events`): the lowest 13 choose the register, the leading zeros of the other 50 are its rank. A
*coupon* is a register's number and a rank in 32 bits. The union of two sets of users is the union of their coupons, so coupons that
are stored twice change nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from infra.columnar.columns import Ints

Coupons = npt.NDArray[np.uint32]
Estimates = npt.NDArray[np.float64]

PRECISION = 13
REGISTERS = 1 << PRECISION
_RANK_BITS = 63 - PRECISION
MAX_RANK = _RANK_BITS + 1
"""The rank of a user whose other bits are all zero."""
STANDARD_ERROR = 1.04 / REGISTERS**0.5
_ALPHA = 0.5 / math.log(2.0)


def coupons_of(users: Ints) -> Coupons:
    """The coupon of each user: `register | rank << PRECISION`."""
    # The bits of a number below 2⁵³ are those of its exponent as a float: frexp(0) is 0.
    bits = np.frexp((users >> PRECISION).astype(np.float64))[1]
    ranks = (MAX_RANK - bits).astype(np.uint32)
    return (users & (REGISTERS - 1)).astype(np.uint32) | ranks << np.uint32(PRECISION)


def unique_coupons(coupons: Coupons) -> Coupons:
    """The greatest coupon of each register, in the order of registers: all that an estimate needs."""
    registers = np.zeros(REGISTERS, np.uint32)
    np.maximum.at(registers, coupons & np.uint32(REGISTERS - 1), coupons)
    return registers[registers > 0]


def count_ranks(coupons: Coupons) -> Ints:
    """(MAX_RANK + 1,): how many registers have each rank; rank 0 where there is no coupon."""
    counts = np.bincount(unique_coupons(coupons) >> np.uint32(PRECISION), minlength=MAX_RANK + 1)
    counts[0] = REGISTERS - counts.sum()
    return counts.astype(np.int64)


def estimate(rank_counts: Ints) -> Estimates:
    """About how many different users there were, of each row of `rank_counts`; the standard error is STANDARD_ERROR.

    `rank_counts[…, rank]`: how many registers have this rank, from 0 to MAX_RANK. The count of rank 0 is not read: it is what is
    missing to REGISTERS. From O. Ertl, "New cardinality estimation algorithms for HyperLogLog sketches", arXiv 1702.01284,
    algorithm 6.
    """
    counts = rank_counts.astype(np.float64)
    empty = REGISTERS - counts[..., 1:].sum(-1)
    total = REGISTERS * _tau(1.0 - counts[..., MAX_RANK] / REGISTERS)
    for rank in range(_RANK_BITS, 0, -1):
        total = 0.5 * (total + counts[..., rank])
    total = total + REGISTERS * _sigma(empty / REGISTERS)
    return np.asarray(_ALPHA * REGISTERS**2 / total)


def _sigma(x: Estimates) -> Estimates:
    """x + Σ x^(2ᵏ) · 2^(k−1), the share of registers that are empty; infinite at 1."""
    infinite = np.asarray(x) == 1.0
    x = np.where(infinite, 0.0, x)
    weight, total, former = 1.0, x, np.full_like(x, -1.0)
    while (total != former).any():
        x = x * x
        former = total
        total = total + x * weight
        weight += weight
    return np.where(infinite, np.inf, total)


def _tau(x: Estimates) -> Estimates:
    """(1 − x − Σ (1 − x^(2⁻ᵏ))² · 2⁻ᵏ) / 3, the share of registers that have the highest rank."""
    zero = (np.asarray(x) == 0.0) | (np.asarray(x) == 1.0)
    x = np.where(zero, 1.0, x)
    weight, total, former = 1.0, 1.0 - x, np.full_like(x, -1.0)
    while (total != former).any():
        x = x**0.5
        former = total
        weight *= 0.5
        total = total - (1.0 - x) ** 2 * weight
    return np.where(zero, 0.0, total / 3.0)
