"""What `adclick replay` reads: NDJSON from files and pipes, packed or plain, and the archive's Parquet, as lines.

A pipe is read once and as it comes. What is plainly no NDJSON is refused before anything of it is sent.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import shlex
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from infra.errors import UserError
from infra.file_store import FileStore, is_bucket
from ingest import events
from ingest.archive import files as archive_files
from ingest.archive.files import File

STANDARD_INPUT = "-"
# What the topic takes is a little more; a longer line cannot be sent at all.
MAX_LINE_BYTES = 8 << 20
_BLOCK_BYTES = 8 << 20
_PIPE_BYTES = 1 << 20
# By this much of an input at most its format is recognised.
_HEAD_BYTES = 1 << 20
_BINARY_BYTES = 1 << 10
_POLL_MS = 200
_BOM = b"\xef\xbb\xbf"
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET = b"PAR1"
_OTHER_FORMATS = {
    b"BZh": ("packed with bzip2", "bzcat {} | adclick replay -"),
    b"\xfd7zXZ\0": ("packed with xz", "xzcat {} | adclick replay -"),
    b"\x04\x22\x4d\x18": ("packed with lz4", "lz4cat {} | adclick replay -"),
    b"PK\x03\x04": ("a zip archive", "unzip -p {} | adclick replay -"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x -so {} | adclick replay -"),
    b"\xff\x06\0\0sNaPpY": ("packed with snappy", "unpack it first"),
    b"Obj\x01": ("Avro", "convert it to NDJSON"),
    b"ARROW1": ("Arrow", "convert it to NDJSON"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {} | adclick replay -"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {} | adclick replay -"),
    b"{\0": ("UTF-16", "iconv -f UTF-16LE -t UTF-8 {} | adclick replay -"),
    b"\0{": ("UTF-16", "iconv -f UTF-16BE -t UTF-8 {} | adclick replay -"),
    b"<": ("XML or HTML", "convert it to NDJSON: one event a line"),
}
_NAMES = pl.col("event_type", "country", "device").cast(pl.String)
_ARCHIVED = (
    "partition", "offset", "log_time_ms", "event_id", "event_type", "time_ms", *events.ID_FIELDS, "country", "device", "user",
    "cost_micros",
)  # fmt: skip


@dataclass
class EventInput:
    """One word of the command line: a file, a pipe, or an archive.

    `shown` is its name in messages. `too_long` numbers the lines that were left out because no message can hold them;
    `unfinished` tells that a growing file ended within a line, which was left out.
    """

    where: str
    shown: str
    rereadable: bool
    too_long: list[int] = field(default_factory=list)
    unfinished: bool = False
    block_bytes: int = _BLOCK_BYTES
    """How much is read at a time."""
    original: EventInput | None = None
    """The pipe that this is a copy of. What was left out of the copy is left out of this, too."""

    def lines(self, stop: threading.Event) -> Iterator[list[bytes]]:
        """The lines that are not blank, some thousands at a time, from a pipe as they come. Ends early once `stop` is set.

        Raises UserError for what cannot be read, or is no NDJSON.
        """
        before = self.original
        self.too_long, self.unfinished = (list(before.too_long), before.unfinished) if before else ([], False)
        if _is_archive(self.where):
            yield from _archived_lines(self.where)
            return
        try:
            with contextlib.closing(_Bytes(self.where, stop, self.block_bytes)) as source:
                head = _read_head(source)
                if head.startswith(_PARQUET) and self.rereadable:
                    yield from _archived_lines(self.where)
                    return
                packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
                blocks = _unpacked(head, source, packing) if packing else _joined(head, source)
                yield from self._split(blocks, lambda: not packing and source.has_grown())
        except (OSError, pa.ArrowException) as error:
            if not stop.is_set():
                why = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise UserError(f"{self.shown} cannot be read: {why}") from error

    def count(self, stop: threading.Event) -> int | None:
        """How many lines there are, without reading them apart; None where that is not known beforehand."""
        if not self.rereadable or _is_archive(self.where):
            return None
        with contextlib.suppress(OSError), contextlib.closing(_Bytes(self.where, stop, self.block_bytes)) as source:
            block = source.read()
            if block.startswith((*_PACKED, _PARQUET)):
                return None
            total = 0
            while block:
                total += block.count(b"\n")
                block = source.read()
            return total
        return None

    def _split(self, blocks: Iterator[bytes], has_grown: Callable[[], bool]) -> Iterator[list[bytes]]:
        """Blocks as lines; what comes of a line that is too long is dropped as it comes."""
        number, rest, rest_bytes, first = 0, list[bytes](), 0, True
        for block in blocks:
            if first:
                _refuse_other_formats(self, block)
                first = False
            *ends, tail = block.split(b"\n")
            lines = list[bytes]()
            for end in ends:
                number += 1
                if rest_bytes + len(end) > MAX_LINE_BYTES:
                    self.too_long.append(number)
                else:
                    lines.append(b"".join((*rest, end)) if rest else end)
                rest, rest_bytes = [], 0
            rest_bytes += len(tail)
            rest = [*rest, tail] if rest_bytes <= MAX_LINE_BYTES else []
            yield _tidy(lines)
        if rest_bytes > MAX_LINE_BYTES:
            self.too_long.append(number + 1)
        last = _tidy([b"".join(rest)])
        if last and has_grown() and events.object_of(last[0]) is None:
            self.unfinished = True
        elif last:
            yield last


@dataclass(kw_only=True)
class ArchiveWindow(EventInput):
    """A part of an archive: the messages of some offsets of each source partition, in the order in which they came."""

    store: FileStore
    files: Sequence[File]
    """Those that have messages of it."""
    offsets: Mapping[int, tuple[int, int]]
    """Source partition → [first, end)."""

    def lines(self, stop: threading.Event) -> Iterator[list[bytes]]:
        """The events, some thousands at a time. Ends early once `stop` is set. Raises UnreadableFile, Unavailable."""
        parts = list[pl.DataFrame]()
        for file in self.files:
            if stop.is_set():
                return
            first, end = self.offsets[file.partition]
            rows = archive_files.read_columns(self.store, file.name, _ARCHIVED)
            parts.append(rows.filter(pl.col("offset").is_between(first, end, closed="left")).with_columns(_NAMES))
        if parts:
            yield from _as_events(pl.concat(parts))

    def count(self, stop: threading.Event) -> int | None:
        """At most so many: an offset may be of a message that was rejected."""
        return None


def open_input(word: str, block_bytes: int = _BLOCK_BYTES) -> EventInput:
    """What a word of the command line names, read `block_bytes` at a time. Raises UserError when there is no such file."""
    if word in (STANDARD_INPUT, "/dev/stdin"):
        return EventInput(STANDARD_INPUT, "standard input", rereadable=False)
    if is_bucket(word):
        return EventInput(word, word.partition("?")[0], rereadable=True)
    try:
        kind = os.stat(word).st_mode  # noqa: PTH116 - the word may be a descriptor's name, which Path would tidy
    except (OSError, ValueError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UserError(f"{word} {why}") from error
    return EventInput(word, word, rereadable=stat.S_ISREG(kind) or stat.S_ISDIR(kind), block_bytes=block_bytes)


def spool(source: EventInput, folder: Path, stop: threading.Event) -> EventInput:
    """All lines of a pipe as a file in `folder`, to be read more than once. Raises UserError when the folder is full."""
    copy = folder / f"{len(list(folder.iterdir()))}.ndjson"
    try:
        with copy.open("wb") as out:
            for lines in source.lines(stop):
                out.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise UserError(
            f"{source.shown} cannot be copied to {folder}: {error.strerror or error}", hint="make room, or set TMPDIR"
        ) from error
    return EventInput(str(copy), source.shown, rereadable=True, original=source)


class _Bytes:
    """The bytes of a file as long as it was when opened, and to the end of its last line; of a pipe, as they come.

    Reading ends once `stop` is set, also while a pipe has nothing to read.
    """

    def __init__(self, where: str, stop: threading.Event, block_bytes: int) -> None:
        """Raises OSError."""
        self.block_bytes = block_bytes
        self._stop, self._own = stop, where != STANDARD_INPUT
        # Without O_NONBLOCK, opening a FIFO waits for a writer, deaf to the first signal.
        self._fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if self._own else 0
        status = os.fstat(self._fd)
        self._size = status.st_size if stat.S_ISREG(status.st_mode) and status.st_size and self._own else None
        self._left = self._size
        self._ended_line = False
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, a block by default, as soon as there are any; none at the end."""
        size = self.block_bytes if size < 0 else size
        while not self._stop.is_set():
            if self._left is None:
                if not self._poll.poll(_POLL_MS):
                    continue
                try:
                    return os.read(self._fd, min(size, _PIPE_BYTES))
                except BlockingIOError:
                    continue
            if self._left > 0:
                block = os.read(self._fd, min(size, self._left))
                self._left = self._left - len(block) if block else 0
                self._ended_line = block.endswith(b"\n")
                return block
            return b"" if self._ended_line else self._rest_of_line(size)
        return b""

    def _rest_of_line(self, size: int) -> bytes:
        block = os.read(self._fd, size)
        line, end, _ = block.partition(b"\n")
        self._ended_line = bool(end) or not block
        return line + end

    def has_grown(self) -> bool:
        """Whether a file is longer now than when it was opened."""
        return self._size is not None and os.fstat(self._fd).st_size > self._size

    def close(self) -> None:
        if self._own:
            os.close(self._fd)


