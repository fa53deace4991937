"""What the rehearsals share: the scene that they begin with, commands on a stack, and the comparison of every answer with the truth."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.clock import DAY_MS, iso
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from ingest.synthetic.generator import SyntheticEvents
from query.client import Client
from query.demo.oracle import Oracle
from query.demo.questions import DemoQuestion, make_questions, make_reconciled_questions
from tests.conftest import adclick
from tests.product import SPAN_MS, Product, wait_until

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
    """Take a way back by its command. 3: with an alert, as some events were too late for the stream. A run that was killed holds its lease for half a minute."""

    def is_done() -> bool:
        result = adclick("rebuild", *words, "--dir", str(product.folder.path))
        is_leased = result.returncode == 1 and "another reconciliation is running" in result.stderr
        assert is_leased or result.returncode in (0, 3), result.stderr
        return not is_leased

    wait_until(is_done, 60, "the lease of the run that was killed has expired")


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
