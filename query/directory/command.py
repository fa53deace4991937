"""`adclick directory`: names and facts of campaigns, from files and to files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from infra.cli import declare
from infra.cli.app import App
from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.errors import UsageError, UserError
from infra.redis.client import Redis
from query.directory.editor import DirectoryEditor, Outcome
from query.directory.entries import KINDS, BadEntry, Entry, kind_of
from query.directory.files import FORMATS, read_rows, write_rows
from query.directory.reader import DirectoryReader
from query.directory.store import DirectoryStore
from query.keys import current_user
from query.query_command import replacing

# Entries of a batch: for as long as one takes, about a second, other changes of the directory wait.
_BATCH = 50_000
_ENDINGS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}


def import_file(app: App, path: Path, kind: str | None = None, form: str | None = None) -> Outcome:
    """Write a file's entries, those that can be taken, and report the others, each with its line. Raises UserError."""
    store, reader = _open(app)
    editor = DirectoryEditor(store, reader, Redis(app.settings.redis_access), app.settings.key_prefix)
    report, lines, user = Outcome(), dict[tuple[str, int], int](), current_user()
    batch = list[tuple[int, Entry]]()
    with _open_file(path) as file, app.progress("entries", _count_lines(app, path)) as bar:

        def write() -> None:
            outcome = editor.put([entry for _, entry in batch], user)
            report.created += outcome.created
            report.changed += outcome.changed
            report.unchanged += outcome.unchanged
            report.refused += [(batch[position][0], error) for position, error in outcome.refused]
            bar.advance(bar.task_ids[0], len(batch))
            batch.clear()

        for line, row in read_rows(file, form or _form_of(path), kind):
            if isinstance(row, BadEntry):
                report.refused.append((line, row))
                continue
            key = kind_of(row), row.id
            if (earlier := lines.setdefault(key, line)) != line:
                report.refused.append((line, BadEntry("id", f"{key[0]} {key[1]} is on line {earlier} already")))
                continue
            batch.append((line, row))
            if len(batch) == _BATCH:
                write()
        if batch:
            write()
    report.refused.sort(key=lambda refusal: refusal[0])
    return report


def _open(app: App) -> tuple[DirectoryStore, DirectoryReader]:
    client = ClickHouse.of(app.settings)
    apply_migrations(client)
    store = DirectoryStore(client)
    return store, DirectoryReader(store)


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    """The file, or standard input for `-`. Errors of reading it, and of what is in it, name it."""
    shown = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
        else:
            with path.open("rb") as file:
                yield file
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{shown}: {error.message}", hint=error.hint) from error


def _form_of(path: Path) -> str:
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"the format of {path} is not known", hint="give --format, or a name in .csv or .ndjson")
    return _ENDINGS[path.suffix.lower()]


def _count_lines(app: App, path: Path) -> int | None:
    """How many lines a file has, for the bar; None where no bar is shown, or it can be read once only."""
    if app.quiet or not sys.stderr.isatty() or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


# -- commands -----------------------------------------------------------------------------------------------------


@declare.group(
    "directory", "adclick directory import campaigns.csv --kind campaign\nadclick directory export --out all.csv"
)
def directory() -> None:
    """Names, budgets and time zones of advertisers, campaigns, ads and publishers, shown beside their numbers."""


@declare.command(
    "import", "adclick directory import all.ndjson\nadclick directory import campaigns.csv --kind campaign"
)
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Of all rows.  [default: the column kind says it]")
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the ending of the name]")
def import_(app: App, file: Path, kind: str | None, form: str | None) -> int:
    """Write the entries of a file, CSV or NDJSON (- is standard input).

    An entry replaces the former one of its id, whole; what is unchanged is neither written nor audited, so a file may be
    imported again. Rows that cannot be taken are reported, each with its line, and the others are taken: exit 1. A
    parent (advertiser of a campaign, campaign of an ad) must be in the directory, or on an earlier line.
    """
    report = import_file(app, file, kind, form)
    for line, error in report.refused:
        app.say(f"{file}:{line}: {error.detail}")
    if app.json:
        app.data(_as_json(report))
    else:
        refused = f"; {len(report.refused):,} not taken" if report.refused else ""
        app.say(f"{file}: {describe(report)}{refused}")
    return 1 if report.refused else 0


def describe(report: Outcome) -> str:
    """How many entries were created, changed and unchanged."""
    return f"{report.created:,} created, {report.changed:,} changed, {report.unchanged:,} unchanged"


def _as_json(report: Outcome) -> dict[str, Any]:
    refused = [{"line": line, "field": error.field, "reason": error.detail} for line, error in report.refused]
    counts = {"created": report.created, "changed": report.changed, "unchanged": report.unchanged}
    return counts | {"refused": refused}


@declare.command(
    "export", "adclick directory export --out all.csv\nadclick directory export --kind campaign --format csv"
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a file: .csv or .ndjson.  [default: standard output]")  # fmt: skip
@click.option("--kind", type=click.Choice(list(KINDS)), help="Of these alone.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the ending of --out, or ndjson]")
def export(app: App, out: Path | None, kind: str | None, form: str | None) -> None:
    """Write all entries as a file that `import` takes.

    Names are written as they are: import a CSV file into a spreadsheet as text, so that none of them runs as a formula.
    """
    form = form or ("ndjson" if out is None else _form_of(out))
    kinds = tuple(KINDS) if kind is None else (kind,)
    _, reader = _open(app)
    snapshot = reader.newest()
    if out is None:
        write_rows(snapshot, kinds, form, sys.stdout.buffer)
        return
    with replacing(out) as file:
        entries = write_rows(snapshot, kinds, form, file)  # type: ignore[arg-type]
    app.say(f"{out}: {entries:,} entries")


@declare.command("audit", "adclick directory audit --limit 20")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
def audit(app: App, limit: int) -> None:
    """Show the changes of entries, newest first."""
    columns, (store, _) = ("at", "by", "action", "entry", "detail"), _open(app)
    rows = store.audit(limit)
    if app.json:
        app.data([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        app.table(columns, rows)


for _command in (import_, export, audit):
    directory.add_command(_command)
