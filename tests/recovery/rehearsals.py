"""`make rehearse`: the ways back of docs/recovery.md, each on a copy of a stack that has counted and reconciled a day.

Each loses something, takes the steps of the page, and compares every answer with the truth. EVENTS changes how many there are (60,000),
ONLY=name takes one rehearsal alone. Exit 1 where an answer differs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.clock import DAY_MS, MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from query.client import Client
from query.demo.oracle import Oracle
from query.demo.questions import DemoQuestion, make_questions, make_reconciled_questions
from tests.conftest import adclick
from tests.product import COUNTS, SPAN_MS, Product, wait_until

_COPIES = 2_000
"""Events that are sent a second time after a way back: none may count."""


@dataclass
class Scene:
    """What all rehearsals begin with: `backup` is a copy of a stopped stack's folder. It has counted `events`, and reconciled a day."""

    work: Path
    backup: Path
    events: SyntheticEvents
    start_ms: int

    @property
    def day_ms(self) -> int:
        """The day that was reconciled."""
        return (self.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS

    @property
    def date(self) -> str:
        """The same, as commands take it."""
        return iso(self.day_ms)[:10]

    def questions(self, product: Product) -> list[DemoQuestion]:
        """About all that was counted since the end of that day."""
        since_ms = self.day_ms + DAY_MS
        questions = make_questions(product.oracle, since_ms, self.start_ms + SPAN_MS)
        # A day of another zone may begin in the reconciled one.
        return [q for q in questions if q.start_ms >= since_ms]

    def reconciled_questions(self, product: Product) -> list[DemoQuestion]:
        """About the day that was reconciled."""
        return make_reconciled_questions(self.questions(product), self.day_ms)

    def product(self, name: str) -> Product:
        """A stack in a folder of its own, not started."""
        return Product(Folder(self.work / name), self.events, self.start_ms, [])

    @contextmanager
    def restored(self, name: str) -> Iterator[Product]:
        """A copy of the backup, not started; it is stopped and removed at the end."""
        product = self.product(name)
        shutil.copytree(self.backup, product.folder.path, symlinks=True)
        # Another copy may still run.
        product.folder.write_state({k: v for k, v in product.folder.state().items() if k != "ports"})
        try:
            yield product
        finally:
            adclick("down", "--dir", str(product.folder.path))
            shutil.rmtree(product.folder.path)


def must(product: Product, *words: str, code: int = 0) -> str:
    """Run a command on the stack; returns what it wrote to standard error. Raises AssertionError for another exit code."""
    result = adclick(*words, "--dir", str(product.folder.path))
    assert result.returncode == code, f"{words} ended with {result.returncode}: {result.stderr}"
    return result.stderr


def reconcile(product: Product, scene: Scene) -> None:
    """Recount the day, once it is no longer open. 3: with an alert, as some events were too late for the stream."""

    def is_done() -> bool:
        result = adclick("reconcile", "--date", scene.date, "--dir", str(product.folder.path))
        is_open = result.returncode == 1 and "still open" in result.stderr
        assert is_open or result.returncode in (0, 3), result.stderr
        return not is_open

    wait_until(is_done, 60, "the day has ended")


def rebuild(product: Product, *words: str) -> None:
    """Take a way back by its command. 3: with an alert, as some events were too late for the stream."""
    result = adclick("rebuild", *words, "--dir", str(product.folder.path))
    assert result.returncode in (0, 3), result.stderr


def check(product: Product, questions: list[DemoQuestion]) -> None:
    """Raise AssertionError where an answer is not the truth, once all have become it."""
    client, oracle = Client(product.settings), product.oracle
    left = questions

    def all_exact() -> bool:
        nonlocal left
        left = [q for q in left if _difference(oracle, client, q)]
        return not left

    wait_until(all_exact, 60, lambda: f"{left[0].parameters()}: {_difference(oracle, client, left[0])}")
    wrong = [d for q in questions if (d := _difference(oracle, client, q))]
    assert not wrong, wrong[:3]


def _difference(oracle: Oracle, client: Client, question: DemoQuestion) -> str:
    try:
        return oracle.check(client, question).difference
    except AdclickError as error:
        return str(error)


def check_what_is_missing(product: Product, questions: list[DemoQuestion]) -> None:
    """Raise AssertionError where an answer is not the truth, and does not say that something is missing."""
    client, oracle = Client(product.settings), product.oracle
    for question in questions:
        if difference := _difference(oracle, client, question):
            warnings = client.get("/v1/metrics", question.parameters())["warnings"]
            assert warnings, f"without a warning: {question.parameters()}: {difference}"


def send_again(product: Product, scene: Scene) -> None:
    """Send the newest events once more: they are copies within the horizon."""
    file = scene.work / "copies.ndjson"
    file.write_bytes(b"\n".join(scene.events.lines[-_COPIES:].to_list()) + b"\n")
    must(product, "replay", str(file))
    wait_until(product.caught_up, 60, "the copies are read")


def whole_stack(scene: Scene) -> float:
    """The folder, from a copy of it that was taken while the stack was down."""
    with scene.restored("whole") as product:
        lost_at = time.monotonic()
        product.up()
        check(product, scene.questions(product) + scene.reconciled_questions(product))
        took_s = time.monotonic() - lost_at
        send_again(product, scene)
        check(product, scene.questions(product))
        return took_s


def redis(scene: Scene) -> float:
    """Redis' data: ids, and the minutes that the stream still has, come back by themselves; answers say which minutes are missing."""
    with scene.restored("redis") as product:
        shutil.rmtree(product.folder.path / "redis")
        lost_at = time.monotonic()
        product.up()
        must(product, "rebuild", "redis")
        by_hour = [q for q in scene.questions(product) if q.grain == "hour"]
        check(product, by_hour + scene.reconciled_questions(product))
        took_s = time.monotonic() - lost_at
        send_again(product, scene)
        check(product, by_hour)
        check_what_is_missing(product, scene.questions(product))
        return took_s


def clickhouse(scene: Scene) -> float:
    """ClickHouse's data: tables are made again, days are recounted from the archive, the newest hours come from the stream's state."""
    with scene.restored("clickhouse") as product:
        shutil.rmtree(product.folder.path / "clickhouse")
        lost_at = time.monotonic()
        product.up()
        rebuild(product, "clickhouse")
        check(product, scene.reconciled_questions(product))
        return time.monotonic() - lost_at


def kafka(scene: Scene) -> float:
    """Kafka's data: a new stack counts what the archive of the former one has, and recounts the days."""
    with scene.restored("kafka-lost") as former:
        shutil.rmtree(former.folder.path / "kafka")
        lost_at = time.monotonic()
        product = scene.product("kafka-new")
        try:
            product.up()
            rebuild(product, "stream", "--archive", str(former.folder.path / "archive"))
            check(product, scene.reconciled_questions(product))
            return time.monotonic() - lost_at
        finally:
            adclick("down", "--dir", str(product.folder.path))


def archive(scene: Scene) -> float:
    """A day of the archive: a run refuses to publish without it; from a copy the day is what it was."""
    with scene.restored("archive") as product:
        product.up()
        for folder in (product.folder.path / "archive").glob(f"*{scene.date}*"):
            shutil.rmtree(folder)
        lost_at = time.monotonic()
        refusal = must(product, "reconcile", "--date", scene.date, "--wait", "1", code=1)
        print(f"  {refusal.strip().splitlines()[-1][:200]}", flush=True)
        check(product, scene.reconciled_questions(product))
        shutil.copytree(scene.backup / "archive", product.folder.path / "archive", dirs_exist_ok=True)
        reconcile(product, scene)
        check(product, scene.reconciled_questions(product))
        return time.monotonic() - lost_at


# Each returns the seconds from the loss until all answers were the truth.
REHEARSALS = (whole_stack, redis, clickhouse, kafka, archive)


def prepare(work: Path, count: int) -> Scene:
    """Count events, reconcile a day, stop, and copy the folder."""
    end = now_ms() // MINUTE_MS * MINUTE_MS
    spec = Spec(events=count, seed=23, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=200, late=0.01)
    scene = Scene(work, work / "backup", generate_events(spec), spec.start_ms)
    product, file = scene.product("stack"), work / "events.ndjson"
    file.write_bytes(b"\n".join(scene.events.lines.to_list()) + b"\n")
    try:
        product.up()
        must(product, "replay", str(file), "--rate", "10000")
        wait_until(product.caught_up, 120, "all is ingested")
        counted = int(sum(scene.events.truth.counts.select(f"stream_{c}" for c in COUNTS).sum().row(0)))
        wait_until(lambda: product.shows(counted), 60, f"{counted} events are shown")
        reconcile(product, scene)
        check(product, scene.questions(product) + scene.reconciled_questions(product))
    finally:
        adclick("down", "--dir", str(product.folder.path))
    began = time.monotonic()
    shutil.copytree(product.folder.path, scene.backup, symlinks=True)
    size = sum(file.stat().st_size for file in scene.backup.rglob("*") if file.is_file())
    print(f"backup: {size >> 20} MB copied in {time.monotonic() - began:.1f} s", flush=True)
    shutil.rmtree(product.folder.path)
    return scene


def main() -> None:
    """Rehearse all, or one."""
    from tests.recovery import backups, killed_rebuilds, wrong_bill  # which import this module

    rehearsals = (*REHEARSALS, backups.backup, wrong_bill.wrong_bill, killed_rebuilds.killed_rebuilds)
    only = os.environ.get("ONLY", "")
    chosen = [rehearsal for rehearsal in rehearsals if only in ("", rehearsal.__name__)]
    if not chosen:
        sys.exit(f"ONLY must be one of {', '.join(rehearsal.__name__ for rehearsal in rehearsals)}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="adclick-rehearsal-") as folder:
        scene = prepare(Path(folder), int(os.environ.get("EVENTS") or 60_000))
        for rehearsal in chosen:
            try:
                took_s = rehearsal(scene)
            except AssertionError as error:
                failed = True
                print(f"{rehearsal.__name__:12} FAILED: {error}", flush=True)
            else:
                print(f"{rehearsal.__name__:12} exact {took_s:.0f} s after the loss", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
