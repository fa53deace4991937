"""The lists of campaigns that trend, in Redis: written by the notify worker, read by routers. Each key is named here and nowhere else.

    …:trends                  string      which lists are the current ones, when they were computed, and what is missing in them
    …:trends:{COMPUTED}:all   sorted set  score → a campaign with its factors, of all advertisers
    …:trends:{COMPUTED}:ADV   sorted set  the same of an advertiser's campaigns

(COMPUTED is the moment of the computation, epoch ms.) New lists are written beside the current ones, and count with the one write of
the first key: a reader never sees lists of two computations. Keys expire by themselves, so that no trend outlasts its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from infra.clock import MINUTE_MS
from infra.redis.client import Redis
from infra.redis.commands import pack_command
from infra.structs import decodable
from query.trending import Trend, take_highest

FRESH_MS = 3 * MINUTE_MS
"""Lists that are older answer no question any more."""
_EXPIRES_S = 300
_KEYS_A_CALL = 500


@decodable
class _Member(msgspec.Struct, frozen=True, array_like=True):
    """A trend as a list has it; `users` as they count for its score."""

    campaign: int
    volume: int
    usual: float
    users: float | None
    sources: float
    recency: float
    is_assumed: bool = False


@decodable
class ListHeader(msgspec.Struct, frozen=True):
    """Which lists count. `computed_ms`: when they were begun to be computed; `end_ms`: the end of their last minute."""

    computed_ms: int
    end_ms: int
    warnings: list[str] = []


class TrendLists:
    """Every method may raise Unavailable."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._key = redis, f"{prefix}trends"
        self._former: list[str] = []
        self._current: list[str] = []

    def write(self, header: ListHeader, of_all: Sequence[Trend], by_advertiser: Mapping[int, Sequence[Trend]]) -> None:
        """Replace the lists. Used by one thread."""
        lists = {self._list_key(header.computed_ms, None): of_all}
        lists |= {self._list_key(header.computed_ms, advertiser): own for advertiser, own in by_advertiser.items()}
        lists = {key: trends for key, trends in lists.items() if trends}
        for keys in _parts(list(lists)):
            self._redis.transactions([[command for key in keys for command in _write_commands(key, lists[key])]])
        self._redis.call("SET", self._key, msgspec.json.encode(header), "EX", _EXPIRES_S)
        # Those of the computation before last: readers may still be at the last one's.
        for keys in _parts(self._former):
            self._redis.call("UNLINK", *keys)
        self._former, self._current = self._current, list(lists)

    def read(self, advertiser: int | None, most: int, now_ms: int) -> tuple[ListHeader, list[Trend]] | None:
        """The list of an advertiser, None: of all, and what is said about it; None where there are no lists that are fresh."""
        raw = self._redis.call("GET", self._key)
        if raw is None:
            return None
        header = msgspec.json.decode(raw, type=ListHeader)
        if now_ms - header.computed_ms >= FRESH_MS:
            return None
        members = self._redis.call("ZREVRANGE", self._list_key(header.computed_ms, advertiser), 0, most - 1)
        return header, take_highest([_decode(member) for member in members], most)

    def _list_key(self, computed_ms: int, advertiser: int | None) -> str:
        """The braces keep the lists of a computation in one slot of a cluster, as a transaction needs."""
        return f"{self._key}:{{{computed_ms}}}:{'all' if advertiser is None else advertiser}"


def _write_commands(key: str, trends: Sequence[Trend]) -> Iterator[bytes]:
    members = [part for trend in trends for part in (repr(trend.score), _encode(trend))]
    yield pack_command("ZADD", key, *members)
    yield pack_command("EXPIRE", key, _EXPIRES_S)


def _encode(trend: Trend) -> bytes:
    # Six digits, not decimals: of a bot with millions of clicks the factor must not become 0.
    users = None if trend.users is None else float(f"{trend.users:.6g}")
    factors = round(trend.usual, 3), users, round(trend.sources, 6), round(trend.recency, 6)
    return msgspec.json.encode(_Member(trend.id, trend.volume, *factors, trend.is_assumed))


def _decode(raw: bytes) -> Trend:
    member = msgspec.json.decode(raw, type=_Member)
    factors = member.usual, member.users, member.sources, member.recency
    return Trend(member.campaign, member.volume, *factors, is_assumed=member.is_assumed)


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(keys), _KEYS_A_CALL):
        yield keys[first : first + _KEYS_A_CALL]
