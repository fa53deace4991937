"""How long ago the newest canary was sent that has got to each tier, over all its paths and of the slowest one.

A path is a partition of ad-events, from its producer to the tier. Each tier tells which canaries have got there by what it commits
anyway, so no process has to be asked. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ingest.canary.arrivals import Canaries

TIERS = ("ingest", "archive", "hot", "warm", "cold")
"""The names of tiers, in the order of the path."""
Arrivals = Mapping[str, tuple[Canaries, str]]
"""Tier → the canaries that have got there, and where its slowest path is, or an empty text."""


def of_partitions(topic: str, sent_ms: Sequence[int]) -> tuple[Canaries, str]:
    """Of the last canary of each partition of a topic, 0 where there was none."""
    canaries = Canaries.of(sent_ms)
    return canaries, f"{topic}/{list(sent_ms).index(canaries.oldest_ms)}" if canaries.newest_ms else ""


def of_shards(shards: Sequence[Canaries]) -> tuple[Canaries, str]:
    """Of the canaries that each shard of a tier has."""
    canaries = Canaries.over(shards)
    slowest = next(
        (n for n, shard in enumerate(shards) if canaries.newest_ms and shard.oldest_ms == canaries.oldest_ms), 0
    )
    return canaries, f"shard {slowest}" if canaries.newest_ms else ""


def describe_ages(arrivals: Arrivals, now_ms: int) -> list[dict[str, Any]]:
    """For each tier that a canary has got to: how old the newest one is, and that of the slowest path. An age is never negative: clocks
    may differ by a little."""
    return [
        {
            "tier": tier,
            "age_s": max(0, now_ms - canaries.newest_ms) / 1000,
            "slowest_s": max(0, now_ms - canaries.oldest_ms) / 1000,
            "slowest": slowest or None,
        }
        for tier in TIERS
        for canaries, slowest in [arrivals.get(tier, (Canaries(), ""))]
        if canaries.newest_ms
    ]
