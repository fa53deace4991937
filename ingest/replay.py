"""`adclick replay`: events from NDJSON or from the archive's Parquet to Kafka, acknowledged, keyed by event_id."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import polars as pl

from infra import console, migration, topics
from infra.clock import MINUTE_MS, now_ms
from infra.console import App
from infra.errors import AdclickError, UsageError, UserError
from infra.file_store import FileStore, is_bucket
from infra.kafka import Admin, EventProducer
from ingest import archive_files, events
from ingest.text import as_text

_CHUNK_BYTES = 8 << 20
_ID = r'"event_id"[ ]*:[ ]*"([^"\\]*)"'
_TIME = r'"event_time"[ ]*:[ ]*(-?\d{1,15})\b'
_TEXT_TIME = r'"event_time"[ ]*:[ ]*"([^"\\]*)"'
_NEAR_MS = 30 * MINUTE_MS
_NAMES = pl.col("event_type", "country", "device").cast(pl.String)
_ARCHIVED = (
    "partition", "offset", "log_time_ms", "event_id", "event_type", "time_ms", *events.ID_FIELDS, "country", "device", "user",
    "cost_micros",
)  # fmt: skip


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


def chunks(given: Path | str) -> Iterator[list[bytes]]:
    """The lines of a file, some thousands at a time; blank ones are left out. Parquet: a file or folder, or the URL of one."""
    path = Path(given)
    if path.suffix == ".parquet" or path.is_dir() or is_bucket(str(given)):
        yield from _from_archive(str(given))
        return
    with path.open("rb") as source:
        rest = b""
        while block := source.read(_CHUNK_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield [line for line in lines if line.strip()]
        if rest.strip():
            yield [rest]


def _from_archive(where: str) -> Iterator[list[bytes]]:
    """Archived rows as events again, in the order of their log time; a (partition, offset) in two files once."""
    folder, _, file = where.rpartition("/") if where.endswith(".parquet") else (where, "", "")
    store = FileStore(folder or ".")
    names = [file] if file else [stored.name for stored in store.files() if stored.name.endswith(".parquet")]
    if not names:
        raise UserError(f"{store.shown} holds no Parquet files")
    frame = pl.concat(archive_files.read(store, name, _ARCHIVED).with_columns(_NAMES) for name in names)
    frame = frame.unique(["partition", "offset"]).sort("log_time_ms", "partition", "offset")
    fields = frame.select(
        "event_id", "event_type", pl.col("time_ms").alias("event_time"), *events.ID_FIELDS, "country", "device",
        # Only the keyed hash of a user is archived.
        pl.col("user").cast(pl.String).alias("user_id"), "cost_micros",
    )  # fmt: skip
    for part in fields.iter_slices(50_000):
        yield part.write_ndjson().encode().splitlines()


def keys_of(text: pl.Series) -> list[bytes | None]:
    """The event ids, as keys; None where a line has none."""
    return text.str.extract(_ID).cast(pl.Binary).to_list()


def times_of(text: pl.Series) -> pl.Series:
    """Event times in epoch ms, from numbers and from RFC 3339 text; null where there is none."""
    number = text.str.extract(_TIME).cast(pl.Int64, strict=False)
    written = text.str.extract(_TEXT_TIME)
    if not written.is_not_null().any():
        return number
    distinct = written.drop_nulls().unique()
    known = {t: events.time_ms_of(t) for t in distinct.to_list()}
    parsed = written.replace_strict(list(known), list(known.values()), default=None, return_dtype=pl.Int64)
    return pl.DataFrame({"a": number, "b": parsed}).select(pl.coalesce("a", "b")).to_series()


def shift_to_now(paths: Sequence[Path | str]) -> int:
    """The whole minutes, in ms, that bring the end of the events to now. Events dated far off do not count."""
    seen = [t.drop_nulls() for p in paths for lines in chunks(p) if len(t := times_of(as_text(lines)))]
    times = pl.concat(seen) if seen else pl.Series(dtype=pl.Int64)
    if not len(times):
        raise UserError("no event with a time was found", hint="--shift-to-now needs some")
    # The end of a file may hold an event from the future: take the newest that has company.
    ordered = np.sort(times.to_numpy())
    keep = ordered[: max(1, int(len(ordered) * 0.999))] if len(ordered) > 1000 else ordered
    steady = keep[keep <= np.median(keep) + _spread(keep)]
    newest = int(steady[-1])
    beyond = ordered[(ordered > newest) & (ordered <= newest + _NEAR_MS)]
    newest = int(beyond[-1]) if len(beyond) else newest
    return (now_ms() - newest) // MINUTE_MS * MINUTE_MS


def _spread(times: Any) -> int:
    """Twice the distance from the median to the first percentile: what is further ahead is no part of the traffic."""
    return int(2 * max(MINUTE_MS, np.median(times) - np.percentile(times, 1)))


def shifted(text: pl.Series, lines: list[bytes], shift_ms: int) -> list[bytes]:
    """Lines with event times moved and ids derived from id and shift; a line that has no readable time stays."""
    times = times_of(text)
    number = times + shift_ms
    old_id = text.str.extract(_ID)
    # Written beside the id while that stays within its limit; hashed where it does not.
    suffix = f"~{shift_ms // MINUTE_MS}"
    length = old_id.str.len_bytes()
    # An id that is too long already stays too long: a shift mends nothing.
    fits = (length + len(suffix) <= events.MAX_EVENT_ID_BYTES) | (length > events.MAX_EVENT_ID_BYTES)
    short = old_id + suffix
    new_id = pl.select(
        pl.when(fits).then(short).otherwise(old_id.str.head(16) + short.hash().cast(pl.String))
    ).to_series()
    frame = pl.DataFrame({"text": text, "time": number, "old": old_id, "new": new_id})
    moved = frame.select(
        pl.when(pl.col("time").is_not_null() & pl.col("old").is_not_null() & (pl.col("old") != ""))
        .then(
            pl.col("text")
            .str.replace(
                r'("event_time"[ ]*:[ ]*)(?:-?\d{1,15}\b|"[^"\\]*")',
                pl.format('"event_time":{}', pl.col("time")),
            )
            .str.replace(_ID, pl.format('"event_id":"{}"', pl.col("new")))
        )
        .otherwise(None)
        .cast(pl.Binary)
    ).to_series()
    return [new if new is not None else old for new, old in zip(moved.to_list(), lines, strict=True)]


class Sender:
    """Sends lines at a pace. Stops between two slices when asked."""

    def __init__(self, app: App, pace: Pace) -> None:
        self._topic = app.settings.topic(topics.EVENTS)
        self.producer = EventProducer(app.settings.kafka)
        self._pace, self._stopping = pace, threading.Event()
        self.sent = 0
        self._began = time.monotonic()
        self._first_time: int | None = None

    def stop(self) -> None:
        """Send nothing more."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to."""
        return self._stopping.is_set()

    def send(self, lines: list[bytes], text: pl.Series, advance: Any) -> None:
        """Send all lines, in slices that keep the pace; `advance(n)` is told of each."""
        keys = keys_of(text)
        if self._pace.real_time:
            self._send_real_time(lines, keys, times_of(text), advance)
            return
        size = 20_000 if self._pace.rate is None else max(1, int(self._pace.rate / 20))
        for start in range(0, len(lines), size):
            if self.stopped:
                return
            self._slice(lines[start : start + size], keys[start : start + size], advance)
            if self._pace.rate is not None:
                self._stopping.wait(max(0.0, self._began + self.sent / self._pace.rate - time.monotonic()))

    def _send_real_time(self, lines: list[bytes], keys: list[bytes | None], times: pl.Series, advance: Any) -> None:
        filled = times.fill_null(strategy="forward").fill_null(strategy="backward").to_numpy()
        if self._first_time is None:
            self._first_time = int(np.min(filled)) if len(filled) else 0
        # Late and far-off events go with their neighbours.
        due_ms = np.maximum.accumulate(np.where(filled > np.median(filled) + _NEAR_MS, 0, filled)) - self._first_time
        start = 0
        while start < len(lines) and not self.stopped:
            elapsed = (time.monotonic() - self._began) * 1000
            stop = int(np.searchsorted(due_ms, elapsed, side="right"))
            if stop > start:
                self._slice(lines[start:stop], keys[start:stop], advance)
                start = stop
            else:
                self._stopping.wait(min(0.2, max(0.001, (due_ms[start] - elapsed) / 1000)))

    def _slice(self, lines: list[bytes], keys: list[bytes | None], advance: Any) -> None:
        self.producer.send(self._topic, keys, lines)
        self.sent += len(lines)
        advance(len(lines))

    def finish(self, app: App) -> int:
        """Wait for the acknowledgements, as long as it takes; returns how many events are not acknowledged."""
        told = False
        while True:
            left = self.producer.flush(2.0)
            if not left or self.stopped:
                break
            if not told:
                app.say(f"waiting for Kafka to acknowledge {left:,} events (Ctrl-C gives up)")
                told = True
        return self.sent - self.producer.acknowledged


