"""The router: a question is planned once, every piece is read once and concurrently, and merged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.errors import Unavailable
from infra.redis import Redis
from infra.settings import Settings
from query import answer, sums
from query.answer import Page
from query.cache import KEPT_S, Cache, Found
from query.plan import EXACT, HOT, WARM, Borders, Piece, plan
from query.request import Held, Question, parse
from query.signing import Signer
from query.sums import Sums
from query.tiers.guard import Guard
from query.tiers.hot import HotTier, Span
from query.tiers.stored import StoredTiers, borders_of

# For Redis, and for what ClickHouse answers at once; what it has to read may take longer.
_REDIS_TIMEOUT_S, BRIEF_TIMEOUT_S = 1, 2
_THREADS = 32
# Of hours and days that nothing can change any more; of those that may still be corrected.
_SETTLED_FRESH_S, _OPEN_FRESH_S = 3600.0, 1.0
# Tier borders and current runs. Older ones are as right, only not the newest: for a second more nobody waits for them.
_BORDERS, _BORDERS_FRESH_S, _BORDERS_LATE_S = "borders", 1.0, 1.0
# How often a question is planned again because the tiers' borders moved while it was read.
_REPLANS = 2


Observe = Callable[[str, str, float], None]


@dataclass(frozen=True)
class Reply:
    """What a tier answered for one piece. A value: threads of the pool return it, and write nothing that is shared.

    `outcome`: answered, cached or stale. `span`: of the hot tier, the span that the sums are true of. `warning`: empty when there is none.
    """

    table: Sums
    rows_read: int
    outcome: str
    span: Span | None = None
    warning: str = ""


_Read = Callable[[], Reply]


class NothingLeft(Unavailable):
    """No tier that this question needs can be asked at the moment."""


@dataclass
class Answer:
    """What was found. `tiers_ms`: from the first question to a tier to the last answer."""

    question: Question
    page: Page
    next_cursor: str | None
    finality: str
    watermark_ms: int | None
    tiers: list[Piece]
    rows_read: int
    warnings: list[str]
    settled: bool
    """Whether nothing of it can change any more, unless a nightly run replaces it."""
    elapsed_ms: float
    tiers_ms: float


@dataclass
class _Reading:
    """What is known during one attempt at a question. Only the thread that answers it writes here."""

    question: Question
    span: Span | None = None
    borders: Borders = field(default_factory=Borders)
    pieces: list[Piece] = field(default_factory=list)
    answered: list[Piece] = field(default_factory=list)
    tables: list[Sums] = field(default_factory=list)
    rows: int = 0
    warnings: list[str] = field(default_factory=list)
    hot_was_read: bool = False

    def add(self, piece: Piece, reply: Reply) -> None:
        """Merge a tier's reply for a piece."""
        self.answered.append(piece)
        self.tables.append(reply.table)
        self.rows += reply.rows_read
        if reply.warning:
            self.warnings.append(reply.warning)
        if reply.span is not None:
            # Of several reads of the hot tier, the weakest statement is true of all.
            self.span = reply.span.as_of(self.span) if self.span is not None and self.hot_was_read else reply.span
            self.hot_was_read = True

    @property
    def outdated(self) -> bool:
        """Whether the hot tier turned out to hold less than the plan took it to, so that another plan may do better."""
        if self.question.only_minutes or not self.hot_was_read or self.span is None:
            return False
        planned_ms, held_ms = self.borders.hot_from_ms, self.span.held_from_ms
        lacking = held_ms is None or any(p.tier == HOT and p.start_ms < held_ms for p in self.answered)
        return lacking and held_ms != planned_ms