def _read_head(source: _Bytes) -> bytes:
    """The first bytes, without a byte order mark: enough to know the format by, of a pipe no more than that."""
    head = b""
    while len(head) < _HEAD_BYTES and (block := source.read()):
        head += block
        if len(head) >= len(_BOM) and _can_be_told(head):
            break
    return head.removeprefix(_BOM)


def _can_be_told(head: bytes) -> bool:
    """Whether the format is plain: by the first line when that is an object, else by two."""
    if head.startswith((*_PACKED, _PARQUET)):
        return True
    lines = [line for line in head.split(b"\n")[:-1] if line.strip()]
    return len(lines) > 1 or (len(lines) == 1 and _is_object(lines[0].removeprefix(_BOM)))


def _joined(head: bytes, source: _Bytes) -> Iterator[bytes]:
    block = head
    while block:
        yield block
        block = source.read()


def _unpacked(head: bytes, source: _Bytes, packing: str) -> Iterator[bytes]:
    """What was packed, also in several members. Raises OSError where it is damaged or cut off."""

    class Whole(io.RawIOBase):
        """The bytes of the head, then those of the source."""

        def __init__(self) -> None:
            self._head = head

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1, /) -> bytes:
            if self._head:
                block, self._head = self._head[:size], self._head[size:]
                return block
            return source.read(size)

    with pa.CompressedInputStream(pa.PythonFile(Whole(), mode="r"), packing) as stream:
        first = True
        while block := stream.read(_HEAD_BYTES if first else source.block_bytes):
            yield block.removeprefix(_BOM) if first else block
            first = False


