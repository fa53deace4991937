"""The handler of what is trending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request

from infra.clock import HOUR_MS, iso
from infra.errors import AdclickError, Unavailable
from query import warnings
from query.api.access import HttpReply
from query.api.bills import encode
from query.circuit import Guard
from query.keys import Access
from query.router import Router
from query.tiers.trending_users import HourlyUsers
from query.trend_lists import TrendLists
from query.trending import (
    LISTED_DIMENSION,
    Trend,
    TrendingQuestion,
    UserCounts,
    find_trends,
    parse_trending_question,
    rank_trends,
)


class Trending:
    """Called once the gate has let a request in."""

    def __init__(self, router: Router, lists: TrendLists, users: HourlyUsers, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._router, self._lists, self._users, self._now = router, lists, users, now
        # One of its own: statements about users that fail must not keep ClickHouse from being asked for counts.
        self._guard = Guard("clickhouse")

    def list(self, request: Request, access: Access) -> HttpReply:
        """The groups that have more events than usual, the highest score first."""
        now_ms, parameters = self._now(), request.query_params.multi_items()
        question = parse_trending_question(parameters, now_ms, self._router.retention, access.rows, admin=access.admin)
        listed = self._read_list(question, now_ms) if question.is_listed else None
        trends, about = listed or self._compute(question, now_ms)
        kind = question.dimension.removesuffix("_id")
        ids = np.array([trend.id for trend in trends], np.int64)
        names = self._router.directory.current().snapshot.names(kind, ids, access.rows)
        rows_read, notes = about.pop("rows_read"), about["warnings"]
        unknown = question.dimension == LISTED_DIMENSION and all(trend.users is None for trend in trends)
        if trends and unknown and warnings.NO_TRENDING_USERS not in notes:
            notes.append(warnings.NO_TRENDING_USERS)
        document = {
            "data": [
                trend.document(question.dimension) | {"name": name} for trend, name in zip(trends, names, strict=True)
            ],
            "rows": len(trends),
            "by": question.volume,
            **about,
        }
        return HttpReply(encode(document), rows_read=rows_read)

    def _read_list(self, question: TrendingQuestion, now_ms: int) -> tuple[Sequence[Trend], dict[str, Any]] | None:
        """What the notify worker has computed lately; None where that is missing, or Redis is away."""
        advertiser = question.minutes.advertiser
        try:
            listed = self._router.guards["redis"].call(lambda: self._lists.read(advertiser, question.limit, now_ms))
        except Unavailable:
            return None
        if listed is None:
            return None
        header, trends = listed
        return trends, _about(header.end_ms, header.computed_ms, header.warnings, len(trends))

    def _compute(self, question: TrendingQuestion, now_ms: int) -> tuple[Sequence[Trend], dict[str, Any]]:
        answers = [self._router.answer(part) for part in (question.minutes, question.sources, question.before)]
        notes = [warning for answer in answers for warning in answer.warnings]
        has_users = question.dimension == LISTED_DIMENSION and not self._users.is_behind(now_ms)
        users = self._read_users(question) if has_users else None
        minutes, sources, before = (answer.page.rows.sums for answer in answers)
        trends = rank_trends(find_trends(question, minutes, sources, before, users), question.limit)
        rows_read = sum(answer.rows_read for answer in answers)
        return trends, _about(question.end_ms, now_ms, list(dict.fromkeys(notes)), rows_read)

    def _read_users(self, question: TrendingQuestion) -> UserCounts | None:
        minutes = question.minutes
        try:
            return self._guard.call(
                lambda: self._users.read(
                    minutes.start_ms, minutes.end_ms, advertiser=minutes.advertiser, scope=minutes.scope
                )
            )
        except AdclickError:
            return None


def _about(end_ms: int, computed_ms: int, notes: Sequence[str], rows_read: int) -> dict[str, Any]:
    """What an answer says beside its rows, and how many rows were read for it."""
    return {
        "start": iso(end_ms - HOUR_MS), "end": iso(end_ms), "computed_at": iso(computed_ms), "warnings": [*notes],
        "rows_read": rows_read,
    }  # fmt: skip
