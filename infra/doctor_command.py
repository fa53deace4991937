"""`adclick doctor`: whether everything that an installation needs is there."""

from __future__ import annotations

import click

from infra.cli import declare
from infra.cli.app import App
from infra.doctor import PROCESSES, CheckOutcome, Examination
from infra.errors import AdclickError


@declare.command("doctor", "ADCLICK_KAFKA=broker:9093 ADCLICK_KAFKA_SECURITY_PROTOCOL=SSL adclick doctor")
@click.option(
    "--process",
    type=click.Choice(PROCESSES),
    help="Whose users the settings name, where each process has its own.  [default: all but migrate]",
)
def doctor(app: App, process: str | None) -> None:
    """Try each connection and right, and say in a line each what is missing.

    Changes nothing. Exit 0 where all is well or there are only warnings, 1 otherwise.
    """
    outcomes = list(Examination(app.settings, process or "").outcomes())
    wrong = [outcome for outcome in outcomes if outcome.problem]
    skipped = sum(bool(outcome.skipped) for outcome in outcomes)
    if app.json:
        app.data(
            [
                {
                    "backend": f.backend,
                    "check": f.check,
                    "problem": f.problem or None,
                    "warning": f.warning or None,
                    "skipped": f.skipped or None,
                }
                for f in outcomes
            ]
        )
    else:
        app.table(["backend", "check", ""], [(f.backend, f.check, _shown(f)) for f in outcomes])
    if wrong:
        also = f", and {skipped} were skipped" if skipped else ""
        raise AdclickError(f"{len(wrong)} of {len(outcomes)} checks failed{also}", hint=app.stack_hint())


def _shown(outcome: CheckOutcome) -> str:
    labelled = {"warning": outcome.warning, "skipped": outcome.skipped}
    return outcome.problem or next((f"{label}: {text}" for label, text in labelled.items() if text), "ok")
