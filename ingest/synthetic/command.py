"""`adclick generate`."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import polars as pl
import psutil

from infra.cli import declare
from infra.cli.app import App
from infra.cli.quantities import duration_ms
from infra.clock import now_ms
from infra.errors import UsageError, UserError
from infra.rfc3339 import time_ms_of
from ingest.synthetic import directory_file, truth_file
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events

_SLICE = 100_000
# What `generate_events` holds of an event at its peak.
_PEAK_BYTES = 600


def start_time_ms(text: str | None) -> int:
    """The start of the events; by default last year's 1 December, so that the same seed gives the same events."""
    if text is None:
        year = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).year
        return int(dt.datetime(year - 1, 12, 1, tzinfo=dt.UTC).timestamp()) * 1000
    if text == "now":
        return now_ms()
    if text.startswith("-"):
        return now_ms() - duration_ms(text[1:])
    time_ms = time_ms_of(text)
    if time_ms is None:
        raise UsageError(f"not a time: {text}", hint="RFC 3339 with an offset, like 2026-11-20T00:00:00Z, or -26h")
    return time_ms


def write_lines(traffic: SyntheticEvents, out: Path) -> None:
    """Write NDJSON; `-` is standard output."""
    stream = sys.stdout.buffer if str(out) == "-" else out.open("wb")
    try:
        for start in range(0, len(traffic.lines), _SLICE):
            stream.write(b"\n".join(traffic.lines.slice(start, _SLICE).to_list()) + b"\n")
        stream.flush()
    finally:
        if stream is not sys.stdout.buffer:
            stream.close()


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[None]:
    """What is written to a file is whole, or the file is removed. Raises UserError when it could not be written."""
    try:
        yield
    except OSError as error:
        if path.is_file():
            path.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


_FRACTION = click.FloatRange(0, 0.5)


@declare.command(
    "generate",
    "adclick generate --events 1000000 --start -26h --span 26h --out events.ndjson --truth truth.ndjson",
)
@click.option("--events", type=click.IntRange(1), required=True, help="Lines to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NDJSON file, or - for standard output.")
@click.option("--truth", type=click.Path(path_type=Path), help="Write what must come out of it, as NDJSON.")
@click.option(
    "--directory",
    "entries",
    type=click.Path(path_type=Path),
    help="Write names, budgets and time zones for `adclick directory import`, as NDJSON.",
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--start", help="RFC 3339, or like -26h.  [default: 1 December of last year]")
@click.option("--span", default="1h", show_default=True, help="How much time the events cover.")
@click.option("--campaigns", type=click.IntRange(1, 1_000_000), default=1_000, show_default=True)
@click.option(
    "--duplicates",
    type=_FRACTION,
    default=0.01,
    show_default=True,
    help="Copies, milliseconds to 50 min later.",
)
@click.option(
    "--late",
    type=_FRACTION,
    default=0.003,
    show_default=True,
    help="Late by up to 5 min, 1 h, or more: a third each.",
)
@click.option("--malformed", type=_FRACTION, default=0.001, show_default=True, help="Of every reason in turn.")
@click.option("--future", type=_FRACTION, default=0.0005, show_default=True, help="Dated 2100.")
@click.option("--bursts", type=_FRACTION, default=0.02, show_default=True, help="In bursts of 30 s.")
@click.option(
    "--hot-campaign", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of campaign 1."
)
@click.option(
    "--iso-times",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Times as RFC 3339 text.",
)
def generate(
    app: App,
    events: int,
    out: Path,
    truth: Path | None,
    entries: Path | None,
    start: str | None,
    span: str,
    **options: float,
) -> None:
    """Write synthetic events as NDJSON, the same for the same seed, and the truth about them.

    Campaigns are Zipf-distributed; traffic follows a daily curve; events are up to 5 s out of order.
    """
    spec = Spec(events=events, start_ms=start_time_ms(start), span_ms=duration_ms(span), **options)  # type: ignore[arg-type]
    if spec.duplicates + spec.malformed + spec.future > 0.9:
        raise UsageError("duplicates, malformed and future leave no room for events")
    files = {"--out": out} | ({"--truth": truth} if truth else {}) | ({"--directory": entries} if entries else {})
    for (one, path), (other, same) in itertools.combinations(files.items(), 2):
        if path.absolute() == same.absolute():
            raise UsageError(f"{other} and {one} name the same file")
    began = time.monotonic()
    if events * _PEAK_BYTES > psutil.virtual_memory().available:
        raise UserError(
            f"{events:,} events do not fit in memory", hint="make fewer at a time, each time with another --seed"
        )
    traffic = generate_events(spec)
    with _complete(out):
        write_lines(traffic, out)
    if truth is not None:
        with _complete(truth):
            truth_file.save(traffic.truth, truth)
    if entries is not None:
        with _complete(entries):
            directory_file.write_directory(spec, entries)
    seconds = time.monotonic() - began
    reasons = dict(traffic.truth.dead.group_by("reason").len().sort("reason").iter_rows())
    summary = {
        "events": len(traffic.lines),
        "distinct": int(
            traffic.truth.counts.select(pl.sum("batch_impressions", "batch_clicks", "batch_conversions"))
            .sum_horizontal()
            .item()
        ),
        "dead_letters": reasons,
        "seconds": round(seconds, 2),
        "events_per_s": round(len(traffic.lines) / seconds),
    }
    if app.json and str(out) != "-":
        app.data(summary)
    else:
        dead = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
        app.say(
            f"{summary['events']:,} events ({summary['distinct']:,} distinct) in {seconds:.1f} s; to be dead-lettered: {dead}"
        )
