"""`adclick status`: the processes of a stack, and the state of its pipeline."""

from __future__ import annotations

from typing import Any

from infra import migration
from infra.cli import declare
from infra.cli.app import App
from infra.embedded import prometheus_server
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from infra.settings import ENDPOINTS_FILE, STORES, read_endpoints
from query.processes import usage
from query.status import UNKNOWN_STATUS, describe_unread, read_status


@declare.command("status", "adclick status --json")
def status(app: App) -> None:
    """Show each process, each topic's lag, the watermark, the overload level and the last reconciliation.

    Exit 0 when all that ought to run does, 1 when something does not or a backend does not answer; that is named.
    """
    folder = Folder(app.folder)
    processes = folder.processes()
    report: dict[str, Any] = {
        "dir": str(app.folder),
        "processes": {name: taken for name, process in processes.items() if (taken := usage(process))},
        "dead": sorted(set(folder.pids()) - set(processes)),
        "prometheus": prometheus_server.address_of(folder),
    }
    never_ready = app.directory is not None and not read_endpoints(app.folder)
    stopped = "supervisor" not in processes and (never_ready or _is_own_stack(app, folder))
    unknown = stopped or never_ready
    report |= UNKNOWN_STATUS if unknown else read_status(app.settings)
    if not unknown:
        report["warnings"] += describe_unread(app.settings, report)
        report["problems"] |= migration.shortcomings(app.settings, away=report["problems"])
    if app.json:
        app.data(report)
    else:
        _print_status(app, report, is_known=not (unknown or report["problems"]))
    if stopped:
        option = f" --dir {app.folder}" if app.directory is not None else ""
        raise AdclickError(f"no stack is running in {app.folder}", hint=f"adclick up{option} starts one")
    if never_ready:
        raise AdclickError(f"the stack in {app.folder} is still starting")
    faults = [f"{name} is not running (see {folder.log(name)})" for name in report["dead"]]
    faults += report["problems"].values()
    if faults:
        raise AdclickError("; ".join(faults), hint=app.stack_hint())


def _is_own_stack(app: App, folder: Folder) -> bool:
    """Whether the addresses are those of the folder's stack, rather than of a cluster that settings name."""
    origins = {app.resolved.origins.get(name) for name in STORES}
    return origins == {str(app.folder / ENDPOINTS_FILE)} or (origins == {None} and bool(folder.pids()))


def _print_status(app: App, report: dict[str, Any], *, is_known: bool) -> None:
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
    if report["redis_memory"]:
        app.table(["redis", "MB", "of"], [_memory(memory) for memory in report["redis_memory"]])
    if report["canaries"]:
        rows = [
            (c["tier"], f"{c['age_s']:.1f}", f"{c['slowest_s']:.1f}", c["slowest"] or "") for c in report["canaries"]
        ]
        app.table(["canary in", "sent s ago", "slowest path", ""], rows)
    lag_s, run = report["stream_lag_s"], report["last_reconciliation"]
    app.table(
        ["", ""],
        [
            ("watermark", report["watermark"] or "unknown"),
            ("stream lag", "unknown" if lag_s is None else f"{lag_s:.1f} s"),
            ("overload", report["level"]),
            ("reconciled", _reconciled(run) if run else "never" if is_known else "unknown"),
            *([("prometheus", report["prometheus"])] if report["prometheus"] else []),
        ],
    )


def _memory(memory: dict[str, Any]) -> tuple[str, int, str]:
    """A server of Redis, what it has in use, and what it may use."""
    limit = memory["limit_bytes"]
    return memory["server"], memory["used_bytes"] >> 20, f"{limit >> 20}" if limit else "any"


def _reconciled(run: dict[str, Any]) -> str:
    """The last reconciliation in a few words."""
    return f"{run['date']} by {run['run_id']}, at {run['published_at']}" + (" with an alert" if run["alert"] else "")
