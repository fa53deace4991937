"""Input of replay: complete lines, each once and as they come; and what is refused before anything is sent."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cramjam
import polars as pl
import pytest

from infra.errors import UserError
from ingest.replay.inputs import MAX_LINE_BYTES, EventInput, open_input, spool
from tests.product import wait_until

LIMIT_S = 120.0
EVENTS = [json.dumps({"event_id": f"e{n}", "event_time": 1_795_132_800_000 + n}).encode() for n in range(50)]
PLAIN = b"\n".join(EVENTS) + b"\n"


def zstd(content: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(content))


def read(source: EventInput) -> list[bytes]:
    return [line for lines in source.lines(threading.Event()) for line in lines]


def read_file(path: Path, content: bytes, **more: int) -> list[bytes]:
    path.write_bytes(content)
    return read(open_input(str(path), **more))


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


ACCEPTED = {
    "lines": PLAIN,
    "no line end at the end": PLAIN.rstrip(),
    "Windows line ends": PLAIN.replace(b"\n", b"\r\n"),
    "blank lines": b"\n \n\r\n" + PLAIN.replace(b"\n", b"\n\n\t\n"),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "files with byte order marks, joined": b"".join(b"\xef\xbb\xbf" + e + b"\n" for e in EVENTS),
    "gzip": gzip.compress(PLAIN),
    "gzip in two members": gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:]),
    "zstd": zstd(PLAIN),
    "zstd in two frames": zstd(PLAIN[:1000]) + zstd(PLAIN[1000:]),
    "gzip with a byte order mark": gzip.compress(b"\xef\xbb\xbf" + PLAIN),
    "gzip with Windows line ends": gzip.compress(PLAIN.replace(b"\n", b"\r\n")),
}


@pytest.mark.parametrize("block", [1, 7, 8 << 20])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_file_is_split_into_lines_with_any_block_size(kind: str, block: int, tmp_path: Path) -> None:
    assert read_file(tmp_path / "e", ACCEPTED[kind], block_bytes=block) == EVENTS


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_pipe_gives_the_same_lines_and_is_read_once(kind: str, fifo: Path, tmp_path: Path) -> None:
    writer = threading.Thread(target=lambda: fifo.write_bytes(ACCEPTED[kind]))
    writer.start()
    source = open_input(str(fifo))
    assert not source.rereadable
    assert source.count(threading.Event()) is None
    copy = spool(source, tmp_path, threading.Event())
    writer.join()
    assert read(copy) == read(copy) == EVENTS
    assert copy.rereadable


MALFORMED = [b"\xff\xfe\x01", b"7", b"[]", b"x" * 2_000_000, b"[/index.html] GET 404", b"{", b'{"a":\0}']


def test_malformed_lines_among_events_are_read_like_others(tmp_path: Path) -> None:
    lines = [EVENTS[0], *MALFORMED, *EVENTS[1:]]
    assert read_file(tmp_path / "e", b"\n".join(lines)) == lines


@pytest.mark.parametrize(
    "first", [b"[" + EVENTS[0] + b"]", b"7", b"event x was here", EVENTS[0][:20], b"[]", b"[/index.html] GET 404"]
)
def test_a_malformed_line_may_come_first(first: bytes, tmp_path: Path) -> None:
    assert read_file(tmp_path / "e", first + b"\n" + PLAIN) == [first, *EVENTS]


CSV = b"event_id,event_type,event_time\na,click,1\nb,click,2\n"
REFUSED = {
    "JSON array on a line": (b"[" + b",".join(EVENTS) + b"]", "JSON array"),
    "JSON array on a line of a megabyte": (b"[" + b",".join(EVENTS * 2_000) + b"]", "JSON array"),
    "JSON array, an event a line": (b"[\n" + b",\n".join(EVENTS) + b"\n]", "JSON array"),
    "JSON array that begins at once": (b"[" + b",\n".join(EVENTS[:2]) + b"\n]", "JSON array"),
    "JSON array, indented": (json.dumps([json.loads(e) for e in EVENTS], indent=2).encode(), "JSON array"),
    "empty JSON array": (b"[]\n", "JSON array"),
    "JSON array in gzip": (gzip.compress(b"[" + b",".join(EVENTS) + b"]"), "JSON array"),
    "JSON array behind a byte order mark": (b"\xef\xbb\xbf[\n" + EVENTS[0] + b"\n]", "JSON array"),
    "an indented event": (json.dumps(json.loads(EVENTS[0]), indent=2).encode(), "several lines"),
    "CSV": (CSV, "table"),
    "CSV with semicolons": (CSV.replace(b",", b";"), "table"),
    "TSV": (CSV.replace(b",", b"\t"), "table"),
    "CSV without a header": (b'a,click,1\nb,click,2\n', "table"),
    "the header of a CSV alone": (b"event_id,event_type\n", "table"),
    "UTF-16": (PLAIN.decode().encode("utf-16"), "UTF-16"),
    "UTF-16, little end first, unmarked": (PLAIN.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16, big end first, unmarked": (PLAIN.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-32": (PLAIN.decode().encode("utf-32"), "UTF-16"),
    "bzip2": (b"BZh91AY&SY" + b"\x01" * 50, "bzip2"),
    "xz": (b"\xfd7zXZ\0" + b"\x01" * 50, "xz"),
    "zip": (b"PK\x03\x04" + b"\x01" * 50, "zip"),
    "HTML": (b"<!DOCTYPE html>\n<html>\n", "HTML"),
    "an image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
    "gzip that is cut off": (gzip.compress(PLAIN)[:-20], "cannot be read"),
    "zstd that is cut off": (zstd(PLAIN)[:-20], "cannot be read"),
    "damaged gzip": (gzip.compress(PLAIN)[:30] + b"x" * 30, "cannot be read"),
    "damaged Parquet": (b"PAR1" + b"x" * 50, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_input_that_is_not_ndjson_is_refused_before_its_first_line(kind: str, tmp_path: Path) -> None:
    content, why = REFUSED[kind]
    path = tmp_path / "e v"
    path.write_bytes(content)
    with pytest.raises(UserError, match=why) as refusal:
        assert next(filter(None, open_input(str(path)).lines(threading.Event()))) is None
    assert "\n" not in str(refusal.value)
    assert str(path) in refusal.value.message


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n", gzip.compress(b"", mtime=0), zstd(b""), b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_lines(content: bytes, tmp_path: Path) -> None:
    assert read_file(tmp_path / "e", content) == []


def test_a_line_too_long_for_a_message_is_left_out_and_reported_by_number(tmp_path: Path) -> None:
    long = b'{"event_id":"' + b"x" * MAX_LINE_BYTES + b'"}'
    path = tmp_path / "e"
    path.write_bytes(b"\n".join([EVENTS[0], long, EVENTS[1], long * 3, EVENTS[2], long]))
    source = open_input(str(path))
    assert read(source) == EVENTS[:3]
    assert source.too_long == [2, 4, 6]


def test_a_file_of_one_huge_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with path.open("wb") as out:
        for _ in range(100):
            out.write(b"x" * (1 << 20))
    program = (
        "import resource, threading; from ingest.replay.inputs import open_input\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"source = open_input({str(path)!r}); assert not [x for lines in source.lines(threading.Event()) for x in lines]\n"
        "print(source.too_long, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    numbers, grown_kib = result.stdout.rsplit(" ", 1)
    assert numbers == "[1]"
    assert int(grown_kib) < 70_000


@pytest.mark.parametrize(
    ("appended", "more", "unfinished"),
    [(EVENTS[0][10:30], [], True), (EVENTS[0][10:] + b"\n" + PLAIN, [EVENTS[0]], False)],
    ids=["within a line", "by whole lines"],
)
def test_a_growing_file_is_read_up_to_its_last_complete_line(
    tmp_path: Path, appended: bytes, more: list[bytes], unfinished: bool
) -> None:
    path = tmp_path / "e"
    path.write_bytes(PLAIN + EVENTS[0][:10])
    source = open_input(str(path))
    reading = source.lines(threading.Event())
    lines = next(reading)
    with path.open("ab") as out:
        out.write(appended)
    lines += [line for block in reading for line in block]
    assert lines == [*EVENTS, *more]
    assert source.unfinished is unfinished


def test_lines_of_a_pipe_come_as_they_are_written(fifo: Path) -> None:
    arrived: list[bytes] = []
    reader = threading.Thread(target=lambda: arrived.extend(_flat(open_input(str(fifo)))))
    reader.start()
    with fifo.open("wb", buffering=0) as out:
        for number, event in enumerate(EVENTS[:5]):
            out.write(
                event + b"\n" + EVENTS[number + 1][:10] if number == 0 else event[10:] + b"\n" + EVENTS[number + 1][:10]
            )
            wait_until(lambda n=number: len(arrived) == n + 1, 15, "the line arrives")
        out.write(EVENTS[5][10:])
    reader.join(LIMIT_S)
    assert arrived == EVENTS[:6]


def _flat(source: EventInput, stop: threading.Event | None = None) -> Iterator[bytes]:
    for lines in source.lines(stop or threading.Event()):
        yield from lines


@pytest.mark.parametrize("written", [None, b"", PLAIN, PLAIN + b'{"event_id"', gzip.compress(PLAIN, mtime=0)[:20]])
def test_a_stop_ends_reading_from_a_silent_pipe(written: bytes | None, fifo: Path) -> None:
    stop, arrived = threading.Event(), list[bytes]()
    reader = threading.Thread(target=lambda: arrived.extend(_flat(open_input(str(fifo)), stop)))
    reader.start()
    out = None
    if written is not None:
        out = fifo.open("wb", buffering=0)
        out.write(written)
        if written.startswith(PLAIN):
            wait_until(lambda: len(arrived) >= len(EVENTS), 15, "all whole lines arrive")
    stop.set()
    reader.join(LIMIT_S)
    assert not reader.is_alive()
    assert arrived[: len(EVENTS)] == (EVENTS if written and written.startswith(PLAIN) else [])
    if out is not None:
        out.close()


def test_a_descriptor_of_a_shell_is_read_like_a_pipe() -> None:
    for content in (PLAIN, gzip.compress(PLAIN)):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        assert read(open_input(f"/dev/fd/{reading}")) == EVENTS
        os.close(reading)


def test_a_missing_or_unreadable_input_is_refused_in_one_line(tmp_path: Path) -> None:
    for word in (str(tmp_path / "gone"), "a\0b", str(tmp_path / ("x" * 300))):
        with pytest.raises(UserError, match=r"does not exist|cannot be read"):
            open_input(word)
    path = tmp_path / "vanishes"
    path.write_bytes(PLAIN)
    source = open_input(str(path))
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        read(source)


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.ndjson").write_bytes(PLAIN)
    with pytest.raises(UserError, match="no Parquet files"):
        read(open_input(str(tmp_path)))


def test_parquet_that_is_no_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read(open_input(str(tmp_path / "x.parquet")))


def test_lines_are_counted_in_plain_files_and_not_in_compressed_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PLAIN)
    (tmp_path / "b").write_bytes(gzip.compress(PLAIN))
    assert open_input(str(tmp_path / "a")).count(threading.Event()) == len(EVENTS)
    assert open_input(str(tmp_path / "b")).count(threading.Event()) is None


def test_a_signal_ends_a_program_that_waits_for_a_fifo(fifo: Path) -> None:
    program = (
        "import threading; from ingest.replay.inputs import open_input; from ingest.replay.command import stopped_by_signals\n"
        "stop = threading.Event()\n"
        "with stopped_by_signals(stop):\n"
        f"    source = open_input({str(fifo)!r}); print('reading', flush=True)\n"
        "    print([x for lines in source.lines(stop) for x in lines])"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "reading\n"
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=LIMIT_S)[0] == "[]\n"
    assert running.returncode == 0


def test_a_spooled_pipe_reports_the_lines_that_were_left_out(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = b"{}\n" + b"x" * (MAX_LINE_BYTES + 1) + b"\n{}\n"
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = spool(open_input(str(pipe)), folder, threading.Event())
    writer.join()
    assert sum(map(len, copy.lines(threading.Event()))) == 2
    assert copy.too_long == [2]
