"""`adclick replay`: events from NDJSON or from the archive's Parquet to Kafka, acknowledged, keyed by event_id."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from infra import console, migration, topics
from infra.clock import DAY_MS, MINUTE_MS, now_ms
from infra.console import App
from infra.errors import AdclickError, UsageError, UserError
from infra.kafka import Admin, EventProducer
from ingest import json_fields
from ingest.inputs import Input, open_input, spool
from ingest.shifting import Shift, shift_to, shifted

# A slice, and what may wait for Kafka before the next one: together less than the producer's queue takes.
_SLICE, _SLICE_BYTES = 20_000, 64 << 20
_QUEUED, _QUEUED_BYTES = 300_000, 256 << 20
_NEAR_MS = 30 * MINUTE_MS
# A time is far off when it is so from the median of this many before and behind it.
_NEIGHBOURS = 10
_LONGEST_MS = 10 * 365 * DAY_MS
_SAME_FILE_AGAIN = "send the file again: copies are dropped"
_MOVED_AGAIN = "sending it again counts events that were sent already once more: their ids are of this replay"
# Of this many lines without any id, none is an event.
_TOO_MANY_FOREIGN = 20
# After a stop, what is on its way to Kafka is waited for this long.
_LAST_FLUSH_S = 10.0


@dataclass(frozen=True)
class Pace:
    """How fast to send: events a second, or as the events' own times say; neither means as fast as it goes."""

    rate: float | None = None
    real_time: bool = False


def parse_pace(text: str) -> Pace:
    """`max`, `real-time` or a number. Raises UsageError."""
    if text == "max":
        return Pace()
    if text == "real-time":
        return Pace(real_time=True)
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e9:
        raise UsageError(f"not a rate: {text}", hint="events a second, max, or real-time")
    return Pace(rate=rate)


@dataclass(frozen=True)
class Batch:
    """Lines with the keys they are sent under, null where there is no id, and their event times where they have one."""

    lines: list[bytes]
    keys: list[bytes | None]
    times_ms: list[int | None]

    @classmethod
    def of(cls, lines: list[bytes], shift: Shift | None = None) -> Batch:
        """Read ids and times from the JSON of lines, and move events where there is a shift."""
        ids, times_ms = json_fields.read_ids_and_times(lines)
        if shift is not None:
            lines = [shifted(*event, shift) for event in zip(lines, ids, times_ms, strict=True)]
            ids, times_ms = json_fields.read_ids_and_times(lines)
        return cls(lines, list(map(json_fields.key_of, ids)), times_ms)

    @property
    def foreign(self) -> int:
        """How many lines have no id that can be read: they will be dead letters."""
        return self.keys.count(None)


