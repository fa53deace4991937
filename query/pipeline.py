"""The pipeline at work, as `/v1/pipeline` shows it to operators: rates, lag by stage and partition, dedup, processes.

All of it follows from what processes report and from offsets in Kafka; see `query.status`. Rates are those of the time between two
looks: a router that has looked once knows none yet.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from infra.clock import iso
from infra.embedded.stack_folder import Folder
from infra.errors import AdclickError
from infra.kafka import topics
from infra.retries import SIDE_WORK
from infra.settings import Settings
from query.processes import usage
from query.rates import Rates
from query.status import read_status

Status = dict[str, Any]
_FRESH_S = 0.9
# What the rates are called, and which counters of ingest workers each adds up.
_INGEST_RATES = {
    "ingest": ("counted", "copies", "too_late", "rejected", "shed", "doubt"),
    "first": ("counted", "too_late", "shed"),
    "copies": ("copies",),
    "doubt": ("doubt",),
    "too_late": ("too_late",),
    "rejected": ("rejected",),
}


class OwnStack:
    """The embedded stack of which this router is a process, if it is one."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the folder that the router was started with."""
        self.folder = Folder(path) if path is not None else None

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor of that folder has started this process."""
        return self.folder is not None and self.folder.is_locked() and os.getpid() in self.folder.pids().values()

    def processes(self) -> dict[str, dict[str, Any]]:
        """name → what it takes, of processes that run; and empty for those that should and do not. Nothing on a cluster."""
        if self.folder is None or not self.is_supervised:
            return {}
        running: dict[str, psutil.Process] = self.folder.processes()
        return {name: usage(running[name]) if name in running else {} for name in self.folder.pids()}


class PipelineReader:
    """Reads the state at most once a second, however many ask. Thread-safe; blocks while the backends are read."""

    def __init__(
        self, settings: Settings, stack: OwnStack, read: Callable[[Settings], Status] = read_status,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._stack, self._read, self._monotonic = settings, stack, read, monotonic
        self._lock = threading.Lock()
        self._rates = Rates()
        self._status: Status = {}
        self._at_s = float("-inf")

    def read(self) -> Status:
        """The status with rates, lag, dedup and processes; what is not known is None, or is left out of its list."""
        with self._lock:
            if self._monotonic() - self._at_s >= _FRESH_S:
                status = self._read(self._settings)
                self._at_s = self._monotonic()
                self._rates.add(counters_of(status, self._at_s))
                self._status = status | self._describe(status)
            return self._status

    def _describe(self, status: Status) -> Status:
        try:
            own = self._stack.processes()
        except (OSError, AdclickError):
            own = {}
        events, archive = (self._settings.topic(name) for name in (topics.EVENTS, topics.ARCHIVE))
        return {
            "rates": rates_of(self._rates),
            "lag": lag_of(status, events, archive),
            "dedup": dedup_of(status["counts"]),
            "processes": processes_of(status, own),
        }


def counters_of(status: Status, at_s: float) -> dict[str, tuple[float, int]]:
    """What rates are made of: counters by name, each with the moment of its count."""
    offsets = {"events": status["arrived"], "archive": status["archived"]}
    counters = {name: (at_s, offset) for name, offset in offsets.items() if offset is not None}
    for number, shard in enumerate(status["shards"]):
        if shard["events"] is not None:
            counters[f"stream/{number}"] = (at_s, shard["events"])
    for worker in status["ingest_workers"]:
        counts = worker.get("counts", {})
        for rate, names in _INGEST_RATES.items():
            if set(names) <= counts.keys():
                counters[f"{rate}/{worker['worker']}"] = (
                    worker["at_ms"] / 1000,
                    sum(counts[name] for name in names),
                )
    return counters


def rates_of(rates: Rates) -> dict[str, float | None]:
    """Events in a second, from their arrival in Kafka to where they are shown and archived."""
    totals = {"events": rates.of("events")}
    totals |= {name: rates.total(f"{name}/") for name in (*_INGEST_RATES, "stream")}
    totals["archive"] = rates.of("archive")
    return {name: None if rate is None else round(rate, 1) for name, rate in totals.items()}


def lag_of(status: Status, events: str, archive: str) -> dict[str, list[dict[str, Any]]]:
    """By stage and partition: messages to read, or by how much older answers are than what ingest has sent."""
    positions = {p: part for worker in status["ingest_workers"] for p, part in worker["partitions"].items()}
    watermarks = {p: iso(ms) for p, part in positions.items() if (ms := part.get("watermark_ms")) is not None}
    return {
        "ingest": [
            {"partition": p, "messages": lag, "watermark": watermarks.get(str(p))}
            for p, lag in enumerate(status["partitions"].get(events, []))
        ],
        "stream": [
            {"partition": number, "seconds": shard["lag_s"], "watermark": shard["watermark"]}
            for number, shard in enumerate(status["shards"])
        ],
        "archive": [{"partition": p, "messages": lag} for p, lag in enumerate(status["partitions"].get(archive, []))],
    }


def dedup_of(counts: dict[str, int]) -> dict[str, int | None]:
    """What became of the ids of valid events, since the ingest workers started; None while no worker reports it."""
    if not counts:
        return dict.fromkeys(("first", "copies", "doubt", "bloom_positives", "bloom_false"))
    return {
        "first": counts["counted"] + counts["too_late"] + counts["shed"],
        **{name: counts[name] for name in ("copies", "doubt", "bloom_positives", "bloom_false")},
    }


def processes_of(status: Status, own: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The processes that are known: of the own stack, and those that report. `state`: running, waiting, stopped."""
    waits, stopped = status["waits"], status["stopped_workers"]
    reporting = {worker["worker"] for worker in status["ingest_workers"]}
    processes = []
    for name in sorted({*own, *reporting, *waits, *stopped}):
        usage_of = own.get(name, {})
        state, why = "running", None
        if name in waits:
            state = "running" if waits[name].keys() <= SIDE_WORK else "waiting"
            why = "; ".join(waits[name].values())
        elif name in stopped:
            state, why = "stopped", stopped[name]
        elif name in own and not usage_of:
            state, why = "stopped", "it is not running; the supervisor starts it again"
        processes.append(
            {"name": name, "kind": name.rstrip("0123456789").rstrip("-"), "state": state, "why": why}
            | {field: usage_of.get(field) for field in ("pid", "cpu_s", "rss_mb")}
        )
    return processes
