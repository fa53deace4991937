"""The users of an answer: read from ClickHouse while the tiers are, and cached as they are. Counts never wait for what users lack.

Whatever fails here, or takes too long, leaves the answer without users, and with a warning. Threads, circuit breaker and cache are its
own: statements about users must not keep ClickHouse from being asked for counts. `query.api.routes` has threads for questions with
users, so that only these wait for them.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import msgspec
import numpy as np

from infra.clock import DAY_MS, now_ms
from infra.errors import AdclickError, Refused, TimedOut, Unavailable
from infra.structs import decodable
from query import warnings
from query.circuit import Guard
from query.plan import Borders, Piece
from query.question import Question
from query.reach import ENCODING, OF_RUNS, Reach, Users, covers_whole_hours, plan_users, whole_hours
from query.reach_progress import Partitions, warn_of_missing_users
from query.tier_cache import Lookup, TierCache
from query.tiers.reach import StoredUsers, TablesOfUsers, TooManyGroups

# For how long users are fresh: those of nightly runs, which nothing can change, and others. And what is known of the tables.
_SETTLED_FRESH_S, _OPEN_FRESH_S, _TABLES_FRESH_S = 3600.0, 1.0, 5.0
# Each may be a statement about users, of which several at once would take memory and CPU from those that count.
_THREADS = 2


@decodable
class _Encoded(msgspec.Struct, frozen=True):
    buckets: bytes
    campaigns: bytes
    counts: bytes
    rows_read: int


class ReachReader:
    """Thread-safe."""

    def __init__(
        self,
        stored: StoredUsers,
        cache: TierCache,
        wait_s: float,
        *,
        counted: bool = True,
        caches: bool = True,
        now: Callable[[], int] = now_ms,
    ) -> None:
        """`wait_s`: after which an answer goes without users. `counted`: whether this installation counts users. `caches`: whether replies are cached."""
        self._counted = counted
        self._stored, self._cache, self._wait_s, self._caches, self._now = stored, cache, wait_s, caches, now
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="users")
        self._guard, self._progress_guard = Guard("clickhouse-users"), Guard("redis-users")

    def begin(self, question: Question, borders: Borders) -> Callable[[], Reach]:
        """Begin to read the users of a question's rows and, if it wants totals, of all of them; returns what waits for them."""
        if not self._counted:
            return lambda: Reach(warnings=[warnings.USERS_OFF])
        futures = [self._pool.submit(self._read, question, borders)]
        if question.totals:
            total = replace(question, grain="total", group_by=(), totals=False)
            same = not question.group_by and question.grain == "total"
            futures.append(futures[0] if same else self._pool.submit(self._read, total, borders))
        deadline = time.monotonic() + self._wait_s
        return lambda: self._join(question, self._results(futures, deadline))

    def _results(self, futures: list[Future[Reach]], deadline: float) -> list[Reach]:
        """What is read until the deadline. A read that has begun goes on, for the cache."""
        done, late = concurrent.futures.wait(futures, max(0.0, deadline - time.monotonic()))
        for future in late:
            future.cancel()
        reason = f"they were not read within {self._wait_s:g} s; retry, with a shorter range or fewer groups if it happens again"
        unknown = Reach(warnings=[warnings.users_away(reason)])
        return [future.result() if future in done else unknown for future in futures]

    def _join(self, question: Question, parts: list[Reach]) -> Reach:
        """The users of the rows, and of the total."""
        rows, total = parts[0], parts[-1]
        notes = list(dict.fromkeys(warning for part in parts for warning in part.warnings))
        whole = covers_whole_hours(question, self._now())
        if not whole:
            notes.append(warnings.users_of_whole_hours(*whole_hours(question)))
        return Reach(
            rows.rows, total.rows if question.totals else None, whole, all(part.settled for part in parts), notes,
            rows.rows_read + (total.rows_read if total is not rows else 0),
        )  # fmt: skip

    def _read(self, question: Question, borders: Borders) -> Reach:
        """The users of a question's rows, alone; without any where ClickHouse cannot say."""
        try:
            tables = self._read_tables(question, borders)
            pieces = plan_users(question, borders, tables.hour_runs, tables.day_runs)
            of_stream = [piece for piece in pieces if piece.tier not in OF_RUNS]
            settled = not of_stream
            # Before the users, which have at least those that it speaks of.
            progress = self._read_progress() if of_stream else []
            lookup = self._read_users(question, pieces, tables, settled=settled)
        except AdclickError as error:
            return Reach(warnings=[warnings.users_away(_reason(error))])
        encoded = msgspec.msgpack.decode(lookup.value, type=_Encoded)
        notes = [warnings.old_users(int(lookup.read_at) * 1000)] if lookup.stale else []
        if any(piece.start_ms < tables.since_ms for piece in of_stream):
            notes.append(warnings.users_before_their_tables(tables.since_ms))
        notes += warn_of_missing_users(progress, of_stream, tables.since_ms, self._now())
        columns = (np.frombuffer(raw, np.int64) for raw in (encoded.buckets, encoded.campaigns, encoded.counts))
        return Reach(Users(*columns), settled=settled, warnings=notes, rows_read=encoded.rows_read)

    def _read_progress(self) -> Partitions:
        """Of one partition of which nothing is known where Redis does not answer."""
        try:
            return self._progress_guard.call(self._stored.progress)
        except Unavailable:
            return [None]

    def _read_tables(self, question: Question, borders: Borders) -> TablesOfUsers:
        start_ms, end_ms = whole_hours(question)
        runs = sorted(run for day, run in borders.runs.items() if start_ms - DAY_MS < day < end_ms)

        def read() -> bytes:
            return msgspec.msgpack.encode(self._guard.call(lambda: self._stored.tables(runs)))

        return msgspec.msgpack.decode(self._cached(("tables", runs), _TABLES_FRESH_S, read).value, type=TablesOfUsers)

    def _read_users(
        self, question: Question, pieces: Sequence[Piece], tables: TablesOfUsers, *, settled: bool
    ) -> Lookup:
        """The users, encoded. The key has all that they depend on; a table of runs that was made again has other rows."""
        zone = question.zone.key if question.grain == "day" else ""
        key = (
            pieces, tables.run_tables, question.campaigns, question.advertiser, question.scope.parts, question.grain, question.start_ms,
            question.group_by, question.filters, zone,
        )  # fmt: skip

        def read() -> bytes:
            reply = self._guard.call(lambda: self._stored.read(question, pieces))
            users = reply.users
            buckets, campaigns, counts = (c.tobytes() for c in (users.buckets, users.campaigns, users.counts))
            return msgspec.msgpack.encode(_Encoded(buckets, campaigns, counts, reply.rows_read))

        return self._cached(key, _SETTLED_FRESH_S if settled else _OPEN_FRESH_S, read)

    def _cached(self, key: tuple[object, ...], fresh_s: float, read: Callable[[], bytes]) -> Lookup:
        if not self._caches:
            return Lookup(read(), 0.0, "answered")
        return self._cache.get_or_read(repr(("users", ENCODING, *key)), fresh_s, read)


def _reason(error: AdclickError) -> str:
    """Why there are no users, in the words of a warning."""
    if isinstance(error, TimedOut):
        return "ClickHouse did not answer in time; retry with a shorter range or fewer groups"
    if isinstance(error, TooManyGroups):
        return error.message
    if isinstance(error, Refused) and error.code == "MEMORY_LIMIT_EXCEEDED":
        return "ClickHouse has too little memory to read them; retry with a shorter range or fewer groups"
    if isinstance(error, Refused):
        return f"ClickHouse refuses to read them: {error.code}" + (f"; {error.hint}" if error.hint else "")
    if isinstance(error, Unavailable):
        return "ClickHouse does not answer"
    return "ClickHouse does not accept the statement; adclick migrate brings its tables up to date"
