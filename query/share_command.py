"""`adclick share`: a link to a read-only dashboard of an advertiser, or of some of its campaigns."""

from __future__ import annotations

import click

from infra.addresses import check_listen
from infra.cli import declare
from infra.cli.app import App
from infra.clock import DAY_MS, iso, now_ms
from infra.embedded.ports import client_address
from infra.errors import UsageError
from query.keys_command import open_keys, parse_duration, parse_ids

_LONGEST_MS = 366 * DAY_MS


@declare.command("share", "adclick share --advertiser 3 --campaign 7,8 --expires 7d")
@click.option("--advertiser", "advertisers", required=True, help="Whose numbers it shows; several by comma.")
@click.option("--campaign", "campaigns", help="Only these campaigns, by comma.  [default: all of the advertiser]")
@click.option("--expires", default="7d", show_default=True, help="After how long it stops working; 366d at most.")
@click.option("--name", help="A name, to tell links apart.  [default: share of advertiser …]")
@click.option("--url", help="The address by which browsers reach the router.  [default: the setting http]")
def share(
    app: App, advertisers: str, campaigns: str | None, expires: str, name: str | None, url: str | None
) -> None:  # fmt: skip
    """Print a link to a read-only dashboard. Everybody with the link sees the numbers, until it expires or is revoked with `adclick keys
    revoke`."""
    lasts_ms = parse_duration(expires)
    if not 0 < lasts_ms <= _LONGEST_MS:
        raise UsageError(
            f"a link cannot last {expires}", hint="give at most 366d; adclick keys create makes keys without end"
        )
    try:
        address = check_listen(url) if url else client_address(app.settings.http)
    except ValueError as error:
        raise UsageError(f"--url {error}", hint="like https://ads.example.com") from None
    visible = parse_ids("advertiser", advertisers)
    only = parse_ids("campaign", campaigns) if campaigns is not None else None
    key, secret = open_keys(app).create(
        name or f"share of advertiser {advertisers}", visible, admin=False, rate=50, burst=500, lasts_ms=lasts_ms,
        campaigns=only, share=True,
    )  # fmt: skip
    link = f"{address}/#token={secret}"
    until = iso(now_ms() // 1000 * 1000 + lasts_ms)
    if app.json:
        app.data({"id": key.id, "link": link, "expires_at": iso(key.expires_ms // 1000 * 1000)})
        return
    app.say(f"works until {until}; adclick keys revoke {key.id} ends it before; it is not shown again")
    click.echo(link)
