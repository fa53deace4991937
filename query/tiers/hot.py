"""Reads minutes from Redis: all places where a row of a shard may lie at one moment, so that none is seen twice or missed.

Where rows may lie follows from what each shard says it holds. That changes once a minute, so a reader takes it to be as it was
when it last looked, looks again in the same round trip, and asks a second time where it was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from infra.clock import HOUR_MS, MINUTE_MS
from infra.redis import Redis
from ingest.grouping import packed as packed_keys
from ingest.grouping import rows_of, sum_by_key
from query import sums
from query.request import MEASURES, Question
from query.sums import NAMES, Sums, of_halves
from stream.chunks import CHANGED
from stream.sinks import rows
from stream.sinks.hot import base_key
from stream.sinks.rows import ROLLED

_LOW = np.int64(2**32 - 1)
_MARKS = ("closed_ms", "packed_ms", "from_ms", "newest_ms")


# KEYS: hashes of cells and of flushes; ARGV: what a roll-up's field ends in, and for each key "CAMPAIGN FIRST LAST" (minutes of
# the hour), or nothing for flushes. Roll-ups where there are some, else rows: nothing of what is not needed leaves Redis.
_ROLLED_UP = """
local suffix, all = ARGV[1], {}
for i, key in ipairs(KEYS) do
  local campaign, first, last = string.match(ARGV[i + 1], '^(%d+) (%d+) (%d+)$')
  local found = {}
  if campaign then
    local fields = {}
    for minute = tonumber(first), tonumber(last) do fields[#fields + 1] = campaign .. ':' .. minute .. suffix end
    found = redis.call('HMGET', key, unpack(fields))
    local small, at = {}, {}
    for j, value in ipairs(found) do
      if not value then
        small[#small + 1], at[#at + 1] = campaign .. ':' .. (first + j - 1), j
      end
    end
    if #small > 0 then
      for j, value in ipairs(redis.call('HMGET', key, unpack(small))) do found[at[j]] = value end
    end
    found[#found + 1] = redis.call('HGET', key, campaign .. '+')
  else
    local fields, rolled = redis.call('HKEYS', key), {}
    for _, field in ipairs(fields) do
      if string.sub(field, -2) == suffix then rolled[string.sub(field, 1, -3)] = true end
    end
    for _, field in ipairs(fields) do
      if rolled[field] then found[#found + 1] = redis.call('HGET', key, field .. suffix)
      elseif not string.find(field, ':') then found[#found + 1] = redis.call('HGET', key, field) end
    end
  end
  all[i] = found
end
return all
"""


@dataclass(frozen=True)
class _Place:
    """Where rows of a campaign may lie: `count` cells from the minute `first` on, or, for 0, what flushes added to it."""

    shard: int
    key: str
    campaign: int
    first: int
    count: int

    @property
    def fields(self) -> list[str]:
        """Of the cells, and of what came later."""
        number = self.first % HOUR_MS // MINUTE_MS
        return [*(f"{self.campaign}:{m}" for m in range(number, number + self.count)), f"{self.campaign}+"]

    @property
    def told(self) -> str:
        """As the script is told."""
        number = self.first % HOUR_MS // MINUTE_MS
        return f"{self.campaign} {number} {number + self.count - 1}" if self.count else ""


@dataclass(frozen=True)
class Span:
    """What each shard says it holds. `from_ms` is None for a shard that says nothing: unknown, not zero.

    `newest_ms` is the newest minute of each shard that has rows; those that end at or before `packed_ms` have none by flush.
    """

    closed_ms: list[int | None]
    packed_ms: list[int | None]
    from_ms: list[int | None]
    newest_ms: list[int | None]

    def places_as(self, other: Span) -> bool:
        """Whether rows lie in the same places."""
        return self.newest_ms == other.newest_ms and self.packed_ms == other.packed_ms

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
        self._rolled = redis.script(_ROLLED_UP)
        self._marks = [("HMGET", f"{base_key(prefix, s)}:span", *_MARKS) for s in range(shards)]
        self._seen: Span | None = None

    def span(self) -> Span:
        """What the tier holds, now."""
        self._seen = _span(self._redis.pipeline(self._marks))
        return self._seen

    def warm_up(self, question: Question) -> None:
        """Sum a row that nobody asked for."""
        self._sum(question, [bytes([1, *bytes(len(rows.COLUMNS) - 1), 1])], [question.start_ms], [1])

    def campaigns_of(self, advertiser: int) -> list[int]:
        """The campaigns that an advertiser has had in the hot tier."""
        found = self._redis.pipeline(
            [("SMEMBERS", f"{base_key(self._prefix, s)}:a:{advertiser}") for s in range(self._shards)]
        )
        return sorted({int(c) for members in found for c in members})

    def read(self, question: Question, start_ms: int, end_ms: int) -> tuple[Sums, int, Span]:
        """Sums of the minutes in [start_ms, end_ms), how many packed rows were read, and what the tier held then."""
        campaigns = question.campaigns or tuple(self.campaigns_of(question.advertiser or 0))
        taken = self._seen or self.span()
        places = self._places(campaigns, start_ms, end_ms, taken)
        span, answers = self._ask(question, places)
        if not span.places_as(taken):
            places = self._places(campaigns, start_ms, end_ms, span)
            _, answers = self._ask(question, places)
        self._seen = span
        packed: list[bytes] = []
        minutes: list[int] = []
        owners: list[int] = []
        for place, found in zip(places, answers, strict=True):
            # Cells minute by minute, and then what came later for any; or what the flushes added to one minute.
            values = _cells(place.first, found) if place.count else ((place.first, value) for value in found if value)
            for minute, value in values:
                packed.append(value)
                minutes.append(minute)
                owners.append(place.campaign)
        if not packed:
            return sums.none(question), 0, span
        return *self._sum(question, packed, minutes, owners), span

    def _places(self, campaigns: tuple[int, ...], start_ms: int, end_ms: int, span: Span) -> list[_Place]:
        found: list[_Place] = []
        for shard, newest in enumerate(span.newest_ms):
            if newest is not None and newest >= start_ms:
                stop_ms = min(end_ms, newest + MINUTE_MS)
                found += self._of_shard(shard, campaigns, start_ms, stop_ms, span.packed_ms[shard])
        return found

    def _of_shard(
        self, shard: int, campaigns: tuple[int, ...], start_ms: int, end_ms: int, packed_ms: int | None
    ) -> Iterator[_Place]:
        base = base_key(self._prefix, shard)
        by_flush_from = start_ms if packed_ms is None else max(start_ms, packed_ms // MINUTE_MS * MINUTE_MS)
        for campaign in campaigns:
            for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS):
                low, high = max(start_ms, hour), min(end_ms, hour + HOUR_MS)
                yield _Place(shard, f"{base}:h:{hour}", campaign, low, (high - low) // MINUTE_MS)
            for minute in range(by_flush_from, end_ms, MINUTE_MS):
                yield _Place(shard, f"{base}:o:{minute}:{campaign}", campaign, minute, 0)

    def _ask(self, question: Question, places: list[_Place]) -> tuple[Span, list[list[bytes | None]]]:
        """What the tier holds, and then the values of each place: all of a shard at one moment, and roll-ups where these are
        enough."""
        needed = ({*question.group_by} | {name for name, _ in question.filters}) - {"campaign_id"}
        if len(needed) <= 1:
            suffix = f":{ROLLED[needed.pop() if needed else 'device']}"
            calls = [
                ([p.key for p in found], [suffix, *(p.told for p in found)])
                for _, of_shard in groupby(places, lambda p: p.shard)
                for found in [list(of_shard)]
            ]
            told = self._rolled.each(calls, self._marks)
            return _span(told[: self._shards]), [values for of_shard in told[self._shards :] for values in of_shard]
        commands = [("HMGET", p.key, *p.fields) if p.count else ("HGETALL", p.key) for p in places]
        told = self._redis.pipeline([*self._marks, *commands], atomic=True)
        return _span(told[: self._shards]), [
            found if place.count else [v for name, v in zip(found[::2], found[1::2], strict=True) if b":" not in name]
            for place, found in zip(places, told[self._shards :], strict=True)
        ]

    def _sum(self, question: Question, packed: list[bytes], minutes: list[int], owners: list[int]) -> tuple[Sums, int]:
        columns, source = rows.unpack(packed)
        columns["campaign_id"] = np.array(owners, np.int64)[source]
        bucket_of = {minute: question.bucket(minute) for minute in set(minutes)}
        buckets = np.unique(np.fromiter(bucket_of.values(), np.int64))
        place = np.searchsorted(buckets, np.array([bucket_of[minute] for minute in minutes]))[source]
        kept = np.ones(len(source), bool)
        if question.advertiser is not None:
            kept &= columns["advertiser_id"] == question.advertiser
        if question.scope is not None:
            kept &= np.isin(columns["advertiser_id"], list(question.scope))
        for name, values in question.filters:
            wanted = [NAMES[name].index(str(v)) for v in values] if name in NAMES else list(values)
            kept &= np.isin(columns[name], wanted)
        if not kept.all():
            place, columns = place[kept], {name: column[kept] for name, column in columns.items()}
        spend = columns["spend_micros"]
        # Halves of 32 bits: so many rows as there can be do not overflow their sums.
        counts = [columns[m] for m in MEASURES if m != "spend_micros"]
        changed = (columns["late"] > 0) | (columns[CHANGED] > 0)
        amounts = rows_of([*counts, spend & _LOW, spend >> 32, changed, columns["sampled"] > 0])
        keys = packed_keys([place, *(columns[g] for g in question.group_by)])
        first, found = sum_by_key(keys, amounts)
        told = dict(zip((m for m in MEASURES if m != "spend_micros"), found.T, strict=False))
        told["spend_micros"] = of_halves(found[:, len(counts)], found[:, len(counts) + 1], 32)
        return Sums(
            buckets[place[first]], tuple(columns[g][first] for g in question.group_by), tuple(told[m] for m in MEASURES),
            found[:, -2] > 0, found[:, -1] > 0,
        ), len(source)  # fmt: skip


def _span(told: list[list[bytes | None]]) -> Span:
    """Of the marks of each shard."""
    numbers = [[int(mark) if mark else None for mark in marks] for marks in told]
    return Span(*([shard[i] for shard in numbers] for i in range(len(_MARKS))))


def _cells(first: int, found: list[bytes | None]) -> Iterator[tuple[int, bytes]]:
    """(minute, rows) of consecutive minutes from `first`, followed by one value with what came later in that hour."""
    *values, later = found
    yield from ((first + n * MINUTE_MS, value) for n, value in enumerate(values) if value is not None)
    hour, end = first - first % HOUR_MS, first + len(values) * MINUTE_MS
    for number, value in rows.all_later(later or b""):
        if first <= hour + number * MINUTE_MS < end:
            yield hour + number * MINUTE_MS, value