class Router:
    """Answers questions. Thread-safe; connects on first use."""

    def __init__(self, settings: Settings, observe: Observe = lambda *_: None) -> None:
        """`observe(tier, outcome, seconds)` is told of each part of an answer."""
        self._observe = observe
        self.held = Held(settings.hot_hours * HOUR_MS, settings.warm_days * DAY_MS)
        redis = Redis(settings.redis, timeout_s=_REDIS_TIMEOUT_S)
        clickhouse = ClickHouse(
            settings.clickhouse, settings.database, timeout_s=settings.query_timeout_s, connections=_THREADS
        )
        self.guards = {name: Guard(name) for name in ("redis", "clickhouse")}
        self.cache = Cache(redis, self.guards["redis"], settings.key_prefix)
        self._hot = HotTier(redis, settings.key_prefix, settings.block_partitions)
        brief = ClickHouse(settings.clickhouse, settings.database, timeout_s=BRIEF_TIMEOUT_S)
        self._stored = StoredTiers(clickhouse, brief, settings.block_partitions)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tier")
        self._caches = settings.query_cache == "on"
        self._renewing = threading.Lock()
        self.signer = Signer(settings.user_secret.get_secret_value() + settings.api_key.get_secret_value())

    def answer(self, question: Question) -> Answer:
        """Raises BadQuestion, NothingLeft."""
        started = time.perf_counter()
        reading = self._attempt(question, again=False)
        for _ in range(_REPLANS):
            if not reading.outdated:
                break
            reading = self._attempt(question, again=True)
        self._note(reading)
        tiers_ms = (time.perf_counter() - started) * 1000
        table = sums.merged(question, reading.tables)
        made = answer.rows(question, table, reading.borders, reading.answered)
        page, cursor = answer.page(question, made, self.signer)
        _warn(reading, sampled=bool(made.table.sampled.any()))
        settled = not reading.warnings and all(_settled(p, reading.borders) for p in reading.answered)
        return Answer(
            question, page, cursor, answer.weakest(made, question, reading.borders, reading.answered),
            _watermark_ms(reading), reading.answered, reading.rows, reading.warnings, settled,
            (time.perf_counter() - started) * 1000, tiers_ms,
        )  # fmt: skip

    def _attempt(self, question: Question, *, again: bool) -> _Reading:
        """Plan by the tiers' borders, and read. `again`: the borders that are cached proved too old."""
        reading = _Reading(question)
        self._learn(reading, again=again)
        reading.pieces = plan(
            question.start_ms, question.end_ms, reading.borders,
            whole_days=question.grain == "total" or (question.grain == "day" and question.utc_days),
            only_minutes=question.only_minutes,
        )  # fmt: skip
        self._read(reading)
        return reading

    def warm_up(self) -> None:
        """Load what is compiled, before the first question would wait for it."""
        asked = {"campaign_id": "1", "start": "-1h", "end": "now", "granularity": "minute", "group_by": "country"}
        self._hot.warm_up(parse(list(asked.items()), now_ms(), self.held))

    # -- what the tiers hold --------------------------------------------------------------------------------

    def _learn(self, reading: _Reading, *, again: bool) -> None:
        """Borders and current runs: once for a question, and the same for all of its parts. What Redis holds is learned by who
        asks for minutes alone when these are read."""
        alone, failures = reading.question.only_minutes, list[Unavailable]()
        # Of minutes only finality follows from them, and that from what Redis says, too: nobody waits for ClickHouse.
        borders = self._newest_borders if again else self._borders(KEPT_S if alone else _BORDERS_LATE_S)
        if not alone:
            try:
                reading.span = self._hot.seen() or self.guards["redis"].call(self._hot.span)
            except Unavailable as error:
                failures.append(error)
                reading.warnings.append("tier hot is not available: minutes and the newest hours are missing")
        try:
            found = borders()
            reading.borders = borders_of(found.value)
            if found.stale and not alone:
                reading.warnings.append(
                    f"tiers warm and cold are not available: what they hold is as of {_age_of(found)}"
                )
        except Unavailable as error:
            failures.append(error)
            if not alone:
                reading.warnings.append("tiers warm and cold are not available: what is in Redis is shown")
        if len(failures) == 2:
            raise NothingLeft(str(failures[0]))
        self._note(reading)

    def _note(self, reading: _Reading) -> None:
        """Put what Redis says beside what ClickHouse says."""
        span = reading.span
        from_ms, watermark_ms = (None, None) if span is None else (span.held_from_ms, span.watermark_ms)
        reading.borders = replace(reading.borders, hot_watermark_ms=watermark_ms, hot_from_ms=from_ms)

    def _ask_borders(self) -> bytes:
        return self.guards["clickhouse"].call(self._stored.borders)

    def _newest_borders(self) -> Found:
        return self.cache.replaced(_BORDERS, _BORDERS_FRESH_S, self._ask_borders)

    def _borders(self, late_s: float) -> Callable[[], Found]:
        """Ask for the tiers' borders, unless they are known, and have not been fresh for `late_s` at most; returns what waits
        for them."""

        def ask() -> Found:
            return self.cache.get(_BORDERS, _BORDERS_FRESH_S, self._ask_borders)

        def renew() -> None:
            try:
                ask()
            except Unavailable:
                pass  # whoever needs them next asks again, and says so
            finally:
                self._renewing.release()

        found, due = self.cache.held(_BORDERS, late_s)
        if found is None:
            return self._pool.submit(ask).result
        if due and self._renewing.acquire(blocking=False):
            self._pool.submit(renew)
        return lambda: found

    # -- reading --------------------------------------------------------------------------------------------

    def _read(self, reading: _Reading) -> None:
        """All pieces at once; what a tier does not answer, from another where one holds it."""
        failed = self._ask(reading, reading.pieces)
        missing: list[Piece] = []
        instead: list[Piece] = []
        for piece in failed:
            held_from = None if reading.span is None else reading.span.held_from_ms
            if piece.tier == HOT or held_from is None:
                missing.append(piece)
                continue
            border = min(max(piece.start_ms, -(-held_from // HOUR_MS) * HOUR_MS), piece.end_ms)
            missing += [replace(piece, end_ms=border)] if border > piece.start_ms else []
            instead += [Piece(HOT, border, piece.end_ms)] if border < piece.end_ms else []
        missing += self._ask(reading, instead)
        for piece in missing:
            reading.warnings.append(
                f"tier {piece.tier} is not available: {iso(piece.start_ms)} to {iso(piece.end_ms)} is missing"
            )
        reading.answered.sort(key=lambda p: p.start_ms)
        if reading.pieces and not reading.answered:
            raise NothingLeft("no tier answered")

    def _ask(self, reading: _Reading, pieces: Sequence[Piece]) -> list[Piece]:
        """Read pieces concurrently, and merge the replies in the order of the pieces, whichever comes first; returns the
        pieces that were not answered."""
        reads, replies = dict[int, _Read](), dict[int, Reply]()
        for number, piece in enumerate(pieces):
            if piece.tier == HOT:
                if reading.span is not None or reading.question.only_minutes:
                    reads[number] = self._hot_reader(reading.question, piece)
            elif (cached := self._cached(reading.question, piece)) is not None:
                self._observe(piece.tier, cached.outcome, 0.0)
                replies[number] = cached
            else:
                reads[number] = self._stored_reader(reading.question, reading.borders, piece)
        # The last one in this thread: most questions have one.
        began = time.perf_counter()
        futures: dict[int, Future[Reply]] = {n: self._pool.submit(reads[n]) for n in list(reads)[:-1]}
        for number, read in reversed(reads.items()):
            tier = pieces[number].tier
            try:
                reply = futures[number].result() if number in futures else read()
            except Unavailable:
                self._observe(tier, "failed", time.perf_counter() - began)
                continue
            self._observe(tier, reply.outcome, time.perf_counter() - began)
            replies[number] = reply
        for number in sorted(replies):
            reading.add(pieces[number], replies[number])
        return [piece for number, piece in enumerate(pieces) if number not in replies]

    def _cached(self, question: Question, piece: Piece) -> Reply | None:
        """The reply for a piece that is cached and fresh."""
        entry = self.cache.fresh(_asked(question, piece)) if self._caches else None
        return None if entry is None else Reply(*sums.of_bytes(entry.value), "cached")

    def _hot_reader(self, question: Question, piece: Piece) -> _Read:
        def read() -> Reply:
            tier = self._hot
            table, rows, span = self.guards["redis"].call(lambda: tier.read(question, piece.start_ms, piece.end_ms))
            return Reply(table, rows, "answered", span)

        return read

    def _stored_reader(self, question: Question, borders: Borders, piece: Piece) -> _Read:
        def ask() -> tuple[Sums, int]:
            return self.guards["clickhouse"].call(lambda: self._stored.read(question, piece))

        def packed() -> bytes:
            return sums.as_bytes(*ask())

        def cached() -> Reply:
            fresh_s = _SETTLED_FRESH_S if _settled(piece, borders) else _OPEN_FRESH_S
            entry = self.cache.renewed(_asked(question, piece), fresh_s, packed)
            stretch = f"{iso(piece.start_ms)} to {iso(piece.end_ms)}"
            warning = f"tier {piece.tier} is not available: {stretch} is as of {_age_of(entry)}" if entry.stale else ""
            return Reply(*sums.of_bytes(entry.value), entry.outcome, warning=warning)

        return cached if self._caches else lambda: Reply(*ask(), "answered")


def _age_of(entry: Found) -> str:
    """When an entry was read, as a time: the same in each answer that it stands in for."""
    return iso(int(time.time() - entry.age_s) * 1000)


def _asked(question: Question, piece: Piece) -> str:
    """All that the sums of a piece depend on."""
    grain = (question.grain, question.start_ms) if question.grain == "total" else question.grain
    scope = None if question.scope is None else sorted(question.scope)
    return repr((piece, question.campaigns, question.advertiser, scope, grain, question.group_by, question.filters,
                 question.zone.key if question.grain == "day" else ""))  # fmt: skip


def _settled(piece: Piece, borders: Borders) -> bool:
    """Whether nothing can change what a tier says of a piece."""
    border = {"warm": borders.warm_ms, "cold": borders.cold_ms}.get(piece.tier)
    return piece.tier in EXACT or (border is not None and piece.end_ms <= border)


def _watermark_ms(reading: _Reading) -> int | None:
    """The closing watermark of what was read: that of Redis where it was read, else the newest known."""
    borders = reading.borders
    if reading.hot_was_read:
        return borders.hot_watermark_ms
    return max((m for m in (borders.watermark_ms, borders.hot_watermark_ms) if m is not None), default=None)


def _warn(reading: _Reading, *, sampled: bool) -> None:
    question, span, warnings = reading.question, reading.span, reading.warnings
    hot = [p for p in reading.answered if p.tier == HOT]
    if hot and span is not None:
        if span.unknown:
            shards = ", ".join(map(str, span.unknown))
            warnings.append(f"tier hot: shard {shards} does not say what it holds; its numbers may be missing")
        since = max((f for f in span.from_ms if f is not None), default=0)
        warnings += [
            f"tier hot: {iso(piece.start_ms)} to {iso(min(since, piece.end_ms))} may be missing"
            for piece in hot
            if piece.start_ms < since
        ]
    settled_ms = reading.borders.warm_ms or 0
    warnings += [
        f"tier warm: {iso(max(p.start_ms, settled_ms))} to {iso(p.end_ms)} may lack late events: its minutes are no longer in Redis"
        for p in reading.answered
        if p.tier == WARM and p.end_ms > settled_ms
    ]
    if question.cuts_hours:
        warnings.append(
            f"days of {question.zone.key} are cut at whole hours of UTC: the hour in which a day begins counts for the day before, "
            "since its minutes are no longer held"
        )
    if sampled:
        warnings.append("some counts are estimates: traffic was sampled under overload")
    if question.only_minutes and any(
        question.start_ms < d + DAY_MS and d < question.end_ms for d in reading.borders.runs
    ):
        warnings.append("minutes of a reconciled day are the stream's; hours and days are reconciled")
