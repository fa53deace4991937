"""`make cluster` and `make cluster-chaos`: the pipeline on clusters, with two workers of each kind, while they are struck; and all numbers
compared at the end.

STRIKES (0 for `make cluster`), SEED and RATE (events/s) change it. Exit 1 on any difference, and where answers never become fresh again.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from infra.errors import AdclickError, Unavailable
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from tests.chaos.watcher import countable
from tests.clusters import recoveries
from tests.clusters.everything import Clusters
from tests.clusters.recoveries import Recovery
from tests.clusters.strikes import ClusterStrike, plan
from tests.flow import Flow, RouterClient, flow
from tests.product import COUNTS, PATIENCE

WORKERS = ("ingest-0", "ingest-1", "archive-0", "archive-1", "stream-0", "stream-1")
# Longer than a strike and the pause behind it take, with all that recovers meanwhile: what is not sent by then is sent at once.
_STRIKE_S, _PAUSE_S = 40.0, 2.0
_SLICE_S, _POLL_S = 0.2, 0.5
_RECOVERY_S = 300.0


class Sender:
    """Sends the events of a flow at a rate, and knows how many brokers have acknowledged."""

    def __init__(self, running: Flow, rate: int) -> None:
        self._flow, self._rate = running, rate
        self._producer = EventProducer(running.settings.kafka_connection)
        self.failure = "the sender ended before it had sent all events"
        self.in_a_hurry = self.has_sent_all = False

    @property
    def acknowledged(self) -> int:
        return self._producer.acknowledged

    def run(self) -> None:
        events, topic = self._flow.events, self._flow.settings.topic(EVENTS)
        began, step = time.monotonic(), max(1, int(self._rate * _SLICE_S))
        for start in range(0, len(events.lines), step):
            keys = [None if key is None else key.encode() for key in events.keys[start : start + step]]
            self._producer.send(topic, keys, events.lines[start : start + step].to_list())
            if not self.in_a_hurry:
                time.sleep(max(0.0, began + (start + step) / self._rate - time.monotonic()))
        self.has_sent_all = True
        missing = self._producer.flush(300)
        self.failure = f"{missing} messages were never acknowledged" if missing else ""


class Reader:
    """Asks for all hours by campaign, all the time: how many events answers have, and whether closed counts ever decrease."""

    def __init__(self, running: Flow) -> None:
        self._flow = running
        self._closed: dict[tuple[str, int], tuple[int, ...]] = {}
        self._stop = threading.Event()
        self.shown: list[tuple[float, int]] = []
        """(moment, events in an answer to which nothing was missing)."""
        self.decreases: list[str] = []
        """Of closed counts, and of the sum of all that was shown."""
        self.failure = ""

    @property
    def problems(self) -> list[str]:
        """What is wrong with the answers, and with having read them."""
        unread = [] if self.shown else ["no answer was whole: nothing was compared"]
        return [*filter(None, [self.failure]), *unread, *self.decreases]

    def run(self) -> None:
        try:
            self._read_until_stopped()
        except Exception as error:
            self.failure = f"the reader ended: {error!r}"
            raise

    def _read_until_stopped(self) -> None:
        parameters = [
            *self._flow.parameters(),
            ("granularity", "hour"),
            ("group_by", "campaign_id"),
            ("limit", "10000"),
        ]
        settings, client = self._flow.settings, RouterClient(self._flow.settings)
        while not self._stop.wait(_POLL_S):
            if settings is not self._flow.settings:  # as when secrets are rotated
                settings, client = self._flow.settings, RouterClient(self._flow.settings)
            try:
                answer = client.get("", parameters)
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
        total = sum(int(str(row[name])) for row in rows for name in COUNTS)
        if self.shown and total < self.shown[-1][1]:
            self.decreases.append(f"{self.shown[-1][1]:,} events were shown, and then {total:,}")
        self.shown.append((time.monotonic(), total))

    def fresh_since(self, events: int, since: float) -> float | None:
        """How long after a moment answers had so many events; None: they have not yet."""
        return next((at - since for at, count in self.shown if at >= since and count >= events), None)


class Campaign:
    """Strikes at what runs on clusters, and what became of them."""

    def __init__(self, clusters: Clusters, running: Flow, sender: Sender, reader: Reader, seed: int) -> None:
        self._clusters, self._running, self._sender, self._reader = clusters, running, sender, reader
        self._seed, self._rng = seed, random.Random(seed)
        self._counts = countable(running.events).cumsum()
        self.recoveries: list[Recovery] = []
        self.never_fresh: list[str] = []
        """A line for each strike after which answers did not become fresh, whether its recovery is kept or not."""

    def run(self, strikes: int) -> None:
        """Carry out so many strikes, and wait behind each of them until answers are fresh."""
        for number, strike in enumerate(plan(strikes, self._rng), 1):
            step: ClusterStrike | None = strike
            while step is not None:
                time.sleep(_PAUSE_S)
                print(f"{number}/{strikes} {step.name}", end="", flush=True)
                self._carry_out(step)
                step = step.then

    def _carry_out(self, strike: ClusterStrike) -> None:
        began = time.monotonic()
        strike.carry_out(self._clusters, self._running, self._rng)
        ended = time.monotonic()
        acknowledged, was_idle = self._sender.acknowledged, self._sender.has_sent_all
        recovered = self._until_fresh(int(self._counts[acknowledged - 1]) if acknowledged else 0, ended)
        recovery = recoveries.recovery(self._seed, strike.name, recovered)
        note = "; not kept: all was sent before" if was_idle else ""
        print(f": {ended - began:.1f} s, fresh after {recovered:.1f} s, load {recovery.load:.0f}{note}", flush=True)
        if not recovery.is_fresh:
            self.never_fresh.append(f"{strike.name}: answers did not become fresh")
        if not was_idle:
            recoveries.keep(recovery)
            self.recoveries.append(recovery)

    def _until_fresh(self, events: int, since: float) -> float:
        while (fresh_after := self._reader.fresh_since(events, since)) is None:
            if time.monotonic() > since + _RECOVERY_S:
                return float("inf")
            self._running.restart_stopped()
            time.sleep(0.1)
        return fresh_after


def run(strikes: int, seed: int, rate: int, clusters: Clusters, folder: Path) -> bool:
    """Run a campaign on clusters; returns whether every number was exact."""
    events = max(20_000, int(rate * _STRIKE_S * strikes))
    # So many partitions that a third worker has one, too.
    settings = clusters.settings(event_partitions=3, block_partitions=3, heartbeat_ms=500)
    print(f"seed {seed}: {strikes} strikes over {events:,} events", flush=True)
    with flow(settings, folder, events=events, seed=seed, campaigns=60) as running:
        for worker in WORKERS:
            running.start(worker)
        sender, reader = Sender(running, rate if strikes else 10 * rate), Reader(running)
        campaign = Campaign(clusters, running, sender, reader, seed)
        threads = [threading.Thread(target=sender.run), threading.Thread(target=reader.run)]
        for thread in threads:
            thread.start()
        try:
            campaign.run(strikes)
            sender.in_a_hurry = True
            threads[0].join()
            running.wait_until_exact(120)
            running.wait_until_archived(120)
        finally:
            sender.in_a_hurry = True
            reader.stop()
            threads[1].join()
        return _report(campaign, sender, reader, running)


def _report(campaign: Campaign, sender: Sender, reader: Reader, running: Flow) -> bool:
    """Print the recoveries and the problems; returns whether there are none of these."""
    if campaign.recoveries:
        print(recoveries.table(campaign.recoveries))
    problems = [*filter(None, [sender.failure]), *reader.problems, *campaign.never_fresh]
    for problem in problems[:20]:
        print(f"WRONG {problem}")
    print(f"{len(reader.shown)} whole answers read meanwhile; workers that stopped by themselves: {running.restarts}")
    return not problems


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
