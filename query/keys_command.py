"""`adclick keys`: the keys of the HTTP interface, and whose numbers each may see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import click

from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.errors import UsageError
from ingest.events import MAX_INT
from query.key_use import KeyUse, Use
from query.keys import Key, Keys

_DURATION = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SHOWN = (
    "id", "name", "advertisers", "campaigns", "scopes", "rate", "burst", "created", "expires", "state", "last_used", "requests",
)  # fmt: skip


def parse_duration(text: str) -> int:
    """Milliseconds. Raises UsageError."""
    duration = _DURATION.fullmatch(text)
    if not duration:
        raise UsageError(f"{text} is not a duration", hint="write it like 30m, 12h or 90d")
    return int(duration[1]) * _UNITS[duration[2]]


def open_keys(app: App) -> Keys:
    """The keys of the configured ClickHouse, whose tables are brought up to date."""
    client = ClickHouse.of(app.settings)
    apply_migrations(client)
    return Keys(client)


def _row(key: Key, use: Use) -> list[object]:
    advertisers = "all" if key.everybody else ",".join(map(str, key.advertisers))
    campaigns = "all" if key.every_campaign else ",".join(map(str, key.campaigns))
    scopes = "read,admin" if key.admin else "share" if key.share else "read"
    expires = iso(key.expires_ms) if key.expires_ms else "never"
    last_used = iso(use.last_used_ms // 1000 * 1000) if use.last_used_ms else "never"
    return [
        key.id, key.name, advertisers, campaigns, scopes, key.rate, key.burst, iso(key.created_ms // 1000 * 1000), expires,
        key.state(now_ms()), last_used, use.requests,
    ]  # fmt: skip


def _print_token(app: App, key: Key, token: str) -> None:
    if app.json:
        app.data({"id": key.id, "key": token})
        return
    app.say(f"key {key.id} for {key.name}: it is not shown again")
    click.echo(token)


@declare.group("keys", "adclick keys create --name 'Acme dashboard' --advertisers 3,4\nadclick keys list")
def keys() -> None:
    """Keys of the HTTP interface. Only a digest of each is stored; every change is in an audit log."""


@declare.command("create", "adclick keys create --name 'Acme dashboard' --advertisers 3,4 --expires 90d")
@click.option("--name", required=True, help="A name, to tell keys apart.")
@click.option("--advertisers", help="The advertisers whose numbers it sees, by comma.")
@click.option("--campaigns", help="Only these campaigns of them, by comma.  [default: all]")
@click.option("--all-advertisers", is_flag=True, help="It sees the numbers of all advertisers.")
@click.option("--admin", is_flag=True, help="It also sees the state of the pipeline, and whole reconciliations.")
@click.option("--rate", type=click.FloatRange(0.01, 1e6), default=50.0, show_default=True, help="Requests a second, in the long run; a thousand rows read count as one.")  # fmt: skip
@click.option("--burst", type=click.FloatRange(1, 1e7), default=500.0, show_default=True, help="Requests at once.")
@click.option("--expires", help="After how long, like 90d.  [default: never]")
def create(
    app: App, name: str, advertisers: str | None, campaigns: str | None, all_advertisers: bool, admin: bool, rate: float, burst: float, expires: str | None
) -> None:  # fmt: skip
    """Make a key, and print it: it is not shown again."""
    if bool(advertisers) == all_advertisers:
        raise UsageError("give either --advertisers, like 3,4, or --all-advertisers")
    visible = None if all_advertisers else parse_ids("advertiser", advertisers or "")
    only = parse_ids("campaign", campaigns) if campaigns is not None else None
    lasts_ms = parse_duration(expires) if expires else None
    _print_token(
        app,
        *open_keys(app).create(name, visible, admin=admin, rate=rate, burst=burst, lasts_ms=lasts_ms, campaigns=only),
    )


@declare.command("list", "adclick keys list --json")
def list_(app: App) -> None:
    """Show all keys, newest first, without their secrets. Uses of the last minute may not be in it yet."""
    keys = open_keys(app)
    uses = KeyUse(keys.client).read()
    _print_rows(app, _SHOWN, [_row(key, uses.get(key.id, Use())) for key in keys.all()])


@declare.command("rotate", "adclick keys rotate 1f0c9a2b3d --grace 24h")
@click.argument("id_", metavar="ID")
@click.option("--grace", default="0m", show_default=True, help="For how long the former secret remains valid.")
def rotate(app: App, id_: str, grace: str) -> None:
    """Give a key a new secret, and print it."""
    _print_token(app, *open_keys(app).rotate(id_, parse_duration(grace)))


@declare.command("revoke", "adclick keys revoke 1f0c9a2b3d")
@click.argument("id_", metavar="ID")
def revoke(app: App, id_: str) -> None:
    """Revoke a key: within five seconds it is not valid any more."""
    key = open_keys(app).revoke(id_)
    app.say(f"key {key.id} for {key.name} is revoked")


@declare.command("audit", "adclick keys audit --limit 20")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def show_audit(app: App, limit: int) -> None:
    """Show the changes of keys, newest first."""
    _print_rows(app, ("at", "by", "action", "key", "detail"), open_keys(app).audit(limit))


def _print_rows(app: App, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    if app.json:
        app.data([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        app.table(columns, rows)


def parse_ids(kind: str, text: str) -> frozenset[int]:
    """Ids by comma. Raises UsageError, naming the kind."""
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,19}", part.strip(), re.ASCII) or int(part) > MAX_INT:
            raise UsageError(f"{part[:40]!r} is not the id of {'an' if kind[0] == 'a' else 'a'} {kind}")
    return frozenset(map(int, text.split(",")))


for _command in (create, list_, rotate, revoke, show_audit):
    keys.add_command(_command)
