"""Users of answers: which questions have them, where they are read, how near they are, and that counts do without them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.errors import AdclickError, BadStatement, Refused, TimedOut, Unavailable
from infra.settings import Settings
from query.circuit import Guard
from query.formats import describe_users
from query.plan import Borders, Piece
from query.question import BadQuestion, Question
from query.reach import (
    RUN_DAYS,
    RUN_HOURS,
    STREAM_DAYS,
    STREAM_HOURS,
    Reach,
    Users,
    covers_whole_hours,
    plan_users,
)
from query.reach_progress import Partitions, warn_of_missing_users
from query.reach_reader import ReachReader
from query.router import Router
from query.tier_cache import TierCache
from query.tiers.reach import StoredUsers, TablesOfUsers, TooManyGroups, UsersReply
from stream.reach.progress import Progress
from stream.reach.registers import MAX_RANK, REGISTERS, estimate
from tests.unit.fakes import Clock, FakeRedis
from tests.unit.questions import NOW, question_of, sums_of
from tests.unit.test_router import BORDERS, DAY, Hours, NoMinutes

_day = NOW // DAY_MS * DAY_MS
_days = st.integers(-4, 0)
_borders = st.builds(
    Borders,
    runs=st.sets(_days).map(lambda days: {_day + d * DAY_MS: f"run{d}" for d in days}),
    open_from_ms=st.dictionaries(_days, st.integers(0, 1439)).map(
        lambda minutes: {_day + d * DAY_MS: _day + d * DAY_MS + m * MINUTE_MS for d, m in minutes.items()}
    ),
)


@pytest.mark.parametrize(
    ("parameters", "parameter", "words"),
    [
        ({"granularity": "minute"}, "granularity", "retry with hour, day or total"),
        ({"group_by": "campaign_id,country"}, "group_by", "not counted by country"),
        ({"filter": "ad_id:3"}, "filter", "not counted by ad_id"),
        ({"compare": "previous"}, "compare", "ask for that range by itself"),
        ({"granularity": "hour", "timezone": "Asia/Kolkata"}, "timezone", "within which a hour of Asia/Kolkata begins"),
        (
            {"granularity": "day", "timezone": "Asia/Kolkata", "start": "-9d"},
            "timezone",
            "retry with granularity=total",
        ),
        ({"users": "false", "order": "users"}, "order", "users needs users=true"),
    ],
)
def test_what_users_are_not_counted_by_is_refused_by_name(
    parameters: dict[str, str], parameter: str, words: str
) -> None:
    with pytest.raises(BadQuestion, match=words) as refusal:
        question_of(**{"granularity": "total", "users": "true"} | parameters)
    assert (refusal.value.parameter, refusal.value.status) == (parameter, 400)


def test_auto_is_hours_at_the_finest_and_totals_have_users_in_every_zone() -> None:
    assert question_of(users="true").grain == "hour"
    assert question_of().grain == "minute"
    assert question_of(users="true", granularity="total", timezone="Asia/Kolkata").users


@given(
    st.integers(-6000, 1000), st.integers(1, 6000), _borders, st.sets(_days), st.sets(_days),
    st.sampled_from(["total", "day", "hour"]),
)  # fmt: skip
def test_each_hour_is_read_once_from_its_run_or_else_from_the_stream(
    start: int, length: int, borders: Borders, by_hour: set[int], by_day: set[int], grain: str
) -> None:
    low, high = _day + start * MINUTE_MS, _day + (start + length) * MINUTE_MS
    question = question_of(start=iso(low), end=iso(high), granularity=grain, users="true")
    hour_runs, day_runs = ({f"run{d}" for d in days} for days in (by_hour, by_day))
    pieces = plan_users(question, borders, hour_runs, day_runs)
    hours = [(hour, piece) for piece in pieces for hour in range(piece.start_ms, piece.end_ms, HOUR_MS)]
    first, last = question.start_ms // HOUR_MS * HOUR_MS, question.end_ms
    assert [hour for hour, _ in hours] == list(range(first, last, HOUR_MS))
    for hour, piece in hours:
        day = hour // DAY_MS * DAY_MS
        run = borders.runs.get(day, "")
        run_end = borders.open_from_ms.get(day, day + DAY_MS)
        is_whole = grain != "hour" and first <= day and day + DAY_MS <= -(-last // HOUR_MS) * HOUR_MS
        by_run = hour + HOUR_MS <= run_end and run in hour_runs
        whole_run = is_whole and run_end == day + DAY_MS and run in day_runs
        assert piece.run == (run if by_run or whole_run else "")
        # A day is read faster than its hours.
        if piece.run:
            assert piece.tier == (RUN_DAYS if whole_run else RUN_HOURS)
        elif is_whole and run not in hour_runs:
            assert piece.tier == STREAM_DAYS
        else:
            assert piece.tier == STREAM_HOURS or (is_whole and run_end < day + HOUR_MS)


@pytest.mark.parametrize(
    ("users", "trials"), [(0, 1), (1, 200), (10, 200), (1_000, 400), (100_000, 400), (10_000_000, 200)]
)
def test_nineteen_of_twenty_estimates_are_within_three_percent(users: int, trials: int) -> None:
    """The greatest rank of k users is at most r with probability (1 − 2⁻ʳ)ᵏ."""
    rng = np.random.default_rng(users)
    in_register = rng.multinomial(users, np.full(REGISTERS, 1 / REGISTERS), trials)
    with np.errstate(divide="ignore"):
        ranks = np.ceil(-np.log2(-np.expm1(np.log(rng.random(in_register.shape)) / in_register)))
    ranks = np.where(in_register > 0, np.clip(ranks, 1, MAX_RANK), 0).astype(np.int64)
    counts = np.stack([np.bincount(row, minlength=MAX_RANK + 1) for row in ranks])
    errors = np.abs(np.rint(estimate(counts)) - users)
    assert np.mean(errors <= max(0.03 * users, 0.5 if users < 2 else 1)) >= 0.95


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(1, 5)), st.integers(0, 10**12)),
    st.sets(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1),
)
def test_each_row_has_the_users_of_its_bucket_and_campaign(
    counts: dict[tuple[int, int], int], shown: set[tuple[int, int]]
) -> None:
    question = question_of(granularity="hour", group_by="campaign_id", users="true")
    keys = np.array(list(counts), np.int64).reshape(-1, 2).T
    users = Users(keys[0], keys[1], np.array(list(counts.values()), np.int64))
    table = sums_of(question, dict.fromkeys(shown, (6, 3, 1)))
    columns = Reach(users).beside_rows(question, table)
    assert columns["users"].values.tolist() == [counts.get(key, 0) for key in shown]
    for key, frequency, absent in zip(shown, columns["frequency"].values, columns["frequency"].absent, strict=True):
        number = counts.get(key, 0)
        assert absent == (number == 0)
        assert absent or frequency == (100 * 10 * 2 + number) // (2 * number) / 100


class FakeUsers(StoredUsers):
    """Three users of campaign 0 in each bucket, unless it fails. `reads`: how often users were read. While `hung` is clear, reads wait."""

    def __init__(
        self, *, error: AdclickError | None = None, since_ms: int = 0, partitions: Partitions | None = None
    ) -> None:
        self.error, self._since_ms, self.reads = error, since_ms, 0
        self._partitions = partitions
        self.hung = threading.Event()
        self.hung.set()

    def tables(self, runs: Sequence[str]) -> TablesOfUsers:
        if self.error is not None:
            raise self.error
        return TablesOfUsers(tuple(runs), tuple(runs), self._since_ms, ())

    def progress(self) -> list[Progress | None]:
        if self._partitions is None:
            return [Progress(now_ms())]
        return [*self._partitions]

    def read(self, question: Question, _pieces: Sequence[Piece]) -> UsersReply:
        self.reads += 1
        assert self.hung.wait(20)
        buckets = np.array(question.buckets(), np.int64)
        return UsersReply(Users(buckets, np.zeros_like(buckets), np.full_like(buckets, 3)), len(buckets))


def answer(users: FakeUsers, reach: str = "on", **parameters: str) -> Any:
    named = {"start": iso(DAY), "end": iso(DAY + 10 * HOUR_MS), "granularity": "total", "group_by": "campaign_id"}
    cache = TierCache(FakeRedis(), Guard("redis"), "")
    router = Router(
        Settings.model_validate({"reach": reach}), hot=NoMinutes(), stored=Hours(2), cache=cache, users=users
    )
    return router.answer(question_of(**named | parameters, users="true", totals="true"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("away"), "ClickHouse does not answer"),
        (TimedOut("slow"), "ClickHouse did not answer in time; retry with a shorter range or fewer groups"),
        (Refused("no", code="TABLE_IS_READ_ONLY", hint="wait"), "ClickHouse refuses to read them: TABLE_IS_READ_ONLY; wait"),
        (
            Refused("no", code="MEMORY_LIMIT_EXCEEDED"),
            "ClickHouse has too little memory to read them; retry with a shorter range or fewer groups",
        ),
        (TooManyGroups("there are too many rows"), "there are too many rows"),
        (BadStatement("bug"), "ClickHouse does not accept the statement; adclick migrate brings its tables up to date"),
    ],
)  # fmt: skip
def test_counts_are_answered_without_users_and_a_warning_says_why(error: AdclickError, reason: str) -> None:
    answered = answer(FakeUsers(error=error))
    assert answered.total.amounts()["impressions"] == 10
    assert [answered.total.amounts()[name] for name in ("users", "frequency")] == [None, None]
    assert answered.warnings == [f"users are not available: {reason}"]
    assert not answered.settled


class Groups(ClickHouse):
    """A ClickHouse with so many groups and no coupons. `statements`: those that read coupons."""

    def __init__(self, groups: int) -> None:
        super().__init__("http://fake:1", "db")
        self._groups, self.statements = groups, list[str]()

    def rows(self, _sql: str, _parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return [(self._groups,)]

    def arrow(self, sql: str, _parameters: dict[str, Any] | None = None) -> pa.Table:
        self.statements.append(sql)
        return pa.table({name: pa.array([], pa.uint64()) for name in ("bucket", "campaign", "rank", "registers")})


@pytest.mark.parametrize(
    ("groups", "function"),
    [(5_000, "maxResampleArray"), (5_001, "groupUniqArrayArray"), (100_000, "groupUniqArrayArray"), (100_001, None)],
)
def test_a_statement_about_users_is_bounded_in_memory_and_in_groups(groups: int, function: str | None) -> None:
    client, pieces = Groups(groups), [Piece(STREAM_HOURS, DAY, DAY + HOUR_MS)]
    stored = StoredUsers(client, 5, list)
    by_campaign = question_of(granularity="total", users="true", group_by="campaign_id")
    if function is None:
        with pytest.raises(TooManyGroups, match=r"100,001 rows.*100,000 at most; retry with a shorter range"):
            stored.read(by_campaign, pieces)
        assert not client.statements
    else:
        assert len(stored.read(by_campaign, pieces).users.counts) == 0
        assert function in client.statements[0]
    # However many campaigns there are, together they are one group.
    stored.read(question_of(granularity="total", users="true"), pieces)
    assert "maxResampleArray" in client.statements[-1]
    assert all(f"max_memory_usage = {512 << 20}" in statement for statement in client.statements)


def test_users_that_the_stream_counted_before_it_had_tables_are_said_to_be_too_few() -> None:
    assert answer(FakeUsers()).warnings == []
    since = iso(DAY + HOUR_MS)
    warning = f"users before {since} may be too few, since their tables were made then; adclick reconcile counts those of its days"
    assert answer(FakeUsers(since_ms=DAY + HOUR_MS)).warnings == [warning]
    assert answer(FakeUsers(since_ms=DAY)).warnings == []


_AWAY = "users may be too few: how far they are counted is not known; it is once stream workers run with ADCLICK_REACH=on, and Redis answers"
_LACKING = "may be too few, since events were deleted before their users were counted; adclick reconcile counts those of its days"


@pytest.mark.parametrize(
    ("progress", "warning"),
    [
        (Progress(NOW - 119_000, DAY), None),
        # The last event that is missing is no older than the watermark, less an hour and a minute.
        (Progress(DAY, DAY + 11 * HOUR_MS + MINUTE_MS), None),
        (
            Progress(DAY, DAY + 11 * HOUR_MS),
            f"users from {iso(DAY + 9 * HOUR_MS)} on may be too few: counting them lags by more than two minutes, or has stopped; "
            "adclick status says what it waits for",
        ),
        (None, _AWAY),
        (Progress(DAY), _AWAY),
        (
            # As one with the hole of the other partition.
            Progress(NOW, NOW, ((0, DAY), (DAY + HOUR_MS, DAY + 99 * HOUR_MS))),
            f"users from {iso(DAY + HOUR_MS)} to {iso(DAY + 99 * HOUR_MS)} {_LACKING}",
        ),
        (Progress(NOW, NOW, ((0, DAY + 1),)), f"users before {iso(DAY + 1)} {_LACKING}"),
        (Progress(NOW, NOW, ((DAY - HOUR_MS, DAY), (DAY + 10 * HOUR_MS, NOW))), None),
    ],
)
def test_users_that_are_not_counted_yet_or_never_will_be_are_said_to_be_missing(
    progress: Progress | None, warning: str | None
) -> None:
    pieces = [Piece(STREAM_HOURS, DAY, DAY + 10 * HOUR_MS)]
    other = Progress(NOW, NOW, ((DAY + 98 * HOUR_MS, DAY + 99 * HOUR_MS),))
    warnings = warn_of_missing_users([other, progress], pieces, 0, NOW)
    assert warnings == ([] if warning is None else [warning])
    assert warn_of_missing_users([other, progress], [], 0, NOW) == []
    # What was before there is said already.
    assert not any("deleted" in w for w in warn_of_missing_users([progress], pieces, DAY + 100 * HOUR_MS, NOW))


def test_an_answer_says_that_users_are_missing_unless_a_nightly_run_has_them() -> None:
    assert answer(FakeUsers(partitions=[None])).warnings == [_AWAY]
    run = {"start": iso(DAY - 2 * DAY_MS), "end": iso(DAY - DAY_MS)}
    assert answer(FakeUsers(partitions=[None]), **run).warnings == []


def test_a_total_that_cuts_hours_has_the_users_of_whole_ones_and_no_frequency() -> None:
    start, now = DAY + 90 * MINUTE_MS, now_ms()
    cut = answer(FakeUsers(), start=iso(start))
    assert [cut.total.amounts()[name] for name in ("users", "frequency")] == [3, None]
    assert [warning for warning in cut.warnings if "whole hours" in warning]
    known = describe_users(cut.question)
    assert known["users_range"] == {"start": iso(DAY + HOUR_MS), "end": iso(DAY + 10 * HOUR_MS)}
    # The rest of the present hour has no events yet, so nothing is cut.
    open_hour = question_of(start=iso(DAY), end=iso(DAY + 90 * MINUTE_MS), granularity="total", users="true")
    assert covers_whole_hours(open_hour, open_hour.end_ms)
    assert not covers_whole_hours(open_hour, now)


def test_where_users_are_not_counted_the_answer_says_so() -> None:
    assert answer(FakeUsers(), reach="off").warnings == ["users are not available: ADCLICK_REACH is off"]


def test_users_of_runs_are_kept_and_those_of_the_stream_are_read_again() -> None:
    clock, users = Clock(), FakeUsers()
    cache = TierCache(FakeRedis(clock), Guard("redis"), "", clock)
    reader = ReachReader(users, cache, 20, now=lambda: NOW)
    run, stream = DAY - 2 * DAY_MS, DAY
    for start, reads in ((run, 1), (stream, 2)):
        question = question_of(start=iso(start), end=iso(start + DAY_MS), granularity="total", users="true")
        before = users.reads
        for _ in range(2):
            clock.now += 60
            reach = reader.begin(question, BORDERS)()
            assert reach.settled == (start == run)
        assert users.reads - before == reads


@pytest.fixture
def hanging() -> Iterator[FakeUsers]:
    users = FakeUsers()
    users.hung.clear()
    yield users
    users.hung.set()


def test_an_answer_goes_without_users_that_are_not_read_in_time_and_a_later_one_has_them(hanging: FakeUsers) -> None:
    clock = Clock()
    reader = ReachReader(hanging, TierCache(FakeRedis(clock), Guard("redis"), "", clock), 0.05, now=lambda: NOW)

    def begin(day: int) -> Any:
        start = DAY - day * DAY_MS
        named = {"start": iso(start), "end": iso(start + DAY_MS), "granularity": "day", "totals": "true"}
        return reader.begin(question_of(**named, users="true"), BORDERS)()

    # More of them than there are threads.
    for day in range(4):
        reach = begin(day)
        assert (reach.rows, reach.total, reach.settled) == (None, None, False)
        assert reach.warnings == [
            "users are not available: they were not read within 0.05 s; retry, with a shorter range or fewer groups if it happens again"
        ]
    hanging.hung.set()
    assert any(begin(2).warnings == [] for _ in range(200))
    # Of questions that nobody waits for any more, those that had not begun are not read.
    assert hanging.reads == 2 + 2


def test_counts_are_answered_while_users_hang(hanging: FakeUsers) -> None:
    cache = TierCache(FakeRedis(), Guard("redis"), "")
    settings = Settings.model_validate({"query_timeout_s": 1})
    router = Router(settings, hot=NoMinutes(), stored=Hours(2), cache=cache, users=hanging)
    named = {
        "start": iso(DAY),
        "end": iso(DAY + 10 * HOUR_MS),
        "granularity": "total",
        "group_by": "campaign_id",
        "totals": "true",
    }
    with ThreadPoolExecutor() as pool:
        questions = [question_of(**named, campaign_id=str(n), users="true") for n in range(1, 9)]
        waiting = [pool.submit(router.answer, question) for question in questions]
        total = router.answer(question_of(**named)).total
        assert not any(future.done() for future in waiting)
        assert total is not None and total.amounts()["impressions"] == 10
        assert all("users are not available" in future.result().warnings[0] for future in waiting)
