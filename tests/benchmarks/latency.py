"""`make bench-latency`: from producing an event until its count is in an answer over HTTP, under load.

Each probe is the only event of a campaign of its own, so that its arrival is unmistakable. The load is `adclick replay` of
synthetic events that happen while they are sent, at 10, 50 and 80 % of the speed in `.bench/pipeline.json` (or FULL).
Figures go to `.bench/latency.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from infra.clock import iso, now_ms
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from ingest.synthetic.command import write_lines
from ingest.synthetic.generator import Spec, generate_events
from query.client import Client
from tests.benchmarks.stack import ADCLICK, RESULTS, Bench, bench, save

_FIRST_CAMPAIGN, _MOST_PROBES = 1_000_000_000, 1_000_000
_WARM_S, _PROBE_EVERY_S = 8.0, 0.02
_GIVEN_UP_S = 60.0
_GENERATED_PER_S = 150_000
_ASKED_AT_ONCE, _ASK_EVERY_S = 100, 0.1


def full_speed() -> int:
    """Events a second that the pipeline did."""
    if "FULL" in os.environ:
        return int(os.environ["FULL"])
    found = RESULTS / "pipeline.json"
    if not found.exists():
        sys.exit("how fast is full speed? run `make bench` first, or say FULL=200000")
    return int(json.loads(found.read_text())["events_per_s"])


class Probes:
    """Events that are waited for."""

    def __init__(self, stack: Bench, series: int) -> None:
        """`series` keeps their campaigns apart from those that were waited for before."""
        self._settings = stack.settings
        self._producer = EventProducer(stack.settings.kafka_connection)
        self._client = Client(stack.settings)
        self._sent: dict[int, float] = {}
        self._asked_at = 0.0
        self._next = _FIRST_CAMPAIGN + series * _MOST_PROBES

    def run(self, count: int) -> list[float]:
        """Send so many at even intervals; how long each took, in ms. Those that never came are infinite."""
        took: list[float] = []
        done = threading.Event()
        sender = threading.Thread(target=self._send, args=(count, done))
        sender.start()
        while not (done.is_set() and not self._sent):
            took += self._look()
        sender.join()
        return took

    def _send(self, count: int, done: threading.Event) -> None:
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number * _PROBE_EVERY_S - time.monotonic()))
            campaign, self._next = self._next, self._next + 1
            event = {
                "event_id": f"probe-{campaign}", "event_type": "impression", "event_time": now_ms(),
                "campaign_id": campaign, "ad_id": 1, "advertiser_id": _FIRST_CAMPAIGN, "publisher_id": 1,
            }  # fmt: skip
            self._sent[campaign] = time.monotonic()
            self._producer.send(topics.EVENTS, [str(event["event_id"]).encode()], [json.dumps(event).encode()])
        self._producer.flush(10)
        done.set()

    def _look(self) -> list[float]:
        """Ask for the oldest that are missing."""
        wanted = list(self._sent)[:_ASKED_AT_ONCE]
        if not wanted:
            time.sleep(0.005)
            return []
        # Asking without a pause would take a third of a core from what is measured.
        time.sleep(max(0.0, self._asked_at + _ASK_EVERY_S - time.monotonic()))
        self._asked_at = time.monotonic()
        start = now_ms() - 10 * 60_000
        parameters = [
            ("campaign_id", ",".join(map(str, wanted))),
            ("start", iso(start)),
            ("end", iso(start + 1_200_000)),
        ]
        parameters += [("granularity", "total"), ("group_by", "campaign_id")]
        found = self._client.get("/v1/metrics", parameters)["data"]
        now, took = time.monotonic(), []
        for row in found:
            if row["impressions"]:
                took.append((now - self._sent.pop(row["campaign_id"])) * 1000)
        for campaign in [c for c in wanted if c in self._sent and now - self._sent[c] > _GIVEN_UP_S]:
            del self._sent[campaign]
            took.append(float("inf"))
        return took


def under_load(stack: Bench, rate: int, probes: int, seed: int) -> list[float]:
    """Latencies in ms while events come at a rate."""
    seconds = _WARM_S + probes * _PROBE_EVERY_S + 4.0
    events = int(rate * seconds)
    # Generating takes a while, and the events happen while they are sent.
    start_ms = now_ms() + int(events / _GENERATED_PER_S * 1000) + 5_000
    spec = Spec(
        events=events, seed=seed, start_ms=start_ms, span_ms=int(seconds * 1000), late=0.001, malformed=0.0,
        future=0.0, bursts=0.0,
    )  # fmt: skip
    file = stack.work / f"load-{rate}.ndjson"
    write_lines(generate_events(spec), file)
    time.sleep(max(0.0, (start_ms - now_ms()) / 1000))
    words = ["replay", str(file), "--rate", str(rate), "--dir", str(stack.stack), "-q"]
    with subprocess.Popen([*ADCLICK, *words], stdout=subprocess.DEVNULL) as load:
        time.sleep(_WARM_S)
        found = Probes(stack, seed).run(probes)
        if load.wait(120):
            sys.exit("the load was not acknowledged")
    file.unlink()
    return found


def main() -> None:
    """Three levels of load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=2_000)
    parser.add_argument("--shares", default="10,50,80")
    options = parser.parse_args()
    full = full_speed()
    report: dict[str, Any] = {"full_events_per_s": full, "probes": options.probes}
    with bench() as stack:
        stack.start(1, 1)
        under_load(stack, 5_000, 50, 0)
        for share in map(int, options.shares.split(",")):
            took = sorted(under_load(stack, full * share // 100, options.probes, share))
            for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                report[f"{name}_ms_at_{share}"] = round(took[int(at * (len(took) - 1))])
            report[f"max_ms_at_{share}"] = round(took[-1], 0)
            report[f"never_at_{share}"] = sum(t == float("inf") for t in took)
    save("latency", report)
    stack.app.table(["", ""], list(report.items()))
    sys.exit(1 if any(report[name] for name in report if name.startswith("never")) else 0)


if __name__ == "__main__":
    main()
