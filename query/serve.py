"""`adclick serve`: one query router, until a signal."""

from __future__ import annotations

import gc

from infra import console, logs, migration
from infra.console import App
from infra.errors import UserError
from infra.priority import answer_soon
from infra.settings import Settings


def run(settings: Settings) -> None:
    """Answer requests on the configured address until SIGTERM or Ctrl-C."""
    _check_certificate(settings)
    answer_soon()
    from query.api import server
    from query.api.app import create

    app = create(settings)
    gc.collect()
    gc.freeze()
    server.run(app, settings)


def _check_certificate(settings: Settings) -> None:
    """Raise UserError where the address promises TLS and there is no certificate, or the other way round."""
    encrypted = settings.http.startswith("https://")
    if encrypted and not (settings.tls_certificate and settings.tls_key):
        raise UserError(
            f"{settings.http} needs a certificate",
            hint="set ADCLICK_TLS_CERTIFICATE and ADCLICK_TLS_KEY, or use http://",
        )
    if settings.tls_certificate and not encrypted:
        raise UserError(f"a certificate is set, and {settings.http} does not use it", hint="use https://")


@console.command("serve", "ADCLICK_HTTP=http://0.0.0.0:8080 ADCLICK_CLICKHOUSE=http://… adclick serve")
def serve(app: App) -> None:
    """Run one query router: it answers over HTTP from Redis and ClickHouse, at the address in the setting `http`."""
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    migration.check_tables(app.settings)
    run(app.settings)
