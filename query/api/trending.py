"""The handler of what is trending."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from starlette.requests import Request

from infra.clock import iso
from query.api.access import HttpReply
from query.api.bills import encode
from query.keys import Access
from query.router import Router
from query.trending import find_trends, parse_trending_question


class Trending:
    """Called once the gate has let a request in."""

    def __init__(self, router: Router, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._router, self._now = router, now

    def list(self, request: Request, access: Access) -> HttpReply:
        """The groups that have more events than usual, the highest score first."""
        parameters = request.query_params.multi_items()
        question = parse_trending_question(
            parameters, self._now(), self._router.retention, access.rows, admin=access.admin
        )
        answers = [self._router.answer(part) for part in (question.minutes, question.sources, question.before)]
        trends = find_trends(question, *(answer.page.rows.sums for answer in answers))
        kind = question.dimension.removesuffix("_id")
        ids = np.array([trend.id for trend in trends], np.int64)
        names = self._router.directory.current().snapshot.names(kind, ids, access.rows)
        document = {
            "data": [
                trend.document(question.dimension) | {"name": name} for trend, name in zip(trends, names, strict=True)
            ],
            "rows": len(trends),
            "by": question.volume,
            "start": iso(question.minutes.start_ms),
            "end": iso(question.minutes.end_ms),
            "warnings": list(dict.fromkeys(warning for answer in answers for warning in answer.warnings)),
        }
        return HttpReply(encode(document), rows_read=sum(answer.rows_read for answer in answers))
