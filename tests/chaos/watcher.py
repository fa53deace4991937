"""A client that reads all the time: how fresh the answers are, and whether counts of closed hours ever decrease."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from infra.clock import iso
from infra.errors import AdclickError
from infra.settings import Settings
from ingest.synthetic.generator import SyntheticEvents
from query.client import Client
from query.demo.oracle import Oracle
from tests.product import COUNTS, SPAN_MS, Product, wait_until

_EVERY_S = 0.5
_FRESH_S = 3.0
# What a strike does to answers shows within this time: where half of the partitions stand still, newer events of the
# other half make up for what they lack, for as long again.
_NOTICED_S = 2 * _FRESH_S + 3.0
# After all is read: enough answers to see whether one still changes for the worse.
_LAST_ANSWERS = 10


def countable(events: SyntheticEvents) -> npt.NDArray[np.bool_]:
    """Which lines count in the stream: first occurrences that are not dead-lettered."""
    keys, dead = events.keys, events.truth.dead
    # Copies of an event that came too late are copies, too; what was invalid is not remembered.
    valid = np.ones(len(keys), bool)
    valid[dead.filter(pl.col("reason") != "too-late")["line"].to_numpy()] = False
    counts = np.zeros(len(keys), bool)
    counts[valid] = keys.filter(pl.Series(valid)).is_first_distinct().to_numpy()
    counts[dead["line"].to_numpy()] = False
    return counts


class Watched(Protocol):
    """An installation, the events that are sent to it, and their truth."""

    @property
    def settings(self) -> Settings:
        """Settings of its clients."""

    @property
    def oracle(self) -> Oracle:
        """Checks answers against the truth."""

    @property
    def events(self) -> SyntheticEvents:
        """All events that are ever sent to it."""

    @property
    def start_ms(self) -> int:
        """Where they begin; they last SPAN_MS."""


@dataclass
class Watcher:
    """Asks for every hour of every campaign, twice a second."""

    product: Watched
    sent: list[tuple[float, int]]
    """(moment, lines acknowledged so far), growing."""
    freshness: list[tuple[float, bool]] = field(default_factory=list)
    """Moments of asking, and whether the answer had all that was acknowledged _FRESH_S before."""
    decreases: list[str] = field(default_factory=list)
    """Counts of closed hours that were lower in a later answer."""
    answers: int = 0
    missing: int = 0
    """Events that the last answer ought to have had, and had not."""
    messages: Counter[str] = field(default_factory=Counter)
    """Refusals and warnings, and how often."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._countable = np.concatenate(([0], np.cumsum(countable(self.product.events))))
        self._campaigns = self.product.oracle.campaigns()
        self._closed: dict[tuple[str, int], tuple[int, ...]] = {}

    def run(self) -> None:
        """Ask until `stop` is called."""
        parameters = [
            ("campaign_id", ",".join(map(str, self._campaigns))),
            ("start", iso(self.product.start_ms)),
            ("end", iso(self.product.start_ms + SPAN_MS)),
            ("granularity", "hour"),
            ("group_by", "campaign_id"),
            ("limit", "10000"),
        ]
        while not self._stop.wait(_EVERY_S):
            now = time.monotonic()
            try:
                body = Client(self.product.settings).get("/v1/metrics", parameters)
            except AdclickError as error:
                self.messages[str(error)[:90]] += 1
                self.freshness.append((now, False))
                continue
            self.answers += 1
            self.messages.update(str(w)[:90] for w in body["warnings"])
            # An answer that says that something is missing is honest, and no base for a comparison.
            if body["warnings"]:
                self.freshness.append((now, False))
            else:
                self._check(body["data"], now)

    def stop(self) -> None:
        """Let `run` return after the present answer."""
        self._stop.set()

    def wait_for_last_answers(self) -> None:
        """Wait until some more answers are read."""
        enough = self.answers + _LAST_ANSWERS
        wait_until(lambda: self.answers >= enough, _LAST_ANSWERS, f"{_LAST_ANSWERS} more answers")

    @property
    def is_fresh(self) -> bool:
        """Whether the last answer was fresh."""
        return bool(self.freshness) and self.freshness[-1][1]

    def _check(self, rows: list[dict[str, Any]], now: float) -> None:
        acknowledged = max((n for moment, n in self.sent if moment <= now - _FRESH_S), default=0)
        shown = sum(row[name] for row in rows for name in COUNTS)
        self.missing = int(self._countable[acknowledged]) - shown
        self.freshness.append((now, self.missing <= 0))
        by_key = {(row["time"], row["campaign_id"]): row for row in rows}
        for key, before in self._closed.items():
            after = tuple(by_key[key][name] for name in COUNTS) if key in by_key else (0, 0, 0)
            if any(a < b for a, b in zip(after, before, strict=True)):
                self.decreases.append(f"{key}: {before}, and then {after}")
        for key, row in by_key.items():
            if row["finality"] != "provisional":
                self._closed[key] = tuple(row[name] for name in COUNTS)

    def sent_between(self, began: float, ended: float) -> tuple[int, int]:
        """The lines [first, last) that were acknowledged between two moments."""
        counts = [n for moment, n in self.sent if began <= moment <= ended]
        return (min(counts), max(counts)) if counts else (0, 0)

    def recovery_s(self, moment: float) -> float:
        """How long after a moment answers were fresh again: 0 when they never ceased to be, infinite when never again."""
        after = [(at - moment, fresh) for at, fresh in self.freshness if at >= moment]
        stale = next((at for at, fresh in after if not fresh and at <= _NOTICED_S), None)
        if stale is None:
            return 0.0
        return next((at for at, fresh in after if fresh and at > stale), float("inf"))


@dataclass(frozen=True)
class Fates:
    """What became of the lines that were sent, by the archive: which were lost, and which counted more than once."""

    lost: npt.NDArray[np.intp]
    doubled: npt.NDArray[np.intp]
    archive_difference: str
    """How the archive differs from what was sent; empty when it does not."""

    def within(self, first: int, last: int) -> tuple[int, int]:
        """How many of the lines [first, last) were lost, and doubled."""
        lost, doubled = (int(((x >= first) & (x < last)).sum()) for x in (self.lost, self.doubled))
        return lost, doubled


def fates(product: Product) -> Fates:
    """Read the archive: each valid message once, whatever its files repeat, and each event counted once."""
    files = list((product.folder.path / "archive").rglob("*.parquet"))
    rows = pl.concat([pl.read_parquet(f, columns=["partition", "offset", "event_id", "decision"]) for f in files])
    rows = rows.unique(["partition", "offset"]).with_columns(pl.col("decision").cast(pl.String))
    keys, events = product.events.keys, product.events
    invalid = events.truth.dead.filter(pl.col("reason") != "too-late")["line"]
    sent = pl.DataFrame({"event_id": keys}).with_row_index("line").filter(~pl.col("line").is_in(invalid.implode()))
    counted = rows.filter(pl.col("decision") == "counted").group_by("event_id").agg(pl.len().alias("counted"))
    firsts = pl.DataFrame({"event_id": keys}).with_row_index("line").filter(pl.Series(countable(events)))
    judged = firsts.join(counted, on="event_id", how="left")
    archived = rows.group_by("event_id").len().sort("event_id")
    valid = sent.group_by("event_id").len().sort("event_id")
    difference = "" if archived.equals(valid) else f"{sent.height} valid messages were sent, {rows.height} are archived"
    return Fates(
        judged.filter(pl.col("counted").is_null())["line"].to_numpy(),
        judged.filter(pl.col("counted") > 1)["line"].to_numpy(),
        difference,
    )
