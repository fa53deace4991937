"""The same log gives the same bytes, whoever reads it, in whatever batches, and whoever dies meanwhile."""

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
from ingest import dead_letters
from tests.flow import Direct, Flow, flow

EVENTS = 12_000
DIMENSIONS = "campaign_id,ad_id,publisher_id,country,device"
LOG = {"events": EVENTS, "late": 0.02, "duplicates": 0.1, "malformed": 0.02, "future": 0.005}


def export(running: Flow) -> dict[str, list[str]]:
    """All that readers can get: answers in all dimensions, archived rows with their verdicts, and dead letters."""
    asker, answers = Direct(running.settings), []
    for grain in ("minute", "hour"):
        asked = [*running.asked(), ("granularity", grain), ("group_by", DIMENSIONS), ("limit", "10000")]
        cursor: list[tuple[str, str]] = []
        while True:
            found = asker.get("", asked + cursor)
            # How final a number is depends on the clock; the number does not.
            answers += [[v for k, v in row.items() if k != "finality"] for row in found["data"]]
            if found["next_cursor"] is None:
                break
            cursor = [("cursor", found["next_cursor"])]
    rows = pl.concat([pl.read_parquet(f) for f in Path(running.settings.archive).rglob("*.parquet")])
    rows = rows.drop("log_time_ms").unique(["partition", "offset"]).sort("partition", "offset")
    # How far ahead of the log an event is, is part of a detail, and each copy of the log has times of its own.
    letters = sorted(
        (x.headers["source"].split("_", 1)[1], x.headers["reason"], x.headers["detail"].split(" ms ahead")[-1], x.value)
        for x in dead_letters.read(running.settings)
    )
    return {
        "answers": [to_json(x).decode() for x in answers],
        "archive": rows.write_ndjson().splitlines(),
        "letters": [repr(x) for x in letters],
    }


def read(
    settings: Settings, folder: Path, start_ms: int, *, workers: int, batch: int, kills: int
) -> dict[str, list[str]]:
    """What comes of the log with so many workers of each kind, batches of that size, and kills now and then."""
    with flow(settings, folder, start_ms, **LOG) as running:
        # Messages without a key would go to any partition.
        running.made = dataclasses.replace(running.made, keys=running.made.keys.fill_null("none"))
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
        running.true_within(90)
        running.archived_within(40)
        return export(running)


def first_difference(wanted: list[str], found: list[str]) -> tuple[int, int, str, str] | None:
    """How many lines differ, the first of them, and what both say there. (A diff of megabytes would take hours.)"""
    pairs = list(itertools.zip_longest(wanted, found, fillvalue="nothing"))
    different = [n for n, (a, b) in enumerate(pairs) if a != b]
    return (len(different), different[0], *pairs[different[0]]) if different else None


def test_the_same_log_gives_the_same_bytes(new_settings: Callable[[], Settings], tmp_path: Path) -> None:
    # One log: another hour may begin between the two.
    start_ms = (now_ms() - 5 * HOUR_MS) // HOUR_MS * HOUR_MS
    alone = read(new_settings(), tmp_path, start_ms, workers=1, batch=50_000, kills=0)
    assert all(len(lines) > 100 for lines in alone.values())
    found = read(new_settings(), tmp_path, start_ms, workers=3, batch=700, kills=4)
    different = {part: first_difference(wanted, found[part]) for part, wanted in alone.items()}
    assert not any(different.values()), different
