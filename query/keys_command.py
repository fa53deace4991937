"""`adclick keys`: who may ask over HTTP, and for whose numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import click

from infra import console
from infra.clickhouse.client import ClickHouse, migrate
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.console import App
from infra.errors import UsageError
from query.keys import Key, Keys

_DURATION = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SHOWN = ("id", "name", "advertisers", "scopes", "rate", "burst", "created", "expires", "state")


def _duration_ms(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found:
        raise UsageError(f"{text} is no duration", hint="like 30m, 12h or 90d")
    return int(found[1]) * _UNITS[found[2]]


def _keys(app: App) -> Keys:
    client = ClickHouse(app.settings.clickhouse, app.settings.database)
    migrate(client)
    return Keys(client)


def _row(key: Key) -> list[object]:
    advertisers = "all" if key.everybody else ",".join(map(str, key.advertisers))
    scopes = "read,admin" if key.admin else "read"
    expires = iso(key.expires_ms) if key.expires_ms else "never"
    return [key.id, key.name, advertisers, scopes, key.rate, key.burst, iso(key.created_ms // 1000 * 1000), expires, key.state(now_ms())]  # fmt: skip


def _tell(app: App, key: Key, token: str) -> None:
    if app.json:
        app.data({"id": key.id, "key": token})
        return
    app.say(f"key {key.id} for {key.name}: it is shown only now")
    click.echo(token)


@console.group("keys", "adclick keys create --name 'Acme dashboard' --advertisers 3,4\nadclick keys list")
def keys() -> None:
    """Keys of the HTTP interface. Only a digest of each is stored; what is done to them is kept in an audit log."""


@console.command("create", "adclick keys create --name 'Acme dashboard' --advertisers 3,4 --expires 90d")
@click.option("--name", required=True, help="Whose it is, for people.")
@click.option("--advertisers", help="The advertisers whose numbers it sees, by comma.")
@click.option("--all-advertisers", is_flag=True, help="It sees everybody's.")
@click.option("--admin", is_flag=True, help="It also sees the pipeline's inside and whole reconciliations.")
@click.option("--rate", type=click.FloatRange(0.01, 1e6), default=50.0, show_default=True, help="Requests a second, in the long run; a thousand rows read count as one.")  # fmt: skip
@click.option("--burst", type=click.FloatRange(1, 1e7), default=500.0, show_default=True, help="Requests at once.")
@click.option("--expires", help="After how long, like 90d.  [default: never]")
def create(
    app: App, name: str, advertisers: str | None, all_advertisers: bool, admin: bool, rate: float, burst: float, expires: str | None
) -> None:  # fmt: skip
    """Make a key, and print it: it is shown only now."""
    if bool(advertisers) == all_advertisers:
        raise UsageError("say whose numbers it sees: --advertisers 3,4 or --all-advertisers")
    wanted = None if all_advertisers else frozenset(map(_advertiser, (advertisers or "").split(",")))
    lasts_ms = _duration_ms(expires) if expires else None
    _tell(app, *_keys(app).create(name, wanted, admin=admin, rate=rate, burst=burst, lasts_ms=lasts_ms))


@console.command("list", "adclick keys list --json")
def list_(app: App) -> None:
    """Show all keys, newest first, without what opens."""
    _print_rows(app, _SHOWN, [_row(key) for key in _keys(app).all()])


@console.command("rotate", "adclick keys rotate 1f0c9a2b3d --grace 24h")
@click.argument("id_", metavar="ID")
@click.option("--grace", default="0m", show_default=True, help="For how long the former one goes on to work.")
def rotate(app: App, id_: str, grace: str) -> None:
    """Give a key a new secret, and print it."""
    _tell(app, *_keys(app).rotate(id_, _duration_ms(grace)))


@console.command("revoke", "adclick keys revoke 1f0c9a2b3d")
@click.argument("id_", metavar="ID")
def revoke(app: App, id_: str) -> None:
    """Make a key worthless, within five seconds."""
    key = _keys(app).revoke(id_)
    app.say(f"key {key.id} for {key.name} is revoked")


@console.command("audit", "adclick keys audit --limit 20")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def audit(app: App, limit: int) -> None:
    """Show what was done to keys, newest first."""
    _print_rows(app, ("at", "by", "action", "key", "detail"), _keys(app).audit(limit))


def _print_rows(app: App, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    if app.json:
        app.data([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        app.table(columns, rows)


def _advertiser(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text.strip()):
        raise UsageError(f"{text[:40]!r} is no advertiser's id")
    return int(text)


for _command in (create, list_, rotate, revoke, audit):
    keys.add_command(_command)
