"""A reading: one attempt at a question, piece by piece, by the same borders, and what its answer must warn of. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from infra.clock import DAY_MS, HOUR_MS
from query import warnings
from query.comparison import CountedPart, RangeComparison
from query.plan import COLD, EXACT, HOT, WARM, Borders, Piece, make_plan
from query.question import Question
from query.reach import Reach
from query.sums import Sums
from query.tiers.span import Span


@dataclass(frozen=True)
class TierReply:
    """What a tier says of one piece. A value: threads of the pool return it, and write nothing that is shared.

    `outcome`: answered, cached or stale. `span`: of the hot tier, the span that the sums are true of. `stale_as_of_ms`: when stale
    sums were read; None for others.
    """

    sums: Sums
    rows_read: int
    outcome: str
    span: Span | None = None
    stale_as_of_ms: int | None = None


@dataclass(frozen=True)
class DegradedRange:
    """Rows of [start_ms, end_ms) are not all that was counted until now, as the warning says: they are at least as new as
    `as_of_ms`; 0: they are missing, or may be."""

    start_ms: int
    end_ms: int
    warning: str
    as_of_ms: int = 0


@dataclass
class Reading:
    """One attempt at a question. Only the thread that answers it writes here.

    `pieces`: the plan. `answered`: the pieces that a tier has answered, and `tables` their sums, in the same order. `degraded`: the
    ranges that some warnings are about. `notes`: the warnings that do not make any row incomplete or old. `earlier`: the reading, by
    the same borders, of `part`, which the question's range is compared with; None for a question that does not compare. `reach`: the
    users of the rows; None for a question that does not want them.
    """

    question: Question
    span: Span | None = None
    borders: Borders = field(default_factory=Borders)
    pieces: list[Piece] = field(default_factory=list)
    answered: list[Piece] = field(default_factory=list)
    tables: list[Sums] = field(default_factory=list)
    rows_read: int = 0
    warnings: list[str] = field(default_factory=list)
    degraded: list[DegradedRange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read_hot: bool = False
    earlier: Reading | None = None
    part: CountedPart | None = None
    reach: Reach | None = None

    def plan(self) -> None:
        """Decide which tier answers which part of the range, by the borders."""
        question = self.question
        if question.start_ms >= question.end_ms:
            return
        self.pieces = make_plan(
            question.start_ms, question.end_ms, self.borders,
            whole_days=question.grain == "total" or (question.grain == "day" and question.utc_days),
            only_minutes=question.only_minutes,
        )  # fmt: skip

    def add(self, piece: Piece, reply: TierReply) -> None:
        """Take in a tier's reply for a piece."""
        self.answered.append(piece)
        self.tables.append(reply.sums)
        self.rows_read += reply.rows_read
        if (as_of_ms := reply.stale_as_of_ms) is not None:
            warning = warnings.old_rows(piece.tier, piece.start_ms, piece.end_ms, as_of_ms)
            self.warn_of_range(piece.start_ms, piece.end_ms, warning, as_of_ms)
        if reply.span is not None:
            # Of several reads of the hot tier, the weakest statement is true of all. What is compared was cut by the first span.
            first = not self.read_hot and self.part is None
            self.span = reply.span if self.span is None or first else reply.span.as_of(self.span)
            self.read_hot = True

    def add_users(self, reach: Reach) -> None:
        """Take in the users of the rows."""
        self.reach = reach
        self.rows_read += reach.rows_read

    def add_span_to_borders(self) -> None:
        """Put what Redis says of its minutes beside what ClickHouse says of hours and days."""
        span = self.span
        from_ms, watermark_ms = (None, None) if span is None else (span.held_from_ms, span.watermark_ms)
        self.borders = replace(self.borders, hot_watermark_ms=watermark_ms, hot_from_ms=from_ms)

    @property
    def outdated(self) -> bool:
        """Whether the hot tier's retained range is shorter than the plan assumed, so that another plan may do better."""
        if self.question.only_minutes or not self.read_hot or self.span is None:
            return False
        planned_ms, retained_ms = self.borders.hot_from_ms, self.span.held_from_ms
        lacking = retained_ms is None or any(p.tier == HOT and p.start_ms < retained_ms for p in self.answered)
        return (lacking and retained_ms != planned_ms) or (self.earlier is not None and self.earlier.outdated)

    @property
    def settled(self) -> bool:
        """Whether nothing of it can change any more, unless a nightly run replaces it."""
        pieces = [*self.answered, *(self.earlier.answered if self.earlier else [])]
        users = self.reach is None or self.reach.settled
        return users and not self.warnings and all(is_settled(piece, self.borders) for piece in pieces)

    @property
    def counted_ms(self) -> int | None:
        """Up to when the question's range has been counted: where Redis is away, up to the last hour that ClickHouse has."""
        borders = self.borders
        return borders.warm_closed_ms if borders.hot_watermark_ms is None else borders.hot_watermark_ms

    def begin_earlier(self, comparison: RangeComparison) -> Reading:
        """The reading of what the question's range is compared with, by the same borders and the same watermark."""
        question, whole = self.question, comparison.earlier
        self.part = comparison.counted_part(question.end_ms, self.counted_ms, self.borders.hot_from_ms)
        part = replace(question, **vars(whole) | {"end_ms": self.part.end_ms}, compare=None)
        self.earlier = Reading(part, self.span, self.borders, part=self.part)
        return self.earlier

    @property
    def watermark_ms(self) -> int | None:
        """The closing watermark of what was read: that of Redis where it was read, else the newest known."""
        borders = self.borders
        if self.read_hot:
            return borders.hot_watermark_ms
        return max((m for m in (borders.watermark_ms, borders.hot_watermark_ms) if m is not None), default=None)

    # -- warnings -------------------------------------------------------------------------------------------

    def warn_of_range(self, start_ms: int, end_ms: int, warning: str, as_of_ms: int = 0) -> None:
        """Warn that rows of [start_ms, end_ms) are those of `as_of_ms`; 0: missing, or may be."""
        self.degraded.append(DegradedRange(start_ms, end_ms, warning, as_of_ms))
        if warning not in self.warnings:
            self.warnings.append(warning)

    def note(self, warning: str) -> None:
        """Warn of something that does not make any row incomplete or old."""
        self.notes.append(warning)
        self.warnings.append(warning)

    def warn_of_unanswered(self, pieces: list[Piece]) -> None:
        """Warn of pieces that no tier has answered."""
        for p in pieces:
            self.warn_of_range(p.start_ms, p.end_ms, warnings.unanswered(p.tier, p.start_ms, p.end_ms))

    def warn_of_answered(self, *, sampled: bool) -> None:
        """Warn of all that the answered pieces may lack. `sampled`: whether some row has sampled events."""
        question = self.question
        self._warn_of_lost_minutes()
        self._warn_of_late_events()
        self._warn_of_tables_made_again()
        if question.cuts_hours:
            self.note(warnings.cut_at_hours(question.zone.key))
        if question.will_cut_hours:
            self.note(warnings.will_be_cut_at_hours(question.zone.key))
        if sampled:
            self.note(warnings.SAMPLED)
        if question.only_minutes and any(_overlaps(question, day) for day in self.borders.runs):
            self.note(warnings.MINUTES_OF_A_RECONCILED_DAY)

    def warn_of_users(self, *, sampled: bool) -> None:
        """Warn of what the users of the rows may lack."""
        if self.reach is None:
            return
        self.warnings += self.reach.warnings
        if sampled:
            self.note(warnings.USERS_OF_SAMPLED)

    def warn_of_earlier(self, comparison: RangeComparison, *, sampled: bool) -> None:
        """Warn of all that what the question is compared with may lack, and of how it differs from what it should be."""
        assert self.earlier is not None and self.part is not None
        earlier, part = self.earlier, self.part
        earlier.warn_of_answered(sampled=sampled)
        if comparison.drawn_ms:
            self.note(warnings.compared_with_shifted_range(part.start_ms))
        if part.rounded:
            self.note(warnings.compared_with_rounded_part(part.end_ms, part.counted_ms or self.question.end_ms))
        for degraded in earlier.degraded:
            warning = warnings.of_earlier_range(degraded.warning)
            self.warn_of_range(degraded.start_ms, degraded.end_ms, warning, degraded.as_of_ms)
        for warning in earlier.notes:
            self.note(warnings.of_earlier_range(warning))

    def _warn_of_lost_minutes(self) -> None:
        span, hot = self.span, [p for p in self.answered if p.tier == HOT]
        if span is None or not hot:
            return
        if span.unknown:
            warning = warnings.unknown_range(span.unknown)
            for p in hot:
                self.warn_of_range(p.start_ms, p.end_ms, warning)
        retained_ms = max((ms for ms in span.from_ms if ms is not None), default=0)
        for p in hot:
            if p.start_ms < retained_ms:
                end_ms = min(retained_ms, p.end_ms)
                self.warn_of_range(p.start_ms, end_ms, warnings.before_retained(p.start_ms, end_ms))

    def _warn_of_late_events(self) -> None:
        settled_ms = self.borders.warm_ms or 0
        for p in self.answered:
            start_ms = max(p.start_ms, settled_ms)
            if p.tier == WARM and start_ms < p.end_ms:
                warning = warnings.may_lack_late_events(start_ms, p.end_ms)
                # Each hour has what had come when it closed, which is after its end.
                for hour_ms in range(start_ms, p.end_ms, HOUR_MS):
                    hour_end_ms = min(hour_ms + HOUR_MS, p.end_ms)
                    self.warn_of_range(hour_ms, hour_end_ms, warning, as_of_ms=hour_end_ms)

    def _warn_of_tables_made_again(self) -> None:
        from_ms = {WARM: self.borders.warm_from_ms, COLD: self.borders.cold_from_ms}
        for p in self.answered:
            if p.start_ms < (since := from_ms.get(p.tier, 0)):
                end_ms = min(p.end_ms, since)
                self.warn_of_range(p.start_ms, end_ms, warnings.table_made_again(p.tier, p.start_ms, end_ms))
        self.warnings += [warnings.lost_run(day) for day in self.borders.void_runs if _overlaps(self.question, day)]


