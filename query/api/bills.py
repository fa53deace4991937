"""The handlers behind a bill: reconciled days, and the causes of what differs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from infra import logs
from infra.clickhouse.client import ClickHouse
from infra.settings import Settings
from query.api.access import HttpReply
from query.api.bodies import decode_body
from query.api.nightly_runs import NightlyRuns, RunRequest
from query.api.problems import Problem
from query.formats import MEDIA_TYPES, encode_warnings
from query.keys import Access
from query.parameters import parse_date
from query.pipeline import OwnStack
from query.reconciliations import (
    BillReader,
    causes_document,
    parse_causes_question,
    parse_runs_question,
    run_document,
)
from query.router import Router
from query.statements.contents import month_text
from query.statements.reader import NoSuchIssue, StatementReader, parse_statement_question
from query.statements.sources import RouterSources


class Bills:
    """Called once the gate has let a request in."""

    def __init__(
        self, client: ClickHouse, router: Router, settings: Settings, now: Callable[[], int], stack: OwnStack
    ) -> None:
        """`now`: epoch ms; `stack`: whose supervisor starts nightly runs."""
        self._runs = NightlyRuns(client, settings, stack)
        self._reader, self._guard, self._now = BillReader(client), router.guards["clickhouse"], now
        sources = RouterSources(router, settings, now)
        self._statements = StatementReader(client, sources, settings.currency, settings.block_partitions)

    def reconciliations(self, request: Request, access: Access) -> HttpReply:
        """The nightly runs of some days, with what was shown and billed within what the key may see."""
        now_ms = self._now()
        today = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC).date()
        first, last, subject = parse_runs_question(request.query_params.multi_items(), today, access.rows)

        def read() -> list[dict[str, Any]]:
            runs = self._reader.runs(first, last)
            bills = self._reader.bills(runs, subject, now_ms)
            return [run_document(run, bills.get(run.run_id), admin=access.admin) for run in runs]

        data = self._guard.call(read)
        document = {"data": data, "rows": len(data)} | ({"running": self._runs.running()} if access.admin else {})
        if access.admin and (outcome := self._runs.outcome()) is not None:
            document["last_started"] = outcome
        return HttpReply(encode(document), rows_read=len(data))

    def start_run(self, request: Request, access: Access) -> HttpReply:
        """Start a nightly run of a day, in the background."""
        date = parse_date("date", decode_body(request, RunRequest).date)
        self._runs.start(date, self._now())
        logs.get("bills").info("a nightly run was asked for", date=date.isoformat(), key=access.key)
        return HttpReply(encode({"date": date.isoformat(), "state": "requested"}), status=202)

    def causes(self, request: Request, access: Access) -> HttpReply:
        """How a day's bill follows from what the stream had shown."""
        parameters = request.query_params.multi_items()
        date, subject = parse_causes_question(request.path_params["date"], parameters, access.rows)

        def read() -> dict[str, Any]:
            run = self._reader.current_run(date)
            if run is None:
                raise Problem(404, "not-reconciled", f"{date} has not been reconciled yet")
            bill = self._reader.bills([run], subject, self._now()).get(run.run_id)
            if bill is None:
                detail = (
                    f"the exact rows of {date} are no longer stored; adclick reconcile --date {date} brings them back"
                )
                raise Problem(404, "not-stored", f"{detail}, as far as the day is archived")
            document = causes_document(run, bill)
            if access.admin:
                count, files = self._reader.files(run.run_id)
                document |= {"file_count": count, "files": files}
            return document

        return HttpReply(encode(self._guard.call(read)))

    def statements(self, request: Request, access: Access) -> HttpReply:
        """What an advertiser is billed for a month."""
        now_ms = self._now()
        question = parse_statement_question(request.query_params.multi_items(), now_ms)
        access.rows.refuse_part_of(question.advertiser)
        try:
            statement = self._statements.read(question, now_ms)
        except NoSuchIssue:
            detail = f"{month_text(question.month)} has no issue {question.issue} of this statement; leave issue out"
            raise Problem(404, "not-found", detail, "issue") from None
        headers = {"X-Adclick-Digest": statement.digest, "ETag": f'"{statement.digest}-{question.format}"'}
        rows = len(statement.contents.campaigns) + len(statement.contents.days)
        if question.format == "json":
            return HttpReply(encode(statement.document()), headers=headers, rows_read=rows)
        name = f"adclick_statement_{question.advertiser}_{month_text(question.month)}.csv"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        headers["X-Adclick-Warnings"] = encode_warnings(statement.warnings)
        return HttpReply(statement.contents.csv, MEDIA_TYPES["csv"], headers, rows)


def encode(document: Any) -> bytes:
    """JSON with integers of any size."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
