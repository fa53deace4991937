"""`adclick query`: one question to the router, over HTTP. `serve` is the router."""

from __future__ import annotations

from typing import Any

import click
import httpx

from infra import console
from infra.console import App
from infra.errors import Unavailable, UsageError, UserError
from infra.settings import Settings


class Client:
    """Asks a router over HTTP, as users do."""

    def __init__(self, settings: Settings) -> None:
        key = settings.api_key.get_secret_value()
        self._http = httpx.Client(
            base_url=settings.http, headers={"Authorization": f"Bearer {key}"}, timeout=30.0, trust_env=False
        )

    def get(self, path: str, parameters: list[tuple[str, str]]) -> dict[str, Any]:
        """The answer. Raises UserError on a problem of ours, Unavailable when nobody answers."""
        try:
            answer = self._http.get(path, params=httpx.QueryParams(tuple(parameters)))
        except httpx.HTTPError as error:
            raise Unavailable(
                f"no router answers at {self._http.base_url}: {error}", hint="is the stack up? adclick up"
            ) from error
        body: dict[str, Any] = answer.json()
        if answer.status_code >= 500:
            raise Unavailable(str(body.get("detail", answer.status_code)))
        if answer.status_code >= 400:
            raise UserError(str(body.get("detail", answer.status_code)))
        return body


@console.command("query", "adclick query --campaign 7 --start -24h --end now --granularity hour --group-by country")
@click.option("--campaign", help="Campaigns, several by comma.")
@click.option("--advertiser", help="All campaigns of an advertiser.")
@click.option("--start", help="RFC 3339, now, or like -24h.")
@click.option("--end", help="The same; exclusive.  [default: now]")
@click.option("--granularity", help="minute, hour, day, total or auto.")
@click.option("--group-by", help="Any of campaign_id, ad_id, publisher_id, country, device.")
@click.option("--filter", "filters", multiple=True, help="dimension:value,value; may be repeated.")
@click.option("--timezone", help="IANA name.")
@click.option("--fill", help="zero adds empty buckets.")
@click.option("--order", help="A column; -column for descending.")
@click.option("--limit", help="Rows at most.")
def query(
    app: App, campaign: str | None, advertiser: str | None, start: str | None, end: str | None, filters: tuple[str, ...],
    **options: str | None,
) -> None:  # fmt: skip
    """Ask the router, and print its answer as a table."""
    if not campaign and not advertiser:
        raise UsageError("say whose numbers: --campaign or --advertiser")
    if not start:
        raise UsageError("say from when: --start, for example --start -24h")
    parameters = [("start", start), ("end", end or "now")]
    parameters += [("campaign_id", campaign)] if campaign else []
    parameters += [("advertiser_id", advertiser)] if advertiser else []
    parameters += [(name, value) for name, value in options.items() if value]
    parameters += [("filter", text) for text in filters]
    found = Client(app.settings).get("/v1/metrics", parameters)
    if app.json:
        app.data(found)
        return
    columns = [m["name"] for m in found["meta"]]
    app.table(columns, [[row[c] for c in columns] for row in found["data"]])
    tiers = ", ".join(dict.fromkeys(t["tier"] for t in found["statistics"]["tiers"]))
    app.say(
        f"{found['rows']} rows · {found['finality']} · watermark {found['watermark']} · {tiers} · {found['statistics']['elapsed_ms']} ms"
    )
    for warning in found["warnings"]:
        app.say(f"warning: {warning}")
