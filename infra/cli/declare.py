"""Declares commands: their help ends with an example, and they take the global options before or after their name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from infra.cli.app import App
from infra.errors import Unavailable, is_away

GLOBAL_OPTIONS = [
    click.Option(["--dir", "directory"], metavar="DIR", help="Folder of an embedded stack.  [default: .adclick]"),
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    click.Option(["-v", "--verbose"], is_flag=True, help="More detail, and tracebacks."),
    click.Option(["-q", "--quiet"], is_flag=True, help="No progress and no notes."),
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
        app = App(merged["directory"], bool(merged["as_json"]), bool(merged["verbose"]), bool(merged["quiet"]))
        ctx.params["app"] = app
        try:
            return super().invoke(ctx)
        except Unavailable as error:
            if is_away(error):
                error.hint = app.stack_hint() or error.hint
            raise


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
