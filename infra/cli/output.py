"""What a command prints: text that is safe on a terminal, tables and progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

# Rich lays out about 300 rows a second; a longer table is printed in plain columns, on a terminal as well.
_RICH_ROWS = 200


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not printable as its escape (`\\x1b`, `\\u202e`), except those in `keep`.

    Text from outside must not reach a terminal raw: control characters move its cursor, set its title, answer its
    queries; marks of direction reorder a line; half of a surrogate pair cannot be encoded at all.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows as a table on standard output: with rules on a terminal, plain columns elsewhere and for long tables."""
    names = [printable(name) for name in columns]
    cells = [["" if v is None else printable(str(v)) for v in row] for row in rows]
    cells = [row + [""] * (len(names) - len(row)) for row in cells]
    if sys.stdout.isatty() and len(cells) <= _RICH_ROWS:
        _print_ruled(names, cells)
    else:
        click.echo("\n".join(_aligned([names, *cells])))


def progress_bar(label: str, total: int | None, *, quiet: bool) -> Any:
    """A rich progress bar (a context manager) with rate and remaining time; silent when not on a terminal."""
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
        console=console, disable=quiet or not sys.stderr.isatty(),
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
