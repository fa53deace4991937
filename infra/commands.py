"""`up`, `down`, `status` and `config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infra import console, logs, pipeline_state
from infra.console import App
from infra.embedded.state import Folder
from infra.errors import AdclickError
from infra.settings import resolve


@console.command("up", "adclick up --detach --ingest-workers 2")
@click.option("--detach", is_flag=True, help="Return once all is ready; `adclick down` stops it.")
@click.option("--ingest-workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--stream-workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--query-workers", type=click.IntRange(1, 64), default=1, show_default=True)
def up(app: App, detach: bool, ingest_workers: int, stream_workers: int, query_workers: int) -> None:
    """Start Kafka, Redis, ClickHouse and the workers, and keep them running.

    Prints the addresses and writes DIR/endpoints.json when all is ready. Ctrl-C stops everything in order.
    """
    from infra.embedded import supervisor

    logs.configure(verbose=app.verbose, quiet=app.quiet)
    path = app.folder
    folder = Folder(path)
    folder.make()
    workers = {"ingest": ingest_workers, "archive": 1, "stream": stream_workers, "query": query_workers}
    if detach:
        counts = [word for kind in ("ingest", "stream", "query") for word in (f"--{kind}-workers", str(workers[kind]))]
        _announce(app, supervisor.detach(folder, ["up", "--dir", str(path), *counts]), path)
        return
    runner = supervisor.Supervisor(folder, workers, _told(app))
    runner.run(lambda endpoints: _announce(app, endpoints, path))


def _told(app: App) -> dict[str, str]:
    """Settings that the environment or a file gives the embedded stack: all but the addresses, which `up` decides."""
    found = resolve(str(app.folder), stack=False)
    decided = {"kafka", "redis", "clickhouse", "http", "api_key", "user_secret"}
    return {name: str(getattr(found.settings, name)) for name in found.origins if name not in decided}


def _announce(app: App, endpoints: dict[str, str], path: Path) -> None:
    if app.json:
        app.data(endpoints)
        return
    width = max(map(len, endpoints))
    for name, value in endpoints.items():
        click.echo(f"{name:<{width}}  {value}")
    click.echo(f"{'page':<{width}}  {endpoints['http']}/#key={endpoints['api_key']}")
    app.say(f"ready; logs in {path / 'logs'}")


@console.command("down", "adclick down")
def down(app: App) -> None:
    """Stop the stack in DIR, and wait until it is down. Its data stays."""
    folder = Folder(app.folder)
    app.say(f"stopped {app.folder}" if folder.stop() else f"nothing is running in {app.folder}")


@console.command("migrate", "ADCLICK_KAFKA=broker:9092 ADCLICK_CLICKHOUSE=http://… adclick migrate")
def migrate(app: App) -> None:
    """Make the topics and tables of the configured addresses, or bring them up to date.

    Running it again changes nothing; of several at once, one waits for the other.
    """
    from infra import migration

    changes = migration.migrate(app.settings)
    if app.json:
        app.data({"topics": changes.topics, "tables": changes.tables})
        return
    for topic in changes.topics:
        app.say(f"made topic {topic}")
    for name in changes.tables:
        app.say(f"applied {name} to database {app.settings.database}")
    if not changes.topics and not changes.tables:
        app.say("topics and tables are up to date")


@console.command("config", "ADCLICK_CURRENCY=EUR adclick config")
def config(app: App) -> None:
    """Print the effective settings and where each came from; secrets are masked."""
    shown = app.resolved.masked()
    if app.json:
        app.data({name: {"value": value, "from": origin} for name, (value, origin) in shown.items()})
        return
    app.table(["setting", "value", "from"], [(n, v, o) for n, (v, o) in shown.items()])


@console.command("status", "adclick status --json")
def status(app: App) -> None:
    """Show each process, each topic's lag, the watermark, the overload level and the last reconciliation."""
    folder = Folder(app.folder)
    processes = folder.processes()
    found: dict[str, Any] = {
        "dir": str(app.folder),
        "processes": {
            name: {
                "pid": p.pid,
                "cpu_s": round(sum(p.cpu_times()[:2]), 1),
                "rss_mb": p.memory_info().rss >> 20,
            }
            for name, p in processes.items()
        },
        "dead": sorted(set(folder.pids()) - set(processes)),
    }
    found |= pipeline_state.collect(app.settings)
    if app.json:
        app.data(found)
    else:
        _print_status(app, found)
    if found["problems"] and not processes:
        first = next(iter(found["problems"].values()))
        raise AdclickError(f"nothing is running in {app.folder}, and {first}", hint="adclick up starts a stack")


def _print_status(app: App, found: dict[str, Any]) -> None:
    rows = [(n, p["pid"], p["cpu_s"], p["rss_mb"]) for n, p in found["processes"].items()]
    app.table(["process", "pid", "cpu s", "MB"], rows + [(n, "not running", "", "") for n in found["dead"]])
    if found["problems"]:
        app.table(["problem", ""], list(found["problems"].items()))
    if found["topics"]:
        app.table(["topic", "messages to read"], [(n, f"{lag:,}") for n, lag in found["topics"].items()])
        app.table(
            ["", ""],
            [
                ("watermark", found["watermark"] or "none yet"),
                ("stream lag", "unknown" if found["stream_lag_s"] is None else f"{found['stream_lag_s']:.1f} s"),
                ("overload", found["level"]),
                (
                    "reconciled",
                    json.dumps(found["last_reconciliation"]) if found["last_reconciliation"] else "never",
                ),
            ],
        )
