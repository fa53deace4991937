"""Docs/runbooks.md, "A full disk": that of the archive, and that of a whole stack, each a small file system of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.clock import MINUTE_MS, now_ms
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from ingest.synthetic.generator import Spec, generate_events
from query.demo.questions import make_questions
from query.status import read_status
from tests.conftest import ADCLICK, adclick, product_environment
from tests.product import SPAN_MS, Product, wait_until
from tests.recovery.load import backends, counting, installation, under_load
from tests.recovery.scene import check

_ARCHIVE_BYTES, _STACK_BYTES = 256 << 10, 3 << 30
_REST_BYTES = 8 << 20
_FULL_S = 20.0
"""For how long the disk stays full."""


@contextmanager
def _file_system(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory, of so many bytes, at a folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"a small file system needs the right to mount: {result.stderr.strip()}"
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def archive_disk(work: Path) -> float:
    """The disk of the archive alone: counting goes on, and ad-archive keeps what has no file yet."""
    small = work / "small"
    with backends(work) as folder, _file_system(small, _ARCHIVE_BYTES):
        (small / "archive").mkdir()
        settings = installation(folder).model_copy(update={"archive": str(small / "archive")})
        with counting(settings, work) as running, under_load(running):
            for name in ("archive-0", "stream-0", "ingest-0"):
                running.start(name)

            def problem() -> str:
                return str(_status(settings)["problems"].get("archive", ""))

            wait_until(lambda: "No space left" in problem(), 60, lambda: f"status names the archive: {problem()}")
            full_at = time.monotonic()
            print(f"  {problem()}", flush=True)
            assert not _status(settings)["stopped_workers"]
            time.sleep(_FULL_S / 4)
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
            wait_until(lambda: not problem(), 60, "the archive goes on by itself")
        return time.monotonic() - full_at


def disk(work: Path) -> float:
    """The disk of a stack: Kafka, Redis, ClickHouse and the archive on one that is full. All of it goes on once there is space."""
    end = now_ms() // MINUTE_MS * MINUTE_MS
    count = int(os.environ.get("EVENTS") or 20_000)
    spec = Spec(events=count, seed=29, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=100, late=0.01)
    small, file = work / "stack", work / "events.ndjson"
    with _file_system(small, _STACK_BYTES):
        product = Product(Folder(small / "dir"), generate_events(spec), spec.start_ms, [])
        file.write_bytes(b"\n".join(product.events.lines.to_list()) + b"\n")
        try:
            product.up()
            words = [*ADCLICK, "replay", str(file), "--rate", str(count // 40), "--dir", str(product.folder.path)]
            replay = subprocess.Popen(words, env=product_environment(), stderr=subprocess.PIPE, text=True)
            wait_until(lambda: product.shown_events() > count // 10, 60, "the first tenth is counted")
            _fill(small)
            full_at = time.monotonic()
            problems = dict[str, str]()
            while time.monotonic() < full_at + _FULL_S:
                problems |= _status(product.settings)["problems"]
                time.sleep(1.0)
            for name, why in sorted(problems.items()):
                print(f"  {name}: {why[:180]}", flush=True)
            assert problems, "nothing said that the disk is full"
            (small / "ballast").unlink()
            free_at = time.monotonic()
            _, said = replay.communicate(timeout=600)
            assert replay.returncode == 0, said
            wait_until(product.caught_up, 120, "all is read")
            check(product, make_questions(product.oracle, spec.start_ms, end))
            took_s = time.monotonic() - free_at
            wait_until(lambda: not _status(product.settings)["problems"], 60, "nothing waits any more")
            return took_s
        finally:
            (small / "ballast").unlink(missing_ok=True)
            adclick("down", "--dir", str(product.folder.path))


def _fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        # What others write meanwhile is taken from the rest.
        free = os.statvfs(folder)
        os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - _REST_BYTES)
        ballast.seek(0, os.SEEK_END)
        while True:
            ballast.write(bytes(1 << 12))


def _status(settings: Any) -> dict[str, Any]:
    try:
        return read_status(settings)
    except AdclickError as error:
        return {"problems": {"status": str(error)}, "stopped_workers": {}}
