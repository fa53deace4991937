"""`adclick alerts`: what was raised, in the store itself: list, show, acknowledge, mute."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.alerts import SEVERITIES, STATES
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import now_ms
from infra.errors import UsageError, UserError
from ingest.events import MAX_INT
from query.alerts.actions import AlertActions, NoSuchMute
from query.alerts.mutes import MuteSubject, check_until
from query.alerts.questions import parse_alerts_question, parse_kind
from query.alerts.reader import AlertReader, NoSuchAlert
from query.alerts.scope import WHOLE_INSTALLATION
from query.alerts.store import AlertStore
from query.bad_question import BadQuestion
from query.keys import current_user
from query.keys_command import parse_duration
from query.signing import Signer

_SHOWN = ("id", "opened", "ended", "severity", "state", "kind", "advertiser_id", "campaign_id", "summary", "acknowledged", "muted_until")  # fmt: skip
_SUMMARY_COLUMNS = ("kind", "alerts", "withdrawn", "muted", "false_alarms", "false_alarms_per_campaign_month")
_MUTE_COLUMNS = ("id", "kind", "advertiser_id", "campaign_id", "until", "by", "at")


@dataclass(frozen=True)
class _Session:
    reader: AlertReader
    actions: AlertActions
    signer: Signer


def _open(app: App) -> _Session:
    """The alerts of the configured ClickHouse, whose tables are brought up to date."""
    client = ClickHouse.of(app.settings)
    apply_migrations(client)
    store, signer = AlertStore(client), Signer(app.settings.api_key.get_secret_value())
    reader = AlertReader(store, signer)
    return _Session(reader, AlertActions(store, reader, now_ms), signer)


@contextmanager
def _errors() -> Iterator[None]:
    """What cannot be done, as the command line says it."""
    try:
        yield
    except BadQuestion as error:
        raise UsageError(error.detail) from error
    except NoSuchAlert as error:
        raise UserError("no such alert", hint="adclick alerts list --muted shows them") from error
    except NoSuchMute as error:
        raise UserError("no such mute", hint="adclick alerts mutes shows them") from error


@declare.group(
    "alerts", "adclick alerts list --state open\nadclick alerts mute --advertiser 3 --kind spend-spike --for 7d"
)
def alerts() -> None:
    """Alerts: what was raised of advertisers and of the pipeline. Acknowledge them, or mute them for a while."""


@declare.command(
    "list",
    "adclick alerts list --state open --severity critical\nadclick alerts list --advertiser 3 --since -7d --json",
)
@click.option("--kind", help="Of this kind.")
@click.option("--severity", type=click.Choice(SEVERITIES), help="At least.  [default: warning]")
@click.option("--state", type=click.Choice(STATES), help="In this state.")
@click.option("--campaign", "campaign_id", help="About these campaigns, by comma.")
@click.option("--advertiser", "advertiser_id", help="About this advertiser; 0: the operator's.")
@click.option("--since", help="Opened since then: RFC 3339, or like -24h.")
@click.option("--muted", is_flag=True, help="Also those that are muted.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True)
def list_(app: App, muted: bool, limit: int, **filters: str | None) -> None:
    """Show alerts, newest first."""
    session = _open(app)
    parameters = [(name, value) for name, value in filters.items() if value is not None]
    parameters += [("limit", str(limit)), ("muted", "true" if muted else "false")]
    with _errors():
        question = parse_alerts_question(parameters, now_ms(), WHOLE_INSTALLATION, session.signer)
    rows = session.reader.page(question, now_ms())["data"]
    if app.json:
        app.data(rows)
        return
    app.table(_SHOWN, [_cells(alert) for alert in rows])


@declare.command("summary", "adclick alerts summary\nadclick alerts summary --advertiser 3 --json")
@click.option("--advertiser", type=click.IntRange(1, MAX_INT), help="About this advertiser.  [default: all]")
def summary(app: App, advertiser: int | None) -> None:
    """Show how many alerts of campaigns were false in the last 28 whole days: withdrawn, or muted while they were open."""
    document = _open(app).reader.summary(WHOLE_INSTALLATION, advertiser, now_ms()).document()
    if app.json:
        app.data(document)
        return
    app.table(_SUMMARY_COLUMNS, [_row(counts, _SUMMARY_COLUMNS) for counts in (*document["data"], document["total"])])
    app.say(
        f"{document['start']} to {document['end']}: {document['campaign_months']:,} months of campaigns with events"
    )


@declare.command("show", "adclick alerts show al_0123456789abcdef0123")
@click.argument("id_", metavar="ID")
def show(app: App, id_: str) -> None:
    """Show an alert with all its versions, the oldest first."""
    with _errors():
        alert = _open(app).reader.show(id_, WHOLE_INSTALLATION, now_ms())
    if app.json:
        app.data(alert)
        return
    app.table(_SHOWN, [_cells(alert)])
    columns = ("version", "updated", "severity", "state", "ended", "summary", "detail")
    rows = [{**version, "detail": json.dumps(version["detail"], ensure_ascii=False)} for version in alert["history"]]
    app.table(columns, [_row(version, columns) for version in rows])


@declare.command("ack", "adclick alerts ack al_0123456789abcdef0123")
@click.argument("id_", metavar="ID")
def ack(app: App, id_: str) -> None:
    """Acknowledge an alert, as it is now. It stays in lists, and says who has acknowledged it."""
    with _errors():
        alert = _open(app).actions.acknowledge(id_, None, WHOLE_INSTALLATION, current_user())
    if app.json:
        app.data(alert)
        return
    acknowledged = alert["acknowledged"]
    app.say(
        f"alert {id_}: version {acknowledged['version']} acknowledged by {acknowledged['by']} at {acknowledged['at']}"
    )


@declare.command(
    "mute",
    "adclick alerts mute --advertiser 3 --for 1d\nadclick alerts mute --advertiser 3 --campaign 7 --kind spend-spike --for 7d",
)
@click.option("--advertiser", type=click.IntRange(0, MAX_INT), required=True, help="Whose alerts; 0: the operator's.")
@click.option("--campaign", type=click.IntRange(0, MAX_INT), help="Only those about this campaign.  [default: all]")
@click.option("--kind", help="Only of this kind.  [default: all]")
@click.option("--for", "duration", default="1d", show_default=True, help="For how long; 90d at most.")
def mute(app: App, advertiser: int, campaign: int | None, kind: str | None, duration: str) -> None:
    """Mute alerts for a while: lists leave them out, and webhooks do not get them. A mute of the same alerts is replaced."""
    until_ms = now_ms() // 1000 * 1000 + parse_duration(duration)
    with _errors():
        check_until(until_ms, now_ms())
        subject = MuteSubject(parse_kind(kind) if kind is not None else "", advertiser, campaign)
        muted = _open(app).actions.mute(subject, until_ms, current_user()).document()
    if app.json:
        app.data(muted)
        return
    app.say(f"muted until {muted['until']}; adclick alerts unmute {muted['id']} ends it before")


@declare.command("mutes", "adclick alerts mutes")
def mutes(app: App) -> None:
    """Show the mutes that have not ended; those that end first come first."""
    rows = [mute.document() for mute in _open(app).actions.mutes(WHOLE_INSTALLATION)]
    if app.json:
        app.data(rows)
        return
    app.table(_MUTE_COLUMNS, [["all" if row[name] is None else row[name] for name in _MUTE_COLUMNS] for row in rows])


@declare.command("unmute", "adclick alerts unmute mu_0123456789abcdef0123")
@click.argument("id_", metavar="ID")
def unmute(app: App, id_: str) -> None:
    """End a mute now."""
    with _errors():
        ended = _open(app).actions.unmute(id_, WHOLE_INSTALLATION, current_user()).document()
    if app.json:
        app.data(ended)
        return
    app.say(f"mute {id_} has ended")


def _cells(alert: dict[str, Any]) -> list[Any]:
    acknowledged = alert["acknowledged"]
    shown = alert | {"acknowledged": f"{acknowledged['by']} at {acknowledged['at']}" if acknowledged else ""}
    return _row(shown, _SHOWN)


def _row(values: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    return ["" if values[name] is None else values[name] for name in columns]


for _command in (list_, summary, show, ack, mute, mutes, unmute):
    alerts.add_command(_command)
