"""`make cluster` and `make cluster-chaos`: the pipeline on clusters, with two workers of each kind, while they are struck; and all numbers
compared at the end.

STRIKES (0 for `make cluster`), SEED and RATE (events/s) change it. Exit 1 on any difference.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from infra.errors import AdclickError, Unavailable
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from tests.chaos.watcher import countable
from tests.clusters.everything import Clusters
from tests.clusters.strikes import ClusterStrike, plan
from tests.flow import Flow, RouterClient, flow
from tests.product import COUNTS, PATIENCE

WORKERS = ("ingest-0", "ingest-1", "archive-0", "archive-1", "stream-0", "stream-1")
# About as long as a strike and the pause behind it take, with all that recovers meanwhile.
_STRIKE_S, _PAUSE_S = 12.0, 2.0
_SLICE_S, _POLL_S = 0.2, 0.5
_RECOVERY_S = 60.0


class Sender:
    """Sends the events of a flow at a rate, and knows how many brokers have acknowledged."""

    def __init__(self, running: Flow, rate: int) -> None:
        self._flow, self._rate = running, rate
        self._producer = EventProducer(running.settings.kafka_connection)
        self.failure = ""

    @property
    def acknowledged(self) -> int:
        return self._producer.acknowledged

    def run(self) -> None:
        events, topic = self._flow.events, self._flow.settings.topic(EVENTS)
        began, step = time.monotonic(), max(1, int(self._rate * _SLICE_S))
        for start in range(0, len(events.lines), step):
            keys = [None if key is None else key.encode() for key in events.keys[start : start + step]]
            self._producer.send(topic, keys, events.lines[start : start + step].to_list())
            time.sleep(max(0.0, began + (start + step) / self._rate - time.monotonic()))
        if missing := self._producer.flush(300):
            self.failure = f"{missing} messages were never acknowledged"


class Reader:
    """Asks for all hours by campaign, all the time: how many events answers have, and whether closed counts ever decrease."""

    def __init__(self, running: Flow) -> None:
        self._flow, self._client = running, RouterClient(running.settings)
        self._closed: dict[tuple[str, int], tuple[int, ...]] = {}
        self._stop = threading.Event()
        self.shown: list[tuple[float, int]] = []
        """(moment, events in an answer to which nothing was missing)."""
        self.decreases: list[str] = []

    def run(self) -> None:
        parameters = [
            *self._flow.parameters(),
            ("granularity", "hour"),
            ("group_by", "campaign_id"),
            ("limit", "10000"),
        ]
        while not self._stop.wait(_POLL_S):
            try:
                answer = self._client.get("", parameters)
            except Unavailable:
                continue
            if not answer["warnings"]:
                self._check(answer["data"])

    def stop(self) -> None:
        self._stop.set()

    def _check(self, rows: Sequence[dict[str, object]]) -> None:
        counts = {(str(row["time"]), int(str(row["campaign_id"]))): row for row in rows}
        for key, before in self._closed.items():
            after = tuple(int(str(counts[key][name])) for name in COUNTS) if key in counts else (0, 0, 0)
            if any(a < b for a, b in zip(after, before, strict=True)):
                self.decreases.append(f"{key}: {before}, and then {after}")
        for key, row in counts.items():
            if row["finality"] != "provisional":
                self._closed[key] = tuple(int(str(row[name])) for name in COUNTS)
        self.shown.append((time.monotonic(), sum(int(str(row[name])) for row in rows for name in COUNTS)))

    def recovery_s(self, events: int, since: float) -> float:
        """How long after a moment answers had so many events; infinite for never within a minute."""
        deadline = time.monotonic() + _RECOVERY_S
        while time.monotonic() < deadline:
            first = next((at for at, count in self.shown if at >= since and count >= events), None)
            if first is not None:
                return first - since
            time.sleep(0.1)
        return float("inf")


def run(strikes: int, seed: int, rate: int, clusters: Clusters, folder: Path) -> bool:
    """Run a campaign on clusters; returns whether every number was exact."""
    rng = random.Random(seed)
    events = max(20_000, int(rate * _STRIKE_S * strikes))
    settings = clusters.settings(event_partitions=2, block_partitions=2, heartbeat_ms=500)
    print(f"seed {seed}: {strikes} strikes over {events:,} events", flush=True)
    with flow(settings, folder, events=events, seed=seed, campaigns=60) as running:
        for worker in WORKERS:
            running.start(worker)
        sender, reader = Sender(running, rate if strikes else 10 * rate), Reader(running)
        threads = [threading.Thread(target=sender.run), threading.Thread(target=reader.run)]
        for thread in threads:
            thread.start()
        try:
            recoveries = _strike(plan(strikes, rng), clusters, running, sender, reader, rng)
            threads[0].join()
            running.wait_until_exact(120)
            running.wait_until_archived(120)
        finally:
            reader.stop()
            threads[1].join()
        _report(recoveries)
        for problem in (*filter(None, [sender.failure]), *reader.decreases[:10]):
            print(f"WRONG {problem}")
        print(
            f"{len(reader.shown)} whole answers read meanwhile; workers that stopped by themselves: {running.restarts}"
        )
        return not sender.failure and not reader.decreases


def _strike(
    strikes: Sequence[ClusterStrike],
    clusters: Clusters,
    running: Flow,
    sender: Sender,
    reader: Reader,
    rng: random.Random,
) -> dict[str, list[float]]:
    recoveries: dict[str, list[float]] = defaultdict(list)
    counts = countable(running.events).cumsum()
    for number, strike in enumerate(strikes, 1):
        time.sleep(_PAUSE_S)
        print(f"{number}/{len(strikes)} {strike.name}", end="", flush=True)
        began = time.monotonic()
        strike.carry_out(clusters, running, rng)
        ended = time.monotonic()
        acknowledged = sender.acknowledged
        recovered = reader.recovery_s(int(counts[acknowledged - 1]) if acknowledged else 0, ended)
        recoveries[strike.name].append(recovered)
        print(f": {ended - began:.1f} s, fresh after {recovered:.1f} s", flush=True)
        running.restart_stopped()
    return recoveries


def _report(recoveries: dict[str, list[float]]) -> None:
    print(f"{'strike':30} {'times':>5} {'p50':>6} {'max':>6}  (s until all that was sent by then is shown)")
    for name, seconds in sorted(recoveries.items()):
        print(f"{name:30} {len(seconds):5} {statistics.median(seconds):6.1f} {max(seconds):6.1f}")


def main() -> None:
    """Run one campaign on clusters of its own."""
    strikes = int(os.environ.get("STRIKES", "0"))
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    folder = Path(tempfile.mkdtemp(prefix="adclick-clusters-"))
    began = time.monotonic()
    try:
        with Clusters(folder).running() as clusters:
            print(f"clusters are up after {time.monotonic() - began:.0f} s", flush=True)
            exact = run(strikes, seed, int(os.environ.get("RATE", "500")), clusters, folder)
    except (AssertionError, AdclickError) as error:
        print(f"WRONG {error}")
        exact = False
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{'exact' if exact else 'NOT EXACT'} after {time.monotonic() - began:.0f} s (PATIENCE {PATIENCE:.0f})")
    sys.exit(0 if exact else 1)


if __name__ == "__main__":
    main()
