"""What has been measured of a part of adclick, as `constants.toml` beside this module has it."""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from infra.structs import decodable

FILE = Path(__file__).with_name("constants.toml")


@decodable
@dataclass(frozen=True)
class Work:
    """What a pipeline does in a time: seconds that pass, and what is counted in them."""

    seconds: float = 0.0
    events: float = 0.0
    cells: float = 0.0
    """Campaigns with an event, of each flush of minutes: as many cells are written to Redis."""
    rows: float = 0.0
    """Rows and registers that are written to ClickHouse."""
    spread: float = 0.0
    """Events, or rows where a table is meant, times the logarithm of the number of campaigns: what sorting takes, and ids that
    differ."""


@decodable
@dataclass(frozen=True)
class LinearCost:
    """A quantity that grows with seconds, events, cells, rows and spread, each by a factor of its own."""

    what: str
    unit: str
    measured: dt.date
    source: str
    second: float = 0.0
    event: float = 0.0
    cell: float = 0.0
    row: float = 0.0
    spread: float = 0.0

    def of(self, work: Work, instances: float = 1.0) -> float:
        """The quantity for so much work, divided among so many instances: each has the cost of time passing."""
        time = self.second * work.seconds * instances
        counted = self.event * work.events + self.cell * work.cells + self.row * work.rows
        return time + counted + self.spread * work.spread


@decodable
@dataclass(frozen=True)
class Measure:
    """One number."""

    value: float
    unit: str
    what: str
    measured: dt.date
    source: str


@decodable
@dataclass(frozen=True)
class Assumption:
    """A number that was chosen, and why."""

    value: float
    unit: str
    why: str


@decodable
@dataclass(frozen=True)
class Constants:
    """All of the file."""

    cpu: dict[str, LinearCost]
    """Part → CPU, in events of the bare loop (`tests/benchmarks/bare.py`) that would take as much."""
    written: dict[str, LinearCost]
    """Topic or store → bytes."""
    stored: dict[str, LinearCost]
    """Table of ClickHouse → bytes on disk."""
    size: dict[str, Measure]
    assumed: dict[str, Assumption]

    def measure(self, name: str) -> float:
        """A number of `size`."""
        return self.size[name].value

    def assumption(self, name: str) -> float:
        """A number of `assumed`."""
        return self.assumed[name].value


@cache
def load_constants() -> Constants:
    """The file that comes with this version."""
    return msgspec.convert(tomllib.loads(FILE.read_text()), Constants)
