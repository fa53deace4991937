"""`make chaos`: a replay with known truth under strikes of every kind, and all numbers and alerts compared at the end.

KILLS (strikes), MINUTES, SEED, RATE (events/s) and HOT_HOURS (of minutes that Redis holds) change it; STARVE=8 keeps so many busy
loops beside it. The seed is printed. Exit 1 on any difference.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from batch import coverage
from infra.clock import DAY_MS, MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from ingest.dead_letters import letters as dead_letters
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from query.demo.oracle import compare_dead_letters
from query.demo.questions import make_questions, make_reconciled_questions
from tests.chaos.strikes import Striker, plan
from tests.chaos.watcher import Fates, Watcher, fates
from tests.conftest import adclick
from tests.planted.alerts import compare_alerts
from tests.planted.events import INCIDENTS, events_of, make_incidents, merged_with
from tests.product import PATIENCE, SPAN_MS, Product, wait_until

WORDS = ("--ingest-workers", "2", "--stream-workers", "2")
_SLICE_S = 0.2
# A strike is blamed for what happened to events that came this long before and after it.
_AROUND_S = 10.0
# Few, so that hours leave Redis all along.
_HOT_HOURS = 4
_BUSY = [sys.executable, "-c", "while True: pass"]
_EXPLAIN_LINES = 150
# For so long workers may take to log where their threads are.
_STACKS_S = 1.0


def send(product: Product, rate: int, sent: list[tuple[float, int]]) -> None:
    """Send everything at a rate, and note what was acknowledged when."""
    producer = EventProducer(product.settings.kafka_connection)
    lines, keys = product.events.lines, product.events.keys
    began, step = time.monotonic(), max(1, int(rate * _SLICE_S))
    for start in range(0, len(lines), step):
        values = lines[start : start + step].to_list()
        producer.send(EVENTS, [None if k is None else k.encode() for k in keys[start : start + step]], values)
        sent.append((time.monotonic(), producer.acknowledged))
        time.sleep(max(0.0, began + (start + step) / rate - time.monotonic()))
    if missing := producer.flush(300):
        raise AdclickError(f"{missing} messages were never acknowledged")
    sent.append((time.monotonic(), producer.acknowledged))


@contextmanager
def starved(count: int) -> Iterator[None]:
    """Run busy loops meanwhile."""
    loops = [subprocess.Popen(_BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def campaign(
    count: int,
    seed: int,
    rate: int,
    minutes: float,
    *,
    nightly: bool = True,
    hot_hours: int = _HOT_HOURS,
    busy_loops: int = 0,
) -> bool:
    """Run the campaign; returns whether every number was exact. `nightly`: with a reconciliation at the end."""
    rng = random.Random(seed)
    # Short campaigns have short outages.
    strikes = plan(count, minutes * 60, rng, (10.0, min(60.0, max(12.0, minutes * 6))))
    end = now_ms() // MINUTE_MS * MINUTE_MS
    # In the middle, so that all of it is closed at the end.
    planted = events_of(make_incidents(end - SPAN_MS // 2), np.random.default_rng(seed), "planted", 20)
    events = int(rate * (minutes * 60 + 10))
    spec = Spec(
        events=max(1_000, events - planted.height), seed=seed, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=60, late=0.01,
        malformed=0.005,
    )  # fmt: skip
    print(f"seed {seed}: {count} strikes over {events:,} events in {minutes:.1f} minutes", flush=True)
    work = Path(tempfile.mkdtemp(prefix="adclick-chaos-"))
    env = {"ADCLICK_HOT_HOURS": str(hot_hours)}
    lines = merged_with(generate_events(spec), planted)
    product = Product(Folder(work / "stack"), lines, spec.start_ms, [], env)
    sent: list[tuple[float, int]] = []
    striker, watcher = Striker(product, WORDS), Watcher(product, sent)
    try:
        product.up(*WORDS)
        threads = [
            threading.Thread(target=striker.run, args=(strikes,)),
            threading.Thread(target=watcher.run),
            threading.Thread(target=send, args=(product, rate, sent)),
        ]
        # Not beside the comparison, which is only slower for it.
        with starved(busy_loops):
            for thread in threads:
                thread.start()
            threads[2].join()
            threads[0].join()
            quiet = time.monotonic()
            wait_for_quiet(product)
            print(f"quiet after {time.monotonic() - quiet:.0f} s", flush=True)
        coverage.wait_for_archive(product.settings, 60 * PATIENCE, print)
        watcher.wait_for_last_answers()
        watcher.stop()
        threads[1].join()
        outcome = fates(product)
        _report(striker, watcher, outcome)
        for failure in striker.failures:
            print(f"NOT CARRIED OUT {failure}")
        exact = compare(product, watcher, outcome, nightly=nightly, hot_hours=hot_hours, incidents=INCIDENTS)
        return exact and not striker.failures
    finally:
        striker.stop()
        watcher.stop()
        adclick("down", "--dir", str(work / "stack"))
        if not os.environ.get("KEEP"):
            shutil.rmtree(work, ignore_errors=True)


def wait_for_quiet(product: Product) -> None:
    """Wait until all that was sent is counted; print what can be known when that takes too long."""
    try:
        wait_until(product.caught_up, 120, "all counted")
    except AssertionError:
        _explain(product)
        raise


def _explain(product: Product) -> None:
    """Print what may tell why: the status, the stacks of the workers' threads, and the ends of logs."""
    print(adclick("status", "--json", "--dir", str(product.folder.path)).stdout)
    workers = {
        n: p for n, p in product.folder.processes().items() if n.split("-")[0] in ("ingest", "archive", "stream")
    }
    for process in workers.values():
        process.send_signal(signal.SIGUSR1)
    time.sleep(_STACKS_S)
    for name in (*workers, "kafka", "supervisor"):
        lines = product.folder.log(name).read_text(errors="replace").splitlines()[-_EXPLAIN_LINES:]
        print(f"--- {name}", *lines, sep="\n")


