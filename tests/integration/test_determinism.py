"""The same log gives the same bytes with any number of workers, any batch size, and any deaths of workers."""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from pydantic_core import to_json

from infra.clock import HOUR_MS, now_ms
from infra.settings import Settings
from ingest.dead_letters import letters as dead_letters
from tests.flow import Flow, RouterClient, flow

EVENTS = 12_000
DIMENSIONS = "campaign_id,ad_id,publisher_id,country,device"
LOG = {"events": EVENTS, "late": 0.02, "duplicates": 0.1, "malformed": 0.02, "future": 0.005}


def export(running: Flow) -> dict[str, list[str]]:
    """All that readers can get: answers in all dimensions, archived rows with their verdicts, and dead letters."""
    client, answers = RouterClient(running.settings), []
    for grain in ("minute", "hour"):
        parameters = [*running.parameters(), ("granularity", grain), ("group_by", DIMENSIONS), ("limit", "10000")]
        cursor: list[tuple[str, str]] = []
        while True:
            document = client.get("", parameters + cursor)
            # How final a number is depends on the clock; the number does not.
            answers += [[v for k, v in row.items() if k != "finality"] for row in document["data"]]
            if document["next_cursor"] is None:
                break
            cursor = [("cursor", document["next_cursor"])]
    rows = pl.concat([pl.read_parquet(f) for f in Path(running.settings.archive).rglob("*.parquet")])
    rows = rows.drop("log_time_ms").unique(["partition", "offset"]).sort("partition", "offset")
    # How far ahead of the log an event is, is part of a detail, and each copy of the log has times of its own.
    letters = sorted(
        (x.headers["source"].split("_", 1)[1], x.headers["reason"], x.headers["detail"].split(" ms ahead")[-1], x.value)
        for x in dead_letters.read_letters(running.settings)
    )
    return {
        "answers": [to_json(x).decode() for x in answers],
        "archive": rows.write_ndjson().splitlines(),
        "letters": [repr(x) for x in letters],
    }


def read(
    settings: Settings, folder: Path, start_ms: int, *, workers: int, batch: int, kills: int
) -> dict[str, list[str]]:
    """Process the log with so many workers of each kind, batches of that size and this many kills; returns the export."""
    with flow(settings, folder, start_ms, **LOG) as running:
        # Messages without a key would go to any partition.
        running.events = dataclasses.replace(running.events, keys=running.events.keys.fill_null("none"))
        running.settings = running.settings.model_copy(update={"ingest_batch": batch, "archive_flush_ms": 1_000})
        names = [f"{kind}-{n}" for kind in ("ingest", "stream") for n in range(workers)] + ["archive-0"]
        for name in names:
            running.start(name)
        rng = random.Random(batch)
        for _ in range(kills):
            running.send(EVENTS // (kills + 2))
            time.sleep(rng.uniform(0.5, 2.0))
            name = rng.choice(names)
            running.workers[name].send_signal(signal.SIGKILL)
            running.workers[name].wait()
            running.start(name)
        running.send()
        running.wait_until_exact(90)
        running.wait_until_archived(40)
        return export(running)


def first_difference(expected: list[str], actual: list[str]) -> tuple[int, int, str, str] | None:
    """How many lines differ, the number of the first one, and both versions of it. (A diff of megabytes would take hours.)"""
    pairs = list(itertools.zip_longest(expected, actual, fillvalue="nothing"))
    different = [n for n, (a, b) in enumerate(pairs) if a != b]
    return (len(different), different[0], *pairs[different[0]]) if different else None


def test_the_same_log_gives_the_same_bytes(new_settings: Callable[[], Settings], tmp_path: Path) -> None:
    # One log: another hour may begin between the two.
    start_ms = (now_ms() - 5 * HOUR_MS) // HOUR_MS * HOUR_MS
    alone = read(new_settings(), tmp_path, start_ms, workers=1, batch=50_000, kills=0)
    assert all(len(lines) > 100 for lines in alone.values())
    parallel = read(new_settings(), tmp_path, start_ms, workers=3, batch=700, kills=4)
    different = {part: first_difference(expected, parallel[part]) for part, expected in alone.items()}
    assert not any(different.values()), different
