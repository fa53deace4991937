"""The handler of budgets."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from query import warnings
from query.api.access import HttpReply
from query.api.bills import encode
from query.budget_reader import campaigns_with_budgets, read_advertiser_budgets
from query.budgets import parse_budgets_question
from query.keys import Access
from query.router import Router


class Budgets:
    """Called once the gate has let a request in."""

    def __init__(self, router: Router, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._router, self._now = router, now

    def list(self, request: Request, access: Access) -> HttpReply:
        """The budgets of an advertiser's campaigns, the most spent first."""
        question = parse_budgets_question(request.query_params.multi_items(), access.rows)
        lookup = self._router.directory.current()
        campaigns = campaigns_with_budgets(lookup.snapshot, question.advertiser, question.scope)[: question.limit]
        reading = read_advertiser_budgets(self._router, question.advertiser, campaigns, question.scope, self._now())
        if lookup.stale_s:
            reading.document["warnings"].append(warnings.old_directory(lookup.stale_s))
        return HttpReply(encode(reading.document), rows_read=reading.rows_read)
