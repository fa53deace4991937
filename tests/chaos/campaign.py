"""`make chaos`: a replay with known truth, SIGKILL of random processes all along, and every number compared at the end.

KILLS, SEED and RATE (events/s) change it; the seed is printed. Exit 1 on any difference.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from infra.clock import MINUTE_MS, now_ms
from infra.embedded.state import Folder
from infra.errors import AdclickError
from ingest import dead_letters
from ingest.replay import Pace, replay_files
from ingest.synthetic.generator import Spec, make
from query.command import Client
from query.questions import battery, dead_letters_differ
from tests.conftest import adclick
from tests.product import SPAN_MS, Product, wait_until

TARGETS = ("ingest-0", "ingest-1", "archive-0", "stream-0", "stream-1", "query-0", "redis", "clickhouse", "kafka")
PAUSE_S = (3.0, 12.0)


def campaign(kills: int, seed: int, rate: int) -> bool:
    """Run it; returns whether everything was the truth."""
    rng = random.Random(seed)
    plan = [(rng.uniform(*PAUSE_S), rng.choice(TARGETS)) for _ in range(kills)]
    seconds = sum(pause for pause, _ in plan)
    end = now_ms() // MINUTE_MS * MINUTE_MS
    events = int(rate * seconds)
    spec = Spec(events=events, seed=seed, start_ms=end - SPAN_MS, span_ms=SPAN_MS, late=0.01, malformed=0.005)
    print(f"seed {seed}: {kills} kills over {events:,} events in {seconds:.0f} s", flush=True)
    work = Path(tempfile.mkdtemp(prefix="adclick-chaos-"))
    product = Product(Folder(work / "stack"), make(spec), spec.start_ms, [])
    source = work / "events.ndjson"
    source.write_bytes(b"\n".join(product.made.lines.to_list()) + b"\n")
    stop = threading.Event()
    try:
        product.up("--ingest-workers", "2", "--stream-workers", "2")
        killer = threading.Thread(target=_strike, args=(product, plan, stop))
        killer.start()
        replay_files(product.app, [source], Pace(rate=rate), 0)
        killer.join()
        quiet = time.monotonic()
        wait_until(product.caught_up, 240, "all counted")
        print(f"quiet after {time.monotonic() - quiet:.0f} s; struck {dict(Counter(product.kills))}", flush=True)
        time.sleep(15)
        return _compare(product)
    finally:
        stop.set()
        adclick("down", "--dir", str(work / "stack"))
        shutil.rmtree(work, ignore_errors=True)


def _strike(product: Product, plan: list[tuple[float, str]], stop: threading.Event) -> None:
    for pause, name in plan:
        if stop.wait(pause):
            return
        product.kill(name)


def _compare(product: Product) -> bool:
    client, truths = Client(product.settings), product.truths
    asks = battery(truths, product.start_ms, product.start_ms + SPAN_MS)
    wrong = [v for v in (truths.check(client, a) for a in asks) if v.wrong]
    for verdict in wrong[:10]:
        print(f"WRONG {verdict.ask.parameters()}: {verdict.wrong}")
    letters = [(x.value, x.headers["reason"]) for x in dead_letters.read(product.settings)]
    differ = dead_letters_differ(product.made.truth, product.made.lines, letters)
    print(f"{len(asks) - len(wrong)} of {len(asks)} answers exact; {len(letters)} dead letters: {differ or 'exact'}")
    return not wrong and not differ


def main() -> None:
    """Read the environment and run."""
    number = {
        n: int(os.environ.get(n) or d)
        for n, d in (("KILLS", "12"), ("SEED", str(now_ms() % 100_000)), ("RATE", "3000"))
    }
    try:
        good = campaign(number["KILLS"], number["SEED"], number["RATE"])
    except AdclickError as error:
        print(f"failed: {error}")
        good = False
    if not good:
        print(f"repeat it with: make chaos KILLS={number['KILLS']} SEED={number['SEED']} RATE={number['RATE']}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