def _report(striker: Striker, watcher: Watcher, outcome: Fates) -> None:
    """Print by kind of strike: how many, how long until answers were fresh again, and what was lost and doubled around it."""
    recoveries: dict[str, list[float]] = defaultdict(list)
    harm: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for began, ended, strike in striker.carried_out:
        name = f"{strike.kind} {strike.target}"
        recovered = watcher.recovery_s(ended)
        recoveries[name].append(recovered)
        around = watcher.sent_between(began - _AROUND_S, ended + min(recovered, _AROUND_S))
        for column, count in enumerate(outcome.within(*around)):
            harm[name][column] += count
    print(
        f"{'strike':28} {'times':>5} {'recovered p50':>14} {'max':>6} {'lost':>6} {'doubled':>8}  (s until answers are fresh)"
    )
    for name, seconds in sorted(recoveries.items()):
        lost, doubled = harm[name]
        print(f"{name:28} {len(seconds):5} {statistics.median(seconds):14.1f} {max(seconds):6.1f} {lost:6} {doubled:8}")
    print(f"{'all':28} {len(striker.carried_out):5} {'':14} {'':6} {len(outcome.lost):6} {len(outcome.doubled):8}")
    print(f"{watcher.answers} answers read meanwhile; the last lacked {watcher.missing:,} events")
    for message, times in watcher.messages.most_common(8):
        print(f"  {times:4} times: {message}")


def compare(
    product: Product, watcher: Watcher, outcome: Fates, *, nightly: bool = True, hot_hours: int = 24,
    incidents: Collection[int] = (),
) -> bool:  # fmt: skip
    """Compare everything that can be read with the truth, and print what differs. `incidents`: campaigns that must have alerts."""
    client, oracle = Client(product.settings), product.oracle
    # The range ends when the campaign began.
    questions = make_questions(oracle, product.start_ms, product.start_ms + SPAN_MS, minute_hours=hot_hours - 1)
    wrong = [v for v in (oracle.check(client, q) for q in questions) if v.difference]
    letters = [(x.value, x.headers["reason"]) for x in dead_letters.read_letters(product.settings)]
    faults = [f"WRONG {v.question.parameters()}: {v.difference}" for v in wrong[:10]]
    faults += [f"DECREASED {line}" for line in watcher.decreases[:10]]
    if difference := compare_dead_letters(product.events.truth, product.events.lines, letters):
        faults.append(f"DEAD LETTERS {difference}")
    if outcome.archive_difference:
        faults.append(f"ARCHIVE {outcome.archive_difference}")
    if len(outcome.lost) or len(outcome.doubled):
        faults.append(f"EVENTS {len(outcome.lost)} lost, {len(outcome.doubled)} doubled")
    faults += compare_alerts(product.settings, incidents)
    if nightly:
        faults += _reconcile(product, client)
    print("\n".join(faults))
    print(
        f"{len(questions) - len(wrong)} of {len(questions)} answers exact; {len(letters):,} dead letters;"
        f" counts of closed hours decreased {len(watcher.decreases)} times; {'FAILED' if faults else 'nothing lost, nothing doubled'}"
    )
    return not faults


def _reconcile(product: Product, client: Client) -> list[str]:
    """Run the nightly job over the first whole day: the batch's truth, and no cause but lateness in its ledger."""
    day_ms = (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS
    date = dt.datetime.fromtimestamp(day_ms / 1000, dt.UTC).date().isoformat()
    result = adclick("reconcile", "--date", date, "--force", "--json", "--dir", str(product.folder.path))
    if result.returncode not in (0, 3):
        return [f"RECONCILE {result.stderr}"]
    causes = json.loads(result.stdout)["causes"]
    faults = [] if set(causes) <= {"late"} else [f"LEDGER {iso(day_ms)}: {causes}"]
    questions = make_reconciled_questions(
        make_questions(product.oracle, product.start_ms, product.start_ms + SPAN_MS), day_ms
    )
    verdicts = [product.oracle.check(client, q) for q in questions]
    return faults + [f"RECONCILED {v.question.parameters()}: {v.difference}" for v in verdicts if v.difference][:5]


def main() -> None:
    """Read the environment and run."""
    count = int(os.environ.get("KILLS") or 12)
    seed = int(os.environ.get("SEED") or now_ms() % 100_000)
    minutes = float(os.environ.get("MINUTES") or count * 0.2)
    rate = int(os.environ.get("RATE") or 1500)
    hot_hours = int(os.environ.get("HOT_HOURS") or _HOT_HOURS)
    try:
        busy_loops = int(os.environ.get("STARVE") or 0)
        passed = campaign(count, seed, rate, minutes, hot_hours=hot_hours, busy_loops=busy_loops)
    except (AdclickError, AssertionError) as error:
        print(f"failed: {error}")
        passed = False
    if not passed:
        print(f"repeat it with: make chaos KILLS={count} SEED={seed} MINUTES={minutes:g} RATE={rate}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
