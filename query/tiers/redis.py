"""Reads minutes from Redis: all places where a row of a shard may lie at one moment, so that none is seen twice or missed.

Where rows may lie follows from the span of each shard. That changes once a minute, so a reader plans by the span that it read
last, reads the present one in the same round trip as the rows, and reads again where the plan lacks a place. Minutes leave a
shard in the same step that moves its span, so the span that comes with the rows says which minutes they are all of.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib import resources
from itertools import chain
from typing import Any

import numpy as np

from infra.clock import HOUR_MS, MINUTE_MS
from infra.errors import Refused, Unavailable
from infra.redis.client import Redis
from infra.redis.commands import Arguments, pack_command, pack_with_arguments
from query import sums
from query.question import MEASURES, Question
from query.sums import NAMES, Sums
from query.tiers.fold import fold
from query.tiers.span import Span
from stream.chunks import CHANGED
from stream.hot import cell_format, layout
from stream.hot.layout import ShardKeys, SpanField

_SPAN_FIELDS = (SpanField.CLOSED, SpanField.PACKED, SpanField.FROM, SpanField.NEWEST)
_SPAN_ARGUMENTS = Arguments.of([len(_SPAN_FIELDS), *_SPAN_FIELDS])
_WHOLE_HASH = Arguments.of([])
# Half of what lies between two flushes.
_FRESH_S = 0.25
# A second round plans by a span of a moment ago. Rows that came after that belong to windows that were open then.
_ROUNDS = 2
_FIELDS_BY_SCRIPT = 1_000
# A call with so many takes Redis a few milliseconds.
_CAMPAIGNS_A_CALL = 250
# Of one shard, that a question about all advertisers may be about.
_MOST_LISTED = 20_000


@dataclass(frozen=True)
class _Cells:
    """Cells of a campaign: of `count` consecutive minutes of one hour, from `first_ms` on, and the late rows of that hour."""

    key: bytes
    campaign: int
    first_ms: int
    count: int

    def requests(self, part: bytes) -> list[_Request]:
        """Keys, and the fields to read of each: those of small cells, and of the `part` of large ones."""
        return [(self.key, _cell_fields(self.campaign, self.first_ms % HOUR_MS // MINUTE_MS, self.count, part))]

    def rows(self, replies: Iterator[list[bytes | None]]) -> Iterator[tuple[int, bytes]]:
        """(minute, packed rows) of what the requests brought."""
        *cells, late = next(replies)
        for number, rows in enumerate(cells):
            if rows is not None:
                yield self.first_ms + number % self.count * MINUTE_MS, rows
        hour_ms, end_ms = self.first_ms - self.first_ms % HOUR_MS, self.first_ms + self.count * MINUTE_MS
        for minute, rows in cell_format.late_entries(late or b""):
            minute_ms = hour_ms + minute * MINUTE_MS
            if self.first_ms <= minute_ms < end_ms:
                yield minute_ms, rows


@dataclass(frozen=True)
class _RowsByFlush:
    """What flushes have added to a minute of a campaign."""

    key: bytes
    campaign: int
    minute_ms: int

    def requests(self, part: bytes) -> list[_Request]:
        """The same of small flushes, and of the `part` of large ones."""
        return [(self.key, _WHOLE_HASH), (self.key + part, _WHOLE_HASH)]

    def rows(self, replies: Iterator[list[bytes | None]]) -> Iterator[tuple[int, bytes]]:
        """(minute, packed rows) of what the requests brought."""
        for rows in chain(next(replies), next(replies)):
            if rows:
                yield self.minute_ms, rows


_Place = _Cells | _RowsByFlush
_Request = tuple[bytes, Arguments]
"""The key of a hash, and the fields to read of it; none: all."""


@lru_cache(maxsize=4096)
def _cell_fields(campaign: int, minute: int, count: int, part: bytes) -> Arguments:
    """Fields: `count` cells from a minute of the hour on, the `part` of each, and the campaign's late rows."""
    cells = [layout.cell_field(campaign, number) for number in range(minute, minute + count)]
    fields = [*cells, *(cell + part for cell in cells), layout.late_field(campaign)]
    return Arguments.of(fields)


@lru_cache(maxsize=256)
def _counted(count: int) -> Arguments:
    return Arguments.of([count])


