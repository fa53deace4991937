"""Reads minutes from Redis: all places where a row of a shard may lie at one moment, so that none is seen twice or missed.

Where rows may lie follows from the span of each shard. That changes once a minute, so a reader plans by the span that it saw
last, reads the present one in the same round trip as the rows, and reads again where the plan missed a place. What a shard no
longer holds moves its span in the same step, so the span that comes with the rows says which minutes they are all of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from infra.clock import HOUR_MS, MINUTE_MS
from infra.redis import Arguments, Redis
from query import sums
from query.request import MEASURES, Question
from query.sums import NAMES, Sums
from query.tiers.fold import fold
from stream.chunks import CHANGED
from stream.sinks import rows
from stream.sinks.hot import base_key
from stream.sinks.rows import ROLLED, ROWS

_MARKS = ("closed_ms", "packed_ms", "from_ms", "newest_ms")


# KEYS: the span of a shard, then hashes of cells and of what flushes added; ARGV: for each of those how many fields follow, and
# these, or 0 for all of it. Returns the marks of the span, and the values of each hash: all as they are at one moment.
_READ = """
local found, at = {redis.call('HMGET', KEYS[1], MARKS)}, 1
for i = 2, #KEYS do
  local count = tonumber(ARGV[at])
  if count == 0 then found[i] = redis.call('HVALS', KEYS[i])
  else found[i] = redis.call('HMGET', KEYS[i], unpack(ARGV, at + 1, at + count)) end
  at = at + 1 + count
