"""`adclick serve`: one query router, until a signal. (`adclick query` is a client of it: query/query_command.py.)"""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path

from infra import logs, migration
from infra.cli import declare
from infra.cli.app import App
from infra.errors import UserError
from infra.priority import answer_soon
from infra.settings import Settings
from infra.tls import TlsFiles


@declare.command("serve", "ADCLICK_HTTP=http://0.0.0.0:8080 ADCLICK_CLICKHOUSE=http://… adclick serve")
def serve(app: App) -> None:
    """Run one query router: it answers over HTTP from Redis and ClickHouse, at the address in the setting `http`."""
    # uvicorn has a handler of its own while it runs; once it has stopped in order, it raises the signal anew.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    migration.check_tables(app.settings)
    run_router(app.settings, app.folder)


def run_router(settings: Settings, folder: Path | None = None) -> None:
    """Answer requests at the configured address until SIGTERM or Ctrl-C. `folder`: of the embedded stack that it may be a process of.

    Raises UserError when that cannot be started.
    """
    check_certificate(settings)
    answer_soon()
    from query.api.app import create_app
    from query.api.server import serve_http

    app = create_app(settings, folder=folder)
    gc.collect()
    gc.freeze()
    serve_http(app, settings)


def check_certificate(settings: Settings) -> None:
    """Raise UserError where the address promises TLS without a certificate and its key, or a certificate is set without TLS."""
    encrypted = settings.http.startswith("https://")
    if encrypted and not (settings.tls_certificate and settings.tls_key):
        raise UserError(
            f"{settings.http} needs a certificate",
            hint="set ADCLICK_TLS_CERTIFICATE and ADCLICK_TLS_KEY, or use http://",
        )
    if settings.tls_certificate and not encrypted:
        raise UserError(f"a certificate is set, and {settings.http} does not use it", hint="use https://")
    TlsFiles("tls", certificate=settings.tls_certificate, key=settings.tls_key).check()
