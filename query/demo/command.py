"""`adclick demo`: a private stack, a day of events, and every answer compared with the truth."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import polars as pl

from infra.cli import declare
from infra.cli.app import App
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.embedded import jars
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from infra.kafka import topics
from infra.settings import Settings
from ingest.dead_letters import letters as dead_letters
from ingest.replay.command import replay_files
from ingest.replay.sender import Pace
from ingest.synthetic.command import write_lines
from ingest.synthetic.directory_file import write_directory
from ingest.synthetic.generator import Spec, SyntheticEvents, generate_events
from query.client import Client
from query.demo.oracle import CheckedAnswer, Oracle, compare_dead_letters
from query.demo.questions import DemoQuestion, make_questions, make_reconciled_questions
from query.directory.command import describe, import_file
from query.status import read_status

_SPAN_MS = 26 * HOUR_MS
_PATIENCE_S = 300


@declare.command("demo", "adclick demo --events 200000")
@click.option("--events", type=click.IntRange(1_000, 20_000_000), default=1_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the stack up, with the dashboard; on a terminal it stays up anyway.")
def demo(app: App, events: int, seed: int, keep: bool) -> int:
    """Replay 26 hours of synthetic events that end now, and compare every answer with the truth.

    Exit 0 only if every answer was exact.
    """
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="adclick-demo-"))
    stack = App(str(work / "stack"), app.json, app.verbose, app.quiet)
    stay = keep or (sys.stdin.isatty() and sys.stdout.isatty())
    finished = False
    try:
        exact = Demo(stack, work, events, seed).run(began)
        finished = True
        if stay:
            endpoints = stack.settings
            app.say(f"the dashboard: {endpoints.http}/#key={endpoints.api_key.get_secret_value()}")
            app.say(f"the stack stays up; stop it with: adclick down --dir {work / 'stack'}")
        return 0 if exact else 1
    finally:
        if not (stay and finished):
            Folder(work / "stack").stop()
            shutil.rmtree(work, ignore_errors=True)


class Demo:
    """The steps, in order. `run` returns whether everything was exact."""

    def __init__(self, app: App, work: Path, events: int, seed: int) -> None:
        self._app, self._work, self._events, self._seed = app, work, events, seed
        self._answers: list[CheckedAnswer] = []

    def run(self, began: float) -> bool:
        """Run all steps."""
        app = self._app
        end = now_ms() // MINUTE_MS * MINUTE_MS
        spec = Spec(events=self._events, seed=self._seed, start_ms=end - _SPAN_MS, span_ms=_SPAN_MS)
        app.say(f"generating {self._events:,} events from {iso(spec.start_ms)} to {iso(end)}")
        events = generate_events(spec)
        source = self._work / "events.ndjson"
        write_lines(events, source)
        jars.fetch_for_stack(app.say)
        app.say("starting Kafka, Redis, ClickHouse and the workers")
        self._command("up", "--detach")
        app.say("replaying")
        sender = replay_files(app, [source], Pace())
        source.unlink()
        app.say(f"  {sender.producer.acknowledged:,} events acknowledged by Kafka")
        oracle, client = Oracle(events.truth), Client(app.settings)
        names = self._import_directory(spec)
        self._wait_until_counted(oracle, client, spec)
        questions = make_questions(oracle, spec.start_ms, end)
        app.say(f"asking the router {len(questions)} questions")
        self._ask(oracle, client, questions)
        named = self._check_names(oracle, client, names, spec)
        letters = self._check_dead_letters(app.settings, events)
        day_ms = end // DAY_MS * DAY_MS - DAY_MS
        reconciled = self._reconcile(day_ms)
        about_day = make_reconciled_questions(questions, day_ms)
        app.say(f"asking {len(about_day)} questions about the reconciled day")
        self._ask(oracle, client, about_day)
        return self._summary(letters, reconciled and named, time.monotonic() - began)

    def _command(self, *words: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "infra", *words, "--dir", str(self._app.folder)],
            stdout=subprocess.DEVNULL if words[0] == "up" else None,
            stderr=subprocess.PIPE if words[0] == "up" else None,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "ADCLICK_ARCHIVE"} | {"ADCLICK_RECONCILE_AT": "off"},
        )
        if words[0] == "up" and done.returncode:
            raise AdclickError(f"the stack did not start: {(done.stderr or '').strip()[-300:]}")
        return done.returncode

    def _import_directory(self, spec: Spec) -> dict[int, str]:
        """Import names, budgets and time zones; returns the names of campaigns, as the file has them."""
        path = self._work / "directory.ndjson"
        write_directory(spec, path)
        self._app.say(f"importing the directory: {describe(import_file(self._app, path))}")
        entries = pl.read_ndjson(path, infer_schema_length=None).filter(pl.col("kind") == "campaign")
        return dict(entries.select("id", "name").iter_rows())

    def _check_names(self, oracle: Oracle, client: Client, names: dict[int, str], spec: Spec) -> bool:
        """Whether rows have the names that were imported."""
        ids = oracle.busiest(20)
        question = {
            "campaign_id": ",".join(map(str, ids)),
            "start": iso(spec.start_ms),
            "end": "now",
            "granularity": "total",
        }
        answer = client.get("/v1/metrics", [*question.items(), ("group_by", "campaign_id"), ("names", "true")])
        shown = {row["campaign_id"]: row["campaign_name"] for row in answer["data"]}
        exact = bool(shown) and shown == {id_: names[id_] for id_ in shown}
        self._app.say(f"names of {len(shown)} campaigns beside their numbers: {'exact' if exact else 'WRONG'}")
        return exact

    def _wait_until_counted(self, oracle: Oracle, client: Client, spec: Spec) -> None:
        """Until nothing is left to read, the windows of the past are closed, and the busiest campaigns are right."""
        settings, end_ms = self._app.settings, spec.start_ms + spec.span_ms
        topic = settings.topic(topics.EVENTS)
        busiest = oracle.busiest(5)
        began = time.monotonic()
        with self._app.progress("counting", self._events) as bar:
            while True:
                state = read_status(settings)
                left = state["topics"].get(topic, self._events)
                bar.update(bar.tasks[0].id, completed=max(0, self._events - left))
                caught_up = not left and (state["watermark"] or "") >= iso(end_ms - 10 * MINUTE_MS)
                if caught_up and all(
                    oracle.total_is_exact(client, c, spec.start_ms + 3 * HOUR_MS, end_ms) for c in busiest
                ):
                    break
                if time.monotonic() - began > _PATIENCE_S:
                    # The questions will show what is missing.
                    self._app.say(f"  not all events are counted after {_PATIENCE_S} s; asking the questions anyway")
                    break
                time.sleep(0.3)
        self._app.say(f"  counted {time.monotonic() - began:.1f} s after the last was acknowledged")

    def _ask(self, oracle: Oracle, client: Client, questions: list[DemoQuestion]) -> None:
        with self._app.progress("asking", len(questions)) as bar:
            for question in questions:
                self._answers.append(oracle.check(client, question))
                bar.advance(bar.tasks[0].id)

    def _check_dead_letters(self, settings: Settings, events: SyntheticEvents) -> str:
        letters = [(letter.value, letter.headers.get("reason", "")) for letter in dead_letters.read_letters(settings)]
        difference = compare_dead_letters(events.truth, events.lines, letters)
        self._app.say(f"dead letters: {len(letters):,}, each compared with the truth: {difference or 'exact'}")
        return difference

    def _reconcile(self, day_ms: int) -> bool:
        day = dt.datetime.fromtimestamp(day_ms // 1000, dt.UTC).date()
        code = self._command("reconcile", "--date", day.isoformat())
        if code == 3:
            self._app.say("  the reconciliation raised an alert")
        elif code:
            self._app.say(f"  the reconciliation failed (exit {code})")
        return code == 0

    def _summary(self, letters: str, reconciled: bool, seconds: float) -> bool:
        """Print how many answers of each kind were exact, and the first that were not. `letters`: how dead letters differ."""
        app, answers = self._app, self._answers
        kinds: dict[str, list[CheckedAnswer]] = {}
        for answer in answers:
            kinds.setdefault(answer.question.kind, []).append(answer)
        app.table(
            ["question", "asked", "exact", "tier", "finality", "ms p50", "ms max"],
            [_summary_row(kind, of_kind) for kind, of_kind in kinds.items()],
        )
        wrong = [a for a in answers if a.difference]
        for answer in wrong[:10]:
            app.say(f"WRONG {answer.question.parameters()}: {answer.difference}")
        unreconciled = [a for a in answers if a.question.view == "batch" and a.finality != "reconciled"]
        for answer in unreconciled[:3]:
            app.say(f"WRONG {answer.question.parameters()}: finality {answer.finality}, not reconciled")
        exact = reconciled and not letters and not wrong and not unreconciled
        count = f"{len(answers) - len(wrong)} of {len(answers)} answers exact, {seconds:.0f} s"
        app.say(count if exact else f"{count}  NOT EXACT")
        return exact


def _summary_row(kind: str, answers: list[CheckedAnswer]) -> tuple[object, ...]:
    tiers = ", ".join(dict.fromkeys(tier for a in answers for tier in a.tiers))
    finality = ", ".join(dict.fromkeys(a.finality for a in answers))
    ms = [a.ms for a in answers]
    exact = sum(not a.difference for a in answers)
    return kind, len(answers), exact, tiers, finality, f"{statistics.median(ms):.1f}", f"{max(ms):.1f}"
