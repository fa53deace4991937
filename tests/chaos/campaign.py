"""`make chaos`: a replay with known truth under strikes of every kind, and every number compared at the end.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.clock import DAY_MS, MINUTE_MS, iso, now_ms
from infra.embedded import servers
from infra.embedded.state import Folder
from infra.errors import AdclickError
from infra.kafka import EventProducer
from infra.topics import EVENTS
from ingest import dead_letters
from ingest.synthetic.generator import Spec, make
from query.client import Client
from query.questions import battery, dead_letters_differ, reconciled
from tests.chaos.strikes import Striker, plan
from tests.chaos.watcher import Fates, Watcher, fates
from tests.conftest import adclick
from tests.product import SPAN_MS, Product, wait_until

WORDS = ("--ingest-workers", "2", "--stream-workers", "2")
_SLICE_S = 0.2
# A strike is blamed for what happened to events that came this long before and after it.
_AROUND_S = 10.0
# Few, so that hours leave Redis all along.
_HOT_HOURS = 4
_BUSY = [sys.executable, "-c", "while True: pass"]
_EXPLAIN_LINES = 150


def send(product: Product, rate: int, sent: list[tuple[float, int]]) -> None:
    """Send everything at a rate, and note what was acknowledged when."""
    producer = EventProducer(product.settings.kafka)
    lines, keys = product.made.lines, product.made.keys
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
    """Busy loops beside all else."""
    loops = [subprocess.Popen(_BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def campaign(
    count: int, seed: int, rate: int, minutes: float, *, nightly: bool = True, hot_hours: int = _HOT_HOURS
) -> bool:
    """Run it; returns whether everything was the truth. `nightly`: with a reconciliation at the end."""
    rng = random.Random(seed)
    # Short campaigns have short outages.
    strikes = plan(count, minutes * 60, rng, (10.0, min(60.0, max(12.0, minutes * 6))))
    end = now_ms() // MINUTE_MS * MINUTE_MS
    events = int(rate * (minutes * 60 + 10))
    spec = Spec(
        events=events, seed=seed, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=60, late=0.01, malformed=0.005
    )
    print(f"seed {seed}: {count} strikes over {events:,} events in {minutes:.1f} minutes", flush=True)
    work = Path(tempfile.mkdtemp(prefix="adclick-chaos-"))
    env = {"ADCLICK_HOT_HOURS": str(hot_hours)}
    product = Product(Folder(work / "stack"), make(spec), spec.start_ms, [], env)
    sent: list[tuple[float, int]] = []
    striker, watcher = Striker(product, WORDS), Watcher(product, sent)
    try:
        # Not the usual ports: another stack that starts while this one's supervisor is dead would take them.
        product.folder.make()
        first = 15_000 + 5 * (os.getpid() % 900)
        product.folder.write_state({"ports": {name: first + n for n, name in enumerate(servers.USUAL_PORTS)}})
        product.up(*WORDS)
        threads = [
            threading.Thread(target=striker.run, args=(strikes,)),
            threading.Thread(target=watcher.run),
            threading.Thread(target=send, args=(product, rate, sent)),
        ]
        for thread in threads:
            thread.start()
        threads[2].join()
        threads[0].join()
        quiet = time.monotonic()
        wait_for_quiet(product)
        print(f"quiet after {time.monotonic() - quiet:.0f} s", flush=True)
        time.sleep(8)
        watcher.stop()
        threads[1].join()
        found = fates(product)
        _tell(striker, watcher, found)
        for failure in striker.failures:
            print(f"NOT CARRIED OUT {failure}")
        return compare(product, watcher, found, nightly=nightly, hot_hours=hot_hours) and not striker.failures
    finally:
        striker.stop()
        watcher.stop()
        adclick("down", "--dir", str(work / "stack"))
        if not os.environ.get("KEEP"):
            shutil.rmtree(work, ignore_errors=True)


def wait_for_quiet(product: Product) -> None:
    """Until all that was sent is counted; tells what can be known when that takes too long."""
    try:
        wait_until(product.caught_up, 120, "all counted")
    except AssertionError:
        _explain(product)
        raise


def _explain(product: Product) -> None:
    """Why it does not become quiet: what `status` says, where the workers' threads are, and how their logs end."""
    print(adclick("status", "--json", "--dir", str(product.folder.path)).stdout)
    workers = {
        n: p for n, p in product.folder.processes().items() if n.split("-")[0] in ("ingest", "archive", "stream")
    }
    for process in workers.values():
        process.send_signal(signal.SIGUSR1)
    time.sleep(1)
    for name in (*workers, "kafka", "supervisor"):
        lines = product.folder.log(name).read_text(errors="replace").splitlines()[-_EXPLAIN_LINES:]
        print(f"--- {name}", *lines, sep="\n")