def replay_files(app: App, paths: Sequence[Path | str], pace: Pace, shift_ms: int) -> Sender:
    """Send files; raises AdclickError when events were not acknowledged."""
    Admin(app.settings.kafka).partitions(10.0)  # a wrong address is told before anything is read
    migration.check_topics(app.settings)
    sender = Sender(app, pace)
    total = sum(len(lines) for p in paths for lines in chunks(p)) if sys.stderr.isatty() and not app.quiet else 0
    signals = (signal.SIGINT, signal.SIGTERM)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if sender.stopped:
            raise KeyboardInterrupt
        sender.stop()

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, on_signal) for s in signals} if main else {}
    try:
        with app.progress("sending", total) as bar:
            task = bar.tasks[0].id
            for path in paths:
                for lines in chunks(path):
                    text = as_text(lines)
                    if shift_ms:
                        lines = shifted(text, lines, shift_ms)
                        text = as_text(lines)
                    sender.send(lines, text, lambda n: bar.advance(task, n))
                    if sender.stopped:
                        break
        missing = sender.finish(app)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if missing:
        why = f": {sender.producer.failed[0]}" if sender.producer.failed else ""
        raise AdclickError(
            f"{missing:,} of {sender.sent:,} events were not acknowledged{why}",
            hint="send the file again: copies are dropped",
        )
    if sender.stopped:
        raise AdclickError(
            f"stopped after {sender.sent:,} events, all acknowledged",
            hint="send the file again: copies are dropped",
        )
    return sender


