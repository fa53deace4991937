"""The handler of anomalies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from starlette.requests import Request

from infra.clock import iso
from infra.settings import Settings
from query.anomalies import KINDS, ClosedNumbers, find_anomalies, parse_anomalies_question
from query.api.access import HttpReply
from query.api.bills import encode
from query.backtest import backtest, backtest_document, parse_backtest_question
from query.finality import PROVISIONAL
from query.keys import Access
from query.question import Question
from query.router import Answer, Router
from stream.insights.alerting import AlertPolicy


def _closed_ms(question: Question, answer: Answer) -> int:
    """Up to when all buckets are closed: the watermark, or without one the end of the last closed row; at most the first open row."""
    rows = answer.page.rows
    is_open, buckets = rows.finality == PROVISIONAL, rows.sums.buckets
    closed_ms = answer.watermark_ms
    if closed_ms is None:
        last_ms = int(buckets[~is_open].max(initial=0))
        closed_ms = question.bucket_end(last_ms) if last_ms else 0
    return int(buckets[is_open].min(initial=closed_ms))


class Anomalies:
    """Called once the gate has let a request in."""

    def __init__(self, router: Router, settings: Settings, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._router, self._now = router, now
        self._policy = AlertPolicy.of(settings)

    def list(self, request: Request, access: Access) -> HttpReply:
        """What is unusual in the numbers of campaigns, the newest first."""
        parameters = request.query_params.multi_items()
        question = parse_anomalies_question(parameters, self._now(), self._router.retention, access.rows)
        answer = self._router.answer(question.numbers)
        episodes = find_anomalies(question, _closed(question.numbers, answer))
        campaigns = np.array([episode.campaign for episode in episodes], np.int64)
        names = self._router.directory.current().snapshot.names("campaign", campaigns, access.rows)
        data = [
            {"campaign_id": e.campaign, "name": name, **e.document(), "text": KINDS[e.kind]}
            for e, name in zip(episodes, names, strict=True)
        ]
        document = {
            "data": data,
            "rows": len(data),
            "granularity": question.numbers.grain,
            "watermark": None if answer.watermark_ms is None else iso(answer.watermark_ms),
            "warnings": answer.warnings,
        }
        return HttpReply(encode(document), rows_read=answer.rows_read)

    def backtest(self, request: Request, access: Access) -> HttpReply:
        """Which alerts a policy would have raised."""
        question = parse_backtest_question(
            request.query_params.multi_items(), self._now(), self._router.retention, access.rows, self._policy
        )
        answer = self._router.answer(question.anomalies.numbers)
        closed = _closed(question.anomalies.numbers, answer)
        document = backtest_document(question, closed, backtest(question, closed)) | {"warnings": answer.warnings}
        return HttpReply(encode(document), rows_read=answer.rows_read)


def _closed(question: Question, answer: Answer) -> ClosedNumbers:
    degraded = [(range_.start_ms, range_.end_ms) for range_ in answer.degraded]
    return ClosedNumbers(answer.page.rows.sums, _closed_ms(question, answer), degraded)
