"""`up`, `down`, `status` and `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import psutil
from pydantic import SecretStr

from infra import console, logs, migration, pipeline_state
from infra.console import App
from infra.embedded.state import Folder
from infra.errors import AdclickError
from infra.settings import ENDPOINTS_FILE, read_endpoints, resolve


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
    overrides = _overrides(app)
    if detach:
        counts = [word for kind in ("ingest", "stream", "query") for word in (f"--{kind}-workers", str(workers[kind]))]
        more = ["-v"] if app.verbose else []
        _announce(app, supervisor.detach(folder, ["up", "--dir", str(path), *counts, *more]), path)
        return
    runner = supervisor.Supervisor(folder, workers, overrides)
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
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in values.items()
    }


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
    """Show each process, each topic's lag, the watermark, the overload level and the last reconciliation.

    Exit 0 when all that ought to run does, 1 when something does not or a backend does not answer; that is named.
    """
    folder = Folder(app.folder)
    processes = folder.processes()
    report: dict[str, Any] = {
        "dir": str(app.folder),
        "processes": {name: usage for name, process in processes.items() if (usage := _usage(process))},
        "dead": sorted(set(folder.pids()) - set(processes)),
    }
    never_ready = app.directory is not None and not read_endpoints(app.folder)
    stopped = "supervisor" not in processes and (never_ready or _is_own_stack(app, folder))
    unknown = stopped or never_ready
    report |= pipeline_state.NOTHING_KNOWN if unknown else pipeline_state.collect(app.settings)
    if not unknown:
        report["problems"] |= migration.shortcomings(app.settings)
    if app.json:
        app.data(report)
    else:
        _print_status(app, report)
    if stopped:
        raise AdclickError(f"no stack is running in {app.folder}", hint="adclick up starts one")
    if never_ready:
        raise AdclickError(f"the stack in {app.folder} is still starting")
    faults = [f"{name} is not running (see {folder.log(name)})" for name in report["dead"]]
    faults += report["problems"].values()
    if faults:
        raise AdclickError("; ".join(faults))


def _is_own_stack(app: App, folder: Folder) -> bool:
    """Whether the addresses are those of the folder's stack, rather than of a cluster that settings name."""
    origins = {app.resolved.origins.get(name) for name in ("kafka", "redis", "clickhouse")}
    return origins == {str(app.folder / ENDPOINTS_FILE)} or (origins == {None} and bool(folder.pids()))


def _usage(process: psutil.Process) -> dict[str, Any]:
    """What a process takes; nothing when it has just ended."""
    try:
        with process.oneshot():
            cpu_s = sum(process.cpu_times()[:2])
            return {"pid": process.pid, "cpu_s": round(cpu_s, 1), "rss_mb": process.memory_info().rss >> 20}
    except psutil.NoSuchProcess:
        return {}


def _print_status(app: App, report: dict[str, Any]) -> None:
    rows = [(n, p["pid"], p["cpu_s"], p["rss_mb"]) for n, p in report["processes"].items()]
    rows += [(n, "not running", "", "") for n in report["dead"]]
    if rows:
        app.table(["process", "pid", "cpu s", "MB"], rows)
    if report["problems"]:
        app.table(["problem", ""], list(report["problems"].items()))
    if report["warnings"]:
        app.table(["warning"], [(warning,) for warning in report["warnings"]])
    if report["topics"]:
        app.table(["topic", "messages to read"], [(n, f"{lag:,}") for n, lag in report["topics"].items()])
    lag_s, run = report["stream_lag_s"], report["last_reconciliation"]
    app.table(
        ["", ""],
        [
            ("watermark", report["watermark"] or "unknown"),
            ("stream lag", "unknown" if lag_s is None else f"{lag_s:.1f} s"),
            ("overload", report["level"]),
            ("reconciled", _reconciled(run) if run else "unknown" if report["problems"] else "never"),
        ],
    )


def _reconciled(run: dict[str, Any]) -> str:
    """The last reconciliation in a few words."""
    return f"{run['date']} by {run['run_id']}, at {run['published_at']}" + (" with an alert" if run["alert"] else "")
