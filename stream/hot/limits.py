"""Sizes and times by which the hot tier decides in which form rows are written, and when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HotLimits:
    """Limits of one shard's writer."""

    roll_up_above_rows: int = 128
    """A cell of more rows comes with its roll-ups."""
    roll_up_after_s: float = 2.0
    """For so long an open minute is shown without roll-ups: its rows are few at first, and readers do not look at those of a backlog
    before it closes."""
    gather_after_flushes: int = 12
    gather_spread: int = 8
    """Up to so many flushes more, by campaign, so that the cells of a minute are not all written whole with the same flush."""
    gather_above_rows: int = 64
    """A cell is gathered because of its rows only when flushes have brought at least so many."""
    rewrite_above_rows: int = 64
    """Late rows are added to a packed cell until they are more than this, and half of what it has; then it is written whole."""
    live_after_s: float = 10.0
    """A minute that was open for less came from a backlog. Much of it was never shown, so it is packed as it closes: nobody waits for
    what is fresh, and its rows are written once."""
    waiting_minutes: int = 5
    """As many closed minutes wait for the packer; more are packed as they close."""
    pack_call_bytes: int = 128 << 10
    """A call of the packer ends with the cell that takes it past this: Redis serves nobody else meanwhile."""


DEFAULT_LIMITS = HotLimits()
