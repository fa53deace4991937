"""The handler of budgets: campaigns and their budgets from the directory, and what they have spent from the router."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.requests import Request

from infra.clock import DAY_MS, iso
from query import warnings
from query.api.access import HttpReply
from query.api.bills import encode
from query.budgets import BudgetsQuestion, Spending, parse_budgets_question, read_budgets
from query.directory.entries import Campaign
from query.directory.snapshot import Search
from query.keys import Access
from query.question import parse_question
from query.router import Router
from query.row_scope import RowScope


class Budgets:
    """Called once the gate has let a request in."""

    def __init__(self, router: Router, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._router, self._now = router, now

    def list(self, request: Request, access: Access) -> HttpReply:
        """The budgets of an advertiser's campaigns, the most spent first."""
        question = parse_budgets_question(request.query_params.multi_items(), access.rows)
        now_ms = self._now()
        lookup = self._router.directory.current()
        search = Search("campaign", equal=(("advertiser_id", question.advertiser),))
        entries, _ = lookup.snapshot.search(search, question.scope)
        campaigns = lookup.snapshot.entries(
            "campaign", [entry["id"] for entry in entries if entry["budget"] is not None]
        )
        kept = [campaign for campaign in campaigns if isinstance(campaign, Campaign)]
        oldest_ms = -(-(now_ms - self._router.retention.days_ms) // DAY_MS) * DAY_MS
        rows_read = 0

        def read(campaigns: Sequence[int], start_ms: int, end_ms: int) -> Spending:
            nonlocal rows_read
            spending, rows = self._read(question, campaigns, start_ms, end_ms, now_ms)
            rows_read += rows
            return spending

        document = read_budgets(kept[: question.limit], read, now_ms, oldest_ms)
        if lookup.stale_s:
            document["warnings"].append(warnings.old_directory(lookup.stale_s))
        return HttpReply(encode(document), rows_read=rows_read)

    def _read(
        self, question: BudgetsQuestion, ids: Sequence[int], start_ms: int, end_ms: int, now_ms: int
    ) -> tuple[Spending, int]:
        """The spending of some campaigns, and how many rows were read for it."""
        parameters = {
            "campaign_id": ",".join(map(str, ids)), "start": iso(start_ms), "end": iso(end_ms), "granularity": "total",
            "group_by": "campaign_id",
        }  # fmt: skip
        # Other advertisers may use the same ids.
        scope = question.scope.within(RowScope(frozenset({question.advertiser})))
        asked = parse_question(list(parameters.items()), now_ms, self._router.retention, scope)
        answer = self._router.answer(asked)
        rows = answer.page.frame.rows(named=True)
        micros = {row["campaign_id"]: int(row["spend_micros"]) for row in rows}
        return Spending(micros, answer.finality, answer.watermark_ms, answer.warnings), answer.rows_read
