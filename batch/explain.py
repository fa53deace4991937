"""`adclick reconcile --explain`: how a campaign's bill of a day follows from what the stream had counted."""

from __future__ import annotations

import datetime as dt

from batch.publish import current_run
from batch.recount import USERS_ERROR
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.ledger_causes import Cause
from infra.errors import UserError
from ingest.partials import BILLED

_EXPLANATIONS: dict[str, str] = {
    Cause.LATE: "came after their hour had been counted",
    Cause.SHED: "were sampled while the stream was overloaded",
    Cause.DOUBT: "were held back: their ids may have been lost",
    Cause.CROSS_PARTITION: "were copies sent under another key",
    Cause.EXPIRED_HORIZON: "were copies sent long after the first",
    Cause.CONFLICTING_COPY: "used an id again for something else",
    Cause.SENT_AGAIN: "were mended and sent again too late",
    Cause.OTHER_REGION: "were sent to another region",
    Cause.OPEN: "were of hours that were still open, or corrected meanwhile",
    Cause.UNEXPLAINED: "have no cause that is known: please report it",
}


def print_bill(app: App, client: ClickHouse, campaign: int, date: dt.date) -> None:
    """Print it. Raises UserError when the day has not been reconciled."""
    run = current_run(client, date)
    if run is None:
        raise UserError(f"{date} has not been reconciled", hint=f"adclick reconcile --date {date}")
    db, sums = client.database, ", ".join(f"sum({m})" for m in BILLED)
    parameters = {"run": run[0], "campaign": campaign}
    where = "FINAL WHERE run_id = {run:String} AND campaign_id = {campaign:UInt64}"
    billed = [int(n) for n in client.rows(f"SELECT {sums} FROM {db}.exact_hours {where}", parameters)[0]]
    causes = client.rows(f"SELECT cause, {sums} FROM {db}.ledger {where} GROUP BY cause ORDER BY cause", parameters)
    moved = {str(cause): [int(n) for n in amounts] for cause, *amounts in causes}
    stream = [total - sum(column) for total, *column in zip(billed, *moved.values(), strict=True)]
    users_rows = client.rows(f"SELECT sum(users) FROM {db}.exact_users {where}", parameters)
    users = int(users_rows[0][0])
    if app.json:
        bill = {"stream": stream, "billed": billed}
        app.data(
            {"date": date.isoformat(), "campaign_id": campaign, "run_id": run[0], "users": users}
            | {name: dict(zip(BILLED, amounts, strict=True)) for name, amounts in bill.items()}
            | {"causes": {cause: dict(zip(BILLED, amounts, strict=True)) for cause, amounts in moved.items()}}
        )
        return
    rows: list[tuple[object, ...]] = [("counted by the stream", "", *(f"{n:,}" for n in stream))]
    rows += [
        (f"{cause}", _EXPLANATIONS.get(cause, ""), *(f"{n:+,}" for n in amounts)) for cause, amounts in moved.items()
    ]
    rows.append(("billed", "", *(f"{n:,}" for n in billed)))
    rows.append((f"about {users:,} users", f"± {USERS_ERROR:.1%}"))
    app.table([f"campaign {campaign}, {date}", "events that", *BILLED], rows)
