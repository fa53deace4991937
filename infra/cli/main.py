"""The `adclick` command. Subcommands are named as strings and loaded when called."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
import traceback
from typing import Any

import click

from infra.cli.declare import GLOBAL_OPTIONS
from infra.cli.output import printable
from infra.errors import AdclickError

# name → (module:object, one line of help). The order is the one of the help page.
COMMANDS = {
    "up": ("infra.stack_commands:up", "Start Kafka, Redis, ClickHouse and the workers."),
    "down": ("infra.stack_commands:down", "Stop what `up --detach` started."),
    "status": ("query.status_command:status", "Processes, lag, watermark, overload level."),
    "config": ("infra.stack_commands:config", "The effective settings and where each came from."),
    "doctor": ("infra.doctor_command:doctor", "Try each connection and right, and say what is missing."),
    "migrate": ("infra.stack_commands:migrate", "Make topics and tables, or bring them up to date."),
    "plan": ("infra.planning.command:plan", "What a load needs and costs, before there is a cluster."),
    "demo": ("query.demo.command:demo", "Show on a private stack that every answer is exact."),
    "generate": ("ingest.synthetic.command:generate", "Write synthetic events, and the truth about them."),
    "replay": ("ingest.replay.command:replay", "Send events from files to Kafka."),
    "replicated": ("ingest.replicated:replicated", "How far a copy of another region's ad-events reaches."),
    "query": ("query.query_command:query", "Ask the router for numbers."),
    "directory": ("query.directory.command:directory", "Names of campaigns and the like: import, export."),
    "keys": ("query.keys_command:keys", "Keys of the HTTP interface: create, list, rotate, revoke, audit."),
    "alerts": ("query.alerts.command:alerts", "Alerts: list, show, acknowledge, mute."),
    "share": ("query.share_command:share", "Print a link to a read-only dashboard."),
    "reconcile": ("batch.reconcile:reconcile", "Recompute days exactly from the archive."),
    "rebuild": ("batch.rebuild.command:rebuild", "Make what a store has lost again: clickhouse, redis, stream."),
    "audit": ("batch.audit:audit", "Prove a day from its archive: what was shown, and what was published."),
    "trace": ("query.trace.command:trace", "Follow one event: when it came, and where it is counted and billed."),
    "dead-letters": (
        "ingest.dead_letters.command:dead_letters_command",
        "Look at rejected events, and send them again.",
    ),
    "ingest": ("ingest.worker:ingest", "Run one ingest worker."),
    "archive": ("ingest.archive.worker:archive", "Run one archive worker."),
    "stream": ("stream.worker:stream", "Run one stream worker."),
    "serve": ("query.serve:serve", "Run one query router."),
    "canary": ("ingest.canary.worker:canary", "Send canaries, whose age in each tier tells that all moves."),
    "notify": ("query.notify.worker:notify", "Run one notify worker: alerts and webhooks."),
    "debug": ("stream.debug_command:debug", "Look into topics; list fault points."),
}


class LazyGroup(click.Group):
    """Knows its commands by name; imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        loaded: click.Command = getattr(importlib.import_module(module), name)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with one line. (Click would print an empty one first.)"""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _report("stopped")
            return 130

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if near:
                error.message += f" Did you mean {near[0]}?"
            raise


@click.group(cls=LazyGroup, params=list(GLOBAL_OPTIONS), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adclick")
def cli(**_options: Any) -> None:
    """Billing-grade ad-click aggregation: exact minute, hour and day numbers, seconds after the click.

    \b
    Examples:
      adclick up --detach
      adclick generate --events 100000 --out events.ndjson --truth truth.ndjson
      adclick replay events.ndjson --shift-to-now
      adclick query --campaign 7 --start -24h --end now --granularity hour
      adclick down
    """


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale that is not UTF-8 cannot write every name; an escape is better than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    verbose = any(a in ("-v", "--verbose") for a in sys.argv[1:])
    try:
        code = cli.main(standalone_mode=False, prog_name="adclick")
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it may fail in order
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        # Its message is the whole help of a group that was called without a command.
        with contextlib.suppress(OSError):
            error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _report(_usage_of(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _report("stopped")
        sys.exit(130)
    except BrokenPipeError:  # as by `| head`
        _close_output()
        sys.exit(1)
    except AdclickError as error:
        _report(f"adclick: {error}", verbose, error.output)
        sys.exit(error.exit_code)
    except OSError as error:
        _close_output()
        place = f"{error.filename}: " if error.filename else ""
        _report(f"adclick: {place}{error.strerror or error}", verbose)
        sys.exit(1)
    except Exception as error:
        reason = f"adclick: internal error, {type(error).__name__}: {error}"
        _report(f"{reason} (-v shows where; please report it)", verbose or _is_worker())
        sys.exit(1)


def _report(line: str, verbose: bool = False, output: str = "") -> None:
    """What went wrong, on standard error, in one line; `verbose`: before it what another program printed, and the traceback."""
    text = printable(" ".join(line.splitlines()))
    if verbose:
        text = printable(f"{output}\n{traceback.format_exc()}".strip("\n"), keep="\n") + f"\n{text}"
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _usage_of(error: click.ClickException) -> str:
    """A mistake in the words of the command, and where to look."""
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"adclick: {message} ({context.command_path if context else 'adclick'} --help shows how)"


def _close_output() -> None:
    """Nothing more can be written: do not try it again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno() if sys.stdout is not None else 1)


def _is_worker() -> bool:
    """Whether standard error is a log, in which a defect must show where it is."""
    return not {"ingest", "archive", "stream", "serve", "notify", "canary"}.isdisjoint(sys.argv[1:])


if __name__ == "__main__":
    main()