@console.command("replay", "adclick replay events.ndjson --rate 5000 --shift-to-now")
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--rate", default="max", show_default=True, metavar="R|max|real-time", help="Events a second.")
@click.option("--shift-to-now", is_flag=True, help="Move event times so that they end now, under new ids.")
def replay(app: App, files: tuple[str, ...], rate: str, shift_to_now: bool) -> None:
    """Send events to Kafka: NDJSON files, - for standard input, or the archive's Parquet (a file, a folder, s3://BUCKET/PREFIX).

    Waits for a broker that goes away. Exit 1 if any event was not acknowledged.
    """
    pace = parse_pace(rate)
    with tempfile.TemporaryDirectory(prefix="adclick-") as spool:
        paths = [_readable(f, Path(spool)) for f in files]
        shift_ms = _shift(app, paths) if shift_to_now else 0
        began = time.monotonic()
        sender = replay_files(app, paths, pace, shift_ms)
        seconds = max(0.001, time.monotonic() - began)
    if app.json:
        app.data(
            {
                "sent": sender.sent,
                "acknowledged": sender.producer.acknowledged,
                "seconds": round(seconds, 2),
                "shift_minutes": shift_ms // MINUTE_MS,
            }
        )
    else:
        app.say(f"{sender.sent:,} events acknowledged in {seconds:.1f} s ({sender.sent / seconds:,.0f}/s)")


def _shift(app: App, paths: Sequence[Path | str]) -> int:
    shift_ms = shift_to_now(paths)
    app.say(f"event times are shifted by {shift_ms // MINUTE_MS} minutes, and get new ids")
    return shift_ms


def _readable(given: str, spool: Path) -> Path | str:
    if given == "-":
        copy = spool / "stdin.ndjson"
        with copy.open("wb") as out:
            while block := sys.stdin.buffer.read(1 << 20):
                out.write(block)
        return copy
    if not is_bucket(given) and not Path(given).exists():
        raise UserError(f"{given} does not exist")
    return given