end
return found
""".replace("MARKS", ", ".join(f"'{mark}'" for mark in _MARKS))
_ALL = Arguments.of([0])
# Half of what lies between two flushes.
_SEEN_S = 0.25
# A second round plans by a span of a moment ago. Rows that came after that belong to windows that were open then.
_ROUNDS = 2


@dataclass(frozen=True)
class _Place:
    """Where rows of a campaign may lie: `count` cells from the minute `first` on, or, for 0, what flushes added to it."""

    key: str
    campaign: int
    first: int
    count: int

    def asked(self, kind: str) -> tuple[list[str], list[Arguments]]:
        """Keys, and fields of each: of the rows where they are few, else of the `kind` of rows or roll-ups that will do."""
        if not self.count:
            return [self.key, f"{self.key}:{kind}"], [_ALL, _ALL]
        return [self.key], [_fields(self.campaign, self.first % HOUR_MS // MINUTE_MS, self.count, kind)]


@lru_cache(maxsize=4096)
def _fields(campaign: int, minute: int, count: int, kind: str) -> Arguments:
    """How many fields, and these: of so many cells from a minute of an hour on, of few rows or of a kind, and of what came
    later."""
    cells = [f"{campaign}:{number}" for number in range(minute, minute + count)]
    fields = [*cells, *(f"{cell}:{kind}" for cell in cells), f"{campaign}+"]
    return Arguments.of([len(fields), *fields])


@dataclass(frozen=True)
class Span:
    """What each shard says it holds. `from_ms` is None for a shard that says nothing: unknown, not zero.

    `newest_ms` is the newest minute of each shard that has rows; those that end at or before `packed_ms` have none by flush.
    """

    closed_ms: list[int | None]
    packed_ms: list[int | None]
    from_ms: list[int | None]
    newest_ms: list[int | None]

    def covers(self, other: Span) -> bool:
        """Whether places planned by this span include all in which rows lie under the other one."""
        newer = zip(self.newest_ms, other.newest_ms, strict=True)
        packed = zip(self.packed_ms, other.packed_ms, strict=True)
        return all((b or 0) <= (a or 0) for a, b in newer) and all((a or 0) <= (b or 0) for a, b in packed)

    def as_of(self, earlier: Span) -> Span:
        """What is true of rows that were planned by an earlier span and came with this one: closed is what was closed then, held
        is what is held now."""
        return replace(
            self,
            closed_ms=_each(min, self.closed_ms, earlier.closed_ms),
            from_ms=_each(max, self.from_ms, earlier.from_ms),
        )

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
        self._script = redis.script(_READ)
        self._marks = [("HMGET", f"{base_key(prefix, s)}:span", *_MARKS) for s in range(shards)]
        self._seen: tuple[float, Span] | None = None

    def span(self) -> Span:
        """What the tier holds, now."""
        return self._see(_span(self._redis.pipeline(self._marks)))

    def seen(self) -> Span | None:
        """What it held a moment ago, as far as somebody has looked."""
        seen = self._seen
        return seen[1] if seen is not None and time.monotonic() - seen[0] < _SEEN_S else None

    def _see(self, span: Span) -> Span:
        self._seen = time.monotonic(), span
        return span

    def warm_up(self, question: Question) -> None:
        """Sum a row that nobody asked for."""
        self._sum(question, [bytes([1, *bytes(len(rows.COLUMNS) - 1), 1])], [question.start_ms], [1])

    def campaigns_of(self, advertiser: int) -> tuple[tuple[int, ...], Span]:
        """The campaigns that an advertiser has had in the hot tier, at the least those whose rows were there at the span."""
        members = [("SMEMBERS", f"{base_key(self._prefix, s)}:a:{advertiser}") for s in range(self._shards)]
        replies = self._redis.pipeline([*self._marks, *members])
        campaigns = {int(c) for shard in replies[self._shards :] for c in shard}
        return tuple(sorted(campaigns)), self._see(_span(replies[: self._shards]))

    def read(self, question: Question, start_ms: int, end_ms: int) -> tuple[Sums, int, Span]:
        """Sums of the minutes in [start_ms, end_ms), how many packed rows were read, and the span that they are true of: all of
        what it says is held, and at least what it says is closed."""
        campaigns, looked_up = question.campaigns, None
        if not campaigns:
            campaigns, looked_up = self.campaigns_of(question.advertiser or 0)
        campaigns = _filtered(question, campaigns)
        planned_by = self._seen[1] if self._seen is not None else self.span()
        for _ in range(_ROUNDS):
            places = self._places(campaigns, start_ms, end_ms, planned_by)
            span, answers = self._ask(question, places)
            self._see(span)
            if planned_by.covers(span):
                break
            span, planned_by = span.as_of(planned_by), span
        # Minutes of a campaign that is new to the advertiser may have come and closed since its campaigns were looked up.
        span = span if looked_up is None else span.as_of(looked_up)
        packed: list[bytes] = []
        minutes: list[int] = []
        owners: list[int] = []
        for place, found in zip((p for of_shard in places for p in of_shard), answers, strict=True):
            # Cells minute by minute, and then what came later for any; or what the flushes added to one minute.
            values = _cells(place, found) if place.count else ((place.first, value) for value in found if value)
            for minute, value in values:
                packed.append(value)
                minutes.append(minute)
                owners.append(place.campaign)
        if not packed:
            return sums.none(question), 0, span
        return *self._sum(question, packed, minutes, owners), span

    def _places(self, campaigns: tuple[int, ...], start_ms: int, end_ms: int, span: Span) -> list[list[_Place]]:
        """Of each shard."""
        return [
            [] if newest is None or newest < start_ms
            else list(self._of_shard(shard, campaigns, start_ms, min(end_ms, newest + MINUTE_MS), packed_ms))
            for shard, (newest, packed_ms) in enumerate(zip(span.newest_ms, span.packed_ms, strict=True))
        ]  # fmt: skip

    def _of_shard(
        self, shard: int, campaigns: tuple[int, ...], start_ms: int, end_ms: int, packed_ms: int | None
    ) -> Iterator[_Place]:
        base = base_key(self._prefix, shard)
        by_flush_from = start_ms if packed_ms is None else max(start_ms, packed_ms // MINUTE_MS * MINUTE_MS)
        for campaign in campaigns:
            for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS):
                low, high = max(start_ms, hour), min(end_ms, hour + HOUR_MS)
                yield _Place(f"{base}:h:{hour}", campaign, low, (high - low) // MINUTE_MS)
            for minute in range(by_flush_from, end_ms, MINUTE_MS):
                yield _Place(f"{base}:o:{minute}:{campaign}", campaign, minute, 0)

    def _ask(self, question: Question, places: list[list[_Place]]) -> tuple[Span, list[list[bytes | None]]]:
        """What the tier holds, and then the values of each place: all of a shard at one moment, and roll-ups where these are
        enough."""
        needed = ({*question.group_by} | {name for name, _ in question.filters}) - {"campaign_id"}
        kind = ROLLED[needed.pop() if needed else "device"] if len(needed) <= 1 else ROWS
        calls = []
        for shard, of_shard in enumerate(places):
            keys, fields = [f"{base_key(self._prefix, shard)}:span"], list[Arguments]()
            for place in of_shard:
                asked = place.asked(kind)
                keys += asked[0]
                fields += asked[1]
            calls.append((keys, Arguments.joined(fields)))
        told = self._script.each(calls)
        answers: list[list[bytes | None]] = []
        for (_, *values), of_shard in zip(told, places, strict=True):
            found = iter(values)
            answers += [next(found) if place.count else [*next(found), *next(found)] for place in of_shard]
        return _span([marks for marks, *_ in told]), answers

    def _sum(self, question: Question, packed: list[bytes], minutes: list[int], owners: list[int]) -> tuple[Sums, int]:
        bucket_of = {minute: question.bucket(minute) for minute in set(minutes)}
        by_campaign = "campaign_id" in question.group_by
        # Each (bucket, campaign), and its number.
        numbers: dict[tuple[int, int], int] = {}
        places = [
            numbers.setdefault((bucket_of[minute], owner if by_campaign else 0), len(numbers))
            for minute, owner in zip(minutes, owners, strict=True)
        ]
        dimensions = [name for name in question.group_by if name != "campaign_id"]
        # Campaigns are told apart by where their rows lie.
        wanted = [(name, _numbers(name, values)) for name, values in question.filters if name != "campaign_id"]
        wanted += [("advertiser_id", [question.advertiser])] if question.advertiser is not None else []
        wanted += [("advertiser_id", list(question.scope))] if question.scope is not None else []
        found = fold(packed, places, dimensions, wanted)
        buckets, campaigns = np.array(list(numbers), np.int64)[found.places].T
        groups = dict(zip(dimensions, found.groups, strict=True)) | {"campaign_id": campaigns}
        return Sums(
            buckets, tuple(groups[g] for g in question.group_by), tuple(found.sums[m] for m in MEASURES),
            (found.sums["late"] > 0) | (found.sums[CHANGED] > 0), found.sums["sampled"] > 0,
        ), found.rows_read  # fmt: skip


def _numbers(name: str, values: Sequence[str | int]) -> list[int]:
    """Of a dimension's values, as rows have them."""
    return [NAMES[name].index(str(value)) if name in NAMES else int(value) for value in values]


