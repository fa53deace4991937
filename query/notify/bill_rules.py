"""The rules of nightly runs, of statements, and of webhooks that take nothing. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from infra.clock import DAY_MS, day_start_ms
from query.notify.changes import Condition, RuleFindings
from query.webhooks.webhooks import Webhook

RUN_ALERT, UNBILLED = "run-alert", "unbilled-events"
STATEMENT_READY, STATEMENT_RESTATED = "statement-ready", "statement-restated"
WEBHOOK_DISABLED = "webhook-disabled"
SHOWN_FOR_MS = 7 * DAY_MS
"""An alert about a statement is open for so long after its issue."""


@dataclass(frozen=True)
class RunFacts:
    """A day's current run. `unbilled`: events that were found after it."""

    date: dt.date
    run_id: str
    alert: bool
    unexplained: bool
    dimensions: int
    drifted: int
    unbilled: int


@dataclass(frozen=True)
class IssueFacts:
    """An issue of a statement."""

    advertiser_id: int
    month: dt.date
    number: int
    digest: str
    issued_ms: int


def judge_runs(runs: Sequence[RunFacts]) -> RuleFindings:
    """A day's current run has raised an alert, or events of the day were found after it. Both end with the day's next run."""
    conditions = []
    for run in runs:
        date, began_ms = run.date.isoformat(), day_start_ms(run.date)
        detail = {"date": date, "run_id": run.run_id, "dimensions": run.dimensions, "drifted": run.drifted}
        if run.alert:
            why = (
                "differences without a cause"
                if run.unexplained
                else f"{run.drifted:,} of {run.dimensions:,} dimensions drifted"
            )
            severity = "critical" if run.unexplained else "warning"
            summary = f"the nightly run of {date} raised an alert: {why}"
            conditions.append(Condition(RUN_ALERT, date, severity, began_ms, summary, detail))
        if run.unbilled:
            summary = f"{run.unbilled:,} events of {date} arrived after its nightly run: reconcile the day again"
            detail = {"date": date, "run_id": run.run_id, "events": run.unbilled}
            conditions.append(Condition(UNBILLED, date, "warning", began_ms, summary, detail))
    return RuleFindings((RUN_ALERT, UNBILLED), tuple(conditions))


def judge_statements(issues: Sequence[IssueFacts], now_ms: int) -> RuleFindings:
    """A statement was issued, or issued again since a day was restated."""
    conditions = []
    for issue in issues:
        if now_ms - issue.issued_ms >= SHOWN_FOR_MS:
            continue
        is_first, month = issue.number == 1, f"{issue.month:%Y-%m}"
        kind = STATEMENT_READY if is_first else STATEMENT_RESTATED
        what = "is ready" if is_first else f"was issued again, as number {issue.number}: a day was restated"
        detail = {"month": month, "issue": issue.number, "digest": issue.digest}
        conditions.append(
            Condition(
                kind, f"{month}/{issue.number}", "warning", issue.issued_ms, f"the statement of {month} {what}", detail,
                issue.advertiser_id,
            )
        )  # fmt: skip
    return RuleFindings((STATEMENT_READY, STATEMENT_RESTATED), tuple(conditions))


def judge_webhooks(webhooks: Sequence[Webhook], now_ms: int) -> RuleFindings:
    """A webhook was disabled since it took no message for a day."""
    conditions = []
    for webhook in webhooks:
        if webhook.enabled or not webhook.disabled_why:
            continue
        of = f"of advertiser {webhook.advertiser_id}" if webhook.advertiser_id else "of the operator"
        detail = {"webhook_id": webhook.id, "advertiser_id": webhook.advertiser_id, "problem": webhook.disabled_why}
        summary = f"webhook {webhook.id} {of} took no message for a day, and is disabled: {webhook.disabled_why}"
        occasion = f"{webhook.id}/{webhook.since_ms}"
        conditions.append(Condition(WEBHOOK_DISABLED, occasion, "warning", now_ms, summary, detail))
    return RuleFindings((WEBHOOK_DISABLED,), tuple(conditions))
