"""What every command is given: the settings of this invocation, and where its output goes.

Data goes to standard output, everything else to standard error; no colour or bars when not on a terminal.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli import output
from infra.cli.output import printable

if TYPE_CHECKING:
    from infra.settings import Resolved, Settings


class App:
    """The state of one invocation: the first argument of every command."""

    def __init__(self, directory: str | None, as_json: bool, verbose: bool, quiet: bool) -> None:
        self.directory, self.json, self.verbose, self.quiet = directory, as_json, verbose, quiet

    @functools.cached_property
    def resolved(self) -> Resolved:
        """Settings with their origins."""
        from infra.settings import resolve

        resolved = resolve(self.directory)
        for variable in resolved.unused:
            self.say(f"note: {variable} is not used: --dir takes that setting from the stack in {resolved.directory}")
        return resolved

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.resolved.settings

    @property
    def folder(self) -> Path:
        """The embedded stack's folder, there or not. Reads no settings: `up` may not have written them yet."""
        from infra.settings import stack_directory

        return stack_directory(self.directory)

    def stack_hint(self) -> str:
        """What to do where no store answers: where no setting says where they are, that is most likely why. Otherwise empty."""
        if self.resolved.names_stores:
            return ""
        hint = "adclick up starts one, --dir names the folder of another, ADCLICK_KAFKA and the like name a cluster"
        return f"no stack is in {self.folder}: {hint}"

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
        output.print_table(columns, rows)

    def progress(self, label: str, total: int | None) -> Any:
        """A rich progress bar (a context manager) with rate and remaining time; silent when not on a terminal.

        `total` is None when it is not known beforehand.
        """
        return output.progress_bar(label, total, quiet=self.quiet)
