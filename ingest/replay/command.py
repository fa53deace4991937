"""`adclick replay`: events from NDJSON or from the archive's Parquet to Kafka, acknowledged, keyed by event_id."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click

from infra import migration
from infra.cli import declare
from infra.cli.app import App
from infra.clock import MINUTE_MS, now_ms
from infra.errors import AdclickError, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.event_producer import EventProducer
from ingest.decoding import json_fields
from ingest.replay.backfill import Backfill
from ingest.replay.inputs import EventInput, open_input, spool
from ingest.replay.replay_batch import ReplayBatch
from ingest.replay.sender import Pace, Sender, parse_pace
from ingest.replay.shifting import Shift, find_shift

_SAME_FILE_AGAIN = "send the file again: copies are dropped"
_MOVED_AGAIN = "sending it again counts events that were sent already once more: their ids are of this replay"
# Of this many lines without any id, none is an event.
_TOO_MANY_FOREIGN = 20


@contextlib.contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set `stop`; a second one ends what is running."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def replay_files(app: App, paths: Sequence[Path | str], pace: Pace) -> Sender:
    """Send files; raises AdclickError when events were not acknowledged."""
    return send_all(app, [open_input(str(path)) for path in paths], pace)


def send_all(app: App, inputs: Sequence[EventInput], pace: Pace) -> Sender:
    """Send inputs until a signal comes; raises AdclickError when events were not acknowledged."""
    stop = threading.Event()
    with stopped_by_signals(stop):
        return send_inputs(app, inputs, pace, None, stop)


def send_inputs(
    app: App, inputs: Sequence[EventInput], pace: Pace, shift: Shift | None, stop: threading.Event
) -> Sender:
    """Send inputs one after the other. Raises AdclickError unless everything in them was sent and acknowledged."""
    admin = Admin(app.settings.kafka_connection)
    admin.partitions(10.0)  # a wrong address is named before anything is read
    migration.check_topics(app.settings)
    backfill = Backfill.of(app.settings, admin, now_ms())
    sender = Sender(EventProducer(app.settings.kafka_connection), app.settings.topic(topics.EVENTS), pace, stop)
    again = _SAME_FILE_AGAIN if shift is None else _MOVED_AGAIN
    read, foreign, source, empty = 0, 0, inputs[0], list[EventInput]()
    with app.progress("sending", _total(app, inputs, stop)) as bar:
        task = bar.tasks[0].id
        try:
            for source in inputs:
                before = read
                for lines in source.lines(stop):
                    batch = ReplayBatch.of(lines, shift)
                    _refuse_foreign(source, batch, read - before)
                    backfill.add(batch.times_ms)
                    read += len(lines)
                    foreign += batch.foreign
                    sender.send(batch, lambda count: bar.advance(task, count))
                    if stop.is_set():
                        break
                if stop.is_set():
                    break
                if read == before and not source.too_long:
                    empty.append(source)
        except UserError as error:
            if not sender.sent:
                raise
            missing = sender.finish(app)
            raise AdclickError(
                f"{error.message}; {sender.sent:,} events were sent before, {missing:,} of them not acknowledged",
                hint=error.hint,
            ) from error
        missing = sender.finish(app)
    if missing:
        why = f": {sender.producer.failed[0]}" if sender.producer.failed else ""
        raise AdclickError(f"{missing:,} of {sender.sent:,} events were not acknowledged{why}", hint=again)
    if stop.is_set():
        said = f"stopped after {sender.sent:,} events, all acknowledged"
        # A pipe may have no end: all that came was sent.
        if source.rereadable or source is not inputs[-1] or sender.sent < read or not read:
            raise AdclickError(said, hint=again if source.rereadable else "")
        app.say(said)
    _check_complete(inputs, sender.sent)
    if foreign:
        app.say(f"{foreign:,} of {sender.sent:,} lines have no event_id that can be read: they become dead letters")
    for line in backfill.lines():
        app.say(line)
    for source in empty:
        app.say(f"{source.shown} holds no events")
    for source in inputs:
        if source.unfinished:
            app.say(f"{source.shown} is being written: its last line is not complete yet, and was left out")
    return sender


def _total(app: App, inputs: Sequence[EventInput], stop: threading.Event) -> int | None:
    """How many lines there are, for the bar; None where no bar is shown, or the count is not known."""
    if app.quiet or not sys.stderr.isatty():
        return None
    counts = [source.count(stop) for source in inputs]
    return None if None in counts else sum(count or 0 for count in counts)


def _refuse_foreign(source: EventInput, batch: ReplayBatch, sent: int) -> None:
    """Raise UserError where many lines and none of them has an id: no events, whatever it is."""
    if len(batch.lines) >= _TOO_MANY_FOREIGN and batch.foreign == len(batch.lines):
        where = f"{source.shown}, after {sent:,} lines" if sent else source.shown
        raise UserError(
            f"{where}: none of {len(batch.lines):,} lines has an event_id", hint="one event a line, as a JSON object"
        )


def _check_complete(inputs: Sequence[EventInput], sent: int) -> None:
    """Raise UserError unless something was sent and nothing was left out."""
    for source in inputs:
        if source.too_long:
            raise UserError(
                f"{source.shown}: line {source.too_long[0]} is longer than Kafka takes, and was left out"
                + (f", and {len(source.too_long) - 1:,} more" if len(source.too_long) > 1 else ""),
                hint=f"{sent:,} events were sent and acknowledged",
            )
    if not sent:
        raise UserError(f"no events in {', '.join(source.shown for source in inputs)}", hint="nothing was sent")


@declare.command(
    "replay", "adclick replay events.ndjson --rate 5000 --shift-to-now\ntail -F live.ndjson | adclick replay -"
)
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--rate", default="max", show_default=True, metavar="R|max|real-time", help="Events a second.")
@click.option("--shift-to-now", is_flag=True, help="Move event times so that they end now, under new ids.")
def replay(app: App, files: tuple[str, ...], rate: str, shift_to_now: bool) -> None:
    """Send events to Kafka: NDJSON, also packed with gzip or zstd, from files or pipes (- is standard input), or the
    archive's Parquet (a file, a folder, s3://BUCKET/PREFIX).

    A pipe is read once, and its lines are sent as they come; with --shift-to-now, once it has ended. Waits for a broker
    that goes away. Exit 1 if any event was not acknowledged.
    """
    pace, stop = parse_pace(rate), threading.Event()
    with stopped_by_signals(stop), tempfile.TemporaryDirectory(prefix="adclick-") as folder:
        inputs, shift = [open_input(word) for word in files], None
        if shift_to_now:
            inputs = [source if source.rereadable else spool(source, Path(folder), stop) for source in inputs]
            shift = _shift(app, inputs, stop)
        began = time.monotonic()
        sender = send_inputs(app, inputs, pace, shift, stop)
        seconds = max(0.001, time.monotonic() - began)
    if app.json:
        app.data(
            {
                "sent": sender.sent,
                "acknowledged": sender.producer.acknowledged,
                "seconds": round(seconds, 2),
                "shift_minutes": shift.shift_ms // MINUTE_MS if shift else 0,
            }
        )
    else:
        app.say(f"{sender.sent:,} events acknowledged in {seconds:.1f} s ({sender.sent / seconds:,.0f}/s)")


def _shift(app: App, inputs: Sequence[EventInput], stop: threading.Event) -> Shift | None:
    times = (
        time_ms
        for source in inputs
        for lines in source.lines(stop)
        for time_ms in json_fields.read_ids_and_times(lines)[1]
        if time_ms is not None
    )
    shift = find_shift(now_ms(), times)
    if stop.is_set():
        raise AdclickError("stopped before anything was sent")
    if shift is None:
        raise UserError("no event has a time that can be read", hint="--shift-to-now needs one")
    app.say(f"event times are shifted by {shift.shift_ms // MINUTE_MS} minutes, and get new ids")
    return shift
