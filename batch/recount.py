"""What archived rows add to a day's exact numbers: functions over columns, without Spark, Kafka or ClickHouse.

`batch.spark_job` spreads these functions over files and workers; `batch.reconcile` decides which days, and publishes.

Copies share an event_id; the earliest by (log time, partition, offset) among the events of D−1 … D+1 counts, so that neighbouring
days choose the same one. Hardly any id repeats. So every row is first counted as if it were the only one of its id (`count_alone`).
Over the whole day only hashes of ids are compared. Rows whose hash occurs twice are then subtracted, and counted again for what
they are (`count_corrections`). A hash that two ids share costs a little work, and changes nothing.

Sums come as moves: rows of MOVES, each an amount by hour, all dimensions and cause. The cause `exact` is what the day holds;
the others are what must be added to the stream's numbers, so they add up to exact − stream. The stream is that of the region where the
run is: rows of other regions, whatever was decided on them there, are all added, with a cause of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from batch.archived_rows import ELSEWHERE, PARTITIONS_APART, rows_of_day
from batch.move_tables import codes_of, exact_sums, mix_bits, weighted_sums
from infra.clickhouse.ledger_causes import Cause
from infra.clock import DAY_MS
from ingest.archive.schema import Decision

USERS_LOG2 = 12
USERS_ERROR = 1.04 / 2 ** (USERS_LOG2 / 2)
"""The standard error of how many distinct users there were, relative, by sketches of 2^USERS_LOG2 registers."""


@dataclass(frozen=True)
class Totals:
    """Archived rows of the day, each once, and a digest of which ones: a sum modulo 2^64, so order and files do not matter."""

    rows: int = 0
    digest: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.rows + other.rows, (self.digest + other.digest) % 2**64)

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.rows - other.rows, (self.digest - other.digest) % 2**64)


@dataclass(frozen=True)
class CountedRows:
    """The moves that rows add to a day, and the totals of the rows."""

    moves: pl.DataFrame
    totals: Totals


Billed = Mapping[int, Mapping[int, int]]
"""Start of each day that was reconciled → source partition → the offset up to which the day's run has read. Of a partition that is missing
it has read nothing; a day without any passes for billed, as that was not recorded."""


@dataclass(frozen=True)
class UnbilledEvents:
    """Start of an earlier day → archived events of it, without copies, that no bill has."""

    late: dict[int, int] = field(default_factory=dict)
    """Of days whose run had begun when the events were archived."""
    never: dict[int, int] = field(default_factory=dict)
    """Of days that were never reconciled."""


def count_unbilled(rows: pl.DataFrame, billed: Billed, before_ms: int) -> UnbilledEvents:
    """The events of days before `before_ms` that the runs of these days have not read."""
    late, never = dict[int, int](), dict[int, int]()
    news = codes_of(rows["decision"]) != Decision.COPY
    partitions, offsets = rows["partition"].to_numpy(), rows["offset"].to_numpy()
    starts = rows["time_ms"].to_numpy() // DAY_MS * DAY_MS
    for day_ms in map(int, np.unique(starts[starts < before_ms])):
        at = (starts == day_ms) & news
        if (ends := billed.get(day_ms)) is None:
            never[day_ms] = int(at.sum())
        elif ends:
            up_to = np.zeros(max(*ends, int(partitions.max())) + 1, np.int64)
            up_to[list(ends)] = list(ends.values())
            late[day_ms] = int((offsets[at] >= up_to[partitions[at]]).sum())
    return UnbilledEvents(*({day_ms: n for day_ms, n in counts.items() if n} for counts in (late, never)))


def count_alone(rows: pl.DataFrame, day_ms: int) -> CountedRows:
    """What rows of a day add if each is the only one of its id. Rows of other days are passed over."""
    rows = rows_of_day(rows, day_ms)
    own = rows["partition"].to_numpy() < PARTITIONS_APART
    plain = own & (codes_of(rows["decision"]) == Decision.COUNTED) & (rows["weight"].to_numpy() == 1)
    special = rows[np.flatnonzero(~plain)].with_columns(cause=CAUSE, factor=FACTOR).filter(pl.col("factor") != 0)
    return CountedRows(pl.concat([exact_sums(rows), weighted_sums(special)]), row_totals(rows))


DECISION, WEIGHT = pl.col("decision"), pl.col("weight").cast(pl.Int64)
FACTOR = (
    pl.when(ELSEWHERE)
    .then(1)
    .when(DECISION == "counted")
    .then(1 - WEIGHT)
    .when(DECISION == "copy")
    .then(0)
    .otherwise(1)
)
"""What has to be added to the stream's number for a row that counts, in rows like it."""
CAUSE = (
    pl.when(ELSEWHERE).then(pl.lit(Cause.OTHER_REGION))
    .when((DECISION == "too-late") & pl.col("sent_again")).then(pl.lit(Cause.SENT_AGAIN))
    .when(DECISION == "too-late").then(pl.lit(Cause.LATE)).when(DECISION == "doubt").then(pl.lit(Cause.DOUBT)).otherwise(pl.lit(Cause.SHED))
)  # fmt: skip
"""Why it has to be added, for a row that is the only one of its id."""


def row_totals(rows: pl.DataFrame) -> Totals:
    """How many rows there are, and the digest of which ones."""
    where = rows["partition"].to_numpy().astype(np.uint64) << np.uint64(48) ^ rows["offset"].to_numpy().astype(
        np.uint64
    )
    return Totals(len(rows), int(mix_bits(where).sum(dtype=np.uint64)))