class Sender:
    """Sends batches at a pace, until `stop` is set."""

    def __init__(self, app: App, pace: Pace, stop: threading.Event) -> None:
        self._topic = app.settings.topic(topics.EVENTS)
        self.producer = EventProducer(app.settings.kafka)
        self._pace, self._stop = pace, stop
        self.sent = 0
        self._began = time.monotonic()
        self._first_ms: float | None = None
        self._last_due_ms = 0

    def send(self, batch: Batch, advance: Callable[[int], object]) -> None:
        """Send all lines, in slices that keep the pace; `advance(n)` is called for each."""
        if self._pace.real_time:
            self._send_real_time(batch, advance)
            return
        usual = max(1, min(_SLICE, _SLICE_BYTES * len(batch.lines) // max(1, sum(map(len, batch.lines)))))
        size = usual if self._pace.rate is None else max(1, min(usual, int(self._pace.rate / 20)))
        for start in range(0, len(batch.lines), size):
            if self._stop.is_set():
                return
            self._send_slice(batch, start, start + size, advance)
            if self._pace.rate is not None:
                self._stop.wait(max(0.0, self._began + self.sent / self._pace.rate - time.monotonic()))

    def _send_real_time(self, batch: Batch, advance: Callable[[int], object]) -> None:
        due_ms = self._due(batch.times_ms)
        start = 0
        while start < len(batch.lines) and not self._stop.is_set():
            elapsed = (time.monotonic() - self._began) * 1000
            end = int(np.searchsorted(due_ms, elapsed, side="right"))
            if end > start:
                self._send_slice(batch, start, end, advance)
                start = end
            else:
                self._stop.wait(min(0.2, max(0.001, (due_ms[start] - elapsed) / 1000)))

    def _due(self, times_ms: Sequence[int | None]) -> npt.NDArray[np.int64]:
        """When each line is due, in ms since the first. One without a time, late or far off goes with its neighbours."""
        known = np.array([time for time in times_ms if time is not None], np.float64)
        if not len(known):
            return np.full(len(times_ms), self._last_due_ms, np.int64)
        usual = np.median(sliding_window_view(np.pad(known, _NEIGHBOURS, mode="edge"), 2 * _NEIGHBOURS + 1), axis=1)
        if self._first_ms is None:
            self._first_ms = float(np.median(known[: 2 * _NEIGHBOURS]))
        offsets = np.full(len(times_ms), self._last_due_ms, np.int64)
        near = np.where(np.abs(known - usual) <= _NEAR_MS, known - self._first_ms, 0)
        offsets[[time is not None for time in times_ms]] = np.clip(near, 0, _LONGEST_MS).astype(np.int64)
        due_ms = np.maximum.accumulate(np.maximum(offsets, self._last_due_ms))
        self._last_due_ms = int(due_ms[-1])
        return due_ms

    def _send_slice(self, batch: Batch, start: int, end: int, advance: Callable[[int], object]) -> None:
        lines = batch.lines[start:end]
        if not self._wait_for_room(sum(map(len, lines)) // max(1, len(lines))):
            return
        self.producer.send(self._topic, batch.keys[start:end], lines)
        self.sent += len(lines)
        advance(len(lines))

    def _wait_for_room(self, line_bytes: int) -> bool:
        """Wait until the producer's queue takes a slice without blocking, which it would deaf to a stop; False once stopped."""
        most = min(_QUEUED, _QUEUED_BYTES // max(1, line_bytes))
        while not self._stop.is_set():
            if self.producer.flush(0.0) <= most or self.producer.flush(0.1) <= most:
                return True
        return False

    def finish(self, app: App) -> int:
        """Wait for the acknowledgements, as long as it takes; returns how many events are not acknowledged."""
        announced, stopped_at = False, None
        while self.producer.flush(0.5):
            if self._stop.is_set():
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > _LAST_FLUSH_S:
                    break
            elif not announced and self.producer.flush(1.5):
                app.say("waiting for Kafka to acknowledge events (Ctrl-C gives up)")
                announced = True
        return self.sent - self.producer.acknowledged


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
    stop = threading.Event()
    with stopped_by_signals(stop):
        return send_inputs(app, [open_input(str(path)) for path in paths], pace, None, stop)


def send_inputs(app: App, inputs: Sequence[Input], pace: Pace, shift: Shift | None, stop: threading.Event) -> Sender:
    """Send inputs one after the other. Raises AdclickError unless everything in them was sent and acknowledged."""
    Admin(app.settings.kafka).partitions(10.0)  # a wrong address is named before anything is read
    migration.check_topics(app.settings)
    sender = Sender(app, pace, stop)
    again = _SAME_FILE_AGAIN if shift is None else _MOVED_AGAIN
    read, foreign, source, empty = 0, 0, inputs[0], list[Input]()
    with app.progress("sending", _total(app, inputs, stop)) as bar:
        task = bar.tasks[0].id
        try:
            for source in inputs:
                before = read
                for lines in source.lines(stop):
                    batch = Batch.of(lines, shift)
                    _refuse_foreign(source, batch, read - before)
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
    for source in empty:
        app.say(f"{source.shown} holds no events")
    for source in inputs:
        if source.unfinished:
            app.say(f"{source.shown} is being written: its last line is not complete yet, and was left out")
    return sender


def _total(app: App, inputs: Sequence[Input], stop: threading.Event) -> int | None:
    """How many lines there are, for the bar; None where nobody sees it, or where it is not known."""
    if app.quiet or not sys.stderr.isatty():
        return None
    counts = [source.count(stop) for source in inputs]
    return None if None in counts else sum(count or 0 for count in counts)


def _refuse_foreign(source: Input, batch: Batch, sent: int) -> None:
    """Raise UserError where many lines and none of them has an id: no events, whatever it is."""
    if len(batch.lines) >= _TOO_MANY_FOREIGN and batch.foreign == len(batch.lines):
        where = f"{source.shown}, after {sent:,} lines" if sent else source.shown
        raise UserError(
            f"{where}: none of {len(batch.lines):,} lines has an event_id", hint="one event a line, as a JSON object"
        )


def _check_complete(inputs: Sequence[Input], sent: int) -> None:
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


@console.command(
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


def _shift(app: App, inputs: Sequence[Input], stop: threading.Event) -> Shift | None:
    times = (
        time_ms
        for source in inputs
        for lines in source.lines(stop)
        for time_ms in json_fields.read_ids_and_times(lines)[1]
        if time_ms is not None
    )
    shift = shift_to(now_ms(), times)
    if stop.is_set():
        raise AdclickError("stopped before anything was sent")
    if shift is None:
        raise UserError("no event has a time that can be read", hint="--shift-to-now needs one")
    app.say(f"event times are shifted by {shift.shift_ms // MINUTE_MS} minutes, and get new ids")
    return shift
