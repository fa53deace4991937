"""What every command shares: the global options, settings, output, progress and the shape of errors.

Data goes to standard output, everything else to standard error; no colour or bars when not on a terminal.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.settings import Resolved, Settings

# Rich lays out about 300 rows a second; a longer table is printed in plain columns, on a terminal as well.
_RICH_ROWS = 200

GLOBAL_OPTIONS = [
    click.Option(["--dir", "directory"], metavar="DIR", help="Folder of an embedded stack.  [default: .adclick]"),
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    click.Option(["-v", "--verbose"], is_flag=True, help="Tell more; show tracebacks."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Tell less."),
]


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not printable as its escape (`\\x1b`, `\\u202e`), except those in `keep`.

    Text from outside must not reach a terminal raw: control characters move its cursor, set its title, answer its
    queries; marks of direction reorder a line; half of a surrogate pair cannot be encoded at all.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


class App:
    """The state of one invocation, given to every command as its first argument."""

    def __init__(self, directory: str | None, as_json: bool, verbose: bool, quiet: bool) -> None:
        self.directory, self.json, self.verbose, self.quiet = directory, as_json, verbose, quiet

    @functools.cached_property
    def resolved(self) -> Resolved:
        """Settings with their origins."""
        from infra.settings import resolve

        return resolve(self.directory)

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.resolved.settings

    @property
    def folder(self) -> Path:
        """The embedded stack's folder, there or not. Reads no settings: `up` may not have written them yet."""
        from infra.settings import stack_directory

        return stack_directory(self.directory)

    def say(self, text: str) -> None:
        """A line for the person, on standard error."""
        if not self.quiet:
            click.echo(printable(text, keep="\n\t"), err=True)

    def data(self, value: Any) -> None:
        """A value as JSON, on standard output, in ASCII alone."""
        # JSON leaves one control character of ASCII unescaped: DEL.
        click.echo(json.dumps(value, indent=2, default=str).replace("\x7f", "\\u007f"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows as a table on standard output: with rules on a terminal, plain columns elsewhere and for long tables.

        Cells are text, never markup, and hold no control characters: see `printable`. A short row ends in empty cells.
        """
        names = [printable(name) for name in columns]
        cells = [["" if v is None else printable(str(v)) for v in row] for row in rows]
        cells = [row + [""] * (len(names) - len(row)) for row in cells]
        if sys.stdout.isatty() and len(cells) <= _RICH_ROWS:
            _print_ruled(names, cells)
        else:
            click.echo("\n".join(_aligned([names, *cells])))

    def progress(self, label: str, total: int | None) -> Any:
        """A rich progress bar (a context manager) with rate and remaining time; silent when not on a terminal.

        `total` is None when it is not known beforehand.
        """
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed or 0:,.0f}/s")

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
            console=console, disable=self.quiet or not sys.stderr.isatty(),
        )  # fmt: skip
        bar.add_task(label, total=total)
        return bar


def _print_ruled(names: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table with rules, cut to the terminal's width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(Text(name), no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as a line, its cells padded to the width of their column in terminal cells (CJK and emoji take two)."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


class Command(click.Command):
    """A command that also takes the global options, before or after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for p in self.params for name in p.opts}
        self.params += [o for o in GLOBAL_OPTIONS if not taken.intersection(o.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        """Merge the options given before the name with those after it."""
        before = ctx.find_root().params
        merged = {o.name: ctx.params.pop(o.name, None) or before.get(o.name) for o in GLOBAL_OPTIONS if o.name}
        ctx.params["app"] = App(
            merged["directory"], bool(merged["as_json"]), bool(merged["verbose"]), bool(merged["quiet"])
        )
        return super().invoke(ctx)


def command(name: str, example: str, **kwargs: Any) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command whose help ends with an example."""

    def wrap(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=Command, epilog=_epilog(example), **kwargs)(function)
        assert isinstance(made, Command)
        return made

    return wrap


def group(name: str, example: str) -> Callable[[Callable[..., Any]], click.Group]:
    """Declare a command that has commands; they take the global options."""
    return lambda function: click.group(name, epilog=_epilog(example))(function)


def _epilog(example: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())
