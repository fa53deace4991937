"""`adclick up`, `down`, `migrate` and `config`."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import SecretStr

from infra import logs, migration
from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse import grants, schema
from infra.clickhouse.deployment import Deployment
from infra.embedded.stack_folder import Folder
from infra.settings import clickhouse_kind_defaults, resolve

_OBSERVED_CANARY_S = "5"


@declare.command("up", "adclick up --detach --ingest-workers 2")
@click.option("--detach", is_flag=True, help="Return once all is ready; `adclick down` stops it.")
@click.option("--ingest-workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--stream-workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--query-workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--notify-workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option(
    "--observe",
    is_flag=True,
    help="Run Prometheus, if it is installed, with our rules beside the stack, and send canaries (ADCLICK_CANARY_S).",
)
def up(
    app: App,
    detach: bool,
    ingest_workers: int,
    stream_workers: int,
    query_workers: int,
    notify_workers: int,
    observe: bool,
) -> None:
    """Start Kafka, Redis, ClickHouse and the workers, and keep them running.

    Prints the addresses and writes DIR/endpoints.json when all is ready. Ctrl-C stops everything in order. The first time, Kafka and
    the dashboard's libraries are fetched, unless `make setup` has done that.
    """
    from infra.embedded import jars, prometheus_server, supervisor

    if observe:
        prometheus_server.find_program()
    logs.configure(verbose=app.verbose, quiet=app.quiet)
    path = app.folder
    folder = Folder(path)
    folder.make()
    if folder.is_open_to_others():
        app.say(f"note: other users of this machine can read {path}, events and logs included (chmod 700 {path})")
    jars.fetch_for_stack(app.say)
    workers = {"ingest": ingest_workers, "archive": 1, "stream": stream_workers, "query": query_workers}
    workers["notify"] = notify_workers
    overrides = _overrides(app)
    if observe:
        overrides.setdefault("canary_s", _OBSERVED_CANARY_S)
    is_passive = overrides.get("passive") == "on"
    workers["canary"] = int(overrides.get("canary_s", "0") != "0" and not is_passive)
    if detach:
        kinds = ("ingest", "stream", "query", "notify")
        counts = [word for kind in kinds for word in (f"--{kind}-workers", str(workers[kind]))]
        more = [*(["-v"] if app.verbose else []), *(["--observe"] if observe else [])]
        _announce(app, supervisor.detach(folder, ["up", "--dir", str(path), *counts, *more]), path)
        return
    runner = supervisor.Supervisor(folder, workers, overrides, observe=observe)
    runner.run(lambda endpoints: _announce(app, endpoints, path))


def _overrides(app: App) -> dict[str, str]:
    """Settings that the environment or a file gives the embedded stack: all but the addresses of what `up` itself starts."""
    resolved = resolve(str(app.folder), stack=False)
    own = {"kafka": "a Kafka", "redis": "a Redis", "clickhouse": "a ClickHouse"}
    for name, what in own.items():
        if name in resolved.origins:
            app.say(
                f"note: {resolved.origins[name]} is not used: up starts {what} of its own"
                f" (other commands use it all the same, unless they have --dir {app.folder})"
            )
    values = {name: getattr(resolved.settings, name) for name in resolved.origins if name not in own}
    # Workers inherit the environment: what is in it of another ClickHouse must not reach them.
    values |= clickhouse_kind_defaults()
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in values.items()
    }


def _announce(app: App, endpoints: dict[str, str], path: Path) -> None:
    from infra.embedded import prometheus_server

    endpoints = {name: value for name, value in endpoints.items() if name not in ("user_secret", "canary_s")}
    if (prometheus := prometheus_server.address_of(Folder(path))) is not None:
        endpoints["prometheus"] = prometheus
    if app.json:
        app.data(endpoints)
        return
    width = max(map(len, endpoints))
    for name, value in endpoints.items():
        click.echo(f"{name:<{width}}  {value}")
    click.echo(f"{'dashboard':<{width}}  {endpoints['http']}/#key={endpoints['api_key']}")
    app.say(f"ready; logs in {path / 'logs'}")


@declare.command("down", "adclick down")
def down(app: App) -> None:
    """Stop the stack in DIR, and wait until it is down. Its data stays."""
    folder = Folder(app.folder)
    app.say(f"stopped {app.folder}" if folder.stop() else f"nothing is running in {app.folder}")


@declare.command("migrate", "ADCLICK_KAFKA=broker:9092 ADCLICK_CLICKHOUSE=http://… adclick migrate")
@click.option(
    "--print-grants", is_flag=True, help="Only print what users of ClickHouse need, as SQL; connect to nothing."
)
def migrate(app: App, print_grants: bool) -> None:
    """Make the topics and tables of the configured addresses, or bring them up to date.

    Running it again changes nothing; of several at once, one waits for the other.
    """
    if print_grants:
        deployment = Deployment.of(app.settings)
        click.echo(grants.print_grants(schema.all_statements(), app.settings.database, deployment))
        return
    changes = migration.migrate(app.settings)
    if app.json:
        app.data({"topics": changes.topics, "tables": changes.tables})
        return
    for topic in changes.topics:
        app.say(f"created topic {topic}")
    for name in changes.tables:
        done = f"applied {name} to" if name.endswith(".sql") else f"made table {name} again in"
        app.say(f"{done} database {app.settings.database}")
    if not changes.topics and not changes.tables:
        app.say("topics and tables are up to date")


@declare.command("config", "ADCLICK_CURRENCY=EUR adclick config")
def config(app: App) -> None:
    """Print the effective settings and where each came from; secrets are masked."""
    shown = app.resolved.masked()
    if app.json:
        app.data({name: {"value": value, "from": origin} for name, (value, origin) in shown.items()})
        return
    app.table(["setting", "value", "from"], [(n, v, o) for n, (v, o) in shown.items()])