class HotTier:
    """Raises Unavailable when Redis is away."""

    def __init__(self, redis: Redis, prefix: str, shards: int) -> None:
        self._redis, self._shards = redis, [ShardKeys.of(prefix, shard) for shard in range(shards)]
        self._script = redis.script((resources.files(__package__) / "read.lua").read_text())
        self._span_commands = [("HMGET", keys.span, *_SPAN_FIELDS) for keys in self._shards]
        self._latest: tuple[float, Span] | None = None

    def span(self) -> Span:
        """What the tier holds, now."""
        return self._remember(_span(self._redis.pipeline(self._span_commands)))

    def seen(self) -> Span | None:
        """The span of a moment ago; None where no request has read it for a quarter of a second."""
        latest = self._latest
        return latest[1] if latest is not None and time.monotonic() - latest[0] < _FRESH_S else None

    def _remember(self, span: Span) -> Span:
        self._latest = time.monotonic(), span
        return span

    def warm_up(self, question: Question) -> None:
        """Have the fold compiled or loaded before the first question: sum one made-up row."""
        self._sum(question, [bytes([1, *bytes(len(cell_format.COLUMNS) - 1), 1])], [question.start_ms], [1])

    def campaigns_of(self, advertiser: int | None) -> tuple[list[tuple[int, ...]], Span]:
        """The campaigns that an advertiser has had in each shard, None: that all have had: at least those whose rows were there at the
        span. A shard lists a campaign no later than it shows its first row."""
        lists = [keys.campaigns if advertiser is None else keys.advertiser(advertiser) for keys in self._shards]
        replies = self._redis.pipeline([*self._span_commands, *(("SMEMBERS", key) for key in lists)])
        span, members = _span(replies[: len(lists)]), replies[len(lists) :]
        campaigns = [tuple(sorted(map(int, shard))) for shard in members]
        if advertiser is None:
            _refuse_unlisted(campaigns, span)
        return campaigns, self._remember(span)

    def read(self, question: Question, start_ms: int, end_ms: int) -> tuple[Sums, int, Span]:
        """Sums of the minutes in [start_ms, end_ms), how many packed rows were read, and the span that they are true of: all of
        what it says is held, and at least what it says is closed."""
        # Where it is not known which shards have rows of a campaign, all may.
        campaigns, looked_up = [question.campaigns] * len(self._shards), None
        if not question.campaigns:
            # Minutes of a campaign that is new to the advertiser may have come and closed since its campaigns were looked up.
            campaigns, looked_up = self.campaigns_of(question.advertiser)
            if question.advertiser is None:
                _refuse_many(campaigns)
        return self.read_campaigns(question, campaigns, start_ms, end_ms, looked_up)

    def read_campaigns(
        self, question: Question, campaigns: Sequence[tuple[int, ...]], start_ms: int, end_ms: int, looked_up: Span | None = None
    ) -> tuple[Sums, int, Span]:  # fmt: skip
        """The same of some campaigns, shard by shard. `looked_up`: the span that these were true of."""
        campaigns = [_filtered(question, of_shard) for of_shard in campaigns]
        packed, minutes, owners, spans = list[bytes](), list[int](), list[int](), [looked_up] if looked_up else []
        # All places of a campaign are read at one moment. Those of many campaigns would keep Redis from its other clients.
        for first in range(0, max(1, *map(len, campaigns)), _CAMPAIGNS_A_CALL):
            part = [of_shard[first : first + _CAMPAIGNS_A_CALL] for of_shard in campaigns]
            span, places, replies = self._read_places(question, part, start_ms, end_ms)
            spans.append(span)
            for shard_places, shard_replies in zip(places, replies, strict=True):
                values = iter(shard_replies)
                for place in shard_places:
                    for minute_ms, rows in place.rows(values):
                        packed.append(rows)
                        minutes.append(minute_ms)
                        owners.append(place.campaign)
        span = reduce(lambda earlier, later: later.as_of(earlier), spans)
        if not packed:
            return sums.empty_sums(question), 0, span
        return *self._sum(question, packed, minutes, owners), span

    def _read_places(
        self, question: Question, campaigns: Sequence[tuple[int, ...]], start_ms: int, end_ms: int
    ) -> tuple[Span, list[list[_Place]], list[list[list[bytes | None]]]]:
        """The span that is true of each shard's campaigns, their places, and what was there."""
        planned_by = self._latest[1] if self._latest is not None else self.span()
        for _ in range(_ROUNDS):
            places = self._places(campaigns, start_ms, end_ms, planned_by)
            span, replies = self._ask(question, places)
            self._remember(span)
            if planned_by.covers(span):
                break
            span, planned_by = span.as_of(planned_by), span
        return span, places, replies

    def _places(
        self, campaigns: Sequence[tuple[int, ...]], start_ms: int, end_ms: int, span: Span
    ) -> list[list[_Place]]:
        """Where rows of each shard's campaigns may lie, shard by shard."""
        shards = zip(self._shards, campaigns, span.newest_ms, span.packed_ms, strict=True)
        return [
            [] if newest is None or newest < start_ms
            else list(_places_of(keys, of_shard, start_ms, min(end_ms, newest + MINUTE_MS), packed_ms))
            for keys, of_shard, newest, packed_ms in shards
        ]  # fmt: skip

    def _ask(self, question: Question, places: list[list[_Place]]) -> tuple[Span, list[list[list[bytes | None]]]]:
        """What the tier holds, and the replies to the requests of each shard's places: of one moment in each shard, and of
        roll-ups where these are enough."""
        part = _smallest_part(question)
        requests = [[request for place in shard for request in place.requests(part)] for shard in places]
        fields = sum(arguments.count for shard in requests for _, arguments in shard)
        ask = self._ask_transaction if fields > _FIELDS_BY_SCRIPT else self._ask_script
        replies = ask(requests)
        return _span([fields for fields, *_ in replies]), [values for _, *values in replies]

    def _ask_script(self, requests: list[list[_Request]]) -> list[Any]:
        """For few fields: a script takes one command, but each field costs Redis more."""
        calls = []
        for keys, of_shard in zip(self._shards, requests, strict=True):
            counted = (part for _, fields in of_shard for part in (_counted(fields.count), fields))
            calls.append(([keys.span, *(key for key, _ in of_shard)], Arguments.joined([_SPAN_ARGUMENTS, *counted])))
        return self._script.each(calls)

    def _ask_transaction(self, requests: list[list[_Request]]) -> list[Any]:
        """The same by a transaction for each shard. A Redis without memory refuses to queue any command, even a read."""
        calls = []
        for span_command, of_shard in zip(self._span_commands, requests, strict=True):
            commands = [
                pack_with_arguments(("HMGET", key), fields) if fields.count else pack_command("HVALS", key)
                for key, fields in of_shard
            ]
            calls.append([pack_command(*span_command), *commands])
        try:
            return self._redis.transactions(calls)
        except Refused as refusal:
            if refusal.code != "OOM":
                raise
            return self._ask_script(requests)

    def _sum(self, question: Question, packed: list[bytes], minutes: list[int], owners: list[int]) -> tuple[Sums, int]:
        """Sums by bucket and group of packed rows, each with its minute and campaign, and how many rows these are."""
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
        filters = [(name, _codes(name, values)) for name, values in question.filters if name != "campaign_id"]
        visible = question.scope.advertisers
        filters += [("advertiser_id", [question.advertiser])] if question.advertiser is not None else []
        filters += [("advertiser_id", list(visible))] if visible is not None else []
        folded = fold(packed, places, dimensions, filters)
        buckets, campaigns = np.array(list(numbers), np.int64)[folded.places].T
        groups = dict(zip(dimensions, folded.groups, strict=True)) | {"campaign_id": campaigns}
        return Sums(
            buckets, tuple(groups[g] for g in question.group_by), tuple(folded.sums[m] for m in MEASURES),
            (folded.sums["late"] > 0) | (folded.sums[CHANGED] > 0), folded.sums["sampled"] > 0,
        ), folded.rows_read  # fmt: skip