def is_settled(piece: Piece, borders: Borders) -> bool:
    """Whether nothing can change what a tier says of a piece."""
    if piece.tier in EXACT:
        return True
    border_ms = borders.warm_ms if piece.tier == WARM else borders.cold_ms if piece.tier == COLD else None
    return border_ms is not None and piece.end_ms <= border_ms


def move_to_minutes(pieces: list[Piece], retained_ms: int | None) -> tuple[list[Piece], list[Piece]]:
    """Pieces that their tiers did not answer, as pieces of the hot tier where that holds them, and what is left of them.

    `retained_ms`: where the hot tier's retained range begins; None: unknown.
    """
    minutes, missing = list[Piece](), list[Piece]()
    for piece in pieces:
        if piece.tier == HOT or retained_ms is None:
            missing.append(piece)
            continue
        border_ms = min(max(piece.start_ms, -(-retained_ms // HOUR_MS) * HOUR_MS), piece.end_ms)
        missing += [replace(piece, end_ms=border_ms)] if border_ms > piece.start_ms else []
        minutes += [Piece(HOT, border_ms, piece.end_ms)] if border_ms < piece.end_ms else []
    return minutes, missing


def _overlaps(question: Question, day_ms: int) -> bool:
    return question.start_ms < day_ms + DAY_MS and day_ms < question.end_ms
