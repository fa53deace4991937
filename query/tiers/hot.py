"""Reads minutes from Redis: all places where a row may lie in one MULTI, so that none is seen twice or missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.clock import HOUR_MS, MINUTE_MS
from infra.redis import Redis
from query import answer
from query.answer import NAMES
from query.request import MEASURES, Question
from stream.chunks import CHANGED
from stream.sinks import rows
from stream.sinks.hot import base_key

_STRINGS = {name: pl.Series(list(values)) for name, values in NAMES.items()}
_MARKS = ("closed_ms", "packed_ms", "from_ms", "newest_ms")


@dataclass(frozen=True)
class Span:
    """What each shard says it holds. `from_ms` is None for a shard that says nothing: unknown, not zero.

    `newest_ms` is the newest minute of each shard that has rows; those that end at or before `packed_ms` have none by flush.
    """

    closed_ms: list[int | None]
    packed_ms: list[int | None]
    from_ms: list[int | None]
    newest_ms: list[int | None]

    @property
    def watermark_ms(self) -> int | None:
        """The closing watermark over all shards."""
        known = [c for c in self.closed_ms if c is not None]
        return min(known) if known and len(known) == len(self.closed_ms) else None

    @property
    def held_from_ms(self) -> int | None:
        """From when on all shards hold their minutes; None where one of them does not say."""
        return None if self.unknown else max(f for f in self.from_ms if f is not None)

    @property
    def unknown(self) -> list[int]:
        """Shards that say nothing."""
        return [s for s, f in enumerate(self.from_ms) if f is None]


class HotTier:
    """Raises Unavailable when Redis is away."""

    def __init__(self, redis: Redis, prefix: str, shards: int) -> None:
        self._redis, self._prefix, self._shards = redis, prefix, shards

    def span(self) -> Span:
        """What the tier holds, now."""
        found = self._redis.pipeline(
            [("HMGET", f"{base_key(self._prefix, s)}:span", *_MARKS) for s in range(self._shards)]
        )
        numbers = [[None if v is None or v == b"" else int(v) for v in marks] for marks in found]
        return Span(*([shard[i] for shard in numbers] for i in range(len(_MARKS))))

    def campaigns_of(self, advertiser: int) -> list[int]:
        """The campaigns that an advertiser has had in the hot tier."""
        found = self._redis.pipeline(
            [("SMEMBERS", f"{base_key(self._prefix, s)}:a:{advertiser}") for s in range(self._shards)]
        )
        return sorted({int(c) for members in found for c in members})

    def read(self, question: Question, start_ms: int, end_ms: int, span: Span) -> tuple[pl.DataFrame, int]:
        """Sums of the minutes in [start_ms, end_ms), and how many packed rows were read."""
        campaigns = question.campaigns or tuple(self.campaigns_of(question.advertiser or 0))
        if not campaigns:
            return answer.merged(question, []), 0
        packed: list[bytes] = []
        minutes: list[int] = []
        owners: list[int] = []
        commands: list[tuple[object, ...]] = []
        meaning: list[tuple[int, int]] = []
        for shard in range(self._shards):
            newest = span.newest_ms[shard]
            if newest is None or newest < start_ms:
                continue
            stop_ms = min(end_ms, newest + MINUTE_MS)
            asked, means = self._commands(shard, campaigns, start_ms, stop_ms, span.packed_ms[shard])
            commands += asked
            meaning += means
        for (campaign, first), found in zip(meaning, self._redis.pipeline(commands, atomic=True), strict=True):
            # HMGET answers a list, minute by minute, and then what came later for any; HGETALL what the flushes added to one
            # minute.
            by_flush = isinstance(found, dict)
            values = [(first, value) for value in found.values()] if by_flush else list(_cells(first, found))
            for minute, value in values:
                packed.append(value)
                minutes.append(minute)
                owners.append(campaign)
        return self._sum(question, packed, minutes, owners)

    def _commands(
        self, shard: int, campaigns: tuple[int, ...], start_ms: int, end_ms: int, packed_ms: int | None
    ) -> tuple[list[tuple[object, ...]], list[tuple[int, int]]]:
        base = base_key(self._prefix, shard)
        commands: list[tuple[object, ...]] = []
        meaning: list[tuple[int, int]] = []
        by_flush_from = start_ms if packed_ms is None else max(start_ms, packed_ms // MINUTE_MS * MINUTE_MS)
        for campaign in campaigns:
            for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS):
                low, high = max(start_ms, hour), min(end_ms, hour + HOUR_MS)
                fields = [f"{campaign}:{m}" for m in range((low - hour) // MINUTE_MS, (high - hour) // MINUTE_MS)]
                commands.append(("HMGET", f"{base}:h:{hour}", *fields, f"{campaign}+"))
                meaning.append((campaign, low))
            for minute in range(by_flush_from, end_ms, MINUTE_MS):
                commands.append(("HGETALL", f"{base}:o:{minute}:{campaign}"))
                meaning.append((campaign, minute))
        return commands, meaning

    def _sum(
        self, question: Question, packed: list[bytes], minutes: list[int], owners: list[int]
    ) -> tuple[pl.DataFrame, int]:
        unpacked, source = rows.unpack(packed)
        frame = pl.DataFrame(
            {
                "_bucket": np.array([question.bucket(m) for m in minutes], np.int64)[source],
                "campaign_id": np.array(owners, np.int64)[source],
                **unpacked,
            }
        )
        kept = []
        if question.advertiser is not None:
            kept.append(pl.col("advertiser_id") == question.advertiser)
        if question.scope is not None:
            kept.append(pl.col("advertiser_id").is_in(list(question.scope)))
        for name, values in question.filters:
            wanted = [NAMES[name].index(str(v)) for v in values] if name in NAMES else list(values)
            kept.append(pl.col(name).is_in(wanted))
        sums = (
            (frame.filter(kept) if kept else frame)
            .group_by("_bucket", *question.group_by)
            .agg(
                # A sum of 64-bit amounts needs more than 64 bits.
                *(pl.col(m).cast(pl.Int128).sum() for m in MEASURES),
                ((pl.col("late") > 0) | (pl.col(CHANGED) > 0)).any().alias("_corrected"),
                (pl.col("sampled") > 0).any().alias("_sampled"),
            )
        )
        names = [_STRINGS[g].gather(sums[g]).alias(g) for g in question.group_by if g in NAMES]
        return sums.with_columns(names), len(source)


def _cells(first: int, found: list[bytes | None]) -> Iterator[tuple[int, bytes]]:
    """(minute, rows) of consecutive minutes from `first`, followed by one value with what came later in that hour."""
    *values, later = found
    yield from ((first + n * MINUTE_MS, value) for n, value in enumerate(values) if value is not None)
    hour, end = first - first % HOUR_MS, first + len(values) * MINUTE_MS
    for number, value in rows.all_later(later or b""):
        if first <= hour + number * MINUTE_MS < end:
            yield hour + number * MINUTE_MS, value