def _tell(striker: Striker, watcher: Watcher, found: Fates) -> None:
    """By kind of strike: how many, how long until answers were fresh again, and what was lost and doubled around it."""
    times: dict[str, list[float]] = defaultdict(list)
    harm: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for began, ended, strike in striker.done:
        name = f"{strike.kind} {strike.target}"
        recovered = watcher.recovery_s(ended)
        times[name].append(recovered)
        around = watcher.sent_between(began - _AROUND_S, ended + min(recovered, _AROUND_S))
        for column, count in enumerate(found.within(*around)):
            harm[name][column] += count
    print(
        f"{'strike':28} {'times':>5} {'recovered p50':>14} {'max':>6} {'lost':>6} {'doubled':>8}  (s until answers are fresh)"
    )
    for name, seconds in sorted(times.items()):
        lost, doubled = harm[name]
        print(f"{name:28} {len(seconds):5} {statistics.median(seconds):14.1f} {max(seconds):6.1f} {lost:6} {doubled:8}")
    print(f"{'all':28} {len(striker.done):5} {'':14} {'':6} {len(found.lost):6} {len(found.doubled):8}")
    print(f"{watcher.asked} answers read meanwhile; the last lacked {watcher.missing:,} events")
    for what, times_said in watcher.said.most_common(8):
        print(f"  {times_said:4} times: {what}")


def compare(product: Product, watcher: Watcher, found: Fates, *, nightly: bool = True, hot_hours: int = 24) -> bool:
    """Everything that can be read, with the truth; prints what differs."""
    client, truths = Client(product.settings), product.truths
    # The range ends when the campaign began.
    asks = battery(truths, product.start_ms, product.start_ms + SPAN_MS, minute_hours=hot_hours - 1)
    wrong = [v for v in (truths.check(client, a) for a in asks) if v.wrong]
    letters = [(x.value, x.headers["reason"]) for x in dead_letters.read(product.settings)]
    faults = [f"WRONG {v.ask.parameters()}: {v.wrong}" for v in wrong[:10]]
    faults += [f"WENT BACK {line}" for line in watcher.went_back[:10]]
    if differ := dead_letters_differ(product.made.truth, product.made.lines, letters):
        faults.append(f"DEAD LETTERS {differ}")
    if found.unlike:
        faults.append(f"ARCHIVE {found.unlike}")
    if len(found.lost) or len(found.doubled):
        faults.append(f"EVENTS {len(found.lost)} lost, {len(found.doubled)} doubled")
    if nightly:
        faults += _reconcile(product, client)
    print("\n".join(faults))
    print(
        f"{len(asks) - len(wrong)} of {len(asks)} answers exact; {len(letters):,} dead letters;"
        f" closed numbers went back {len(watcher.went_back)} times; {'FAILED' if faults else 'nothing lost, nothing doubled'}"
    )
    return not faults


def _reconcile(product: Product, client: Client) -> list[str]:
    """The nightly job over the first whole day: the batch's truth, and no cause but lateness in its ledger."""
    day_ms = (product.start_ms + SPAN_MS) // DAY_MS * DAY_MS - DAY_MS
    date = dt.datetime.fromtimestamp(day_ms / 1000, dt.UTC).date().isoformat()
    done = adclick("reconcile", "--date", date, "--force", "--json", "--dir", str(product.folder.path))
    if done.returncode not in (0, 3):
        return [f"RECONCILE {done.stderr}"]
    causes = json.loads(done.stdout)["causes"]
    faults = [] if set(causes) <= {"late"} else [f"LEDGER {iso(day_ms)}: {causes}"]
    asks = reconciled(battery(product.truths, product.start_ms, product.start_ms + SPAN_MS), day_ms)
    verdicts = [product.truths.check(client, a) for a in asks]
    return faults + [f"RECONCILED {v.ask.parameters()}: {v.wrong}" for v in verdicts if v.wrong][:5]


def main() -> None:
    """Read the environment and run."""
    count = int(os.environ.get("KILLS") or 12)
    seed = int(os.environ.get("SEED") or now_ms() % 100_000)
    minutes = float(os.environ.get("MINUTES") or count * 0.2)
    rate = int(os.environ.get("RATE") or 1500)
    hot_hours = int(os.environ.get("HOT_HOURS") or _HOT_HOURS)
    try:
        with starved(int(os.environ.get("STARVE") or 0)):
            good = campaign(count, seed, rate, minutes, hot_hours=hot_hours)
    except (AdclickError, AssertionError) as error:
        print(f"failed: {error}")
        good = False
    if not good:
        print(f"repeat it with: make chaos KILLS={count} SEED={seed} MINUTES={minutes:g} RATE={rate}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
