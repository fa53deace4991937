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
from collections.abc import Callable
from pathlib import Path

import click

from infra import console, pipeline_state, topics
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.console import App
from infra.embedded.state import Folder
from infra.errors import AdclickError
from infra.settings import Settings
from ingest import dead_letters
from ingest.replay import Pace, replay_files
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Made, Spec, make
from query.client import Client
from query.questions import Ask, Truths, Verdict, battery, dead_letters_differ, reconciled

_SPAN_MS = 26 * HOUR_MS
_PATIENCE_S = 300


@console.command("demo", "adclick demo --events 200000")
@click.option("--events", type=click.IntRange(1_000, 20_000_000), default=1_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the stack up.")
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
        good = Demo(stack, work, events, seed).run(began)
        finished = True
        if stay:
            endpoints = stack.settings
            app.say(f"the stack stays up: {endpoints.http}/#key={endpoints.api_key.get_secret_value()}")
            app.say(f"stop it with: adclick down --dir {work / 'stack'}")
        return 0 if good else 1
    finally:
        if not (stay and finished):
            Folder(work / "stack").stop()
            shutil.rmtree(work, ignore_errors=True)


class Demo:
    """The steps, in order. `run` returns whether everything was exact."""

    def __init__(self, app: App, work: Path, events: int, seed: int) -> None:
        self._app, self._work, self._events, self._seed = app, work, events, seed
        self._verdicts: list[Verdict] = []

    def run(self, began: float) -> bool:
        """All of it."""
        app = self._app
        end = now_ms() // MINUTE_MS * MINUTE_MS
        spec = Spec(events=self._events, seed=self._seed, start_ms=end - _SPAN_MS, span_ms=_SPAN_MS)
        app.say(f"generating {self._events:,} events from {iso(spec.start_ms)} to {iso(end)}")
        made = make(spec)
        source = self._work / "events.ndjson"
        write_lines(made, source)
        app.say("starting Kafka, Redis, ClickHouse and the workers")
        self._command("up", "--detach")
        app.say("replaying")
        sender = replay_files(app, [source], Pace())
        source.unlink()
        app.say(f"  {sender.producer.acknowledged:,} events acknowledged by Kafka")
        truths, client = Truths(made.truth), Client(app.settings)
        self._wait_until_counted(truths, client, spec)
        asks = battery(truths, spec.start_ms, end)
        app.say(f"asking the router {len(asks)} questions")
        self._ask(truths, client, asks)
        letters = self._dead_letters(app.settings, made)
        day_ms = end // DAY_MS * DAY_MS - DAY_MS
        good = self._reconcile(day_ms)
        again = reconciled(asks, day_ms)
        app.say(f"asking {len(again)} questions about the reconciled day")
        self._ask(truths, client, again)
        return self._summary(letters, good, time.monotonic() - began)

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

    def _wait_until_counted(self, truths: Truths, client: Client, spec: Spec) -> None:
        """Until nothing is left to read, the windows of the past are closed, and the busiest campaigns are right."""
        settings, end_ms = self._app.settings, spec.start_ms + spec.span_ms
        topic = settings.topic(topics.EVENTS)
        busy = truths.busiest(5)
        began = time.monotonic()
        with self._app.progress("counting", self._events) as bar:
            while True:
                state = pipeline_state.collect(settings)
                left = state["topics"].get(topic, self._events)
                bar.update(bar.tasks[0].id, completed=max(0, self._events - left))
                caught_up = not left and (state["watermark"] or "") >= iso(end_ms - 10 * MINUTE_MS)
                if caught_up and all(truths.total_is(client, c, spec.start_ms + 3 * HOUR_MS, end_ms) for c in busy):
                    break
                if time.monotonic() - began > _PATIENCE_S:
                    # The questions will show what is wrong.
                    self._app.say("  giving up waiting: not all is counted")
                    break
                time.sleep(0.3)
        self._app.say(f"  counted {time.monotonic() - began:.1f} s after the last was acknowledged")

    def _ask(self, truths: Truths, client: Client, asks: list[Ask]) -> None:
        with self._app.progress("asking", len(asks)) as bar:
            for ask in asks:
                self._verdicts.append(truths.check(client, ask))
                bar.advance(bar.tasks[0].id)

    def _dead_letters(self, settings: Settings, made: Made) -> str:
        letters = [(letter.value, letter.headers.get("reason", "")) for letter in dead_letters.read(settings)]
        wrong = dead_letters_differ(made.truth, made.lines, letters)
        self._app.say(f"dead letters: {len(letters):,}, each compared with the truth: {wrong or 'exact'}")
        return wrong

    def _reconcile(self, day_ms: int) -> bool:
        day = dt.datetime.fromtimestamp(day_ms // 1000, dt.UTC).date()
        code = self._command("reconcile", "--date", day.isoformat())
        if code == 3:
            self._app.say("  the reconciliation raised an alert")
        elif code:
            self._app.say(f"  the reconciliation failed (exit {code})")
        return code == 0

    def _summary(self, letters: str, good: bool, seconds: float) -> bool:
        app = self._app
        kinds: dict[str, list[Verdict]] = {}
        for verdict in self._verdicts:
            kinds.setdefault(verdict.ask.kind, []).append(verdict)
        pick: Callable[[list[Verdict], str], str] = lambda v, name: ", ".join(  # noqa: E731
            dict.fromkeys(t for x in v for t in (x.tiers if name == "tiers" else (x.finality,)))
        )
        rows = [
            (
                kind, len(found), sum(not v.wrong for v in found), pick(found, "tiers"), pick(found, "finality"),
                f"{statistics.median(v.ms for v in found):.1f}", f"{max(v.ms for v in found):.1f}",
            )
            for kind, found in kinds.items()
        ]  # fmt: skip
        app.table(["question", "asked", "exact", "tier", "finality", "ms p50", "ms max"], rows)
        wrong = [v for v in self._verdicts if v.wrong]
        for verdict in wrong[:10]:
            app.say(f"WRONG {verdict.ask.parameters()}: {verdict.wrong}")
        odd = [v for v in self._verdicts if v.ask.view == "batch" and v.finality != "reconciled"]
        for verdict in odd[:3]:
            app.say(f"WRONG {verdict.ask.parameters()}: finality {verdict.finality}, not reconciled")
        asked = len(self._verdicts)
        exact = good and not letters and not wrong and not odd
        app.say(f"{asked - len(wrong)} of {asked} answers exact, {seconds:.0f} s" + ("" if exact else "  NOT EXACT"))
        return exact