def _filtered(question: Question, campaigns: tuple[int, ...]) -> tuple[int, ...]:
    """Those that a filter leaves."""
    wanted = dict(question.filters).get("campaign_id")
    return campaigns if wanted is None else tuple(c for c in campaigns if c in wanted)


def _each(pick: Callable[[int, int], int], some: list[int | None], others: list[int | None]) -> list[int | None]:
    """Of each shard one of two values; None where either is unknown."""
    pairs = zip(some, others, strict=True)
    return [None if a is None or b is None else pick(a, b) for a, b in pairs]


def _span(told: list[list[bytes | None]]) -> Span:
    """Of the marks of each shard."""
    numbers = [[int(mark) if mark else None for mark in marks] for marks in told]
    return Span(*([shard[i] for shard in numbers] for i in range(len(_MARKS))))


def _cells(place: _Place, found: list[bytes | None]) -> Iterator[tuple[int, bytes]]:
    """(minute, rows) of consecutive minutes, of either kind, followed by one value with what came later in that hour."""
    *values, later = found
    for number, value in enumerate(values):
        if value is not None:
            yield place.first + number % place.count * MINUTE_MS, value
    hour, end = place.first - place.first % HOUR_MS, place.first + place.count * MINUTE_MS
    for number, value in rows.all_later(later or b""):
        if place.first <= hour + number * MINUTE_MS < end:
            yield hour + number * MINUTE_MS, value
