"""The router: a question is planned once, its pieces are read concurrently, and their sums are merged.

    Question → pieces (plan) → Reading of TierReplies → Sums → Rows → Page → Answer

`query/__init__.py` says what each of them is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, now_ms
from infra.errors import AdclickError, Unavailable
from infra.redis.client import Redis
from infra.settings import Settings
from query import sums, warnings
from query.answer_id import identify_answer
from query.cached_borders import EXPIRED_S, CachedBorders
from query.circuit import Guard
from query.compared import EarlierSums
from query.comparison import CountedPart
from query.directory.reader import DirectoryLookup, DirectoryReader
from query.directory.snapshot import Names, Snapshot
from query.directory.store import DirectoryStore
from query.finality import weakest_finality
from query.page import Page, cut_page
from query.plan import HOT, Borders, Piece
from query.question import Question, Retention, parse_question
from query.reach_reader import ReachReader
from query.reading import DegradedRange, Reading, TierReply, is_settled, move_to_minutes
from query.row_scope import ALL_ROWS
from query.rows import build_rows, build_total
from query.signing import Signer
from query.sums import Sums
from query.tier_cache import KEPT_S, Lookup, TierCache
from query.tiers.clickhouse import StoredTiers, decode_borders
from query.tiers.reach import StoredUsers
from query.tiers.redis import HotTier
from stream.reach.progress import read_progress

# For Redis, and for what ClickHouse answers at once; what it has to read may take longer.
_REDIS_TIMEOUT_S, BRIEF_TIMEOUT_S = 1, 2
_THREADS = 32
# For how long replies of stored tiers are fresh: those that nothing can change any more, and those that may still be corrected.
_SETTLED_FRESH_S, _OPEN_FRESH_S = 3600.0, 1.0
# How often a question is planned again because the tiers' borders moved while it was read.
_REPLANS = 2

Observe = Callable[[str, str, float], None]
_ReadPieces = Callable[[], list[TierReply]]


class NoTierAnswered(Unavailable):
    """None of the tiers that a question needs is available."""


@dataclass
class Answer:
    """The answer to a question. `tiers_ms`: from the first request to a tier to the last reply."""

    question: Question
    page: Page
    next_cursor: str | None
    finality: str
    watermark_ms: int | None
    pieces: list[Piece]
    rows_read: int
    warnings: list[str]
    settled: bool
    """Whether nothing of it can change any more, unless a nightly run replaces it."""
    elapsed_ms: float
    tiers_ms: float
    degraded: list[DegradedRange] = field(default_factory=list)
    """What of it is missing, or may be, or is old: each with one of the warnings."""
    notes: list[str] = field(default_factory=list)
    """The warnings that do not make any row incomplete or old."""
    total: Page | None = None
    """The one row of all rows; None where the question does not want it."""
    part: CountedPart | None = None
    """What its range is compared with."""

    @cached_property
    def id(self) -> str:
        """The same for the same question over the same data."""
        return identify_answer(self.question, self.page.rows, self.finality)


class Router:
    """Answers questions. Thread-safe; connects on first use."""

    def __init__(
        self,
        settings: Settings,
        observe: Observe = lambda *_: None,
        *,
        hot: HotTier | None = None,
        stored: StoredTiers | None = None,
        cache: TierCache | None = None,
        directory: DirectoryReader | None = None,
        users: StoredUsers | None = None,
    ) -> None:
        """`observe(tier, outcome, seconds)` is called for each piece of a reading. Tiers, cache, directory and users that are not
        given are those of `settings`."""
        self._observe = observe
        self.retention = Retention(settings.hot_hours * HOUR_MS, settings.warm_days * DAY_MS)
        redis = Redis(settings.redis_access, timeout_s=_REDIS_TIMEOUT_S)
        clickhouse = ClickHouse.of(settings, timeout_s=settings.query_timeout_s, connections=_THREADS)
        self.guards = {name: Guard(name) for name in ("redis", "clickhouse")}
        self._cache = cache or TierCache(redis, self.guards["redis"], settings.key_prefix)
        self._hot = hot or HotTier(redis, settings.key_prefix, settings.block_partitions)
        brief = ClickHouse.of(settings, timeout_s=BRIEF_TIMEOUT_S)
        self._stored = stored or StoredTiers(clickhouse, brief, settings.block_partitions)
        self.directory = directory or DirectoryReader(DirectoryStore(clickhouse))
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tier")
        self._borders = CachedBorders(self._cache, self._read_stored_borders, self._pool)
        self._caches = settings.query_cache == "on"
        progress = partial(read_progress, redis, settings.key_prefix, settings.event_partitions)
        users = users or StoredUsers(clickhouse, settings.query_timeout_s, progress)
        # In a cache of its own: entries of one share locks, which are held while they are read.
        of_users = cache or TierCache(redis, self.guards["redis"], settings.key_prefix)
        self._reach = ReachReader(
            users, of_users, settings.query_timeout_s, counted=settings.reach == "on", caches=self._caches
        )
        self.signer = Signer(settings.user_secret.get_secret_value() + settings.api_key.get_secret_value())

    def answer(self, question: Question) -> Answer:
        """Raises BadQuestion, NoTierAnswered."""
        started = time.perf_counter()
        # Begun first, so that it is brought up to date while the tiers are read.
        directory = self.directory.begin() if question.names else None
        reading = self._read(question)
        for _ in range(_REPLANS):
            if not reading.outdated:
                break
            reading = self._read(question, newest_borders=True)
        reading.add_span_to_borders()
        if reading.earlier is not None:
            reading.earlier.add_span_to_borders()
        tiers_ms = (time.perf_counter() - started) * 1000
        table = sums.merge_pieces(question, reading.tables)
        earlier = _merge_earlier(reading)
        reach = reading.reach
        users, users_in_total = (None, None) if reach is None else (reach.beside_rows, reach.beside_total)
        rows = build_rows(question, table, reading.borders, reading.answered, earlier, users)
        names = None if directory is None else _names(question, directory, reading)
        page, next_cursor = cut_page(question, rows, self.signer, names)
        total = None
        if question.totals:
            total_question, total_rows = build_total(
                question, table, reading.borders, reading.answered, earlier, users_in_total
            )
            total = Page(total_question, total_rows, total_rows.order)
        reading.warn_of_answered(sampled=bool(rows.sums.sampled.any()))
        reading.warn_of_users(sampled=bool(rows.sums.sampled.any()))
        if earlier is not None:
            reading.warn_of_earlier(earlier.comparison, sampled=bool(earlier.sums.sampled.any()))
        finality = weakest_finality(rows.finality, question, reading.borders, reading.answered)
        return Answer(
            question, page, next_cursor, finality, reading.watermark_ms, reading.answered, reading.rows_read, reading.warnings,
            reading.settled, (time.perf_counter() - started) * 1000, tiers_ms, reading.degraded, reading.notes,
            total, reading.part,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Load the compiled loops, so that the first question need not wait for them."""
        parameters = {"campaign_id": "1", "start": "-1h", "end": "now", "granularity": "minute", "group_by": "country"}
        self._hot.warm_up(parse_question(list(parameters.items()), now_ms(), self.retention))

    def _read(self, question: Question, *, newest_borders: bool = False) -> Reading:
        """Read the borders, plan by them, and read the pieces. `newest_borders`: the cached ones proved too old."""
        reading = Reading(question)
        self._read_borders(reading, newest=newest_borders)
        readings = [reading]
        if question.compare is not None:
            readings.append(reading.begin_earlier(question.compare))
        for each in readings:
            each.plan()
        wait_for_users = self._reach.begin(question, reading.borders) if question.users else None
        unanswered = self._read_pieces([(each, piece) for each in readings for piece in each.pieces])
        for each in readings:
            pieces = [piece for owner, piece in unanswered if owner is each]
            if pieces:
                retained_ms = None if each.span is None else each.span.held_from_ms
                minutes, missing = move_to_minutes(pieces, retained_ms)
                again = self._read_pieces([(each, piece) for piece in minutes])
                each.warn_of_unanswered([*missing, *(piece for _, piece in again)])
            each.answered.sort(key=lambda p: p.start_ms)
        if wait_for_users is not None:
            reading.add_users(wait_for_users())
        if reading.pieces and not reading.answered:
            raise NoTierAnswered("no tier answered")
        return reading

    # -- borders --------------------------------------------------------------------------------------------

    def _read_borders(self, reading: Reading, *, newest: bool) -> None:
        """Read the borders once for a reading, the same for all of its pieces. A question about minutes waits for none: the span of
        its minutes comes with their rows, and of the other tiers it needs the runs alone, for finality."""
        if reading.question.only_minutes:
            if reading.question.compare is not None:
                # What it is compared with depends on the watermark.
                self._read_span(reading)
            failure = self._take_borders(reading, self._borders.begin(KEPT_S), needed=False)
        else:
            # Asked for first, so that ClickHouse answers while Redis is read.
            wait = self._borders.read_newest if newest else self._borders.begin(EXPIRED_S)
            hot_failure = self._read_span(reading)
            failure = self._take_borders(reading, wait, needed=True)
            if hot_failure is not None and failure is not None:
                raise NoTierAnswered(str(hot_failure))
        reading.add_span_to_borders()

    def _read_span(self, reading: Reading) -> Unavailable | None:
        try:
            reading.span = self._hot.seen() or self.guards["redis"].call(self._hot.span)
        except Unavailable as error:
            # Each range that it leaves without rows, or without late events, gets a warning of its own.
            reading.note(warnings.HOT_AWAY)
            return error
        return None

    def _take_borders(self, reading: Reading, wait: Callable[[], Lookup], *, needed: bool) -> Unavailable | None:
        try:
            lookup = wait()
        except Unavailable as error:
            if needed:
                reading.warnings.append(warnings.STORED_AWAY)
            return error
        reading.borders = decode_borders(lookup.value)
        if needed:
            reading.warnings += map(warnings.table_being_filled, reading.borders.void)
            if lookup.stale:
                question, as_of_ms = reading.question, _read_ms(lookup)
                warning = warnings.old_borders(as_of_ms)
                reading.warn_of_range(question.start_ms, question.end_ms, warning, as_of_ms)
        return None

    def _read_stored_borders(self) -> bytes:
        return self.guards["clickhouse"].call(self._stored.borders)

    # -- pieces ---------------------------------------------------------------------------------------------

    def _read_pieces(self, tasks: Sequence[tuple[Reading, Piece]]) -> list[tuple[Reading, Piece]]:
        """Read pieces concurrently, and add the replies in the order of the pieces, whichever comes first; returns those that were
        not answered."""
        reads, replies = dict[tuple[int, ...], _ReadPieces](), dict[int, TierReply]()

        def take(numbers: Sequence[int], of_pieces: Sequence[TierReply], seconds: float) -> None:
            for number, reply in zip(numbers, of_pieces, strict=True):
                self._observe(tasks[number][1].tier, reply.outcome, seconds)
                replies[number] = reply

        for numbers in _numbers_of_reads(tasks):
            reading, pieces = tasks[numbers[0]][0], [tasks[number][1] for number in numbers]
            if pieces[0].tier == HOT:
                if reading.span is not None or reading.question.only_minutes:
                    reads[numbers] = self._hot_reader(reading.question, pieces[0])
            elif (cached := self._cached_replies(reading.question, pieces, reading.borders)) is not None:
                take(numbers, cached, 0.0)
            else:
                reads[numbers] = self._stored_reader(reading.question, reading.borders, pieces)
        # The last one in this thread: most questions have one.
        began = time.perf_counter()
        futures = {numbers: self._pool.submit(reads[numbers]) for numbers in list(reads)[:-1]}
        for numbers, read in reversed(reads.items()):
            try:
                of_pieces = futures[numbers].result() if numbers in futures else read()
            except Unavailable:
                for number in numbers:
                    self._observe(tasks[number][1].tier, "failed", time.perf_counter() - began)
                continue
            take(numbers, of_pieces, time.perf_counter() - began)
        for number in sorted(replies):
            reading, piece = tasks[number]
            reading.add(piece, replies[number])
        return [task for number, task in enumerate(tasks) if number not in replies]

    def _cached_replies(
        self, question: Question, pieces: Sequence[Piece], borders: Borders
    ) -> Sequence[TierReply] | None:
        lookup = self._cache.get_fresh(_cache_key(question, pieces, borders)) if self._caches else None
        return None if lookup is None else _decode_replies(lookup)

    def _hot_reader(self, question: Question, piece: Piece) -> _ReadPieces:
        def read() -> list[TierReply]:
            tier = self._hot
            table, rows_read, span = self.guards["redis"].call(
                lambda: tier.read(question, piece.start_ms, piece.end_ms)
            )
            return [TierReply(table, rows_read, "answered", span)]

        return read

    def _stored_reader(self, question: Question, borders: Borders, pieces: Sequence[Piece]) -> _ReadPieces:
        def read() -> list[tuple[Sums, int]]:
            return self.guards["clickhouse"].call(lambda: self._stored.read(question, pieces))

        def read_encoded() -> bytes:
            return sums.encode_tables(read())

        def read_cached() -> list[TierReply]:
            settled = all(is_settled(piece, borders) for piece in pieces)
            key, fresh_s = _cache_key(question, pieces, borders), _SETTLED_FRESH_S if settled else _OPEN_FRESH_S
            return _decode_replies(self._cache.renew(key, fresh_s, read_encoded))

        return read_cached if self._caches else lambda: [TierReply(*table, "answered") for table in read()]