def _tidy(lines: list[bytes]) -> list[bytes]:
    """Lines without what Windows puts at their ends, and joined files at their beginnings; blank ones left out."""
    tidied = (line.removeprefix(_BOM).rstrip(b"\r") for line in lines)
    return [line for line in tidied if line.strip()]


def _is_object(line: bytes) -> bool:
    line = line.strip()
    return line.startswith(b"{") and line.endswith(b"}")


def _refuse_other_formats(source: EventInput, head: bytes) -> None:
    """Raise UserError where the first one or two lines plainly show another format than NDJSON."""
    lines = [line.strip() for line in _tidy(head.split(b"\n"))[:2]]
    if not lines:
        return
    first, second = lines[0], lines[1] if len(lines) > 1 else b""
    for magic, (format_, remedy) in _OTHER_FORMATS.items():
        if first.startswith(magic):
            raise _refusal(source, f"is {format_}, not NDJSON", remedy)
    if b"\0" in head[:_BINARY_BYTES] and not first.startswith(b"{"):
        raise _refusal(source, "is binary, not NDJSON", "one JSON object a line is needed")
    if _is_array(first, second):
        raise _refusal(source, "is a JSON array, not NDJSON", "jq -c '.[]' {} | adclick replay -")
    if first[:1] == b"{" and not _is_object(first) and second[:1] == b'"':
        raise _refusal(source, "spreads an event over several lines", "jq -c . {} | adclick replay -")
    if _is_table(first, second):
        raise _refusal(source, "is a table with separators, not NDJSON", "convert it: one JSON object a line")


def _refusal(source: EventInput, what: str, remedy: str) -> UserError:
    name = "" if source.where == STANDARD_INPUT else shlex.quote(source.where)
    return UserError(f"{source.shown} {what}", hint=remedy.format(name))


def _is_array(first: bytes, second: bytes) -> bool:
    """Whether two lines begin an array of events. One that is a line of its own is a malformed event."""
    if first == b"[":
        return True
    begins = first[:1] == b"[" and first[1:].lstrip()[:1] in (b"{", b"]")
    return begins and (first.endswith(b",") or not _is_object(second))


def _is_table(first: bytes, second: bytes) -> bool:
    """Whether two lines are the header and a row of CSV, TSV or the like."""
    if first[:1] in b"{[":
        return False
    separators = [(first.count(sign), second.count(sign)) for sign in (b",", b";", b"\t", b"|")]
    return any(a and (a == b > 1 or b"event_id" in first) for a, b in separators)


def _is_archive(where: str) -> bool:
    return is_bucket(where) or (where != STANDARD_INPUT and Path(where).is_dir())


def _archived_lines(where: str) -> Iterator[list[bytes]]:
    """Archived rows as events again, in the order of their log time; a (partition, offset) in two files once."""
    folder, name = where, ""
    if where.endswith(".parquet") or not _is_archive(where):
        folder, _, name = where.rpartition("/")
    store = FileStore(folder or ("/" if where.startswith("/") else "."))
    names = [name] if name else [stored.name for stored in store.files() if stored.name.endswith(".parquet")]
    if not names:
        raise UserError(f"{store.shown} holds no Parquet files", hint="name files of NDJSON one by one")
    yield from _as_events(
        pl.concat(archive_files.read_columns(store, name, _ARCHIVED).with_columns(_NAMES) for name in names)
    )


def _as_events(frame: pl.DataFrame) -> Iterator[list[bytes]]:
    frame = frame.unique(["partition", "offset"]).sort("log_time_ms", "partition", "offset")
    fields = frame.select(
        "event_id", "event_type", pl.col("time_ms").alias("event_time"), *events.ID_FIELDS, "country", "device",
        # Only the keyed hash of a user is archived.
        pl.col("user").cast(pl.String).alias("user_id"), "cost_micros",
    )  # fmt: skip
    for part in fields.iter_slices(50_000):
        yield part.write_ndjson().encode().splitlines()