def _places_of(
    keys: ShardKeys, campaigns: tuple[int, ...], start_ms: int, end_ms: int, packed_ms: int | None
) -> Iterator[_Place]:
    """Where rows of the campaigns may lie in a shard."""
    by_flush_from = start_ms if packed_ms is None else max(start_ms, packed_ms // MINUTE_MS * MINUTE_MS)
    for campaign in campaigns:
        for hour in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS):
            first, end = max(start_ms, hour), min(end_ms, hour + HOUR_MS)
            yield _Cells(keys.hour(hour), campaign, first, (end - first) // MINUTE_MS)
        for minute in range(by_flush_from, end_ms, MINUTE_MS):
            yield _RowsByFlush(keys.by_flush(minute, campaign), campaign, minute)


def _smallest_part(question: Question) -> bytes:
    """The part of a large cell with the fewest rows that answer a question: a roll-up where one dimension will do. All of them tell
    advertisers apart."""
    dimensions = ({*question.group_by} | {name for name, _ in question.filters}) - {"campaign_id", "advertiser_id"}
    if len(dimensions) > 1:
        return layout.ROWS
    return layout.ROLLED[dimensions.pop() if dimensions else "device"]


def _codes(name: str, values: Sequence[str | int]) -> list[int]:
    """Values of a dimension as rows have them."""
    return [NAMES[name].index(str(value)) if name in NAMES else int(value) for value in values]


def _filtered(question: Question, campaigns: tuple[int, ...]) -> tuple[int, ...]:
    """The campaigns that the question's filter leaves, and that may be seen."""
    for allowed in (dict(question.filters).get("campaign_id"), question.scope.campaigns):
        campaigns = campaigns if allowed is None else tuple(c for c in campaigns if c in allowed)
    return campaigns


def _refuse_unlisted(campaigns: Sequence[tuple[int, ...]], span: Span) -> None:
    """Raise Unavailable for a shard that has rows, and has not listed the campaigns that these are of."""
    for shard, (of_shard, newest_ms) in enumerate(zip(campaigns, span.newest_ms, strict=True)):
        if newest_ms is not None and not of_shard:
            text = f"Redis: shard {shard} has not listed its campaigns yet; the next start of its stream worker does"
            raise Unavailable(text, backend="redis")


def _refuse_many(campaigns: Sequence[tuple[int, ...]]) -> None:
    """Raise Unavailable for a shard that has too many campaigns."""
    for shard, of_shard in enumerate(campaigns):
        if len(of_shard) > _MOST_LISTED:
            text = (
                f"Redis: shard {shard} has {len(of_shard):,} campaigns, too many to be read at once; ask by advertiser"
            )
            raise Unavailable(text, backend="redis")


def _span(replies: list[list[bytes | None]]) -> Span:
    """The span of all shards, from the fields of each."""
    shards = [[int(value) if value else None for value in fields] for fields in replies]
    return Span(*([fields[i] for fields in shards] for i in range(len(_SPAN_FIELDS))))