def _numbers_of_reads(tasks: Sequence[tuple[Reading, Piece]]) -> list[tuple[int, ...]]:
    """The numbers of the pieces that are read together: of one stored tier and one reading, and each piece of minutes by itself."""
    together = dict[tuple[int, str, int], list[int]]()
    for number, (reading, piece) in enumerate(tasks):
        alone = number if piece.tier == HOT else -1
        together.setdefault((id(reading), piece.tier, alone), []).append(number)
    return [*map(tuple, together.values())]


def _decode_replies(lookup: Lookup) -> list[TierReply]:
    as_of_ms = _read_ms(lookup) if lookup.stale else None
    return [TierReply(*table, lookup.outcome, stale_as_of_ms=as_of_ms) for table in sums.decode_tables(lookup.value)]


def _names(question: Question, directory: Callable[[], DirectoryLookup], reading: Reading) -> Names:
    """What the rows are labelled with; without a directory, ids alone, and a warning."""
    try:
        lookup = directory()
    except AdclickError:
        reading.note(warnings.NAMES_AWAY)
        return Names(Snapshot.empty(), ALL_ROWS)
    if lookup.stale_s:
        reading.note(warnings.old_directory(lookup.stale_s))
    return Names(lookup.snapshot, question.scope)


def _merge_earlier(reading: Reading) -> EarlierSums | None:
    """The sums of what a question is compared with; None for one that does not compare."""
    comparison, earlier, part = reading.question.compare, reading.earlier, reading.part
    if comparison is None or earlier is None or part is None:
        return None
    known = bool(earlier.answered) or not earlier.pieces
    return EarlierSums(comparison, part, sums.merge_pieces(earlier.question, earlier.tables), known)


def _read_ms(lookup: Lookup) -> int:
    """When a cached value was read: the same in each answer that it stands in for."""
    return int(lookup.read_at) * 1000


def _cache_key(question: Question, pieces: Sequence[Piece], borders: Borders) -> str:
    """All that the encoded sums of pieces of a tier depend on, of one table: one that was made again has other rows."""
    grain = (question.grain, question.start_ms) if question.grain == "total" else question.grain
    table_id = borders.table_ids.get(pieces[0].tier, "")
    zone = question.zone.key if question.grain == "day" else ""
    return repr(
        (sums.ENCODING, tuple(pieces), table_id, question.campaigns, question.advertiser, question.scope.parts, grain, question.group_by, question.filters, zone)
    )  # fmt: skip
