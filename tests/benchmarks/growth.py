"""`make bench-growth`: CPU for each event as one thing grows and the rest stays. A line that bends upward is a fault, or explained.

A run of the pipeline for each point, the bare loop beside it; figures go to `.bench/growth.json`, the chart to `.bench/growth.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import matplotlib

from infra.clock import MINUTE_MS
from ingest.synthetic.generator import Spec
from tests.benchmarks.pipeline import run
from tests.benchmarks.stack import RESULTS, across_midnight, save

matplotlib.use("svg")
from matplotlib import pyplot

_MOST_EVENTS = 100_000_000
_SHOWN = ("cpu_s_per_million", "bare_cpu_s_per_million")
_TOLD = (*_SHOWN, "ratio_to_bare", "events_per_s", "peak_mb_workers", "exact")


@dataclass(frozen=True)
class Point:
    """One run: what differs from `make bench`, but for fewer events."""

    line: str
    value: int
    events: int = 3_000_000
    minutes: int = 30
    workers: int = 1
    partitions: int = 4
    """Of `ad-events`."""
    shards: int = 4
    """Partitions of blocks, and of what the stream makes of them."""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What its figures are called by."""
        return f"{self.line.replace(', %', '').replace(' ', '_')}_{self.value}"


def points(most_events: int) -> list[Point]:
    """All runs."""
    return [
        # As many a minute in each.
        *(
            Point("events", n, events=n, minutes=max(1, n // 333_333))
            for n in (1_000_000, 3_000_000, 10_000_000, _MOST_EVENTS)
            if n <= most_events
        ),
        *(Point("campaigns", n, more={"campaigns": n}) for n in (100, 1_000, 100_000)),
        # With 100,000 campaigns nearly every event is a partial of its own.
        *(
            Point("events of one minute", n, events=max(3_000_000, n), minutes=max(1, 3_000_000 // n), more={"campaigns": 100_000})
            for n in (10_000, 100_000, 1_000_000, 5_000_000)
        ),
        *(Point("duplicates, %", n, more={"duplicates": n / 100}) for n in (0, 1, 10, 30)),
        # A million a minute: installations with few events need few partitions.
        *(Point("partitions of events", n, 12_000_000, 12, partitions=n, shards=4) for n in (4, 16, 64)),
        *(Point("partitions of all topics", n, 12_000_000, 12, partitions=n, shards=n) for n in (4, 16, 64)),
        *(Point("workers of each kind", n, 12_000_000, 12, n, partitions=16, shards=16) for n in (1, 2, 4, 8)),
    ]  # fmt: skip


def measured(point: Point) -> dict[str, Any]:
    """The report of one run."""
    os.environ |= {"ADCLICK_EVENT_PARTITIONS": str(point.partitions), "ADCLICK_BLOCK_PARTITIONS": str(point.shards)}
    span_ms = point.minutes * MINUTE_MS
    given = {"late": 0.001, "malformed": 0.0, "future": 0.0} | point.more
    spec = Spec(events=point.events, start_ms=across_midnight(span_ms), span_ms=span_ms, **given)
    return run(spec, point.workers, point.workers)


def draw(flat: dict[str, Any]) -> None:
    """A panel for each line: CPU seconds per million events, ours and the bare loop's."""
    lines: dict[str, list[Point]] = {}
    for point in points(_MOST_EVENTS):
        if f"{point.key}_exact" in flat:
            lines.setdefault(point.line, []).append(point)
    figure, panels = pyplot.subplots(2, 4, figsize=(13, 6), sharey=True, layout="constrained")
    for panel, (line, found) in zip(panels.flat, lines.items(), strict=False):
        at = range(len(found))
        for name, label in zip(_SHOWN, ("adclick", "bare loop"), strict=True):
            panel.plot(at, [flat[f"{point.key}_{name}"] for point in found], marker="o", label=label)
        panel.set_xticks(at, [f"{point.value:,}" for point in found])
        panel.set(xlabel=line, ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.supylabel("CPU seconds per million events")
    figure.savefig(RESULTS / "growth.svg", metadata={"Date": None})


def main() -> None:
    """Run all, or one line, or one point of it: what was measured before is kept then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one line, like campaigns")
    parser.add_argument("--at", type=int, help="one point of it")
    parser.add_argument("--most-events", type=int, default=int(os.environ.get("EVENTS") or 10_000_000))
    options = parser.parse_args()
    file = RESULTS / "growth.json"
    flat: dict[str, Any] = json.loads(file.read_text()) if options.only and file.exists() else {}
    exact = True
    for point in points(options.most_events):
        if options.only not in (None, point.line) or options.at not in (None, point.value):
            continue
        report = measured(point)
        exact &= bool(report["exact"])
        flat |= {f"{point.key}_{name}": report[name] for name in _TOLD}
        save("growth", flat)
        draw(flat)
        told = ", ".join(f"{name} {report[name]}" for name in _TOLD)
        print(f"{point.line} {point.value:,}: {told}", flush=True)
    sys.exit(0 if exact else 1)


if __name__ == "__main__":
    main()
